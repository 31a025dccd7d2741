# A small Llama on 10 billion tokens of FineWeb-Edu: config/gpt2_124m.py with rotary positions,
# RMSNorm, SwiGLU, grouped-query attention, an untied head and a higher learning rate.
#   python prepare_data.py fineweb_edu --shards=99
#   torchrun --standalone --nproc_per_node=8 train.py config/llama_150m.py
dataset = "fineweb_edu"
out_dir = "out/llama_150m"

n_layer = 12
n_head = 12
n_kv_head = 4  # each is shared by three query heads
n_embd = 768
norm = "rmsnorm"
position = "rope"
mlp = "swiglu"
tie_weights = False
narrow_residual = True  # 16 bits: a few per cent faster
vocab_size = 50304

batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8  # 40 × 12 × 1,024 = 491,520 tokens per step

_tokens = 10e9
max_iters = int(_tokens / (gradient_accumulation_steps * batch_size * block_size))  # 20,345
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 700
weight_decay = 0.1

eval_interval = 500
eval_iters = 100
log_interval = 10
