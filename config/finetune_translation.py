# Translation of sentences, from English to Chinese and from Chinese to English.
#   python finetune.py config/finetune_translation.py
# On two CPU cores 1:47, BLEU 66.
task = "completion"
dataset = "stories/tasks/translation"
init_from = "out/stories"
out_dir = "out/translation"

batch_size = 48
epochs = 3.6
redraw = "attention"  # answers are copied, so relearn what to attend to (docs/speed.md)

optimizer = "muon"
learning_rate = 2e-2  # of the embedding and the head
muon_learning_rate = 0.06  # of the matrices between them
beta1 = 0.8

eval_iters = 2  # batches
eval_interval = 150
