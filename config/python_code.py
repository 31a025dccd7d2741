# Real text that is on every machine: the source of Python's standard library.
#   python prepare_data.py python && python train.py config/python_code.py
dataset = "python"
out_dir = "out/python"

n_layer = 3
n_head = 2
n_embd = 192
block_size = 256
norm = "layernorm"
position = "rope"
ngrams = 3  # no text is seen twice, so they cannot overfit
qk_norm = True
mlp = "relu2"
tie_weights = False
init = "zero"

batch_size = 12
gradient_accumulation_steps = 1  # 12 × 256 = 3,072 tokens per step

optimizer = "muon"
learning_rate = 2e-2  # of the embeddings and the head
muon_learning_rate = 0.06  # of the matrices between them
beta1 = 0.8
weight_decay = 0.1
schedule = "linear"
warmup_iters = 0
min_lr = 0.0
max_iters = 800

eval_interval = 200
eval_iters = 20
log_interval = 20
