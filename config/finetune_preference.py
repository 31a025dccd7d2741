# Preferences: of two ways to go on with a story, the one with blue things is better (DPO).
#   python finetune.py config/finetune_preference.py
# On two CPU cores about a minute; then three things in four are blue, in English and in Chinese.
task = "preference"
dataset = "stories/tasks/preference"
init_from = "out/stories"
out_dir = "out/blue"

batch_size = 16  # pairs
epochs = 1
preference_beta = 1.0
learning_rate = 1.5e-4  # with 1e-3 it writes nothing but "blue" (docs/numbers.md)

eval_iters = 2  # batches
eval_interval = 31
