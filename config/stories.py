# The quick start
dataset = "stories"
out_dir = "out/stories"
n_layer = 4
n_head = 4
n_embd = 128
block_size = 256
batch_size = 16
gradient_accumulation_steps = 1
position="rope"; norm="rmsnorm"; mlp="relu2"; qk_norm=True; tie_weights=False; init="zero"; softcap=15.0
optimizer="muon"; learning_rate=1e-2; muon_learning_rate=0.02; weight_decay=0.0; schedule="linear"; min_lr=0.0
max_iters = 1000
warmup_iters = 10
eval_interval = 250
eval_iters = 10
log_interval = 10
