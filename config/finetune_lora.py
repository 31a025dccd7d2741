# LoRA on a published language model with your own conversations: a starting point.
#   python finetune.py config/finetune_lora.py --init_from=Qwen/Qwen3-0.6B --dataset=my_chats.jsonl
# The base is kept in float32, 4 bytes per weight: 2.4 GB for this one, 30 GB for 7 billion weights.
task = "chat"  # {"messages": [{"role": ..., "content": ...}]} per line, or Alpaca's
init_from = "Qwen/Qwen3-0.6B"
dataset = "my_chats.jsonl"
out_dir = "out/assistant"

method = "lora"
lora_rank = 16
lora_alpha = 32.0
lora_dropout = 0.05
merge = True  # out/assistant/merged.pt, for convert.py

block_size = 1024
batch_size = 4
gradient_accumulation_steps = 4  # 16 conversations per step
epochs = 3
learning_rate = 2e-4
schedule = "cosine"
eval_interval = 50
eval_iters = 25
