"""What a training run promises: its order, its arithmetic, and that none is ever lost."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import model as model_module
import train as train_module
from model import IGNORED, ModelConfig, Transformer
from support import report
from support.checkpoint import read_checkpoint, save_checkpoint
from support.optimizers import Muon
from support.processes import World
from support.report import advice_on_memory, read_log
from support.token_files import Tokens, Windows, open_dataset, permuted
from tests.conftest import REPOSITORY, TINY
from train import (
    EMA,
    Progress,
    TrainConfig,
    make_optimizers,
    schedule_factor,
    shift,
    train,
    training_batches,
)

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process: sums have one order
ALONE = World(torch.device("cpu"), torch.float32)


def last():
    return read_checkpoint("out/tiny/ckpt.pt")


def assert_same_weights(first, second, **tolerance):
    assert first["model"].keys() == second["model"].keys()
    for name, weight in first["model"].items():
        torch.testing.assert_close(weight, second["model"][name], **tolerance, msg=name)


def log_without_times(path):
    clocks = {"minutes", "tokens_per_second"}
    return [{k: v for k, v in r.items() if k not in clocks} for r in read_log(Path(path))]


# ------------------------------------------------------------------------------------ batches


def test_targets_are_the_inputs_shifted_by_one():
    block = torch.arange(10).view(2, 5)
    inputs, targets = shift(block)
    assert inputs.tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert targets.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert inputs.data_ptr() == block.data_ptr()  # a view, not a copy


@pytest.mark.parametrize(("target_shift", "first_target"), [(0, 0), (1, 1), (2, 2)])
def test_the_shift_can_be_changed(target_shift, first_target):
    block = torch.arange(4 + target_shift)[None]
    inputs, targets = shift(block, target_shift)
    assert inputs.shape == targets.shape == (1, 4)
    assert targets[0, 0] == first_target


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000])
def test_permuted_is_a_permutation_that_depends_on_its_key(n):
    order = permuted(np.arange(n), n, [1, 2])
    assert sorted(order) == list(range(n))
    if n >= 64:
        assert list(order) != list(permuted(np.arange(n), n, [1, 3]))
        assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.3


def test_a_permutation_of_huge_numbers_takes_no_memory():
    n = 10**12
    order = permuted(np.arange(1000), n, [0, 0])
    assert len(set(order)) == 1000
    assert order.max() < n
    assert order.max() > n // 2


def test_an_epoch_reads_every_window_once_and_the_next_in_another_order_and_cut():
    windows = Windows(Tokens([np.arange(1000)], None), stride=8, length=9)
    n = len(windows)
    epochs = [windows.shuffled(np.arange(n) + e * n, seed=1)[:, 0].tolist() for e in range(2)]
    for starts in epochs:
        assert len(set(starts)) == n
        assert len({start % 8 for start in starts}) == 1  # one offset in an epoch
    assert epochs[0] != epochs[1]
    assert epochs[0][0] % 8 != epochs[1][0] % 8 or sorted(epochs[0]) != epochs[0]


def test_windows_are_consecutive_tokens_and_never_straddle_shards():
    shards = [np.arange(0, 100), np.arange(1000, 1037), np.arange(5000, 5009)]
    windows = Windows(Tokens(shards, None), stride=8, length=9)
    block = windows.shuffled(np.arange(3 * len(windows)), seed=5)
    assert (block.diff(dim=1) == 1).all()
    assert {int(start) // 1000 for start in block[:, 0]} == {0, 1, 5}


def test_what_a_window_number_gives_does_not_depend_on_what_else_is_asked():
    windows = Windows(Tokens([np.arange(500)], None), stride=8, length=9)
    together = windows.shuffled(np.arange(200), seed=3)
    alone = torch.cat([windows.shuffled(np.array([i]), seed=3) for i in range(200)])
    assert torch.equal(together, alone)


def test_the_global_batch_is_cut_by_rank_only_afterwards(run):
    dataset = open_dataset("tiny")
    config = TrainConfig(dataset="tiny", block_size=16, batch_size=2, gradient_accumulation_steps=4)
    whole = training_batches(dataset, config, ALONE)(7)
    parts = [
        batch
        for rank in range(2)
        for batch in training_batches(
            dataset, config, World(torch.device("cpu"), torch.float32, rank, 2)
        )(7)
    ]
    assert len(whole) == len(parts) == 4
    for one, other in zip(whole, parts):
        assert torch.equal(one["inputs"], other["inputs"])


def test_document_mask_tells_documents_apart_at_their_ends():
    config = TrainConfig(document_mask=True)
    batch = train_module.batch_from(torch.tensor([[5, 9, 6, 7, 9, 8]]), config, eot=9)
    assert batch["segments"].tolist() == [[0, 1, 1, 1, 2]]  # an end opens what follows


# ----------------------------------------------------------------------- rates and optimizers


def test_the_schedule_at_its_corners():
    config = TrainConfig(
        learning_rate=1.0, min_lr=0.1, warmup_iters=9, max_iters=109, schedule="cosine"
    )
    assert schedule_factor(0, 0, config) == pytest.approx(0.1)
    assert schedule_factor(8, 0, config) == pytest.approx(0.9)
    assert schedule_factor(9, 0, config) == pytest.approx(1.0)
    assert schedule_factor(59, 0, config) == pytest.approx(0.55)
    assert schedule_factor(109, 0, config) == pytest.approx(0.1)
    assert schedule_factor(500, 0, config) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("schedule", "middle", "late"),
    [("linear", 0.5, 0.1), ("wsd", 1.0, 0.5), ("constant", 1.0, 1.0)],
)
def test_the_other_schedules(schedule, middle, late):
    config = TrainConfig(schedule=schedule, min_lr=0.0, warmup_iters=0, max_iters=100)
    assert schedule_factor(50, 0, config) == pytest.approx(middle)
    assert schedule_factor(90, 0, config) == pytest.approx(late)


def test_with_a_time_budget_the_schedule_follows_the_clock():
    config = TrainConfig(
        schedule="linear", min_lr=0.0, warmup_iters=0, max_iters=10**9, max_minutes=4.0
    )
    assert schedule_factor(5, 3.0, config) == pytest.approx(0.25)
    assert schedule_factor(5, 9.0, config) == 0


def named_groups(model, optimizer):
    names = {id(p): name for name, p in model.named_parameters()}
    return [([names[id(p)] for p in group["params"]], group) for group in optimizer.param_groups]


@pytest.fixture
def small_model():
    torch.manual_seed(0)
    return Transformer(
        ModelConfig(vocab_size=20, block_size=8, n_layer=1, n_head=2, n_embd=8, bias=True)
    )


def test_matrices_decay_and_vectors_do_not(small_model):
    (optimizer,) = make_optimizers(small_model, TrainConfig(weight_decay=0.3))
    (decayed, first), (spared, second) = named_groups(small_model, optimizer)
    assert first["weight_decay"] == 0.3
    assert second["weight_decay"] == 0
    assert "token_embedding.weight" in decayed
    assert all("bias" in name or "norm" in name for name in spared)
    assert len(decayed) + len(spared) == len(list(small_model.named_parameters()))


def test_muon_gets_the_matrices_of_the_blocks_alone(small_model):
    config = TrainConfig(optimizer="muon", learning_rate=0.01, muon_learning_rate=0.04)
    adamw, muon = make_optimizers(small_model, config)
    ((matrices, group),) = named_groups(small_model, muon)
    assert isinstance(muon, Muon)
    assert group["lr"] == 0.04
    assert all(name.startswith("blocks.") and name.endswith(".weight") for name in matrices)
    assert len(matrices) == 6
    rest = [name for names, _ in named_groups(small_model, adamw) for name in names]
    assert "token_embedding.weight" in rest
    assert "position.embedding.weight" in rest
    assert set(rest).isdisjoint(matrices)


def test_frozen_weights_are_left_to_no_optimizer(small_model):
    small_model.token_embedding.weight.requires_grad_(False)
    (optimizer,) = make_optimizers(small_model, TrainConfig())
    names = [name for group, _ in named_groups(small_model, optimizer) for name in group]
    assert "token_embedding.weight" not in names


def test_a_name_that_make_optimizers_does_not_know_is_told(small_model):
    config = TrainConfig()
    config.optimizer = "lion"  # as a reader's, who has named it in TrainConfig alone
    with pytest.raises(ValueError, match="make_optimizers has no lion"):
        make_optimizers(small_model, config)


def test_the_average_of_weights_is_exponential(small_model):
    ema = EMA(small_model, decay=0.75)
    name, weight = next(iter(small_model.named_parameters()))
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    ema.update(small_model, step=1000)
    torch.testing.assert_close(ema.weights[name], before + 0.25)
    ema.swap(small_model)
    torch.testing.assert_close(weight.detach(), before + 0.25)
    ema.swap(small_model)
    torch.testing.assert_close(weight.detach(), before + 1.0)


def test_the_average_follows_faster_in_the_first_steps(small_model):
    ema = EMA(small_model, decay=0.999)
    name, weight = next(iter(small_model.named_parameters()))
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    ema.update(small_model, step=0)
    torch.testing.assert_close(ema.weights[name], before + 0.9)


# ---------------------------------------------------------------------------- the run itself


def test_training_learns(train_tiny):
    train_tiny("--max_iters=150", "--eval_interval=50")
    looks = [record for record in read_log(Path("out/tiny/log.jsonl")) if "val_loss" in record]
    assert [look["step"] for look in looks] == [0, 50, 100, 150]
    assert looks[-1]["val_loss"] < 0.6 * looks[0]["val_loss"]
    assert looks[-1]["perplexity"] == pytest.approx(math.exp(looks[-1]["val_loss"]))
    assert Path("out/tiny/loss.png").stat().st_size > 5000


def test_bits_per_byte_are_the_loss_over_the_bytes_of_text(train_tiny):
    train_tiny("--max_iters=0", "--eval_iters=0")
    meta = json.loads(Path("data/tiny/meta.json").read_text(encoding="utf-8"))
    told = meta["splits"]["val"]
    look = read_log(Path("out/tiny/log.jsonl"))[0]
    expected = look["val_loss"] / math.log(2) * told["tokens"] / told["bytes"]
    assert look["bits_per_byte"] == pytest.approx(expected)


def test_exactly_max_iters_updates_are_made(train_tiny):
    train_tiny("--max_iters=7", "--log_interval=1")
    steps = [r["step"] for r in read_log(Path("out/tiny/log.jsonl")) if "loss" in r]
    assert steps == list(range(7))
    assert last()["step"] == 7
    assert {int(state["step"]) for state in last()["optimizer"].values()} == {7}


RECIPES = {
    "adamw": "--dropout=0.1",
    "muon with an average": "--dropout=0.1 --optimizer=muon --ema_decay=0.9 --position=rope",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_resuming_is_exact_to_the_bit(train_tiny, run, recipe):
    options = [*RECIPES[recipe].split(), "--lr_decay_iters=20", "--log_interval=1"]
    train_tiny(*options, "--out_dir=out/whole")
    train_tiny(*options, "--eval_interval=5", "--out_dir=out/parts", "--max_iters=10")
    run("train.py", "--init_from=resume", "--out_dir=out/parts", "--max_iters=20")
    whole, parts = (read_checkpoint(f"out/{name}/ckpt.pt") for name in ("whole", "parts"))
    assert_same_weights(whole, parts, rtol=0, atol=0)
    for name, state in whole["optimizer"].items():
        for key, value in state.items():
            assert torch.equal(value, parts["optimizer"][name][key]), (name, key)
    for name, weight in (whole["ema"] or {}).items():
        assert torch.equal(weight, parts["ema"][name])
    logs = [
        [record for record in log_without_times(f"out/{name}/log.jsonl") if "loss" in record]
        for name in ("whole", "parts")
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 20


def test_the_data_order_does_not_depend_on_evaluation(train_tiny):
    train_tiny("--dropout=0.1", "--out_dir=out/often", "--eval_interval=2", "--eval_iters=7")
    train_tiny("--dropout=0.1", "--out_dir=out/never", "--eval_interval=99", "--sample_tokens=0")
    often, never = (read_checkpoint(f"out/{name}/ckpt.pt") for name in ("often", "never"))
    assert_same_weights(often, never, rtol=0, atol=0)


def test_accumulation_equals_a_larger_batch(train_tiny):
    train_tiny("--out_dir=out/cut", "--batch_size=2", "--gradient_accumulation_steps=4")
    train_tiny("--out_dir=out/one", "--batch_size=8", "--gradient_accumulation_steps=1")
    cut, one = (read_checkpoint(f"out/{name}/ckpt.pt") for name in ("cut", "one"))
    assert_same_weights(cut, one, rtol=1e-3, atol=1e-5)


def gradient_of(batches, shares):
    """The gradient of the one-number model for a step of these micro-batches."""
    model, scaler = Scale(), torch.amp.GradScaler("cpu", enabled=False)
    add = partial(train_module.add_gradients, model, ALONE, scaler)
    train_module.accumulate_gradients(add, batches, shares, ALONE, key=[0, 0])
    return model.scale.grad.item()


class Scale(nn.Module):
    """A model of one weight: its loss is the weight times the mean of the inputs that count."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs, targets):
        counted = inputs[targets != IGNORED]
        return None, self.scale * counted.sum() / max(len(counted), 1)


def test_a_step_is_the_mean_over_its_targets_however_unequal_the_micro_batches():
    inputs = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]])
    targets = torch.tensor([[1, 1, 1, 1], [1, IGNORED, IGNORED, IGNORED]])
    cut = [{"inputs": inputs[[i]], "targets": targets[[i]]} for i in range(2)]
    assert gradient_of(cut, [4 / 5, 1 / 5]) == pytest.approx((1 + 2 + 3 + 4 + 10) / 5)
    assert gradient_of([{"inputs": inputs, "targets": targets}], [1]) == pytest.approx(4)


def test_the_shares_of_unequal_micro_batches_follow_from_their_targets(tmp_path):
    targets = [torch.tensor([[1, 1, 1, 1]]), torch.tensor([[1, IGNORED, IGNORED, IGNORED]])]
    values = [torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[10.0, 20.0, 30.0, 40.0]])]
    batches = [{"inputs": v, "targets": t} for v, t in zip(values, targets)]
    config = TrainConfig(out_dir=str(tmp_path), max_iters=1, grad_clip=0.0)
    metadata, report = {"model_config": {}, "tokenizer": None, "data": {}}, Report0()
    evaluate = lambda model: {"val_loss": 1.0}  # noqa: E731
    train(Scale(), config, lambda step: batches, evaluate, ALONE, report, metadata)
    assert report.norms == [pytest.approx((1 + 2 + 3 + 4 + 10) / 5)]


def test_a_run_killed_at_any_moment_goes_on_as_if_it_had_not_been(train_tiny):
    options = "--max_iters=40 --eval_interval=5 --dropout=0.1 --log_interval=1".split()
    train_tiny(*options, "--out_dir=out/whole")
    command = [sys.executable, str(REPOSITORY / "train.py"), "defaults.py", *TINY, *options]
    with subprocess.Popen(
        [*command, "--out_dir=out/killed"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ONE_THREAD,
    ) as process:
        for line in process.stdout:
            if line.startswith(b"iter 23"):
                process.kill()
    killed_at = read_checkpoint("out/killed/ckpt.pt")["step"]
    assert 15 <= killed_at < 40
    subprocess.run(
        [*command, "--out_dir=out/killed", "--init_from=resume"],
        check=True,
        capture_output=True,
        env=ONE_THREAD,
    )
    whole, killed = (read_checkpoint(f"out/{name}/ckpt.pt") for name in ("whole", "killed"))
    assert_same_weights(whole, killed, rtol=0, atol=0)
    assert log_without_times("out/whole/log.jsonl") == log_without_times("out/killed/log.jsonl")


@pytest.mark.skipif(os.name == "nt", reason="there, a process takes no signals from another one")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_ends_in_good_order(train_tiny, number):
    train_tiny("--dry_run=True")
    command = [sys.executable, str(REPOSITORY / "train.py"), "defaults.py", *TINY]
    with subprocess.Popen(
        [*command, "--max_iters=100000", "--eval_interval=100000", "--log_interval=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        # Where the tests are a job in the background, the shell has it ignored.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        for line in process.stdout:
            if line.startswith("iter 12"):
                process.send_signal(number)
                break
        _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert "saving after this step" in told
    assert last()["step"] >= 12


TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]


def torchrun(*options):
    port = 20000 + os.getpid() % 20000
    return subprocess.run(
        [*TWO_PROCESSES, f"--master_port={port}", str(REPOSITORY / "train.py"), *options],
        capture_output=True,
        encoding="utf-8",
        env=ONE_THREAD,
    )


def test_two_processes_give_the_losses_of_one(train_tiny):
    options = "--dropout=0.1 --gradient_accumulation_steps=4 --log_interval=1".split()
    train_tiny(*options, "--out_dir=out/one")
    done = torchrun("defaults.py", *TINY, *options, "--out_dir=out/two")
    assert done.returncode == 0, done.stderr
    one, two = (log_without_times(f"out/{name}/log.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 23
    for mine, theirs in zip(one, two):
        assert mine == pytest.approx(theirs, rel=1e-4)
    weights = [read_checkpoint(f"out/{name}/ckpt.pt") for name in ("one", "two")]
    assert_same_weights(*weights, rtol=1e-3, atol=1e-5)
    assert done.stdout.count("step 20:") == 1  # one process alone prints


def test_accumulation_that_processes_cannot_share_is_refused(train_tiny):
    train_tiny("--dry_run=True")
    done = torchrun("defaults.py", *TINY, "--gradient_accumulation_steps=3")
    assert done.returncode != 0
    assert "gradient_accumulation_steps=3 must be a multiple of the 2 processes" in done.stderr


def test_the_best_checkpoint_is_kept_beside_the_last(train_tiny):
    train_tiny("--max_iters=40", "--eval_interval=5", "--learning_rate=0.3", "--eval_iters=0")
    looks = [r for r in read_log(Path("out/tiny/log.jsonl")) if "val_loss" in r]
    best = min(looks, key=lambda look: look["val_loss"])
    kept = read_checkpoint("out/tiny/best.pt")
    assert kept["step"] == best["step"]
    assert kept["progress"]["best"] == best["val_loss"]
    assert last()["step"] == 40


def test_patience_ends_a_run_that_does_not_get_better(train_tiny):
    options = "--max_iters=500 --eval_interval=2 --patience=3 --learning_rate=0".split()
    train_tiny(*options)
    assert last()["step"] == 8  # the first after random weights is the best, three are no better
    assert last()["progress"]["without_gain"] == 3


def test_a_time_budget_ends_the_run_annealed_and_evaluated(train_tiny):
    options = "--max_iters=10000000 --max_minutes=0.03 --schedule=linear --min_lr=0".split()
    started = time.monotonic()
    train_tiny(*options, "--eval_interval=1000000", "--log_interval=1")
    assert 1 < time.monotonic() - started < 60
    records = read_log(Path("out/tiny/log.jsonl"))
    rates = [record["learning_rate"] for record in records if "loss" in record]
    assert rates[-1] < 0.2 * max(rates)
    assert records[-1]["step"] == last()["step"]
    assert "val_loss" in records[-1]


# ----------------------------------------------------------------------------- when it fails


class Report0:
    """A report that only remembers."""

    unread = False

    def __init__(self):
        self.norms = []

    def show_optimizers(self, optimizers):
        pass

    def say(self, line):
        pass

    def start_step(self):
        pass

    def evaluated(self, progress, numbers):
        pass

    def step(self, progress, n_tokens, loss, grad_norm, **more):
        self.norms.append(grad_norm)


def train_scale(inputs_at, tmp_path, **settings):
    """Train the one-number model on inputs_at(step)."""
    config = TrainConfig(
        out_dir=str(tmp_path), max_iters=30, eval_interval=5, warmup_iters=0, **settings
    )

    def batch_at(step):
        return [{"inputs": inputs_at(step), "targets": torch.ones(1, 1, dtype=torch.long)}]

    model, report = Scale(), Report0()
    metadata = {"model_config": {}, "tokenizer": None, "data": {}}
    evaluate = lambda model: {"val_loss": 1.0}  # noqa: E731
    return model, report, train(model, config, batch_at, evaluate, ALONE, report, metadata)


def test_a_step_without_finite_gradients_is_skipped(tmp_path):
    model, report, progress = train_scale(
        lambda step: torch.full((1, 1), math.inf if step in (3, 4) else 1.0), tmp_path
    )
    assert progress.step == 30
    assert math.isfinite(model.scale.item())
    assert [i for i, norm in enumerate(report.norms) if not math.isfinite(norm)] == [3, 4]


def test_a_run_that_stays_without_finite_gradients_ends_with_advice(tmp_path):
    with pytest.raises(SystemExit) as stop:
        train_scale(
            lambda step: torch.full((1, 1), math.nan if step >= 7 else 1.0),
            tmp_path,
            learning_rate=0.004,
        )
    assert "10 steps in a row without finite gradients" in str(stop.value)
    assert "--learning_rate=0.002" in str(stop.value)
    kept = read_checkpoint(tmp_path / "ckpt.pt")
    assert kept["step"] == 15
    assert math.isfinite(kept["model"]["scale"])


def test_a_lack_of_memory_is_answered_with_settings_to_try(train_tiny, monkeypatch):
    def lacking(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train_module, "accumulate_gradients", lacking)
    with pytest.raises(SystemExit) as stop:
        train_tiny()
    assert str(stop.value) == (
        "out of memory with batch_size=4; try --batch_size=2 --gradient_accumulation_steps=4, "
        "or --gradient_checkpointing=True"
    )


@pytest.mark.parametrize(("block_size", "advice"), [(64, "=32"), (None, " (half of the model's)")])
def test_with_one_sequence_the_context_is_what_can_be_smaller(block_size, advice):
    config = types.SimpleNamespace(
        batch_size=1,
        gradient_accumulation_steps=1,
        block_size=block_size,
        gradient_checkpointing=True,
    )
    with pytest.raises(SystemExit) as stop, advice_on_memory(config):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert str(stop.value) == f"out of memory with batch_size=1; try --block_size{advice}"


def test_recomputed_blocks_give_the_same_weights(train_tiny):
    train_tiny("--dropout=0.1")
    remembered = read_checkpoint("out/tiny/ckpt.pt")
    train_tiny("--dropout=0.1", "--gradient_checkpointing=True")
    assert_same_weights(remembered, read_checkpoint("out/tiny/ckpt.pt"), rtol=0, atol=0)


def test_recomputed_blocks_need_less_memory(train_tiny, capsys):
    needed = {}
    for option in ("False", "True"):
        shape = "--n_layer=6", "--n_embd=64", "--batch_size=64"
        train_tiny("--dry_run=True", *shape, f"--gradient_checkpointing={option}")
        told = " ".join(capsys.readouterr().out.split())
        needed[option] = told.partition("activations ")[2].partition(",")[0]
    assert int(needed["True"]) < int(needed["False"])


def test_without_a_compiler_training_goes_on_without_it(train_tiny, monkeypatch, capsys):
    def broken(model):
        def call(**batch):
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    train_tiny("--compile=True")
    assert "compile: not possible here" in capsys.readouterr().out
    assert last()["step"] == 20


@pytest.mark.parametrize("factor", [math.nan, 0.0])
def test_wrong_gradients_of_a_compiler_are_not_learned_from(
    train_tiny, monkeypatch, capsys, factor
):
    def wrong(model):
        def forward(*args, **kwargs):
            scores, loss = model(*args, **kwargs)
            return scores, loss * factor

        return forward

    monkeypatch.setattr(torch, "compile", wrong)
    train_tiny("--compile=True")
    told = capsys.readouterr().out
    assert f"compile: not possible here (gradients of norm {factor:g})" in told
    assert "this update is skipped" not in told


def test_fp8_rounds_what_the_blocks_multiply_and_keeps_their_weights(train_tiny, capsys):
    pytest.importorskip("torchao")
    train_tiny()
    plain = last()["model"]
    train_tiny("--fp8=True")
    assert "they are emulated" in capsys.readouterr().out
    rounded = last()["model"]
    assert rounded.keys() == plain.keys()
    name = "blocks.0.mlp.up.weight"
    assert rounded[name].dtype == torch.float32
    assert not torch.equal(rounded[name], plain[name])
    torch.testing.assert_close(rounded[name], plain[name], rtol=0, atol=0.05)
    train_tiny("--init_from=resume", "--max_iters=25")
    assert last()["step"] == 25


def test_fp8_without_torchao_names_the_install_line(train_tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    train_tiny("--max_iters=0")
    with pytest.raises(SystemExit, match="pip install torchao"):
        train_tiny("--fp8=True")
    assert not Path("out/tiny/previous-1").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--dataset=absent"], "there is no data in data"),
        (["--dataset=defaults.py"], "defaults.py is a file. Tokenise it"),
        (["--dataset=absent"], "python prepare_data.py PATH_OF_YOUR_TEXT --dataset=absent"),
        (["--dataset=stories"], "prepare it with: python prepare_data.py stories"),
        (["--dataset=shakespeare"], "python prepare_data.py shakespeare --tokenizer=gpt2"),
        (["--block_size=100000"], "block_size=100000 does not fit"),
        (["--vocab_size=3"], "vocab_size=3 is too small"),
        (["--init_from=resume", "--out_dir=out/none"], "there is no checkpoint out/none"),
        (["--init_from=out/none"], "there is no checkpoint out/none"),
        (["--device=abacus"], "device=abacus is not usable here; expected"),
        (["--dtype=float16"], "dtype=float16"),
        (["--best_metric=beauty"], "best_metric=beauty is not evaluated; there is train_loss"),
    ],
)
def test_what_cannot_work_is_refused_before_training(train_tiny, options, told):
    with pytest.raises(SystemExit) as stop:
        train_tiny(*options)
    assert told in str(stop.value)


def test_impossible_knobs_are_refused_by_name(train_tiny, capsys):
    for option in ("--batch_size=0", "--label_smoothing=1.5", "--n_embd=15", "--eval_interval=0"):
        with pytest.raises(SystemExit):
            train_tiny(option)
        name, value = option.removeprefix("--").split("=")
        assert f"{name}={value}" in capsys.readouterr().err


# --------------------------------------------------------------------- where a run comes from


def test_a_fresh_start_sets_an_older_run_aside(train_tiny):
    for learning_rate in ("0.01", "0.02", "0.03"):
        train_tiny(f"--learning_rate={learning_rate}")
    rates = {
        folder: read_checkpoint(f"out/tiny/{folder}ckpt.pt")["train_config"]["learning_rate"]
        for folder in ("", "previous-1/", "previous-2/")
    }
    assert rates == {"": 0.03, "previous-1/": 0.01, "previous-2/": 0.02}
    assert Path("out/tiny/previous-1/log.jsonl").exists()


def test_resuming_keeps_the_settings_of_the_run_and_takes_what_is_typed(train_tiny, run):
    train_tiny("--learning_rate=0.005", "--max_iters=10")
    run("train.py", "--init_from=resume", "--out_dir=out/tiny", "--max_iters=12")
    config = last()["train_config"]
    assert config["learning_rate"] == 0.005
    assert config["n_embd"] == 16
    assert config["max_iters"] == 12
    assert last()["step"] == 12


def test_a_run_of_another_version_is_told_how_to_go_on(train_tiny, run):
    train_tiny("--max_iters=2")
    checkpoint = last()
    checkpoint["train_config"]["knob_of_old"] = 3
    save_checkpoint(Path("out/tiny/ckpt.pt"), checkpoint)
    with pytest.raises(SystemExit, match=r"another version.*knob_of_old.*--init_from=out/tiny"):
        run("train.py", "--init_from=resume", "--out_dir=out/tiny")
    checkpoint["train_config"]["mlp"] = checkpoint["model_config"]["mlp"] = "of_old"
    save_checkpoint(Path("out/tiny/ckpt.pt"), checkpoint)
    with pytest.raises(SystemExit, match=r"another version.*; use that one$"):
        run("train.py", "--init_from=resume", "--out_dir=out/tiny")


def test_more_than_numbers_can_be_logged(train_tiny, monkeypatch):
    plain = report.Report.step

    def more(self, *inputs, **numbers):
        odd = {"norms": torch.ones(2), "names": ["a"], "nan": math.nan, "n": np.float32(2)}
        plain(self, *inputs, **numbers, **odd)

    monkeypatch.setattr(report.Report, "step", more)
    train_tiny("--max_iters=1")
    (logged,) = [line for line in read_log(Path("out/tiny/log.jsonl")) if "names" in line]
    assert logged["norms"] == [1.0, 1.0] and logged["names"] == ["a"]
    assert logged["nan"] is None and logged["n"] == 2


def test_a_metric_that_is_not_finite_does_not_keep_a_checkpoint_from_being_saved(
    train_tiny, monkeypatch
):
    plain = train_module.evaluation

    def with_nan(*inputs):
        evaluate = plain(*inputs)
        return lambda model: evaluate(model) | {"odd": math.nan}

    monkeypatch.setattr(train_module, "evaluation", with_nan)
    train_tiny("--max_iters=2")
    assert last()["step"] == 2


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_a_formula_that_you_change_is_what_is_computed(train_tiny, monkeypatch, capsys, scale):
    attention, loss = model_module.causal_attention, model_module.next_token_loss

    def sharper(q, *more):
        return attention(scale * q, *more)

    def larger(*inputs):
        return scale * loss(*inputs)

    monkeypatch.setattr(model_module, "causal_attention", sharper)
    monkeypatch.setattr(report, "causal_attention", sharper)
    monkeypatch.setattr(model_module, "next_token_loss", larger)
    is_changed = scale != 1
    train_tiny("--max_iters=1")
    told = capsys.readouterr().out
    assert ("attention by the formula" in told) == is_changed
    assert ("loss by next_token_loss" in told) == is_changed
    assert ("train loss 4." in told) == is_changed  # 1.5 times ln 18 and a little more


def test_resuming_with_another_model_is_refused_by_name(train_tiny, run):
    train_tiny("--max_iters=2")
    with pytest.raises(SystemExit) as stop:
        run("train.py", "--init_from=resume", "--out_dir=out/tiny", "--n_layer=3")
    assert "n_layer=3 does not match out/tiny, which has 2" in str(stop.value)


def test_a_new_run_can_start_from_the_weights_of_another(train_tiny):
    train_tiny("--max_iters=150", "--eval_interval=50")
    old = read_log(Path("out/tiny/log.jsonl"))
    with pytest.raises(SystemExit, match="n_layer=7 does not fit out/tiny, which has 2"):
        train_tiny("--init_from=out/tiny", "--out_dir=out/second", "--n_layer=7")
    train_tiny("--init_from=out/tiny", "--out_dir=out/second", "--block_size=8")
    second = read_checkpoint("out/second/ckpt.pt")
    assert second["model_config"]["n_layer"] == 2  # the shape comes with the weights
    assert second["train_config"]["block_size"] == 8  # what it was trained on is shorter,
    assert second["model_config"]["block_size"] == 16  # not what it can look back on
    assert second["step"] == 20  # with a schedule of its own
    first_look = read_log(Path("out/second/log.jsonl"))[0]
    assert first_look["step"] == 0
    assert first_look["val_loss"] < 0.7 * old[0]["val_loss"]
    train_tiny("--init_from=resume", "--out_dir=out/second", "--block_size=8", "--max_iters=25")
    third = read_checkpoint("out/second/ckpt.pt")
    assert (third["step"], third["model_config"]) == (25, second["model_config"])


def test_weights_and_data_must_agree_on_their_tokens(train_tiny, run):
    train_tiny("--max_iters=2")
    Path("other.txt").write_text("quite another text\n" * 200, encoding="utf-8")
    run("prepare_data.py", "other.txt", "--dataset=other", "--tokenizer=char")
    with pytest.raises(SystemExit) as stop:
        train_tiny("--init_from=out/tiny", "--dataset=other", "--out_dir=out/second")
    assert "--tokenizer=out/tiny" in str(stop.value)
    run("prepare_data.py", "other.txt", "--dataset=other", "--tokenizer=out/tiny")
    train_tiny("--init_from=out/tiny", "--dataset=other", "--out_dir=out/second")
    assert read_checkpoint("out/second/ckpt.pt")["step"] == 20


def test_eval_only_evaluates_and_writes_nothing(train_tiny, capsys):
    train_tiny("--max_iters=5")
    saved = Path("out/tiny/ckpt.pt").read_bytes()
    train_tiny("--eval_only=True", "--init_from=out/tiny")
    assert "val loss" in capsys.readouterr().out.splitlines()[-1]
    assert Path("out/tiny/ckpt.pt").read_bytes() == saved


def test_a_dry_run_tells_the_plan_and_writes_nothing(train_tiny, capsys):
    train_tiny("--dry_run=True", "--max_iters=100", "--warmup_iters=100")
    told = capsys.readouterr().out
    assert "tokens per iteration will be: 128" in told
    for part in ("weights", "gradients", "optimizer", "activations", "epochs", "GFLOP per step"):
        assert part in told
    assert "11 times, 3 batches of each split" in told
    assert "warmup_iters=100 lasts the whole run" in told
    assert "memorise" not in told
    above, below = (
        line for line in told.splitlines() if line.startswith(("  inputs", "  targets"))
    )
    pairs = zip(above.split()[1:-1], above.split()[2:], below.split()[1:])
    assert all(target == following for _, following, target in pairs)  # shifted by one
    train_tiny("--dry_run=True", "--max_iters=100000", "--ngrams=3")
    assert "epochs the model will memorise the text's n-grams" in capsys.readouterr().out
    assert not Path("out").exists()


def test_nanogpts_lines_are_printed(train_tiny, capsys):
    train_tiny("--log_interval=10")
    told = capsys.readouterr().out
    for line in (
        "tokens per iteration will be: 128",
        "found vocab_size = ",
        "number of parameters: 0.01M",
        "AdamW trains ",
        "step 0: train loss ",
        "iter 10: loss ",
    ):
        assert f"\n{line}" in told
    assert "ms, " in told


# ------------------------------------------------------------------------ other people's data


def write_nanogpt_folder(path, dtype="<u2"):
    """A folder as nanoGPT's prepare.py leaves it."""
    import pickle

    path.mkdir(parents=True)
    text = "to be or not to be, that is the question\n" * 60
    characters = sorted(set(text))
    stoi = {character: i for i, character in enumerate(characters)}
    ids = np.array([stoi[character] for character in text], dtype=dtype)
    ids[:2000].tofile(path / "train.bin")
    ids[2000:].tofile(path / "val.bin")
    meta = {"vocab_size": len(stoi), "itos": dict(enumerate(characters)), "stoi": stoi}
    (path / "meta.pkl").write_bytes(pickle.dumps(meta))
    return ids


def test_nanogpts_data_folder_is_read_and_its_characters_sampled(train_tiny, run, capsys):
    write_nanogpt_folder(Path("data/nano"))
    train_tiny("--dataset=nano", "--max_iters=5")
    run("sample.py", "--out_dir=out/tiny", "--start=to be", "--max_new_tokens=5")
    assert "to be" in capsys.readouterr().out


@pytest.mark.parametrize(("magic", "dtype"), [(20240520, "<u2"), (20240801, "<u4")])
def test_shards_of_llm_c_are_read(train_tiny, magic, dtype):
    folder = Path("data/shards")
    folder.mkdir(parents=True)
    for split, n in (("val", 1), ("train", 3)):
        for i in range(n):
            header = np.zeros(256, "<i4")
            header[:3] = magic, 1, 500
            ids = np.arange(500) % 30 + 100 * i
            with open(folder / f"x_{split}_{i:06d}.bin", "wb") as file:
                file.write(header.tobytes() + ids.astype(dtype).tobytes())
    dataset = open_dataset("shards")
    assert len(dataset.train) == 1500
    assert [int(shard[0]) for shard in dataset.train.shards] == [0, 100, 200]
    assert dataset.vocab_size == 50304
    train_tiny("--dataset=shards", "--max_iters=3", "--vocab_size=50304")
    with open(folder / "x_train_000001.bin", "r+b") as file:
        file.truncate(1100)
    with pytest.raises(SystemExit, match=r"x_train_000001\.bin is damaged"):
        open_dataset("shards")


def test_damaged_data_are_noticed_before_training(train_tiny):
    with open("data/tiny/train.bin", "ab") as file:
        file.write(b"\0\0")
    with pytest.raises(SystemExit, match=r"train.bin has .* bytes, but by meta.json"):
        train_tiny()
    os.truncate("data/tiny/train.bin", Path("data/tiny/train.bin").stat().st_size - 2)
    meta = json.loads(Path("data/tiny/meta.json").read_text(encoding="utf-8"))
    splits = {split: meta["splits"][split] | {"files": ["x.bin"]} for split in meta["splits"]}
    for broken, message in (
        (meta | {"splits": splits}, r"x\.bin is missing"),
        ({k: v for k, v in meta.items() if k != "vocab_size"}, "damaged .KeyError"),
        (meta | {"splits": {"train": {}, "val": {}}}, "damaged .KeyError"),
    ):
        Path("data/tiny/meta.json").write_text(json.dumps(broken), encoding="utf-8")
        with pytest.raises(SystemExit, match=message):
            train_tiny()


# --------------------------------------------------------------------------- what else it does


def test_a_shift_of_zero_teaches_to_copy(train_tiny):
    options = "--max_iters=150 --eval_interval=150 --learning_rate=3e-2".split()
    train_tiny("--target_shift=0", *options)
    assert read_log(Path("out/tiny/log.jsonl"))[-1]["val_loss"] < 0.05


def test_label_smoothing_is_for_training_alone(train_tiny):
    train_tiny("--label_smoothing=0.5", "--max_iters=1", "--log_interval=1", "--seed=3")
    train_tiny("--label_smoothing=0.0", "--max_iters=1", "--log_interval=1", "--seed=3")
    smooth, sharp = (read_log(Path(f"out/tiny/{f}log.jsonl")) for f in ("previous-1/", ""))
    assert smooth[0]["val_loss"] == sharp[0]["val_loss"]
    assert smooth[1]["loss"] != sharp[1]["loss"]


def test_the_averaged_weights_are_the_ones_evaluated_and_sampled(train_tiny):
    train_tiny("--ema_decay=0.99", "--eval_iters=0")
    from support.checkpoint import load_model

    model, _, checkpoint = load_model("out/tiny/ckpt.pt")
    name = "blocks.0.mlp.up.weight"
    assert torch.equal(model.state_dict()[name], checkpoint["ema"][name])
    assert not torch.equal(checkpoint["model"][name], checkpoint["ema"][name])


def test_the_log_is_sent_to_tensorboard_or_the_install_line_is_told(train_tiny, monkeypatch):
    train_tiny("--max_iters=1")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit, match="pip install tensorboard"):
        train_tiny("--log_to=tensorboard")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match="pip install wandb"):
        train_tiny("--log_to=wandb")
    assert Path("out/tiny/ckpt.pt").exists()  # the run that is there has not been moved away


def test_the_log_is_sent_to_wandb(train_tiny, monkeypatch):
    sent = []

    class FakeWandb:
        @staticmethod
        def init(project, name, config):
            assert project == "mine"
            assert config["n_layer"] == 2
            return FakeWandb

        @staticmethod
        def log(numbers, step):
            sent.append((step, numbers))

    monkeypatch.setitem(sys.modules, "wandb", FakeWandb)
    train_tiny("--log_to=wandb", "--wandb_project=mine", "--max_iters=4")
    assert {step for step, _ in sent} == {0, 1, 2, 3, 4}
    assert any("val_loss" in numbers for _, numbers in sent)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match="pip install wandb"):
        train_tiny("--init_from=resume", "--max_iters=5")


def test_progress_judges_losses_and_scores():
    progress = Progress()
    assert progress.note({"val_loss": 2.0}, "val_loss")
    assert not progress.note({"val_loss": 2.5}, "val_loss")
    scores = Progress()
    assert scores.note({"accuracy": 0.5}, "accuracy")
    assert scores.note({"accuracy": 0.6}, "accuracy")
    assert not scores.note({"accuracy": 0.4}, "accuracy")
    assert scores.without_gain == 1


def test_of_equally_good_moments_the_one_with_less_loss_is_best():
    progress = Progress()
    for accuracy, loss, is_best in ((0, 9, True), (0, 8, True), (0, 8.5, False), (0.1, 9, True)):
        assert progress.note({"accuracy": accuracy, "val_loss": loss}, "accuracy") is is_best
    older = Progress(best=0.1)  # of a checkpoint that does not tell the loss
    assert not older.note({"accuracy": 0.1, "val_loss": 1.0}, "accuracy")


def test_what_is_not_a_number_is_never_the_best():
    progress = Progress()
    assert not progress.note({"val_loss": math.nan}, "val_loss")
    assert progress.note({"val_loss": 3.0}, "val_loss")
