# Question answering: a sentence from a story and a question, answered in a word or two.
#   python finetune.py config/finetune_qa.py
# On two CPU cores 1:47, exact match 0.66.
task = "completion"
dataset = "stories/tasks/qa"
init_from = "out/stories"
out_dir = "out/qa"

batch_size = 64
epochs = 2.24
redraw = "attention"  # answers are copied, so relearn what to attend to (docs/speed.md)

optimizer = "muon"
learning_rate = 2e-2  # of the embedding and the head
muon_learning_rate = 0.06  # of the matrices between them
beta1 = 0.8

eval_iters = 3  # batches
eval_interval = 140
