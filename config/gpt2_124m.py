# GPT-2 124M on 10 billion tokens of FineWeb-Edu, from scratch; on 1, 2, 4, 5 or 8 GPUs:
#   python prepare_data.py fineweb_edu --shards=99        (20 GB of GPT-2 tokens)
#   torchrun --standalone --nproc_per_node=8 train.py config/gpt2_124m.py
# nanoGPT's data/openwebtext, if you have it, works too: --dataset=openwebtext
dataset = "fineweb_edu"
out_dir = "out/gpt2_124m"

# The default model. 50,257 tokens, padded to a multiple of 128; the padding is never sampled.
vocab_size = 50304

batch_size = 12  # fits in 40 GB; with less memory use 6 and twice the accumulation steps
block_size = 1024
gradient_accumulation_steps = 5 * 8  # 40 × 12 × 1,024 = 491,520 tokens per step

_tokens = 10e9
max_iters = int(_tokens / (gradient_accumulation_steps * batch_size * block_size))  # 20,345
learning_rate = 6e-4
min_lr = 6e-5
warmup_iters = 700
weight_decay = 0.1

eval_interval = 500
eval_iters = 100
log_interval = 10
