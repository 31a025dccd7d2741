# nanoGPT's own recipe for a CPU, unchanged: the same model, optimizer and steps, to compare with.
# 68 seconds on two CPU cores with bfloat16; ends near 1.90.
#   python prepare_data.py shakespeare --dataset=shakespeare_char --tokenizer=char
#   python train.py config/shakespeare_char_plain.py
dataset = "shakespeare_char"
out_dir = "out/shakespeare_char_plain"

n_layer = 4
n_head = 4
n_embd = 128
block_size = 64

batch_size = 12
gradient_accumulation_steps = 1  # 12 × 64 = 768 tokens per step

learning_rate = 1e-3
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
max_iters = 2000

eval_interval = 250
eval_iters = 20
log_interval = 100
