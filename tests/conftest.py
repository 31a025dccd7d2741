"""What the tests share: one thread, and small data and runs to work on."""

import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch

import bench
import compare
import convert
import explain
import finetune
import prepare_data
import sample
import serve
import train

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = {
    "train.py": train,
    "finetune.py": finetune,
    "sample.py": sample,
    "serve.py": serve,
    "prepare_data.py": prepare_data,
    "convert.py": convert,
    "bench.py": bench,
    "compare.py": compare,
    "explain.py": explain,
}
TINY = (  # a model that takes milliseconds a step
    "--n_layer=2 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 "
    "--gradient_accumulation_steps=2 --max_iters=20 --warmup_iters=2 --learning_rate=1e-2 "
    "--eval_interval=10 --eval_iters=3 --sample_tokens=8 --device=cpu --dtype=float32"
).split()
LLAMA_KNOBS = "--norm=rmsnorm --position=rope --mlp=swiglu --n_kv_head=1 --tie_weights=False"


def pytest_configure(config):
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # which Triton reads when it is imported
    torch.backends.mps.is_available = lambda: False  # on a Mac too, the tests run on the CPU


@pytest.fixture(autouse=True)
def on_the_cpu(request, monkeypatch):
    """With a GPU too, the tests run on the CPU: all but tests/test_gpu.py."""
    if not request.module.__name__.endswith("test_gpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def tiny_text():
    """Some words in a random order, in two languages."""
    words = ["the", "cat", "saw", "a", "dog", "and", "ran", "home", "猫", "看见", "狗", "就", "跑"]
    chosen = random.Random(0).choices(words, k=2000)
    return "\n".join(" ".join(chosen[i : i + 8]) for i in range(0, len(chosen), 8))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder in which prepare_data.py has made data/tiny, of characters."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("tiny.txt").write_text(tiny_text(), encoding="utf-8")
        call(patch, "prepare_data.py", "tiny.txt", "--dataset=tiny", "--tokenizer=char")
    return folder


def call(patch, script, *options):
    """Run a script's main in this process, as if typed."""
    patch.setattr(sys, "argv", [script, *options])
    SCRIPTS[script].main()


@pytest.fixture
def run(prepared, tmp_path, monkeypatch):
    """A function that runs scripts in a new folder that holds data/tiny: run("train.py", …)."""
    shutil.copytree(prepared / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return lambda script, *options: call(monkeypatch, script, *options)


@pytest.fixture
def train_tiny(run):
    """A function that trains the tiny model on data/tiny: train_tiny("--max_iters=5")."""
    empty = Path("defaults.py")
    empty.write_text("dataset = 'tiny'\nout_dir = 'out/tiny'\n", encoding="utf-8")
    return lambda *options: run("train.py", str(empty), *TINY, *options)


@pytest.fixture
def trained(run):
    """A function that trains a small model on bytes in pairs: its run is out/tiny."""

    def train(*knobs, tokenizer="bpe"):
        lines = [json.dumps({"text": line}) for line in tiny_text().splitlines()]
        Path("lines.jsonl").write_text("\n".join(lines), encoding="utf-8")
        options = ["--vocab_size=300"] if tokenizer == "bpe" else []
        run("prepare_data.py", "lines.jsonl", f"--tokenizer={tokenizer}", *options)
        Path("defaults.py").write_text("dataset = 'lines'\nout_dir = 'out/tiny'\n")
        run("train.py", "defaults.py", *TINY, "--n_embd=32", "--block_size=64", *knobs)

    return train


@pytest.fixture
def quiet_transformers(monkeypatch):
    """Without transformers' progress bars, reports and connections."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
