# nanoGPT's CPU example, faster: character-level tiny Shakespeare with a context of 64.
#   python prepare_data.py shakespeare --dataset=shakespeare_char --tokenizer=char
#   python train.py config/shakespeare_char.py
# 44 seconds on two CPU cores without bfloat16; ends near 1.62, where nanoGPT's CPU recipe ends near
# 1.90 after 142 seconds; 60 steps (--max_iters=60) take 13 seconds and reach 1.86.
dataset = "shakespeare_char"
out_dir = "out/shakespeare_char"

n_layer = 2
n_head = 4
n_embd = 128
block_size = 64
ngrams = 5  # look up groups of two to five characters: half the layers and steps suffice
norm = "layernorm"
position = "rope"
qk_norm = True
mlp = "relu2"
tie_weights = False
init = "zero"

batch_size = 16
gradient_accumulation_steps = 1  # 16 × 64 = 1,024 tokens per step

optimizer = "muon"
learning_rate = 6e-2  # of the embeddings and the head
muon_learning_rate = 0.06  # of the matrices between them
beta1 = 0.7
weight_decay = 0.0
schedule = "linear"
warmup_iters = 0
min_lr = 0.0
max_iters = 400  # 0.4 epochs: no text is seen twice

eval_interval = 100
eval_iters = 20
log_interval = 10
