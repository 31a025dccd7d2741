# Check that everything works: seconds on any machine, on the stories.
#   python train.py config/debug.py
dataset = "stories"
out_dir = "out/debug"

n_layer = 2
n_head = 2
n_embd = 64
block_size = 64
batch_size = 8
gradient_accumulation_steps = 2  # 2 × 8 × 64 = 1,024 tokens per step

learning_rate = 1e-2
max_iters = 100
warmup_iters = 10
eval_interval = 50
eval_iters = 10
log_interval = 10
