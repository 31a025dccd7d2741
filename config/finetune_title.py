# Titles: from two sentences of a story to its title.
#   python finetune.py config/finetune_title.py
# On two CPU cores 1:25, exact match 0.96.
task = "completion"
dataset = "stories/tasks/title"
init_from = "out/stories"
out_dir = "out/title"

batch_size = 48
epochs = 14  # names are copied, which is learned last

optimizer = "muon"
learning_rate = 2e-2  # of the embedding and the head
muon_learning_rate = 0.06  # of the matrices between them
beta1 = 0.8

eval_iters = 3  # batches
eval_interval = 100
