# The quick start: a small transformer learns to tell stories in English and Chinese.
#   python prepare_data.py && python train.py && python sample.py
# Two minutes on two CPU cores, 4:28 on older ones without bfloat16; ends near 0.321 bits per byte,
# where the floor is 0.218.
dataset = "stories"
out_dir = "out/stories"

# Of the 1.6 million weights, a million embed and score the 4,096 tokens.
n_layer = 3
n_head = 2
n_embd = 128
block_size = 256  # about one story
norm = "layernorm"
position = "rope"
qk_norm = True
mlp = "relu2"
tie_weights = False
init = "zero"

batch_size = 12
gradient_accumulation_steps = 1  # 12 × 256 = 3,072 tokens per step

optimizer = "muon"
learning_rate = 3e-2  # of the embedding and the head
muon_learning_rate = 0.06  # of the matrices between them
beta1 = 0.8
weight_decay = 0.1  # costs 0.002 bits per byte, but the model then learns tasks far better
schedule = "linear"
warmup_iters = 0
min_lr = 0.0
max_iters = 660

eval_interval = 220
eval_iters = 20
log_interval = 20
