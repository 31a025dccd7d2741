"""Train a transformer on tokens: `python train.py config/x.py --learning_rate=1e-3`.

Without a config it is the quick start, config/stories.py. On N GPUs of one machine:
`torchrun --standalone --nproc_per_node=N train.py config/gpt2_124m.py`.
"""

import dataclasses
import itertools
import math
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from model import IGNORED, ModelConfig, check_range
from sample import first_tokens, text_of
from support.checkpoint import BEST, LAST, restore, save_checkpoint, snapshot
from support.config import show_config
from support.fp8 import use_fp8
from support.optimizers import AdamW, Muon
from support.processes import StopSignal, compiled, only_main_prints, open_world
from support.recomputation import recompute_blocks
from support.recorded_passes import recorded_passes
from support.report import (
    Report,
    advice_on_memory,
    farewell,
    in_words,
    is_long,
    quoted,
    show_plan,
    show_shift,
)
from support.starting_point import check_accumulation, make_model, make_room, read_config
from support.token_files import Windows, open_dataset

QUICK_START = Path(__file__).parent / "config" / "stories.py"
SKIPS_ALLOWED = 10  # consecutive updates without finite gradients before a run gives up
LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte")  # endings of such metrics' names
Schedule = Literal["cosine", "linear", "wsd", "constant"]


@dataclass
class TrainConfig(ModelConfig):
    """Train a transformer: `python train.py config/x.py --n_layer=4`.

    The defaults are nanoGPT's. A config file is Python that sets some of these knobs (names that
    begin with _ are its own); options typed after it override it. config/ holds recipes.
    """

    # input and output
    init_from: str = "scratch"  # scratch; resume: continue the run in out_dir; or the PATH of a run
    out_dir: str = "out"  # checkpoints, log.jsonl and loss.png
    dataset: str = "openwebtext"  # a folder in data/, or the path of one
    vocab_size: int | None = None  # rows of the embedding; None: as many as the tokenizer has
    # the batch
    batch_size: int = 12  # sequences in a micro-batch
    gradient_accumulation_steps: int = 40  # micro-batches in an update, over all processes
    target_shift: int = 1  # the target is the token this many positions ahead (0: a bug to watch)
    document_mask: bool = False  # do not attend across the end of a document
    # the optimizer
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of blocks, else adamw
    learning_rate: float = 6e-4  # peak learning rate of AdamW
    muon_learning_rate: float = 0.02  # peak learning rate of Muon
    layer_decay: float = 1.0  # a block's learning rates are this many times the next block's
    weight_decay: float = 0.1  # of matrices; vectors are not decayed
    beta1: float = 0.9  # AdamW's decay rate of the mean gradient
    beta2: float = 0.95  # AdamW's decay rate of the mean squared gradient
    grad_clip: float = 1.0  # the largest norm of the gradient; 0: no clipping
    ema_decay: float = 0.0  # of an average of the weights, which is what is evaluated; 0: off
    seed: int = 1337  # of weights, data order and dropout
    # length and schedule
    max_iters: int = 600000  # updates
    max_minutes: float = 0.0  # end after this long, the schedule following the clock; 0: no limit
    schedule: Schedule = "cosine"  # of the learning rates
    warmup_iters: int = 2000  # updates of linear warmup
    lr_decay_iters: int | None = None  # update at which the decay ends; None: max_iters
    min_lr: float = 6e-5  # what learning_rate falls to; Muon's falls by the same factor
    cooldown: float = 0.2  # wsd: share of the updates after warmup in which the rates fall
    # evaluation and logging
    eval_interval: int = 2000  # updates between evaluations, each followed by a checkpoint
    eval_iters: int = 200  # batches of each split to evaluate; 0: all
    eval_only: bool = False  # evaluate once and exit
    best_metric: str = "val_loss"  # the metric that decides which checkpoint is the best
    patience: int = 0  # end after this many evaluations without improvement; 0: never
    sample_tokens: int = 64  # tokens to sample and print at each evaluation
    log_interval: int = 1  # updates between lines of the log
    log_to: Literal["file", "tensorboard", "wandb"] = "file"  # beside log.jsonl
    wandb_project: str = "shiftgpt"  # project for log_to=wandb
    wandb_run_name: str = "run"  # name of the run there
    dry_run: bool = False  # print the plan, its memory and its cost, and exit
    # hardware
    device: str = "auto"  # cuda, cuda:1, mps or cpu
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products
    fp8: bool = False  # products in the blocks in 8 bits, on GPUs that can (pip install torchao)
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto: on CUDA, for longer runs
    record: bool = True  # replay the kernels of a pass without Python in between, on one GPU
    gradient_checkpointing: bool = False  # recompute blocks when going backward: less memory

    def __post_init__(self):
        super().__post_init__()
        counts = "vocab_size batch_size gradient_accumulation_steps lr_decay_iters eval_interval"
        check_range(self, f"{counts} log_interval", at_least=1)
        counts = "target_shift max_iters warmup_iters eval_iters patience sample_tokens"
        check_range(self, f"{counts} max_minutes grad_clip", at_least=0)
        check_range(self, "learning_rate muon_learning_rate weight_decay min_lr", at_least=0)
        check_range(self, "ema_decay cooldown beta1 beta2", at_least=0, below=1)
        check_range(self, "layer_decay", above=0, at_most=1)
        check_range(self, "seed", at_least=0, below=2**63)

    @property
    def starts_random(self):
        """Whether a new run begins with random weights."""
        return self.init_from == "scratch"


@dataclass
class Progress:
    """How far a run has come; part of a checkpoint."""

    step: int = 0  # updates made
    minutes: float = 0.0  # of training, over all sessions
    best: float | None = None  # best value of best_metric so far
    best_loss: float = -math.inf  # val_loss at that step, which breaks ties
    without_gain: int = 0  # evaluations since then
    evaluated_at: int = -1  # step of the last evaluation
    skipped: int = 0  # consecutive updates without finite gradients

    def note(self, numbers, metric, random=False):
        """Record an evaluation; return whether it is the best so far, which random weights are not.

        Otherwise a run that was stopped early would leave them as its best.
        """
        if metric not in numbers:
            raise SystemExit(
                f"best_metric={metric} is not evaluated; there is {', '.join(numbers)}"
            )
        self.evaluated_at = self.step
        if random:
            return False
        value, loss = float(numbers[metric]), float(numbers.get("val_loss", math.inf))
        if not math.isfinite(value):
            better = False
        elif self.best is None:
            better = True
        elif value == self.best:
            better = loss < self.best_loss
        else:
            better = (value < self.best) == metric.endswith(LOWER_IS_BETTER)
        if better:
            self.best, self.best_loss = value, loss
        self.without_gain = 0 if better else self.without_gain + 1
        return better

    def is_over(self, config):
        """Whether the run has come to its end: by its steps, its patience or its minutes."""
        return (
            self.step >= config.max_iters
            or 0 < config.patience <= self.without_gain
            or 0 < config.max_minutes <= self.minutes
        )


# -------------------------------------------------------------------------------------- batches


def shift(block, target_shift=1):
    """(inputs, targets): two views of one block of tokens (B, T + target_shift).

    block     t0 t1 t2 t3 t4
    inputs    t0 t1 t2 t3
    targets      t1 t2 t3 t4
    """
    T = block.size(1) - target_shift
    return block[:, :T], block[:, target_shift:]


def windows_of(dataset, split, config, movable=True):
    """The windows of a split that fit this config; exits if there is none."""
    tokens = getattr(dataset, split)
    windows = Windows(tokens, config.block_size, config.block_size + config.target_shift, movable)
    if not len(windows):
        train, val = (max(map(len, some.shards)) for some in (dataset.train, dataset.val))
        raise SystemExit(
            f"block_size={config.block_size} does not fit {dataset.path}: train has {train:,} "
            f"tokens in a row, val {val:,}; try --block_size={max(1, min(train, val) // 4)}, or "
            "more text"
        )
    return windows


def batch_from(block, config, eot=None):
    """What `model(**batch)` takes, from a block of tokens (B, T + target_shift)."""
    inputs, targets = shift(block, config.target_shift)
    batch = {"inputs": inputs, "targets": targets}
    if config.document_mask and eot is not None:
        # The end of a document belongs to the next one, as in `sample.py`.
        batch["segments"] = (inputs == eot).cumsum(dim=1)
    return batch


def training_batches(dataset, config, world):
    """`batch_at(step)`: this process's micro-batches of that step, dicts for `model(**batch)`.

    A step takes the next batch_size × gradient_accumulation_steps windows of an endless shuffled
    stream: with 2 × 3, six windows, as three dicts of inputs and targets (2, T). They are divided
    among the processes last: what a step sees does not depend on how many share it.
    """
    windows = windows_of(dataset, "train", config)
    eot = dataset.eot
    if config.document_mask and eot is None:
        raise SystemExit(f"document_mask=True: {dataset.path} does not say where documents end")
    per_step = config.batch_size * config.gradient_accumulation_steps
    mine = per_step // world.size

    def batch_at(step):
        first = step * per_step + world.rank * mine
        block = windows.shuffled(np.arange(first, first + mine), config.seed)
        return [batch_from(rows, config, eot) for rows in block.split(config.batch_size)]

    return batch_at


# -------------------------------------------------------------------------------- evaluation


def evaluation(dataset, config, world):
    """`evaluate(model)`: the losses of both splits in nats, and the metrics that follow from them.

    The windows are always the same, spread evenly over a split; each process takes a share.
    """
    splits = {
        split: windows_of(dataset, split, config, movable=False) for split in ("train", "val")
    }
    eot = dataset.eot

    def mean_loss(model, windows):
        n = min(config.eval_iters * config.batch_size or len(windows), len(windows))
        chosen = windows.spread(n)
        total, count = torch.zeros((), device=world.device), 0
        for first in range(world.rank * config.batch_size, n, world.size * config.batch_size):
            block = torch.from_numpy(windows.read(chosen[first : first + config.batch_size]))
            with world.precision():
                _, loss = model(**world.place(batch_from(block, config, eot)))
            total += loss * len(block)
            count += len(block)
        total, count = world.sum(total.item(), count)
        return total / count

    def evaluate(model):
        losses = {f"{split}_loss": mean_loss(model, windows) for split, windows in splits.items()}
        perplexity = math.exp(min(losses["val_loss"], 700))
        numbers = losses | {"perplexity": perplexity}
        if dataset.val.bytes_per_token:
            bits_per_token = losses["val_loss"] / math.log(2)
            numbers["bits_per_byte"] = bits_per_token / dataset.val.bytes_per_token
        return numbers

    return evaluate


# ------------------------------------------------------------------------- rates and optimizers


def schedule_factor(step, minutes, config):
    """The learning rates at this step, as a fraction of their peaks."""
    # From 1 / (warmup_iters + 1) up to 1.
    warmup = min(1.0, (step + 1) / (config.warmup_iters + 1))

    # From 0 after the warmup to 1 at the end, by steps or, if that is sooner, by the clock.
    last = config.lr_decay_iters or config.max_iters
    done = (step - config.warmup_iters) / max(1, last - config.warmup_iters)
    if config.max_minutes:
        done = max(done, minutes / config.max_minutes)
    done = min(max(done, 0.0), 1.0)

    # From 1 down to 0.
    if config.schedule == "cosine":
        decay = 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "linear":
        decay = 1 - done
    elif config.schedule == "wsd":  # warmup, stable, decay
        decay = min(1.0, (1 - done) / max(config.cooldown, 1e-9))
    else:
        decay = 1.0

    # The rates fall to min_lr instead of 0.
    floor = min(1.0, config.min_lr / config.learning_rate) if config.learning_rate else 0.0
    return min(warmup, floor + (1 - floor) * decay)


def make_optimizers(model, config):
    """[AdamW], or [AdamW, Muon] where the config gives Muon the matrices of the blocks.

    Matrices decay, vectors do not. Each group keeps its peak rate as `initial_lr`.
    """
    if config.optimizer not in ("adamw", "muon"):
        raise ValueError(f"make_optimizers has no {config.optimizer}")
    for_adamw, for_muon = defaultdict(list), defaultdict(list)  # (rate, decay) -> weights
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            factor = layer_rate_factor(name, config)
            decay = config.weight_decay if weight.dim() >= 2 else 0.0
            in_block = name.startswith("blocks.") and weight.dim() == 2
            if in_block and config.optimizer == "muon":
                for_muon[config.muon_learning_rate * factor, decay].append(weight)
            else:
                for_adamw[config.learning_rate * factor, decay].append(weight)
    optimizers = []
    if for_adamw:
        optimizers.append(AdamW(as_groups(for_adamw), betas=(config.beta1, config.beta2)))
    if for_muon:
        optimizers.append(Muon(as_groups(for_muon)))
    return optimizers


def as_groups(weights):
    """Parameter groups, as optimizers take them, of {(rate, decay): [weight, …]}."""
    return [
        {"params": params, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), params in weights.items()
    ]


def layer_rate_factor(name, config):
    """The factor of a weight's learning rates, which layer_decay lowers towards the input."""
    if name.startswith("blocks."):
        below_the_last = config.n_layer - 1 - int(name.split(".")[1])
    else:
        below_the_last = 0 if name.startswith(("norm.", "head.")) else config.n_layer
    return config.layer_decay**below_the_last


def set_rates(optimizers, factor):
    """Set every group's rate to its peak times `factor` (PyTorch's optimizers begin with `lr`)."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


class EMA:
    """An exponential moving average of the weights; of nothing where `decay` is 0."""

    def __init__(self, model, decay):
        self.decay = decay
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: p.clone() for name, p in trained.items()} if decay else {}

    @torch.no_grad()
    def update(self, model, step):
        """Move a little towards the current weights; further in the first steps of a run."""
        decay = min(self.decay, (1 + step) / (10 + step))
        now = dict(model.named_parameters())
        for name, average in self.weights.items():
            average.lerp_(now[name], 1 - decay)

    @torch.no_grad()
    def swap(self, model):
        """Exchange the model's weights with the averaged ones."""
        now = dict(model.named_parameters())
        for name, average in self.weights.items():
            kept = now[name].clone()
            now[name].copy_(average)
            average.copy_(kept)


@contextmanager
def evaluating(model, ema):
    """A context for evaluation: averaged weights, no dropout, no gradients."""
    ema.swap(model)
    model.eval()
    with torch.no_grad():
        yield
    model.train()
    ema.swap(model)


# ------------------------------------------------------------------------------------- the loop


def add_gradients(model, world, scaler, batch, share, more_to_come=False):
    """Add the gradients of a micro-batch to those there are; returns its part of a step's loss.

    For one process and one micro-batch it is `loss.backward()`. In general the loss of a step is
    the sum over its targets divided by their number, over all micro-batches and processes. So each
    micro-batch is weighted by its share of the targets, and how a step is divided makes no
    difference.
    """
    with world.accumulating(model, more_to_come):
        with world.precision():  # products in 16 bits where that is fast, weights in 32
            _, mean = model(**batch)
        part = mean * share
        # float16's gradients are scaled up, lest small ones become 0. DDP averages over the
        # processes: times their number, it sums.
        scaler.scale(part * world.size).backward()
    return part.detach()


def accumulate_gradients(add, batches, shares, world, key):
    """Accumulate the gradients of a step; returns this process's part of the step's loss.

    `add(batch, share, more_to_come)` is `add_gradients`, perhaps recorded. Dropout of a micro-batch
    is seeded by `key` and its number.
    """
    loss = torch.zeros((), device=world.device)
    for i, (batch, share) in enumerate(zip(batches, shares)):
        seed = np.random.SeedSequence([*key, world.rank * len(batches) + i]).generate_state(1)[0]
        torch.manual_seed(int(seed))
        loss += add(world.place(batch), share, more_to_come=i + 1 < len(batches))
    return loss


def update(model, optimizers, config, scaler):
    """Clip the gradients, update the weights, clear the gradients; returns the gradients' norm.

    Nothing is updated if the norm is not finite: one bad batch would ruin all weights.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf).item()
    for optimizer in optimizers:
        if math.isfinite(norm):
            scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    return norm


def check_finite(progress, norm, config):
    """Count consecutive steps without finite gradients; exit after SKIPS_ALLOWED."""
    progress.skipped = 0 if math.isfinite(norm) else progress.skipped + 1
    if progress.skipped >= SKIPS_ALLOWED:
        rates = ["learning_rate"]
        if config.optimizer == "muon":
            rates.append("muon_learning_rate")
        halved = " ".join(f"--{rate}={getattr(config, rate) / 2:g}" for rate in rates)
        advice = f"{halved}, --dtype=float32 or a --grad_clip below {config.grad_clip or 1:g}"
        if (Path(config.out_dir) / LAST).exists():
            advice = f"--init_from=resume --out_dir={config.out_dir} with {advice}"
            advice += f" ({LAST} is of the last evaluation with finite losses)"
        raise SystemExit(
            f"step {progress.step}: {SKIPS_ALLOWED} steps in a row without finite gradients. "
            f"Try {advice}"
        )


def train(model, config, batch_at, evaluate, world, report, metadata, resumed=None):
    """Train `model` in place, as `config` says; returns the `Progress` made.

    batch_at(step) returns the micro-batches of a step, dicts for `model(**batch)`, which returns
    (anything, mean loss over the targets); evaluate(model) returns {name: number}. metadata is what
    else a checkpoint holds (tokenizer, data…), resumed the checkpoint that the run continues.
    """
    optimizers = make_optimizers(model, config)
    report.show_optimizers(optimizers)
    ema = EMA(model, config.ema_decay)
    scaler = torch.amp.GradScaler(world.device.type, enabled=world.dtype == torch.float16)
    progress = Progress()
    if resumed:
        progress = Progress(**restore(resumed, model, optimizers, ema, scaler))
        if resumed["train_config"].get("best_metric") != config.best_metric:
            progress.best, progress.without_gain = None, 0  # of another metric

    def save(name):
        if world.is_main:
            state = snapshot(progress, config, model, optimizers, ema, scaler)
            save_checkpoint(Path(config.out_dir) / name, metadata | state)

    example = batch_at(progress.step)[0]
    is_worth_it = partial(is_long, model, config, config.max_iters - progress.step, world.size)
    compiled_model = compiled(model, config.compile, world, example, is_worth_it)
    add = partial(add_gradients, world.data_parallel(compiled_model), world, scaler)
    if config.record:
        add = recorded_passes(add, model, world, report.say)
    began = time.perf_counter() - 60 * progress.minutes
    model.train()
    with StopSignal() as stop:
        while True:
            # Evaluate, at every interval and at the end.
            is_due = progress.is_over(config) or progress.step % config.eval_interval == 0
            if is_due and progress.evaluated_at != progress.step:
                with evaluating(model, ema):
                    numbers = evaluate(compiled_model)
                random = config.starts_random and progress.step == 0 and config.max_iters > 0
                is_best = progress.note(numbers, config.best_metric, random)
                report.evaluated(progress, numbers)
                if is_best:
                    save(BEST)
                if all(math.isfinite(numbers[name]) for name in numbers if name.endswith("loss")):
                    save(LAST)
            if progress.is_over(config):
                break

            # Share between processes: the number of targets, a wish to stop, and one clock.
            report.start_step()
            batches = batch_at(progress.step)
            counts = [int((batch["targets"] != IGNORED).sum()) for batch in batches]
            wants_to_stop = stop.requested or report.unread  # Ctrl-C, or the terminal is gone
            minutes = (time.perf_counter() - began) / 60 if world.is_main else 0.0
            n_targets, n_stopping, progress.minutes = world.sum(sum(counts), wants_to_stop, minutes)
            if n_stopping:
                if not progress.skipped or scaler.is_enabled():  # else it may have diverged
                    save(LAST)
                break

            # Make one update.
            factor = schedule_factor(progress.step, progress.minutes, config)
            set_rates(optimizers, factor)
            shares = [count / max(n_targets, 1) for count in counts]
            key = [config.seed, progress.step]
            loss = accumulate_gradients(add, batches, shares, world, key)
            norm = update(model, optimizers, config, scaler)
            ema.update(model, progress.step)

            # Log it.
            n_tokens = world.size * sum(batch["inputs"].numel() for batch in batches)
            rate = factor * config.learning_rate
            report.step(progress, n_tokens, loss=loss, grad_norm=norm, learning_rate=rate)
            check_finite(progress, norm, config)
            progress.step += 1
    return progress


# ----------------------------------------------------------------------------------------- main


def with_a_sample(evaluate, model, dataset, config, world, report):
    """`evaluate`, which then also prints a short sample of the model's text."""
    tokenizer = dataset.tokenizer
    if not (world.is_main and tokenizer and config.sample_tokens and config.causal):
        return evaluate
    prompt = first_tokens(tokenizer, "", dataset.documents)
    seeds = itertools.count(config.seed)

    def evaluate_and_show(compiled_model):
        numbers = evaluate(compiled_model)
        if not math.isfinite(numbers["val_loss"]):
            return numbers
        text = text_of(model, tokenizer, prompt, config.sample_tokens, next(seeds))
        report.show(quoted(text))
        return numbers

    return evaluate_and_show


def main():
    only_main_prints()
    config, resumed = read_config(TrainConfig, QUICK_START)
    with open_world(config.device, config.dtype) as world, advice_on_memory(config):
        check_accumulation(config, world)
        dataset = open_dataset(config.dataset)
        config, model = make_model(config, dataset, resumed)
        model.to(world.device)
        if config.fp8:
            use_fp8(model, world.device)
        if config.gradient_checkpointing:
            recompute_blocks(model)
        show_config(config)
        batch_at = training_batches(dataset, config, world)
        evaluate = evaluation(dataset, config, world)
        show_plan(model, config, dataset, world)
        if config.dry_run:
            show_shift(batch_at(0)[0], dataset.tokenizer)
            print("dry run: nothing was trained or written")
            return
        if config.eval_only:
            if config.starts_random:
                print("these weights are random; of a trained model: --init_from=resume")
            with torch.no_grad():
                print(in_words(evaluate(model.eval())))
            return
        make_room(config, world, resumed)
        metadata = {
            "model_config": dataclasses.asdict(model.config),
            "tokenizer": dataset.tokenizer and dataset.tokenizer.to_dict(),
            "data": dataset.describe(),
        }
        with Report(config, model, world, resumed) as report:
            evaluate = with_a_sample(evaluate, model, dataset, config, world, report)
            progress = train(model, config, batch_at, evaluate, world, report, metadata, resumed)
        print(farewell(progress, config))


if __name__ == "__main__":
    main()
