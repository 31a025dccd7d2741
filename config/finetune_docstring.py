# Real text: from the source of a function in Python's standard library to its docstring.
#   python prepare_data.py python && python train.py config/python_code.py
#   python finetune.py config/finetune_docstring.py
#   python sample.py --out_dir=out/docstring --start=FILE:asked.py --temperature=0 --num_samples=1
# where asked.py contains a function without its docstring, an empty line, its first line again and,
# on a line of its own after four spaces, """.
# 2:26 on two CPU cores, token F1 0.21, as the docstring of the most similar function gets.
task = "completion"
dataset = "python/tasks/docstring"
init_from = "out/python"
out_dir = "out/docstring"

block_size = 128  # the prompt repeats a function's first line at the end, which is kept
batch_size = 16
epochs = 3
dropout = 0.2

optimizer = "muon"
learning_rate = 3e-3  # of the embedding and the head
muon_learning_rate = 0.01  # of the matrices between them
beta1 = 0.8

eval_interval = 10000  # only at the start and end: too few answers to pick the best step
