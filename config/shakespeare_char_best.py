# The loss that nanoGPT reaches on a GPU in 3 minutes (1.4697), on two CPU cores in under 10.
#   python prepare_data.py shakespeare --dataset=shakespeare_char --tokenizer=char
#   python train.py config/shakespeare_char_best.py
dataset = "shakespeare_char"
out_dir = "out/shakespeare_char_best"

n_layer = 6
n_head = 3
n_embd = 192
block_size = 256
norm = "layernorm"
position = "rope"
qk_norm = True
mlp = "relu2"
tie_weights = False
init = "zero"

# A million characters are seen more than four times, so dropout has to prevent overfitting. All
# sequences of a batch share a dropout mask, since a CPU is slow to sample them.
dropout = 0.1
attention_dropout = 0.0
shared_dropout = True

batch_size = 16
gradient_accumulation_steps = 1  # 16 × 256 = 4,096 tokens per step

optimizer = "muon"
learning_rate = 2e-2  # of the embedding and the head
muon_learning_rate = 0.03  # of the matrices between them
beta1 = 0.8
weight_decay = 0.1
schedule = "linear"
warmup_iters = 0
min_lr = 0.0
max_iters = 1150

eval_interval = 1150  # an evaluation takes ten seconds
eval_iters = 28  # all 435 windows of the validation split
log_interval = 20

compile = True  # costs up to 50 seconds and saves a sixth of a step; on a GPU, --compile=False
