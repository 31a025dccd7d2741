"""Measure speed side by side with other programs: `python bench.py train --peer=../nanoGPT`.

Each contestant runs in its own process, one after the other, round after round: other load on the
machine affects all of them. The results are medians, with the lowest and the highest value.
"""

import importlib.util
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from model import ModelConfig, Transformer
from sample import Context, SampleConfig, generate, next_token_distribution
from support.config import load_config
from support.files import replacing
from support.fp8 import multiplies_fp8, use_fp8
from support.processes import compiled, open_world, pick_device, pick_dtype
from support.quantize import for_inference, use_few_threads
from support.recorded_passes import recorded_passes
from support.report import flops_per_token
from train import TrainConfig, accumulate_gradients, add_gradients, make_optimizers, update

ROOT = Path(__file__).parent
VOCAB_SIZE = 50257  # of GPT-2
PROMPT = 16  # tokens before the sampled ones
STEPS_BEFORE_ON_A_GPU = 20  # some are ours before they are recorded
NANOGPT_FOR_A_CPU = (  # from its README
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=100 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)


@dataclass
class BenchConfig:
    """Measure speed side by side with other programs."""

    # train or sample a shape such as GPT-2's, prepare text, or train to a loss, from the shell
    what: tyro.conf.Positional[Literal["train", "sample", "prepare", "loss"]] = "train"
    peer: str = ""  # a checkout of nanoGPT; loss needs its data/shakespeare_char prepared
    only: str = ""  # measure this contestant once, in this process, and print JSON
    rounds: int = 3  # how often each contestant is measured
    n_layer: int = 12  # train and sample: the model's layers; default GPT-2's
    n_head: int = 12  # attention heads
    n_embd: int = 768  # channels
    block_size: int = 1024  # context
    batch_size: int = 2  # train: sequences per step
    steps: int = 2  # train: timed steps, after one that is not timed (on a GPU, 20)
    tokens: int = 512  # sample: tokens to generate, in one text
    megabytes: float = 20.0  # prepare: size of the text
    options: str = "--max_iters=60 --eval_interval=60"  # loss: options for our config
    device: str = "auto"  # cuda, mps or cpu
    out: str = "out/bench"  # folder for the numbers, as JSON

    def __post_init__(self):
        for name in ("rounds", "batch_size", "steps", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.what == "sample" and PROMPT + self.tokens > self.block_size:
            raise ValueError(f"tokens={self.tokens} must leave {PROMPT} of block_size for a prompt")


# -------------------------------------------------------------------------- the machine's limits


def median_seconds(function, times=7):
    """The median seconds of a call, after one that is not timed."""
    function()
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        function()
        wait_for_device()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def wait_for_device():
    """Wait until the GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def peak_memory(device):
    """Peak memory of this process in bytes: the GPU's if it uses one, else its own."""
    if pick_device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def ceiling(device):
    """This machine's peak rates: of matrix products (GPT-2's shapes), and of reading memory.

    The products are timed in float32 and in the precision that should be fast on this machine. A
    GPU's must be larger to keep all of it busy.
    """
    rows, inputs, outputs = (2048, 768, 3072) if device.type == "cpu" else (8192, 8192, 8192)
    limits = {}
    for dtype in dict.fromkeys((torch.float32, pick_dtype("auto", device))):
        a = torch.randn(rows, inputs, device=device).to(dtype)
        b = torch.randn(inputs, outputs, device=device).to(dtype)
        rate = 2 * rows * inputs * outputs / median_seconds(partial(torch.mm, a, b))
        limits[f"{str(dtype).removeprefix('torch.')}_flops"] = rate
    memory = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    reading = memory.numel() * memory.element_size() / median_seconds(memory.sum)
    return limits | {"bytes_per_second": reading}


# ------------------------------------------------------------------------------ the contestants


def shape_of(config):
    """The model's shape, by the names that nanoGPT and we have for it."""
    return {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "block_size")}


def our_model(config, device, **options):
    torch.manual_seed(0)
    with device:  # where a large model's weights are drawn sooner
        return Transformer(ModelConfig(vocab_size=50304, **shape_of(config), **options))


def nanogpt_model(config):
    spec = importlib.util.spec_from_file_location("nanogpt", Path(config.peer) / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    shape = shape_of(config)
    return module.GPT(module.GPTConfig(vocab_size=50304, bias=False, dropout=0.0, **shape))


def transformers_model(config):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50304, n_positions=config.block_size, **shape, **no_dropout)
    )


def random_tokens(config, device):
    generator = torch.Generator().manual_seed(1)
    shape = (config.batch_size, config.block_size + 1)
    tokens = torch.randint(VOCAB_SIZE, shape, generator=generator).to(device)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def timed_training(step, config):
    """Measure `config.steps` calls of `step`, after some that are not timed: {metric: number}."""
    for _ in range(STEPS_BEFORE_ON_A_GPU if pick_device(config.device).type == "cuda" else 1):
        step()
    wait_for_device()
    begun = time.perf_counter()
    for _ in range(config.steps):
        step()
    wait_for_device()
    tokens = config.steps * config.batch_size * config.block_size
    return {
        "tokens_per_second": tokens / (time.perf_counter() - begun),
        "peak_bytes": peak_memory(config.device),
    }


def train_ours(config, compile=False, fp8=False, **options):
    """A step of train.py: gradients of a batch, clipping, AdamW."""
    with open_world(config.device) as world:
        model = our_model(config, world.device, **options)
        if fp8:
            use_fp8(model, world.device)
        settings = TrainConfig(vocab_size=50304, optimizer="adamw", batch_size=config.batch_size)
        optimizers = make_optimizers(model, settings)
        inputs, targets = random_tokens(config, "cpu")
        batches = [{"inputs": inputs, "targets": targets}]
        compiled_model = compiled(model, compile, world, batches[0], None)
        scaler = torch.amp.GradScaler(world.device.type, enabled=False)
        add = partial(add_gradients, compiled_model, world, scaler)
        add = recorded_passes(add, model, world)

        def step():
            accumulate_gradients(add, batches, [1.0], world, [0])
            update(model, optimizers, settings, scaler)

        return timed_training(step, config) | {
            "flops_per_token": flops_per_token(model, config.block_size)
        }


def learn(model, optimizer, loss):
    """The rest of a plain training step, once the loss is computed."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def train_nanogpt(config, compile):
    """A step of nanoGPT's train.py, which on a CPU uses float32 whatever its dtype."""
    with open_world(config.device, "auto") as world:
        model = nanogpt_model(config).to(world.device)
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), world.device.type)
        precision = world.precision() if world.device.type == "cuda" else nullcontext()
        compiled_model = torch.compile(model) if compile else model
        inputs, targets = random_tokens(config, world.device)

        def step():
            with precision:
                _, loss = compiled_model(inputs, targets)
            learn(model, optimizer, loss)

        return timed_training(step, config)


def train_transformers(config, weights=torch.float32, autocast=True, compile=False):
    """A plain training loop around transformers' GPT-2."""
    with open_world(config.device, "auto") as world:
        model = transformers_model(config).to(world.device, weights).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, fused=True)
        precision = torch.autocast(world.device.type, torch.bfloat16, enabled=autocast)
        compiled_model = torch.compile(model) if compile else model
        inputs, targets = random_tokens(config, world.device)

        def step():
            with precision:
                logits = compiled_model(inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten()
            )
            learn(model, optimizer, loss)

        return timed_training(step, config)


def linears(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear)]


def sample_ours(config, **options):
    """Greedy sampling as in sample.py, one text at a time."""
    with open_world(config.device, options.get("dtype", "auto"), to_train=False) as world:
        settings = SampleConfig(num_samples=1, device=config.device, **options)
        model = our_model(config, world.device).eval()
        weights = sum(linear.weight.numel() for linear in linears(model))
        use_few_threads(model, 1)  # as sample.py does
        model = for_inference(model, settings, 1, world)
        each = 1 if settings.quantize == "int8" else 2  # bytes per weight, read for every token
        each = next((linear.weight.element_size() for linear in linears(model)), each)
        greedy = partial(next_token_distribution, temperature=0)

        def write(n):
            prompts = [list(range(PROMPT))]
            context = Context(model, settings.record)
            list(generate(model, prompts, n, greedy, VOCAB_SIZE, context=context))

        return timed_writing(write, config) | {"weight_bytes": weights * each}


def timed_writing(write, config):
    """Measure `write(n)`, which generates n tokens: latency of the first, rate of all."""
    # Not timed. A GPU's kernels depend on how long a text may get.
    write(2 if pick_device(config.device).type == "cpu" else config.tokens)
    seconds = {}
    for n in (1, config.tokens):
        wait_for_device()
        begun = time.perf_counter()
        write(n)
        wait_for_device()
        seconds[n] = time.perf_counter() - begun
    return {
        "tokens_per_second": config.tokens / seconds[config.tokens],
        "first_token_seconds": seconds[1],
        "peak_bytes": peak_memory(config.device),
    }


def sample_transformers(config, dtype, **options):
    """transformers' greedy `generate`."""
    with open_world(config.device, "auto") as world, torch.inference_mode():
        model = transformers_model(config).to(world.device, dtype).eval()
        prompt = torch.arange(PROMPT, device=world.device)[None]

        def write(n):
            model.generate(
                prompt,
                max_new_tokens=n,
                min_new_tokens=n,
                do_sample=False,
                pad_token_id=0,
                **options,
            )

        return timed_writing(write, config)


def sample_nanogpt(config):
    """nanoGPT's `generate`, which reads the whole text again for each token."""
    with open_world(config.device, "auto") as world:
        model = nanogpt_model(config).to(world.device).eval()
        prompt = torch.arange(PROMPT, device=world.device)[None]
        with world.precision() if world.device.type == "cuda" else nullcontext():
            return timed_writing(lambda n: model.generate(prompt, n, top_k=1), config)


def text_of_size(megabytes):
    """Stories in two languages, `megabytes` in all."""
    from support.stories import generate as stories

    texts, size = [], 0
    for language in ("en", "zh"):
        for story in stories(seed=1, language=language):
            texts.append(story.text)
            size += len(story.text.encode())
            if size > megabytes * 1e6 * (0.5 if language == "en" else 1):
                break
    return texts


def timed_preparation(config, with_ours):
    """Bytes of text per second: prepare_data.py from the shell, including start-up, or bare
    tiktoken, where one thread encodes document after document into one list.
    """
    with tempfile.TemporaryDirectory() as folder:
        texts = text_of_size(config.megabytes)
        size = sum(len(text.encode()) for text in texts)
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        first_lines = lines[: len(lines) // 20].rpartition("\n")[0]
        (Path(folder) / "small.jsonl").write_text(first_lines, encoding="utf-8")
        (Path(folder) / "text.jsonl").write_text(lines, encoding="utf-8")
        prepare = [sys.executable, ROOT / "prepare_data.py"]
        quiet = {"cwd": folder, "check": True, "stdout": subprocess.DEVNULL}
        subprocess.run([*prepare, "small.jsonl", "--dataset=small"], **quiet)
        if with_ours:
            begun = time.perf_counter()
            options = ["text.jsonl", "--dataset=text", "--tokenizer=data/small"]
            subprocess.run([*prepare, *options], **quiet)
        else:
            from support.token_files import open_dataset

            encoding = open_dataset(f"{folder}/data/small").tokenizer.encoding
            begun = time.perf_counter()
            tokens = []
            for text in texts:
                tokens += encoding.encode_ordinary(text)
            np.array(tokens, dtype=np.uint16).tofile(f"{folder}/tokens.bin")
        return {"bytes_per_second": size / (time.perf_counter() - begun)}


def loss_ours(config):
    """train.py with config/shakespeare_char.py, from the shell."""
    with tempfile.TemporaryDirectory() as out:
        command = f"train.py config/shakespeare_char.py {config.options}"
        return timed_command(command, ROOT, out, "shakespeare_char")


def loss_ours_with_their_recipe(config):
    """train.py with nanoGPT's model, optimizer and steps, from the shell."""
    with tempfile.TemporaryDirectory() as out:
        return timed_command(
            "train.py config/shakespeare_char_plain.py", ROOT, out, "shakespeare_char"
        )


def loss_nanogpt(config):
    """nanoGPT's recipe for a CPU, from the shell."""
    with tempfile.TemporaryDirectory() as out:
        data = Path(config.peer).absolute() / "data" / "shakespeare_char"
        return timed_command(NANOGPT_FOR_A_CPU, config.peer, out, data)


def told_by(command, **options):
    """The output of a command; exits with its error output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", **options)
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-1000:])
    return done.stdout


def timed_command(command, folder, out, dataset):
    """Seconds of a whole training run, and its loss on the whole validation split."""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    begun = time.perf_counter()
    told_by([sys.executable, *command.split(), f"--out_dir={out}"], cwd=folder, env=environment)
    seconds = time.perf_counter() - begun
    evaluation = [
        *("train.py", f"--init_from={out}", f"--dataset={dataset}"),
        *"--eval_only=True --eval_iters=0 --block_size=64 --batch_size=64 --dtype=float32".split(),
    ]
    output = told_by([sys.executable, *evaluation], cwd=ROOT, env=environment)
    return {"seconds": seconds, "val_loss": float(re.findall(r"val loss ([\d.]+)", output)[-1])}


CONTESTANTS = {
    "train": {
        "ours": train_ours,
        "ours, compiled": partial(train_ours, compile=True),
        "ours, compiled, narrow": partial(train_ours, compile=True, narrow_residual=True),
        "ours, compiled, narrow, fp8": partial(
            train_ours, compile=True, fp8=True, narrow_residual=True
        ),
        "nanoGPT": partial(train_nanogpt, compile=False),
        "nanoGPT, compiled": partial(train_nanogpt, compile=True),
        "transformers, float32": partial(train_transformers, autocast=False),
        "transformers, bf16 autocast": train_transformers,
        "transformers, bf16": partial(train_transformers, weights=torch.bfloat16, autocast=False),
        "transformers, bf16 compiled": partial(train_transformers, compile=True),
    },
    "sample": {
        "ours": sample_ours,
        "ours, int8": partial(sample_ours, quantize="int8"),
        "ours, bf16": partial(sample_ours, dtype="bfloat16"),
        "nanoGPT": sample_nanogpt,
        "transformers, float32": partial(sample_transformers, dtype=torch.float32),
        "transformers, bf16": partial(sample_transformers, dtype=torch.bfloat16),
        # A cache of fixed size, and a compiled step in a CUDA graph: the method of gpt-fast.
        "transformers, bf16 compiled": partial(
            sample_transformers, dtype=torch.bfloat16, cache_implementation="static"
        ),
    },
    "prepare": {
        "ours": partial(timed_preparation, with_ours=True),
        "tiktoken, one thread": partial(timed_preparation, with_ours=False),
    },
    "loss": {
        "ours": loss_ours,
        "ours, nanoGPT's recipe": loss_ours_with_their_recipe,
        "nanoGPT": loss_nanogpt,
    },
}
ON_A_GPU = ("train", "ours, compiled, narrow"), ("sample", "transformers, bf16 compiled")


# ------------------------------------------------------------------------------------ the contest


def contestants(config):
    """The names of the contestants that can run on this machine."""
    if config.peer and not (Path(config.peer) / "train.py").is_file():
        raise SystemExit(f"peer={config.peer} must be a checkout of nanoGPT")
    names = list(CONTESTANTS[config.what])
    missing = []
    if not config.peer:
        missing.append(("nanoGPT", "--peer=PATH_OF_ITS_CHECKOUT"))
    if importlib.util.find_spec("transformers") is None:
        missing.append(("transformers", "pip install transformers"))
    device = pick_device(config.device)
    if device.type != "cuda":
        names = [name for name in names if (config.what, name) not in ON_A_GPU]
    if not multiplies_fp8(device) or importlib.util.find_spec("torchao") is None:
        names = [name for name in names if "fp8" not in name]
    if pick_dtype("auto", device) == torch.float32:
        slow = [name for name in names if "bf16" in name]
        if slow:
            print(f"left out because bfloat16 is slow on this machine: {'; '.join(slow)}")
        names = [name for name in names if name not in slow]
    for peer, remedy in missing:
        left_out = [name for name in names if name.startswith(peer)]
        if left_out:
            print(f"left out: {peer}, which needs {remedy}")
        names = [name for name in names if name not in left_out]
    return names


def measured_alone(name, config):
    """The numbers of one contestant, measured in its own process; None if it failed."""
    command = [sys.executable, __file__, *sys.argv[1:], f"--only={name}"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        print(f"{name}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds):
    """{metric: (median, lowest, highest)} of one contestant's numbers over all rounds."""
    return {
        metric: (statistics.median(values), min(values), max(values))
        for metric in rounds[0]
        for values in [[numbers[metric] for numbers in rounds]]
    }


UNITS = {
    "tokens_per_second": ("tokens/s", 1, ",.1f"),
    "bytes_per_second": ("MB/s", 1e6, ",.2f"),
    "seconds": ("seconds", 1, ",.1f"),
    "first_token_seconds": ("first token, ms", 1e-3, ",.0f"),
    "peak_bytes": ("peak MB", 1e6, ",.0f"),
    "val_loss": ("val loss", 1, ".4f"),
}


def show(results):
    """Print a table: each contestant's medians, and how many times as fast the first one is."""
    metrics = [metric for metric in UNITS if any(metric in numbers for numbers in results.values())]
    speed = metrics[0]
    ours = next(iter(results.values()))[speed][0]
    print(f"{'':27}" + "".join(f"{UNITS[metric][0]:>17}" for metric in metrics) + "  ours is")
    for name, numbers in results.items():
        cells = []
        for metric in metrics:
            _, unit, form = UNITS[metric]
            middle = numbers.get(metric, (math.nan,))[0] / unit
            cells.append(f"{format(middle, form) if math.isfinite(middle) else '':>17}")
        theirs = numbers[speed][0]
        ratio = theirs / ours if speed == "seconds" else ours / theirs
        print(f"{name:27}" + "".join(cells) + f"  {ratio:.2f} x")
        _, low, high = (value / UNITS[speed][1] for value in numbers[speed])
        print(f"{'':27}{f'{low:,.1f} to {high:,.1f}':>17}")


def show_ceiling(limits, results):
    """Print the machine's peak rates, and the share of them that we reach."""
    rates = {name.removesuffix("_flops"): limits[name] for name in limits if "flops" in name}
    products = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in rates.items())
    print(f"this machine: {products}, reads {limits['bytes_per_second'] / 1e9:,.1f} GB/s")
    fastest = max(rates, key=rates.get)
    for name, numbers in results.items():
        if "flops_per_token" in numbers:
            flops = numbers["tokens_per_second"][0] * numbers["flops_per_token"][0]
            print(f"{name}: {flops / rates[fastest]:.0%} of the rate of {fastest} matrices")
        if "weight_bytes" in numbers:
            read = numbers["tokens_per_second"][0] * numbers["weight_bytes"][0]
            print(f"{name}: {read / limits['bytes_per_second']:.0%} of what reading weights allows")


def main():
    config = load_config(BenchConfig, takes_files=False)
    if config.only:
        if config.only not in CONTESTANTS[config.what]:
            known = ", ".join(CONTESTANTS[config.what])
            raise SystemExit(f"only={config.only} must be one of: {known}")
        print(json.dumps(CONTESTANTS[config.what][config.only](config)))
        return
    names = contestants(config)
    rounds = {name: [] for name in names}
    limits = []
    for i in range(config.rounds):
        with open_world(config.device) as world:
            limits.append(ceiling(world.device))
        for name in names:
            print(f"round {i + 1} of {config.rounds}: {name}", file=sys.stderr)
            numbers = measured_alone(name, config)
            if numbers:
                rounds[name].append(numbers)
    results = {name: summary(numbers) for name, numbers in rounds.items() if numbers}
    if "ours" not in results:
        raise SystemExit("ours could not be measured, and the others are compared with it")
    show(results)
    best = {limit: max(round[limit] for round in limits) for limit in limits[0]}
    show_ceiling(best, results)
    path = Path(config.out) / f"{config.what}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "w") as file:
        json.dump({"config": vars(config), "ceiling": best, "results": results}, file, indent=1)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
