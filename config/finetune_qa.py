# Question answering: a story and a question, answered in a word.
#   python prepare_data.py && python train.py && python finetune.py config/finetune_qa.py
task = "completion"
dataset = "stories/tasks/qa"
init_from = "out/stories"
out_dir = "out/qa"

fused_attention = False  # written out, attention over 256 positions is faster on a CPU
batch_size = 16
optimizer = "muon"
learning_rate = 1e-2
muon_learning_rate = 0.02
beta1 = 0.8
epochs = 1
eval_interval = 100
