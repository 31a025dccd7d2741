# One dial, the depth, determines everything else: nothing is left to tune.
#   python prepare_data.py python
#   python train.py config/depth.py              two layers, 40 seconds on two CPU cores
#   python train.py config/depth.py --n_layer=4 --out_dir=out/depth4
n_layer = int(_typed.get("n_layer", 2))  # the dial: from the command line, else 2  # noqa: F821
dataset = "python"
out_dir = "out/depth"

# Each layer adds 48 channels, in heads of 64.
n_head = max(2, -(-n_layer * 48 // 64))
n_embd = 64 * n_head
block_size = 256
norm = "layernorm"
position = "rope"
qk_norm = True
mlp = "relu2"
tie_weights = False
init = "zero"

# Two tokens for each weight of the blocks; ten times as many are better, but take ten times longer.
_weights = 12 * n_layer * n_embd**2
batch_size = 8 + 2 * n_layer  # a larger model benefits from less noisy gradients
gradient_accumulation_steps = 1
max_iters = 2 * _weights // (batch_size * block_size)

# Muon's updates change a matrix by the same fraction at any width, so its learning rate is fixed.
# AdamW's decreases with the square root of the width.
optimizer = "muon"
learning_rate = 4e-2 * (128 / n_embd) ** 0.5
muon_learning_rate = 0.06
beta1 = 0.8
weight_decay = 0.0
schedule = "linear"
warmup_iters = 0
min_lr = 0.0

eval_interval = max(1, max_iters // 4)
eval_iters = 20
log_interval = 20
