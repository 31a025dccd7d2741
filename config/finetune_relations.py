# Relations: who did what to whom in a few sentences, a line for each event.
#   python finetune.py config/finetune_relations.py
# On two CPU cores 2:06, 0.25 of the facts (F1).
task = "completion"
dataset = "stories/tasks/relations"
init_from = "out/stories"
out_dir = "out/relations"

batch_size = 48
epochs = 3.6
redraw = "attention"  # answers are copied, so relearn what to attend to (docs/speed.md)

optimizer = "muon"
learning_rate = 2e-2  # of the embedding and the head
muon_learning_rate = 0.06  # of the matrices between them
beta1 = 0.8

eval_iters = 3  # batches
eval_interval = 300
