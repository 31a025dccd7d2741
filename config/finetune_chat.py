# Chat: the model tells a story a little at a time, and answers questions about it in between.
#   python finetune.py config/finetune_chat.py
# On two CPU cores 2:02; answers nearly half of the questions, and continues the story.
task = "chat"
dataset = "stories/tasks/chat"
init_from = "out/stories"
out_dir = "out/chat"

batch_size = 16
epochs = 2.4
redraw = "attention"  # answers are copied, so relearn what to attend to (docs/speed.md)

optimizer = "muon"
learning_rate = 2e-2  # of the embedding and the head
muon_learning_rate = 0.06  # of the matrices between them
beta1 = 0.8

eval_iters = 4  # batches
eval_interval = 150
