# Real text: which package of Python's standard library is a function from? Tested on files that
# neither this run nor its base has seen.
#   python prepare_data.py python && python train.py config/python_code.py
#   python finetune.py config/finetune_module.py
# 1:05 on two CPU cores, accuracy 0.65; a bag of words gets 0.53.
task = "classification"
dataset = "python/tasks/module"
init_from = "out/python"
out_dir = "out/module"

batch_size = 16
epochs = 2.256

optimizer = "muon"
learning_rate = 5e-3  # of the embedding and the head
muon_learning_rate = 0.02  # of the matrices between them
beta1 = 0.8

eval_interval = 100
