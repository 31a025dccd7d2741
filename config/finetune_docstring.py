# Real text: the source of a function of Python's standard library, and what its docstring says.
#   python prepare_data.py python && python train.py config/python_code.py
#   python finetune.py config/finetune_docstring.py
#   python sample.py --out_dir=out/docstring --start=FILE:asked.py --temperature=0 --num_samples=1
# where asked.py has a function without docstring, an empty line, its first line again and, on a
# line of its own behind four blanks, """.
# 2:34 on two CPU cores, token F1 0.21; the docstring of the most similar function has 0.18.
task = "completion"
dataset = "python/tasks/docstring"
init_from = "out/python"
out_dir = "out/docstring"

block_size = 128  # a function's beginning comes once more at the end, which is what is kept
batch_size = 16
epochs = 3
dropout = 0.2

optimizer = "muon"
learning_rate = 3e-3  # of the embedding and the head
muon_learning_rate = 0.01  # of the matrices between them
beta1 = 0.8

eval_interval = 10000  # at both ends alone: so few answers cannot tell which moment was the best
