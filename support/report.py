"""What the user sees of a run: its plan, log lines and a progress bar, and a plot at the end."""

import json
import math
import re
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from tqdm import tqdm

from model import IGNORED, causal_attention, rows_per_piece
from support.checkpoint import BEST
from support.files import fall_silent, replacing, replacing_figure
from support.metrics import width
from support.tokenizer import visible

# Peak FLOP/s of 16-bit matrix products, from the manufacturers' data sheets.
PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "4090": 165e12,
    "3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}
COLUMNS = 80
QUOTE = "  | "
TRACKERS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}  # log_to -> its module
PYTORCH_BYTES = 330_000_000  # of a process, before it has a model
LOGITS_BYTES = 4 + 4 + 2  # per logit held at once: itself, its gradient, a 16-bit copy
BEFORE_FIRST_TARGET, ROWS_SHOWN = 8, 3  # how much of a batch a dry run shows
LARGE, HIGH_RATE = 50_000_000, 2e-3  # weights, and from which learning rate on to warn about them
MOST_EPOCHS, FEW_EPOCHS = 6, 4  # passes over a text: from when on to warn, what to advise instead
SMOOTHED_POINTS = 50  # roughly as many independent points make up the plot's smoothed line


class Report:
    """Log lines for the user (nanoGPT's), `log.jsonl` for programs, `loss.png` at the end."""

    def __init__(self, config, model, world, resumed=None):
        self.config, self.world = config, world
        self.flops_per_token = flops_per_token(model, config.block_size)
        self.log = Path(config.out_dir) / "log.jsonl"
        self.track, self.unread = track_nothing, False
        first_step = resumed["step"] if resumed else 0
        if world.is_main:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            cut_back(self.log, first_step)
            self.track = tracker(config)
        hidden = None if world.is_main else True  # None: hidden where there is no terminal
        total = None if config.max_minutes else config.max_iters
        self.bar = tqdm(total=total, initial=first_step, unit="step", disable=hidden)
        self.updates, self.tokens, self.seconds = 0, 0, 0.0
        self.shown = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()
        if self.world.is_main and draw(self.log):
            self.say(f"losses: {self.log.with_name('loss.png')}")

    def say(self, line):
        """Print a line above the progress bar; note if nobody reads it: the run may then end."""
        try:
            tqdm.write(line)
            sys.stdout.flush()
        except OSError:  # the pipe or the terminal was closed
            fall_silent()
            self.unread = True

    def show_optimizers(self, optimizers):
        """Print how many weights each optimizer trains, and at which peak learning rates."""
        for optimizer in optimizers:
            groups = optimizer.param_groups
            weights = [p for group in groups for p in group["params"]]
            rates = sorted({group.get("initial_lr", group["lr"]) for group in groups})
            self.say(
                f"{type(optimizer).__name__} trains {len(weights)} tensors, "
                f"{sum(p.numel() for p in weights):,} parameters, at a learning rate of "
                + " to ".join(f"{float(rate):g}" for rate in dict.fromkeys((rates[0], rates[-1])))
            )

    def start_step(self):
        """Start the clock: what happens between two steps counts towards neither."""
        self.clock = perf_counter()

    def step(self, progress, n_tokens, loss, grad_norm, **more):
        """Count an update, and log it every log_interval steps. loss is this process's part.

        The keyword arguments in `more` go into the log under their names.
        """
        self.seconds += perf_counter() - self.clock
        self.updates, self.tokens = self.updates + 1, self.tokens + n_tokens
        self.bar.update()
        if not math.isfinite(grad_norm):
            self.say(f"iter {progress.step}: the gradient is not finite; skipping this update")
        if progress.step % self.config.log_interval:
            return
        (loss,) = self.world.sum(loss.item())
        per_second = self.tokens / self.seconds
        self.bar.set_postfix_str(f"{per_second:,.0f} tokens/s, {self.speed(per_second)}")
        self.say(
            f"iter {progress.step}: loss {loss:.4f}, "
            f"time {1000 * self.seconds / self.updates:.2f}ms, "
            f"{self.speed(per_second)}, {per_second:,.0f} tokens/s, norm {grad_norm:.2f}"
        )
        self.write(
            step=progress.step,
            loss=loss,
            grad_norm=grad_norm,
            **more,
            minutes=progress.minutes,
            tokens_per_second=per_second,
        )
        self.updates, self.tokens, self.seconds = 0, 0, 0.0

    def show(self, text):
        """Keep a text to print below the numbers of the evaluation it belongs to."""
        self.shown.append(text)

    def evaluated(self, progress, numbers):
        """Log an evaluation."""
        self.say(in_columns(f"step {progress.step}: {in_words(numbers)}"))
        while self.shown:
            self.say(self.shown.pop(0))
        self.write(step=progress.step, minutes=progress.minutes, **numbers)

    def speed(self, tokens_per_second):
        """The utilisation of the machine: MFU if its peak is known, else GFLOP/s."""
        flops = tokens_per_second * self.flops_per_token
        if self.world.device.type == "cuda":
            name = torch.cuda.get_device_name(self.world.device)
            for part, peak in PEAKS.items():
                if re.search(rf"\b{part}\b", name):
                    return f"mfu {flops / peak / self.world.size:.2%}"
        return f"{flops / 1e9:,.0f} GFLOP/s"

    def write(self, **numbers):
        """Add a line to log.jsonl, and send its numbers to the tracker."""
        if not self.world.is_main:
            return
        plain = {name: as_json_has_it(value) for name, value in numbers.items()}
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")
        self.track({k: v for k, v in plain.items() if isinstance(v, (int, float))}, plain["step"])


def as_json_has_it(value):
    """Tensors and arrays as numbers and lists; None for a number that is not finite."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def farewell(progress, config, task=None, start="…"):
    """Why the run ended, and what to type next: with a fine-tuned model, as its `task` is asked,
    for which `start` is a prompt.
    """
    place = f"--out_dir={config.out_dir}"
    script = "train.py" if task is None else "finetune.py"
    resume = f"python {script} --init_from=resume {place}"
    if progress.step >= config.max_iters:
        why = f"all {progress.step:,} steps are done"
        resume += f" --max_iters={2 * max(1, progress.step)}"
    elif not progress.is_over(config):
        why = f"stopped at step {progress.step:,}"
    elif 0 < config.patience <= progress.without_gain:
        why = f"no better {config.best_metric} in {config.patience} evaluations"
        resume += f" --patience={2 * config.patience}"
    else:
        why = f"the {config.max_minutes:g} minutes are up"
        resume += f" --max_minutes={2 * config.max_minutes:g}"
    if progress.without_gain and progress.best is not None:
        why += f"; the best {config.best_metric} was {progress.best:.4g}, in {BEST}"
    options = {None: "", "text": "", "chat": " --chat"}.get(task, f' --start="{start}"')
    next_steps = [f"to sample:   python sample.py {place}{options}"]
    if task not in (None, "text"):
        options = " --chat" if task == "chat" else ""
        next_steps.append(f"for a file:  python sample.py {place}{options} --lines=FILE")
    return "\n".join([why, *next_steps, f"to continue: {resume}"])


def in_words(numbers):
    """An evaluation as readable text: train loss 1.2345, val loss 1.3456, bits/byte 0.4321"""
    words = []
    for name, number in numbers.items():
        digits = ".4f" if name.endswith("loss") else ".4g"
        words.append(f"{name.replace('_per_', '/').replace('_', ' ')} {number:{digits}}")
    return ", ".join(words)


def in_columns(text):
    """The text wrapped only after commas, so that no number is separated from its name."""
    glued = text.replace(" ", "\0").replace(",\0", ", ")
    return textwrap.fill(glued, COLUMNS, subsequent_indent="  ").replace("\0", " ")


def quoted(text):
    """A model's own text behind bars, wrapped at spaces or between Chinese characters."""
    rows = []
    for line in text.splitlines():
        row = QUOTE
        for part in re.findall(r"[⺀-￯]|\s*[^\s⺀-￯]+|\s+", line):
            if width(row + part) > COLUMNS and row != QUOTE:
                rows.append(row)
                row, part = QUOTE, part.lstrip()
            row += part
        rows.append(row)
    return "\n".join(rows)


def read_log(path):
    """The lines of a log.jsonl as dicts; a line that was cut off is skipped."""
    records = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def cut_back(path, step):
    """Remove from a log what a run resumed at `step` will log again."""
    kept = [
        record
        for record in read_log(path)
        if record["step"] < step or (record["step"] == step and "loss" not in record)
    ]
    with replacing(path, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)


def track_nothing(numbers, step):
    """The tracker if `log_to` names none."""


def check_tracker(config):
    """Exit if the package that `log_to` names is not installed."""
    try:
        if config.log_to in TRACKERS:
            import_module(TRACKERS[config.log_to])
    except ImportError:
        raise SystemExit(f"log_to={config.log_to} needs: pip install {config.log_to}") from None


def tracker(config):
    """A function (numbers, step) that sends the numbers to the tracker `log_to` names."""
    if config.log_to == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(config.out_dir)

        def to_tensorboard(numbers, step):
            for name, number in numbers.items():
                writer.add_scalar(name, number, step)
            writer.flush()

        return to_tensorboard
    if config.log_to == "wandb":
        import wandb

        run = wandb.init(
            project=config.wandb_project, name=config.wandb_run_name, config=asdict(config)
        )
        return lambda numbers, step: run.log(numbers, step=step)
    return track_nothing


def draw(log):
    """Plot the losses of a log as loss.png beside it; return whether there were any to plot."""
    records = read_log(log)
    updates = [record for record in records if record.get("loss") is not None]
    evaluations = [record for record in records if record.get("val_loss") is not None]
    if len(updates) < 2:
        return False
    losses = [record["loss"] for record in updates]
    width = 1 + len(losses) // SMOOTHED_POINTS
    smooth = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    steps = [record["step"] for record in updates]
    title = str(log.parent) if str(log.parent).isascii() else ""  # not every font has every letter
    with replacing_figure(log.with_name("loss.png"), inches=(8, 4.5)) as axes:
        axes.plot(steps, losses, color="C0", alpha=0.25, lw=0.8)
        axes.plot(steps[width - 1 :], smooth, color="C0", label="training")
        axes.plot(
            [record["step"] for record in evaluations],
            [record["val_loss"] for record in evaluations],
            color="C1",
            linestyle=":",
            marker="o",
            ms=4,
            label="validation",
        )
        axes.set(xlabel="step", ylabel="loss, nats per target")
        axes.set_title(title, parse_math=False)
        axes.grid(alpha=0.3)
        axes.legend()
    return True


# ---------------------------------------------------------------------------------- the plan


def flops_per_token(model, block_size):
    """FLOPs to train on one token of a window: 6 for each weight of a matrix, plus attention's.

    Two are for the forward pass, four for the backward pass (PaLM, arXiv:2204.02311, appendix B).
    """
    config = model.config
    weights = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    weights += model.head.weight.numel()
    attention = config.n_layer * config.n_head * config.head_channels * block_size
    return 6 * weights + 12 * attention


# A compiler's half minute is gained back after so many passes of a small model, whose kernels are
# shorter than Python's calls, or so many FLOPs of a large one.
LONG_RUN_PASSES, LONG_RUN_PASSES_RECORDED, LONG_RUN_FLOPS = 5_000, 20_000, 1e16


def is_long(model, config, steps, processes=1):
    """Whether a run of so many steps gains more by compiling than the compiler takes."""
    is_recorded = config.record and processes == 1
    long = LONG_RUN_PASSES_RECORDED if is_recorded else LONG_RUN_PASSES
    flops = steps * tokens_per_step(config) * flops_per_token(model, config.block_size)
    passes = steps * config.gradient_accumulation_steps
    return passes >= long or flops >= LONG_RUN_FLOPS


def show_formulas(model):
    """Print which formulas of model.py are used since the kernels give something else."""
    config = model.config
    attends = [getattr(module, "attend", None) for module in model.modules()]
    if config.fused_attention == "auto" and causal_attention in attends:
        print("attention by the formula in model.py, which differs from the kernel's")
    if config.fused_loss and not model.fused_loss:
        print("loss by next_token_loss in model.py, which differs from the one in pieces")


def tokens_per_step(config):
    return config.batch_size * config.gradient_accumulation_steps * config.block_size


def show_plan(model, config, dataset, world):
    """Print the plan of a run: nanoGPT's lines, and for a dry run also its cost and memory."""
    per_step = tokens_per_step(config)
    n_weights = sum(p.numel() for p in model.parameters())
    counted = n_weights - sum(p.numel() for p in model.position.parameters())  # as in nanoGPT
    precision = str(world.dtype).removeprefix("torch.")
    print(f"found vocab_size = {dataset.vocab_size} (inside {dataset.path})")
    print(f"tokens per iteration will be: {per_step:,}")
    print(f"number of parameters: {counted / 1e6:.2f}M")
    print(f"running on {world.device} in {precision}, processes: {world.size}")
    show_formulas(model)
    if dataset.floor and config.target_shift == 1 and config.causal:
        print(f"no model can go below {dataset.floor:.4f} bits per byte on these data")
    epochs = 0 if config.max_minutes else config.max_iters * per_step / len(dataset.train)
    for warning in () if config.eval_only else doubts(config, epochs, n_weights):
        print(f"warning: {warning}")
    if config.dry_run:
        show_cost(model, config, dataset, world)


def show_cost(model, config, dataset, world):
    """Print what the run would cost, which also checks that its settings work together."""
    per_step = tokens_per_step(config)
    tokens = config.max_iters * per_step
    per_token = flops_per_token(model, config.block_size)
    limit = "at most " if config.max_minutes else ""
    rows = {
        "data": f"{len(dataset.train):,} training tokens, {len(dataset.val):,} validation tokens",
        "run": f"{limit}{config.max_iters:,} steps, {tokens:,} tokens, "
        f"{tokens / len(dataset.train):.2f} epochs",
        "cost": f"{per_token / 1e6:,.1f} MFLOP per token, "
        f"{per_token * per_step / 1e9:,.0f} GFLOP per step, "
        f"{per_token * tokens / 1e15:,.3f} PFLOP in total",
        "evaluation": f"{math.ceil(config.max_iters / config.eval_interval) + 1} times, "
        f"{config.eval_iters or 'all'} batches of each split",
    }
    for name, text in rows.items():
        print(textwrap.fill(f"  {name:<11}{text}", COLUMNS, subsequent_indent=" " * 13))
    show_memory(model, config, world, config.block_size)


def show_memory(model, config, world, length, rows=1):
    """Print the memory that a run with `rows` of `length` tokens for each example needs."""
    memory = memory_parts(model, config, world, length, rows)
    total = sum(memory.values())
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in memory.items())
    text = (
        f"  memory     at least {total / 1e6:,.0f} MB per process, for rows of {length:,}: {parts}"
    )
    print(textwrap.fill(text, COLUMNS, subsequent_indent=" " * 13))


def memory_parts(model, config, world, length, rows=1):
    """The memory that training needs: {part: bytes}. Activations are measured, not estimated."""
    weights = bytes_of(model.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    in_muon = [p for p in model.blocks.parameters() if p.requires_grad and p.dim() == 2]
    states = 2 * bytes_of(trained) - (bytes_of(in_muon) if config.optimizer == "muon" else 0)
    one, two = (saved_bytes(model, world, sequences, length) for sequences in (1, 2))
    sequences, vocab_size = config.batch_size * rows, model.head.out_features
    scored = sequences * length
    if model.fused_loss and rows == 1:  # pairs are scored all at once
        scored = min(scored, rows_per_piece(vocab_size, world.device))
    return {
        "PyTorch": PYTORCH_BYTES,
        "weights": weights + (bytes_of(trained) if config.ema_decay else 0),
        "gradients": bytes_of(trained),
        "optimizer": states,
        "activations": one + (sequences - 1) * (two - one),
        "logits": LOGITS_BYTES * scored * vocab_size,
    }


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved_bytes(model, world, sequences, length):
    """Bytes that a forward pass over sequences of this length saves for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.zeros(sequences, length, dtype=torch.long, device=world.device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), world.precision():
        _graph = model(tokens, tokens)  # kept alive, so that no storage's address is reused
    return sum(saved.values())


def show_shift(batch, tokenizer, labels=()):
    """Print some tokens of a batch, each input above its target: what the model is to learn.

    The row shown is the first; it begins shortly before the first target that counts. Targets are
    tokens or, for a model with a head for `labels`, one of these.
    """
    inputs, targets = (batch[name][0].tolist() for name in ("inputs", "targets"))
    first = next((i for i, target in enumerate(targets) if target != IGNORED), 0)
    start = max(0, first - BEFORE_FIRST_TARGET)
    rows = [["  inputs ", "  targets"]]
    for token, target in zip(inputs[start:], targets[start:]):
        below = str(IGNORED)
        if target != IGNORED:
            below = labels[target] if labels else visible(tokenizer, target)
        pair = [visible(tokenizer, token), below]
        columns = 1 + max(map(width, pair))
        cells = [" " + text + " " * (columns - 1 - width(text)) for text in pair]
        if width(rows[-1][0]) + columns > COLUMNS:
            if len(rows) == ROWS_SHOWN:
                break
            rows.append([" " * 9, " " * 9])
        rows[-1] = [row + cell for row, cell in zip(rows[-1], cells)]
    for pair in rows:
        print("\n".join(row.rstrip() for row in pair))


def doubts(config, epochs, n_weights):
    """Warnings about settings that work, but hardly as intended. epochs: passes over the text."""
    is_trained = config.init_from not in ("scratch", "resume")
    if is_trained and n_weights >= LARGE and config.learning_rate >= HIGH_RATE:
        yield (
            f"learning_rate={config.learning_rate:g} is for small models, and would ruin a large "
            "one that is already trained; try --optimizer=adamw --learning_rate=3e-5"
        )
    if config.warmup_iters >= config.max_iters > 0:
        yield f"warmup_iters={config.warmup_iters} lasts the whole run of {config.max_iters}"
    if (config.lr_decay_iters or 0) > config.max_iters:
        yield f"lr_decay_iters={config.lr_decay_iters} is not reached: the learning rate stays high"
    if config.min_lr > config.learning_rate:
        yield f"min_lr={config.min_lr:g} is above learning_rate={config.learning_rate:g}"
    if config.ngrams > 1 and epochs > 2:
        yield (
            f"ngrams={config.ngrams}: in {epochs:.1f} epochs the model will memorise the text's "
            "n-grams; turn them off with --ngrams=1, or use more text"
        )
    elif epochs > MOST_EPOCHS and not (config.dropout or config.patience):
        steps = math.ceil(config.max_iters * FEW_EPOCHS / epochs)
        yield (
            f"{config.max_iters:,} steps read the text {epochs:.0f} times, and the model will "
            f"memorise it; try --max_iters={steps}, --dropout=0.1 or --patience=2"
        )
    if not config.causal:
        yield "causal=False: each position sees the token it has to predict; no sample is shown"
    if config.target_shift != 1:
        yield f"target_shift={config.target_shift}: the model will not predict the next token"


@contextmanager
def advice_on_memory(config):
    """A context that turns an out-of-memory error into advice on the settings to try instead."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        phrases = "not enough memory", "can't allocate memory", "out of memory"
        known = isinstance(error, torch.OutOfMemoryError) or any(p in str(error) for p in phrases)
        if not known:
            raise
        batch, times = config.batch_size, config.gradient_accumulation_steps
        smaller = max((n for n in range(1, batch) if batch % n == 0), default=1)
        advice = f"--batch_size={smaller} --gradient_accumulation_steps={times * batch // smaller}"
        if batch == 1:
            half = f"={config.block_size // 2}" if config.block_size else " (half of the model's)"
            advice = f"--block_size{half}"
        if not config.gradient_checkpointing:
            advice += ", or --gradient_checkpointing=True"
        on_a_gpu = torch.cuda.is_available() and isinstance(error, torch.OutOfMemoryError)
        if on_a_gpu and config.record:
            advice += ", or --record=False"
        raise SystemExit(f"out of memory with batch_size={batch}; try {advice}") from None
