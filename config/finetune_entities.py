# Named entities: who is the hero of a story, what is it about, who and what else appears in it?
#   python finetune.py config/finetune_entities.py
# On two CPU cores 0:49, F1 0.989.
task = "tagging"
dataset = "stories/tasks/entities"
init_from = "out/stories"
out_dir = "out/entities"

batch_size = 16
epochs = 1

optimizer = "muon"
learning_rate = 1e-2  # of the embedding and the head
muon_learning_rate = 0.04  # of the matrices between them
beta1 = 0.8

eval_interval = 125
