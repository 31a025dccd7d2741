# Classification: will the story end happily? Its ending is left out, and its plot is new.
#   python finetune.py config/finetune_mood.py
# On two CPU cores 0:20, accuracy 0.97; with LoRA (see the README) 0.96.
task = "classification"
dataset = "stories/tasks/mood"
init_from = "out/stories"
out_dir = "out/mood"

batch_size = 16
epochs = 1.44

optimizer = "muon"
learning_rate = 1e-3  # of the embedding and the head
muon_learning_rate = 0.005  # of the matrices between them
beta1 = 0.8

eval_interval = 15
