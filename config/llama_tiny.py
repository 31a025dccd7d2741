# The quick start as a small Llama, which transformers, vLLM and llama.cpp can run; it ends at 0.314
# bits per byte.
#   python prepare_data.py && python train.py config/llama_tiny.py
#   python convert.py out/llama_tiny --to=hf --out=out/llama_tiny_hf
#   python convert.py out/llama_tiny --to=gguf --out=out/llama_tiny.gguf
dataset = "stories"
out_dir = "out/llama_tiny"

n_layer = 3
n_head = 2
n_embd = 128
block_size = 256
norm = "rmsnorm"
position = "rope"
mlp = "swiglu"
tie_weights = False
init = "zero"

batch_size = 12
gradient_accumulation_steps = 1  # 12 × 256 = 3,072 tokens per step

optimizer = "muon"
learning_rate = 3e-2  # of the embedding and the head
muon_learning_rate = 0.06  # of the matrices between them
weight_decay = 0.0
schedule = "linear"
warmup_iters = 0
min_lr = 0.0
max_iters = 800

eval_interval = 200
eval_iters = 20
log_interval = 20
