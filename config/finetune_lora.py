# LoRA on a published language model with your own conversations: a starting point.
#   python finetune.py config/finetune_lora.py --init_from=Qwen/Qwen3-0.6B --dataset=my_chats.jsonl
# Where bfloat16 is fast, the base stays in it: steps of 16 conversations of up to 190 tokens took
# 6.4 GB and 13 s on two CPU cores, with --gradient_checkpointing=True 4.1 GB and 20 s.
# --lora_dropout=0.05 regularises, but on a CPU its random numbers take as long as all the rest.
task = "chat"  # {"messages": [{"role": ..., "content": ...}]} per line, or Alpaca's
init_from = "Qwen/Qwen3-0.6B"
dataset = "my_chats.jsonl"
out_dir = "out/assistant"

method = "lora"
lora_rank = 16
lora_alpha = 32.0
merge = True  # out/assistant/merged.pt, for convert.py

block_size = 1024
batch_size = 4
gradient_accumulation_steps = 4  # 16 conversations per step
epochs = 3
learning_rate = 2e-4
schedule = "cosine"
eval_interval = 50
eval_iters = 25
