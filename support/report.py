"""What a person sees of a run: a plan before, lines and a bar during it, a picture after."""

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

from model import rows_per_piece
from support.files import fall_silent, replacing
from support.metrics import width

# Operations a second on matrices of 16-bit floats, from the makers' data sheets.
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
LOGITS_BYTES = 4 + 4 + 2  # of one logit while its rows are at work: itself, its gradient, narrowed
SMOOTHED_POINTS = 50  # about as many independent ones has the smoothed line of the picture


class Report:
    """Lines for the eyes (nanoGPT's), `log.jsonl` for programs, and at the end `loss.png`."""

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
        self.clock = perf_counter()
        self.shown = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()
        if self.world.is_main and draw(self.log):
            self.say(f"losses: {self.log.with_name('loss.png')}")

    def say(self, line):
        """Print a line above the progress bar; take note where nobody reads it: the run may end."""
        try:
            tqdm.write(line)
            sys.stdout.flush()
        except OSError:  # a pipe was closed, or the terminal
            fall_silent()
            self.unread = True

    def step(self, progress, n_tokens, loss, grad_norm, **more):
        """Count an update, and at each log_interval tell of it. loss is this process's part.

        Whatever `more` is called goes into the log under that name.
        """
        now = perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        self.updates, self.tokens = self.updates + 1, self.tokens + n_tokens
        self.bar.update()
        if not math.isfinite(grad_norm):
            self.say(f"iter {progress.step}: the gradient is not finite, this update is skipped")
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
        """Keep a text to print below the numbers of the evaluation that it comes from."""
        self.shown.append(text)

    def evaluated(self, progress, numbers):
        """Tell of an evaluation; the time it took is nobody's step."""
        self.say(in_columns(f"step {progress.step}: {in_words(numbers)}"))
        while self.shown:
            self.say(self.shown.pop(0))
        self.write(step=progress.step, minutes=progress.minutes, **numbers)
        self.clock = perf_counter()

    def speed(self, tokens_per_second):
        """How hard the machine works: against its peak where that is known."""
        flops = tokens_per_second * self.flops_per_token
        if self.world.device.type == "cuda":
            name = torch.cuda.get_device_name(self.world.device)
            for part, peak in PEAKS.items():
                if re.search(rf"\b{part}\b", name):
                    return f"mfu {flops / peak / self.world.size:.2%}"
        return f"{flops / 1e9:,.0f} GFLOP/s"

    def write(self, **numbers):
        """Add a line to log.jsonl, and to what else keeps the log."""
        if not self.world.is_main:
            return
        plain = {k: v.item() if torch.is_tensor(v) else v for k, v in numbers.items()}
        finite = {k: v if math.isfinite(v) else None for k, v in plain.items()}
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
        self.track({k: v for k, v in finite.items() if v is not None}, numbers["step"])


def farewell(progress, config, start="…"):
    """Why the run ended, and what to type next; `start` is what a task is asked."""
    place = f"--out_dir={config.out_dir}"
    sample, resume = f"python sample.py {place}", f"--init_from=resume {place}"
    sample += {"": "", "text": "", "chat": " --chat"}.get(
        getattr(config, "task", ""), f' --start="{start}"'
    )
    if progress.step > config.max_iters:
        why = f"it has made {progress.step:,} steps; for more: {resume} --max_iters=MORE"
    elif progress.step == config.max_iters:
        why = f"all {config.max_iters:,} steps are made; for more: {resume} --max_iters=MORE"
    elif not progress.is_over(config):
        return f"stopped at step {progress.step:,}; to go on: {resume}"
    elif 0 < config.patience <= progress.without_gain:
        why = f"no better {config.best_metric} in {config.patience} evaluations"
        why += f"; to go on nevertheless: {resume} --patience=MORE"
    else:
        why = f"the {config.max_minutes:g} minutes are over"
    return f"{why}\nto see it write: {sample}"


def in_words(numbers):
    """An evaluation as a person reads it: train loss 1.2345, val loss 1.3456, bits/byte 0.4321"""
    words = []
    for name, number in numbers.items():
        digits = ".4f" if name.endswith("loss") else ".4g"
        words.append(f"{name.replace('_per_', '/').replace('_', ' ')} {number:{digits}}")
    return ", ".join(words)


def in_columns(text):
    """The text in lines that end behind commas alone: no number is torn from its name."""
    glued = text.replace(" ", "\0").replace(",\0", ", ")
    return textwrap.fill(glued, COLUMNS, subsequent_indent="  ").replace("\0", " ")


def quoted(text):
    """A model's own text behind bars, folded where a line ends: at a blank, or between 汉字."""
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
    """The lines of a log.jsonl as dicts; one that was cut off in writing is left out."""
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
    """Remove from a log what a run that goes on at `step` will tell again."""
    kept = [
        record
        for record in read_log(path)
        if record["step"] < step or (record["step"] == step and "loss" not in record)
    ]
    with replacing(path, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)


def track_nothing(numbers, step):
    """The tracker of those who want none."""


def check_tracker(config):
    """Exit where the program that `log_to` names is not installed."""
    try:
        if config.log_to in TRACKERS:
            import_module(TRACKERS[config.log_to])
    except ImportError:
        raise SystemExit(f"log_to={config.log_to} needs: pip install {config.log_to}") from None


def tracker(config):
    """A function (numbers, step) that also sends the log where `log_to` says."""
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
    """Draw the losses of a log beside it, as loss.png; whether there was anything to draw."""
    records = read_log(log)
    updates = [record for record in records if record.get("loss") is not None]
    looks = [record for record in records if record.get("val_loss") is not None]
    if len(updates) < 2:
        return False
    import matplotlib

    matplotlib.use("Agg")  # draws without a screen
    from matplotlib import pyplot

    losses = [record["loss"] for record in updates]
    width = 1 + len(losses) // SMOOTHED_POINTS
    smooth = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    steps = [record["step"] for record in updates]
    axes.plot(steps, losses, color="C0", alpha=0.25, lw=0.8)
    axes.plot(steps[width - 1 :], smooth, color="C0", label="training")
    axes.plot(
        [record["step"] for record in looks],
        [record["val_loss"] for record in looks],
        color="C1",
        marker="o",
        ms=4,
        label="validation",
    )
    title = str(log.parent) if str(log.parent).isascii() else ""  # not every font has every letter
    axes.set(xlabel="step", ylabel="loss, nats per target", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(log.with_name("loss.png"), dpi=120)
    pyplot.close(figure)
    return True


# ---------------------------------------------------------------------------------- the plan


def flops_per_token(model, block_size):
    """Operations to train on a token of a window: 6 for each weight of a product, and attention's.

    Two for the forward pass and four for the backward pass (PaLM, arXiv:2204.02311, appendix B).
    """
    config = model.config
    weights = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    weights += model.head.weight.numel()
    attention = config.n_layer * config.n_head * config.head_channels * block_size
    return 6 * weights + 12 * attention


def show_plan(model, config, dataset, world):
    """Print what a run will be: nanoGPT's lines, and for a dry run the cost and the memory too."""
    per_step = config.batch_size * config.gradient_accumulation_steps * config.block_size
    positions = sum(p.numel() for p in model.position.parameters())
    counted = sum(p.numel() for p in model.parameters()) - positions
    precision = str(world.dtype).removeprefix("torch.")
    print(f"found vocab_size = {dataset.vocab_size} (inside {dataset.path})")
    print(f"tokens per iteration will be: {per_step:,}")
    print(f"number of parameters: {counted / 1e6:.2f}M")
    print(f"running on {world.device} in {precision}, processes: {world.size}")
    if dataset.floor and config.target_shift == 1 and config.causal:
        print(f"no model can go below {dataset.floor:.4f} bits per byte on these data")
    epochs = config.max_iters * per_step / len(dataset.train)
    for warning in () if config.eval_only else doubts(config, epochs):
        print(f"warning: {warning}")
    if config.dry_run:
        show_cost(model, config, dataset, world, per_step)


def show_cost(model, config, dataset, world, per_step):
    """Print what the run would take, and that its settings go together."""
    tokens = config.max_iters * per_step
    each = flops_per_token(model, config.block_size)
    rows = {
        "data": f"{len(dataset.train):,} tokens to train on, {len(dataset.val):,} to validate with",
        "run": f"{config.max_iters:,} steps, {tokens:,} tokens, "
        f"{tokens / len(dataset.train):.2f} epochs",
        "cost": f"{each / 1e6:,.1f} MFLOP a token, {each * per_step / 1e9:,.0f} GFLOP a step, "
        f"{each * tokens / 1e15:,.3f} PFLOP in all",
        "evaluation": f"{math.ceil(config.max_iters / config.eval_interval) + 1} times, "
        f"{config.eval_iters or 'all'} batches of each split",
    }
    memory = memory_parts(model, config, world)
    total = sum(memory.values())
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in memory.items())
    rows["memory"] = f"about {total / 1e6:,.0f} MB in each process: {parts}"
    for name, text in rows.items():
        print(textwrap.fill(f"  {name:<11}{text}", COLUMNS, subsequent_indent=" " * 13))
    print("dry run: nothing was trained or written")


def memory_parts(model, config, world):
    """Bytes that training will hold: {part: bytes}. Activations are measured, not guessed."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    in_muon = sum(p.numel() * p.element_size() for p in model.blocks.parameters() if p.dim() == 2)
    states = 2 * weights - (in_muon if config.optimizer == "muon" else 0)
    one, two = (saved_bytes(model, config, world, sequences) for sequences in (1, 2))
    vocab_size = model.config.vocab_size
    rows = min(config.batch_size * config.block_size, rows_per_piece(vocab_size, world.device))
    return {
        "weights": weights * (2 if config.ema_decay else 1),
        "gradients": weights,
        "optimizer": states,
        "activations": one + (config.batch_size - 1) * (two - one),
        "logits": LOGITS_BYTES * rows * vocab_size,
    }


def saved_bytes(model, config, world, sequences):
    """Bytes that a forward pass over this many sequences keeps for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.zeros(sequences, config.block_size, dtype=torch.long, device=world.device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), world.precision():
        _graph = model(tokens, tokens)  # held, so that no storage is given out twice
    return sum(saved.values())


def doubts(config, epochs):
    """Settings that work, but hardly as meant. epochs: how often the text will be read."""
    if config.warmup_iters >= config.max_iters > 0:
        yield f"warmup_iters={config.warmup_iters} lasts the whole run of {config.max_iters}"
    if (config.lr_decay_iters or 0) > config.max_iters:
        yield f"lr_decay_iters={config.lr_decay_iters} is never reached: the rate stays high"
    if config.min_lr > config.learning_rate:
        yield f"min_lr={config.min_lr:g} is above learning_rate={config.learning_rate:g}"
    if config.ngrams > 1 and epochs > 2:
        yield (
            f"ngrams={config.ngrams}: in {epochs:.1f} epochs the text's n-grams will be learned by "
            "heart; leave them out with --ngrams=1, or read more text"
        )
    if not config.causal:
        yield "causal=False: a position sees the token that it is to predict; no sample is shown"
    if config.target_shift != 1:
        yield f"target_shift={config.target_shift}: the model will not predict the next token"


@contextmanager
def advice_on_memory(config):
    """A context that answers a lack of memory with the settings to try instead."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        told = "not enough memory", "can't allocate memory", "out of memory"
        known = isinstance(error, torch.OutOfMemoryError) or any(x in str(error) for x in told)
        if not known:
            raise
        batch, times = config.batch_size, config.gradient_accumulation_steps
        smaller = max((n for n in range(1, batch) if batch % n == 0), default=1)
        advice = f"--batch_size={smaller} --gradient_accumulation_steps={times * batch // smaller}"
        if batch == 1:
            half = f"={config.block_size // 2}" if config.block_size else " (half of the model's)"
            advice = f"--block_size{half}"
        raise SystemExit(f"out of memory with batch_size={batch}; try {advice}") from None
