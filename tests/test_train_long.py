"""What a training run promises however long it lasts: stopped, killed, gone on with and read."""

import errno
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import model as model_module
import train as train_module
from model import IGNORED, ModelConfig, Transformer
from sample import next_token_distribution
from support.checkpoint import load_model, read_checkpoint, save_checkpoint
from support.metrics import width
from support.processes import World, open_world
from support.report import (
    draw,
    farewell,
    in_columns,
    in_words,
    quoted,
    read_log,
    show_shift,
)
from support.token_files import Dataset, Tokens
from support.tokenizer import byte_tokenizer
from tests.conftest import REPOSITORY, TINY, call, tiny_text
from tests.test_sample import LOGITS, continuation, make_model
from tests.test_train import (
    ALONE,
    ONE_THREAD,
    Report0,
    Scale,
    assert_same_weights,
    last,
    log_without_times,
)
from train import (
    Progress,
    TrainConfig,
    evaluation,
    make_optimizers,
    schedule_factor,
    training_batches,
)

HALF = World(torch.device("cpu"), torch.float16)  # whose losses are scaled


class Heard(Report0):
    """A report that remembers the norms and the rates."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def step(self, progress, n_tokens, learning_rate, **more):
        super().step(progress, n_tokens, learning_rate=learning_rate, **more)
        self.rates.append(learning_rate)


def sit(folder, resume=False, world=ALONE, inputs=lambda step: 1.0, looks=None, **settings):
    """(report, progress) of one sitting of a run of the one-number model in a folder.

    inputs(step) is what the model sees, looks are the losses that evaluations find.
    """
    config = TrainConfig(**{"out_dir": str(folder), "warmup_iters": 0} | settings)
    model, report = Scale(), Heard()
    resumed = read_checkpoint(folder / "ckpt.pt") if resume else None
    if resumed:
        model.load_state_dict(resumed["model"])
    looks = iter(looks or itertools.repeat(1.0))

    def batch_at(step):
        return [{"inputs": torch.full((1, 1), inputs(step)), "targets": torch.ones(1, 1).long()}]

    def evaluate(model):
        return {"val_loss": next(looks)}

    metadata = {"model_config": {}, "tokenizer": None, "data": {}}
    progress = train_module.train(
        model, config, batch_at, evaluate, world, report, metadata, resumed
    )
    return report, progress


def small(**changes):
    """A tiny transformer with decided opinions, the same each time."""
    torch.manual_seed(0)
    shape = {"vocab_size": 20, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    model = Transformer(ModelConfig(**shape | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


def some_batch(model, rows=4):
    """Random tokens to learn from."""
    torch.manual_seed(1)
    block = torch.randint(model.config.vocab_size, (rows, model.config.block_size + 1))
    return {"inputs": block[:, :-1], "targets": block[:, 1:]}


def dataset_of(train, val=None):
    """A dataset of these ids, whose documents are ended by 0."""
    splits = [Tokens([np.array(ids)], None) for ids in (train, train if val is None else val)]
    return Dataset(Path("ids"), *splits, vocab_size=20, tokenizer=SimpleNamespace(eot=0))


# --------------------------------------------------------------------------- scaled gradients


def gradients_and_update(scaler, **settings):
    """(model, optimizers, norm) after one update of a small model with Muon and AdamW."""
    model, config = small(), TrainConfig(optimizer="muon", **settings)
    optimizers = make_optimizers(model, config)
    train_module.add_gradients(model, ALONE, scaler, some_batch(model), 1.0)
    return model, optimizers, train_module.update(model, optimizers, config, scaler)


def test_scaled_gradients_are_unscaled_before_they_are_clipped():
    plain, scaled = (
        gradients_and_update(torch.amp.GradScaler("cpu", enabled=enabled), grad_clip=0.1)
        for enabled in (False, True)
    )
    assert plain[2] > 0.2  # so that there is something to clip
    assert scaled[2] == plain[2]  # exactly: the scale is a power of two
    for name, weight in plain[0].state_dict().items():
        assert torch.equal(weight, scaled[0].state_dict()[name]), name


def test_one_infinite_gradient_skips_the_update_of_all_weights_and_halves_the_scale():
    model, config = small(), TrainConfig(optimizer="muon")
    optimizers, scaler = make_optimizers(model, config), torch.amp.GradScaler("cpu")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    train_module.add_gradients(model, ALONE, scaler, some_batch(model), 1.0)
    model.blocks[0].mlp.up.weight.grad[0, 0] = torch.inf  # in Muon's part alone
    norm = train_module.update(model, optimizers, config, scaler)
    assert not np.isfinite(norm)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert scaler.get_scale() == 2**15
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_scale_of_the_loss_survives_resuming(tmp_path):
    def inputs(step):
        return torch.inf if step == 1 else 1.0

    half = {"world": HALF, "inputs": inputs, "lr_decay_iters": 6}
    sit(tmp_path / "whole", max_iters=6, **half)
    sit(tmp_path / "parts", max_iters=4, **half)
    sit(tmp_path / "parts", max_iters=6, resume=True, **half)
    whole, parts = (read_checkpoint(tmp_path / name / "ckpt.pt") for name in ("whole", "parts"))
    assert whole["scaler"]["scale"] == 2**15  # halved once
    assert whole["scaler"]["_growth_tracker"] == 4  # good steps since
    assert parts["scaler"] == whole["scaler"]
    assert_same_weights(whole, parts, rtol=0, atol=0)


# ------------------------------------------------------------------------ clocks and patience


def test_a_time_budget_counts_the_minutes_of_earlier_sittings(tmp_path, monkeypatch):
    clock = itertools.count(step=7.5)  # an eighth of a minute passes from step to step
    fake = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(train_module, "time", fake)
    budget = {"max_minutes": 1.0, "schedule": "linear", "min_lr": 0.0, "lr_decay_iters": 10**6}
    whole, _ = sit(tmp_path / "whole", **budget)
    first, _ = sit(tmp_path / "parts", max_iters=3, **budget)
    second, progress = sit(tmp_path / "parts", resume=True, **budget)
    assert progress.step == len(whole.rates) == 8
    assert first.rates + second.rates == pytest.approx(whole.rates)
    assert second.rates[-1] == 0


def test_under_a_time_budget_the_rate_falls_even_while_warm_up_lasts():
    config = TrainConfig(schedule="linear", min_lr=0.0, warmup_iters=9, max_minutes=4.0)
    assert schedule_factor(4, 1.0, config) == pytest.approx(0.5)  # still rising
    assert schedule_factor(6, 2.8, config) == pytest.approx(0.3)  # falling, warm-up or not
    assert schedule_factor(8, 4.0, config) == 0


def test_patience_and_the_best_value_survive_resuming(tmp_path):
    settings = {"eval_interval": 1, "patience": 5}
    sit(tmp_path, looks=[0.5, 1.0, 2.0, 2.0], max_iters=3, **settings)
    _, progress = sit(tmp_path, looks=[1.5] * 99, max_iters=99, resume=True, **settings)
    assert progress.best == 1.0
    assert progress.step == 6  # two looks without gain before the break, three after it
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 1  # random weights are never the best


def test_random_weights_are_not_the_best_of_a_run_that_was_stopped_early(tmp_path, monkeypatch):
    stopped = SimpleNamespace(requested=True)
    monkeypatch.setattr(train_module.StopSignal, "__enter__", lambda self: stopped)
    sit(tmp_path, max_iters=3, eval_interval=3)
    assert not (tmp_path / "best.pt").exists()
    monkeypatch.undo()
    sit(tmp_path, max_iters=3, eval_interval=3, resume=True)
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 3
    sit(tmp_path / "trained", max_iters=3, eval_interval=3, init_from="x", looks=[1.0, 2.0])
    assert read_checkpoint(tmp_path / "trained" / "best.pt")["step"] == 0


# ------------------------------------------------------------------------------------ updates


@pytest.mark.parametrize("grad_clip", [0.0, 0.1])
def test_a_gradient_is_shortened_to_grad_clip_and_keeps_its_direction(grad_clip):
    model, scaler = small(), torch.amp.GradScaler("cpu", enabled=False)
    train_module.add_gradients(model, ALONE, scaler, some_batch(model), 1.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    gradient = [parameter.grad.clone() for parameter in model.parameters()]
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)  # which goes as far as the gradient is long
    norm = train_module.update(model, [sgd], TrainConfig(grad_clip=grad_clip), scaler)
    assert norm == pytest.approx(torch.cat([g.flatten() for g in gradient]).norm().item())
    assert norm > 0.2
    share = grad_clip / norm if grad_clip else 1.0
    for old, new, slope in zip(before, model.parameters(), gradient):
        torch.testing.assert_close(new.detach(), old - share * slope)


def test_adamw_remembers_as_beta1_and_beta2_say():
    model = small()
    (adamw,) = make_optimizers(model, TrainConfig(beta1=0.7, beta2=0.6))
    weight = model.token_embedding.weight
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    adamw.step()
    torch.testing.assert_close(adamw.state[weight]["exp_avg"], torch.full_like(weight, 0.3 * 2))
    torch.testing.assert_close(adamw.state[weight]["exp_avg_sq"], torch.full_like(weight, 0.4 * 4))


def test_the_rates_of_adamw_and_muon_follow_the_schedule_in_every_sitting(train_tiny, monkeypatch):
    rates, update = [], train_module.update

    def watched(model, optimizers, *rest):
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
        assert sum(len(optimizer.param_groups) for optimizer in optimizers) == 3
        return update(model, optimizers, *rest)

    monkeypatch.setattr(train_module, "update", watched)
    options = "--optimizer=muon --muon_learning_rate=0.04 --lr_decay_iters=8 --min_lr=0".split()
    train_tiny(*options, "--max_iters=4")
    train_tiny(*options, "--max_iters=8", "--init_from=resume")
    config = TrainConfig(learning_rate=0.01, min_lr=0.0, warmup_iters=2, max_iters=8)
    factors = [schedule_factor(step, 0, config) for step in range(8)]
    assert len({*factors}) > 5
    assert [adamw for adamw, _ in rates] == pytest.approx([0.01 * factor for factor in factors])
    assert [muon for _, muon in rates] == pytest.approx([0.04 * factor for factor in factors])


# ------------------------------------------------------------- what a step and a look consist of


def loss_of_the_second_document(first_document, document_mask):
    """The loss after the end in a window of two documents, in training and in evaluation."""
    dataset = dataset_of([*first_document, 0, 5, 6, 7, 8])
    config = TrainConfig(
        block_size=8, batch_size=1, gradient_accumulation_steps=1, document_mask=document_mask
    )
    model, losses = small(), []

    def on_the_second_alone(inputs, targets, **rest):
        targets = torch.where(torch.arange(8) < len(first_document), IGNORED, targets)
        _, loss = model(inputs, targets, **rest)
        losses.append(loss.item())
        return None, loss.detach()

    (batch,) = training_batches(dataset, config, ALONE)(0)
    on_the_second_alone(**batch)
    evaluation(dataset, config, ALONE)(on_the_second_alone)
    return losses


def test_with_a_document_mask_the_first_document_of_a_window_is_nothing_to_the_second():
    one, other = ([1, 2, 3, 4], [9, 12, 15, 18])
    losses = loss_of_the_second_document(one, document_mask=True)
    assert len(losses) == 3  # a step, and a look at each split
    assert losses == loss_of_the_second_document(other, document_mask=True)
    for seen, changed in zip(
        loss_of_the_second_document(one, document_mask=False),
        loss_of_the_second_document(other, document_mask=False),
    ):
        assert abs(seen - changed) > 1e-3


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation makes, forwards or backwards."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = [part for part in torch.utils._pytree.tree_leaves(made) if torch.is_tensor(part)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return made


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_large_vocabulary_never_has_all_its_logits_at_once(monkeypatch, label_smoothing):
    model = small(vocab_size=1000, label_smoothing=label_smoothing)
    all_logits = 4 * 8 * 1000
    monkeypatch.setattr(model_module, "rows_per_piece", lambda *_: 3)
    own, saved = {parameter.data_ptr() for parameter in model.parameters()}, []

    def note(tensor):
        saved.append(0 if tensor.data_ptr() in own else tensor.numel())
        return tensor

    batch = some_batch(model)
    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            _, loss = model(**batch)
        loss.backward()
    assert largest.elements <= 8 * 1000  # the embedding, and the gradient of it
    assert sum(saved) < all_logits / 2


def test_every_epoch_cuts_the_windows_at_an_offset_of_its_own():
    dataset = dataset_of(range(1000))
    config = TrainConfig(block_size=8, batch_size=4, gradient_accumulation_steps=1)
    batch_at = training_batches(dataset, config, ALONE)
    steps = 31  # an epoch of 124 windows
    offsets = []
    for epoch in range(8):
        starts = [batch_at(epoch * steps + i)[0]["inputs"][:, 0] % 8 for i in range(steps)]
        (offset,) = {*torch.cat(starts).tolist()}
        offsets.append(offset)
    assert len({*offsets}) > 3
    assert offsets[0] != offsets[1]


@pytest.mark.parametrize("batch_size", [3, 4])
def test_an_evaluation_without_a_number_of_batches_reads_every_whole_window_once(batch_size):
    train, val = list(range(100)), list(range(1000, 1082))
    config = TrainConfig(block_size=8, batch_size=batch_size, eval_iters=0)
    read = []

    def model(inputs, targets):
        read.extend(zip(inputs.tolist(), targets.tolist()))
        return None, inputs.double().mean()

    numbers = evaluation(dataset_of(train, val), config, ALONE)(model)
    expected = []
    for ids, split in ((train, "train"), (val, "val")):
        starts = range(0, len(ids) - 8, 8)
        expected += [(ids[i : i + 8], ids[i + 1 : i + 9]) for i in starts]
        assert numbers[f"{split}_loss"] == pytest.approx(np.mean([ids[i : i + 8] for i in starts]))
    assert read == expected
    assert len(read) == 12 + 10


# -------------------------------------------------------------------------------- generating


@pytest.mark.parametrize(("temperature", "kept"), [(0.5, 1), (1.0, 2), (2.0, 3), (4.0, 4)])
def test_min_p_is_a_share_of_the_likeliest_after_the_temperature(temperature, kept):
    probabilities = next_token_distribution(LOGITS, temperature=temperature, min_p=0.5)[0]
    assert (probabilities > 0).sum() == kept
    warm = (LOGITS[0] / temperature).softmax(dim=0)
    warm[warm < 0.5 * warm.max()] = 0
    torch.testing.assert_close(probabilities, warm / warm.sum())


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_row_whose_neighbour_overflows_the_context_goes_on_as_it_would_alone(position):
    model = make_model(block_size=8, position=position)
    prompts = [[1, 2, 3, 4, 5, 6, 7], [5], [9, 8, 7], [*range(20, 32)]]
    together = continuation(model, prompts, 25)
    assert together == [continuation(model, [prompt], 25)[0] for prompt in prompts]


# ------------------------------------------------------------------------------ averaged weights


def test_load_model_gives_the_averaged_weights_of_a_tied_model_its_embedding_too(
    train_tiny, monkeypatch
):
    name, passed, update = "token_embedding.weight", [], train_module.update

    def watched(model, *rest):
        passed.append(model.get_parameter(name).detach().clone())
        return update(model, *rest)

    monkeypatch.setattr(train_module, "update", watched)
    train_tiny("--ema_decay=0.9", "--max_iters=12")
    passed.append(last()["model"][name])
    average = passed[0]
    for step, weight in enumerate(passed[1:]):
        average = average.lerp(weight, 1 - min(0.9, (1 + step) / (10 + step)))
    model, _, _ = load_model("out/tiny/ckpt.pt")
    torch.testing.assert_close(model.get_parameter(name).detach(), average)
    assert (average - passed[-1]).abs().max() > 1e-3
    assert model.head.weight is model.token_embedding.weight
    for name, weight in model.named_parameters():
        assert torch.equal(weight, last()["ema"][name]), name


def test_a_run_with_averaged_weights_is_evaluated_later_as_it_was_at_its_end(
    train_tiny, run, capsys
):
    train_tiny("--ema_decay=0.9", "--max_iters=15")
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 15:")]
    run("train.py", "--init_from=resume", "--out_dir=out/tiny", "--eval_only=True")
    assert f"step 15: {capsys.readouterr().out.splitlines()[-1]}" == told


# ------------------------------------------------------------------------- resuming, and refusals


def test_resuming_on_data_that_have_changed_tells_what_changed(train_tiny, run, capsys):
    train_tiny("--max_iters=1")
    resume = ["train.py", "--init_from=resume", "--out_dir=out/tiny"]
    run(*resume, "--max_iters=2")
    assert "the data have changed" not in capsys.readouterr().out
    old = last()["data"]
    Path("tiny.txt").write_text(3 * tiny_text(), encoding="utf-8")
    run("prepare_data.py", "tiny.txt", "--dataset=tiny", "--tokenizer=char")
    run(*resume, "--max_iters=3")
    new = last()["data"]
    told = [line for line in capsys.readouterr().out.splitlines() if "data have changed" in line]
    assert told == [
        f"the data have changed: {name} was {old[name]} and is now {new[name]}"
        for name in ("train_tokens", "val_tokens")
    ]
    assert new["train_tokens"] > 2 * old["train_tokens"]


def test_resuming_with_another_optimizer_is_refused_by_name(train_tiny, run):
    train_tiny("--max_iters=1")
    with pytest.raises(SystemExit) as stop:
        run("train.py", "--init_from=resume", "--out_dir=out/tiny", "--optimizer=muon")
    assert "optimizer=muon does not match out/tiny, which has adamw" in str(stop.value)


def test_characters_without_a_newline_can_be_trained_on(train_tiny, run, capsys):
    Path("line.txt").write_text(tiny_text().replace("\n", " "), encoding="utf-8")
    run("prepare_data.py", "line.txt", "--dataset=line", "--tokenizer=char")
    train_tiny("--dataset=line", "--max_iters=1")
    assert "\n" not in last()["tokenizer"]["characters"]
    assert "\n  | " in capsys.readouterr().out


def test_a_batch_is_shown_with_each_input_above_its_target(capsys):
    tokenizer = byte_tokenizer()
    tokens = torch.tensor(tokenizer.encode("a 猫\n").tolist())[None]
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:].clone()}
    show_shift(batch, tokenizer)
    batch["targets"][0, 0] = IGNORED
    show_shift(batch, None)
    assert capsys.readouterr().out.splitlines() == [
        "  inputs  a ␣    <e7> <8c> <ab>",
        "  targets ␣ <e7> <8c> <ab> ⏎",
        "  inputs  97 32  231 140 171",
        "  targets -1 231 140 171 10",
    ]
    long = torch.zeros(1, 500, dtype=torch.long)
    show_shift({"inputs": long, "targets": long}, None)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 6 and all(70 < len(line) <= 80 for line in told)


@pytest.mark.parametrize("block_size", [1000, 10000])
def test_a_dry_run_refuses_a_context_that_does_not_fit_the_data(train_tiny, block_size):
    with pytest.raises(SystemExit) as stop:
        train_tiny("--dry_run=True", f"--block_size={block_size}")
    expected = f"block_size={block_size} does not fit data/tiny: train has 5,820 tokens in a row, "
    assert expected + "val 648; try --block_size=162" in str(stop.value)


# --------------------------------------------------------------------- killed, stopped, not read

# Imports take seconds: one process makes them, and forks for every run that it is told of.
LAUNCHER = """
import gc, json, os, signal, sys
import matplotlib.pyplot, torch._dynamo  # which a run would import late
import train

gc.freeze()  # so that no run spends a second at its end on what it inherited
signal.signal(signal.SIGHUP, signal.SIG_DFL)
for line in sys.stdin:
    folder, out, err, options = json.loads(line)
    process = os.fork()
    if process:
        print("process", process, flush=True)
        print("exit", os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
        continue
    os.setsid()
    os.chdir(folder)
    os.dup2(os.open(out, os.O_WRONLY), 1)
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
    sys.argv = ["train.py", *options]
    sys.exit(train.main())
"""


@pytest.fixture(scope="module")
def launcher():
    """The process that forks."""
    if not hasattr(os, "fork"):
        pytest.skip("needs a system with fork")
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        env=ONE_THREAD | {"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


class Launched:
    """A run of the tiny model in a process of its own, which tells of every step."""

    def __init__(self, launcher, *options, out="told", err="mistakes"):
        options = ["defaults.py", *TINY, "--log_interval=1", *options]
        self.answers = launcher.stdout
        print(json.dumps([os.getcwd(), out, err, options]), file=launcher.stdin, flush=True)
        self.process = self.answer("process")

    def answer(self, name):
        return next(int(line.split()[1]) for line in self.answers if line.startswith(name))

    def exit_code(self):
        """Once it has ended; negative where a signal has ended it."""
        return self.answer("exit")


def read_steps(told, number):
    """Read what a run prints until it has told of so many steps."""
    steps = (line for line in told if line.startswith("iter "))
    assert len([*itertools.islice(steps, number)]) == number


@pytest.fixture
def launch(launcher, train_tiny):
    """A function that launches a run whose standard output can be read from the pipe `told`."""
    os.mkfifo("told")
    return lambda *options, **streams: Launched(launcher, *options, **streams)


ENDLESS = "--max_iters=3000 --eval_interval=3000".split()  # as far as these tests are concerned


def test_a_run_killed_again_and_again_ends_as_one_that_was_left_alone(launch, train_tiny):
    options = "--max_iters=90 --eval_interval=4 --eval_iters=1 --sample_tokens=0".split()
    options += ["--log_interval=1", "--dropout=0.1", "--ema_decay=0.9"]
    train_tiny(*options, "--out_dir=out/whole")
    options += ["--out_dir=out/killed", "--init_from=scratch"]
    chance = random.Random(9)
    for _ in range(3):
        killed = launch(*options)
        with open("told") as told:
            read_steps(told, chance.randint(1, 20))
            time.sleep(chance.uniform(0, 0.01))
            os.kill(killed.process, signal.SIGKILL)
        assert killed.exit_code() == -signal.SIGKILL
        options[-1] = "--init_from=resume"
    train_tiny(*options)
    whole, killed = (read_checkpoint(f"out/{name}/ckpt.pt") for name in ("whole", "killed"))
    assert_same_weights(whole, killed, rtol=0, atol=0)
    for name, weight in whole["ema"].items():
        assert torch.equal(weight, killed["ema"][name]), name
    assert log_without_times("out/whole/log.jsonl") == log_without_times("out/killed/log.jsonl")


@pytest.mark.parametrize("err", ["mistakes", "told"])
def test_a_run_that_nobody_reads_any_more_saves_and_ends(launch, err):
    unread = launch(*ENDLESS, err=err)
    with open("told") as told:
        read_steps(told, 1)
    assert unread.exit_code() == 0
    assert err == "told" or "Traceback" not in Path(err).read_text(encoding="utf-8")
    assert 0 < last()["step"] < 3000


def test_a_run_that_is_hung_up_on_saves_and_ends(launch):
    hung_up = launch(*ENDLESS)
    with open("told") as told:
        read_steps(told, 12)
        os.kill(hung_up.process, signal.SIGHUP)
        told.read()
    assert hung_up.exit_code() == 0
    mistakes = Path("mistakes").read_text(encoding="utf-8")
    assert "SIGHUP: saving after this step" in mistakes
    assert "Traceback" not in mistakes
    assert 12 <= last()["step"] < 3000


def test_a_run_whose_terminal_is_closed_saves_and_ends(launch):
    mine, its = os.openpty()
    closed = launch(*ENDLESS, out=os.ttyname(its), err=os.ttyname(its))
    with open(mine) as told:
        read_steps(told, 12)
    os.close(its)
    assert closed.exit_code() == 0
    assert 12 <= last()["step"] < 3000


# ------------------------------------------------------------------ what a newcomer stumbled over


def test_resuming_takes_the_settings_of_the_run_not_those_of_a_config_file(train_tiny, capsys):
    train_tiny("--n_embd=8", "--learning_rate=1e-4")
    Path("other.py").write_text("dataset = 'tiny'\nout_dir = 'out/tiny'\nlearning_rate = 0.5\n")
    with pytest.MonkeyPatch.context() as patch:
        call(patch, "train.py", "other.py", "--init_from=resume", "--max_iters=22")
    config = read_checkpoint(Path("out/tiny/ckpt.pt"))["train_config"]
    assert (config["n_embd"], config["learning_rate"], config["max_iters"]) == (8, 1e-4, 22)
    assert "all 22 steps are done" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        call(patch, "train.py", "other.py", "--init_from=resume", "--max_iters=20")
    told = capsys.readouterr().out
    assert "all 22 steps are done" in told
    assert (
        "to continue: python train.py --init_from=resume --out_dir=out/tiny --max_iters=44" in told
    )


def test_a_text_that_is_read_too_often_is_warned_of(train_tiny, capsys):
    train_tiny("--max_iters=400", "--dry_run")
    told = capsys.readouterr().out
    assert "warning: 400 steps read the text 9 times, and the model will memorise it" in told
    for option in ("--dropout=0.1", "--patience=2", "--max_iters=200"):
        train_tiny("--max_iters=400", "--dry_run", option)
        assert "memorise" not in capsys.readouterr().out


def test_the_end_of_a_run_names_the_best_moment_if_it_was_an_earlier_one():
    config, told = (
        TrainConfig(max_iters=20, out_dir="out/x"),
        "the best val_loss was 1.5, in best.pt",
    )
    assert told in farewell(Progress(step=20, best=1.5, without_gain=2), config)
    assert told not in farewell(Progress(step=20, best=1.5, without_gain=0), config)
    assert "best" not in farewell(Progress(step=20, without_gain=2), config)


def test_a_run_that_went_astray_leaves_the_last_finite_state(train_tiny):
    train_tiny("--learning_rate=1e38", "--grad_clip=0", "--eval_interval=5", "--max_iters=10")
    weights = read_checkpoint(Path("out/tiny/ckpt.pt"))["model"].values()
    assert all(weight.isfinite().all() for weight in weights)


def test_another_best_metric_starts_a_comparison_of_its_own(train_tiny):
    train_tiny()
    with pytest.MonkeyPatch.context() as patch:
        options = "--init_from=resume --out_dir=out/tiny --max_iters=30 --best_metric=perplexity"
        call(patch, "train.py", *options.split())
    best = read_checkpoint(Path("out/tiny/best.pt"))
    assert best["step"] == 30  # though no perplexity is below the loss that was best


def test_tokens_that_the_model_would_not_know_are_found_before_training(train_tiny):
    ids = np.arange(50, 1050).astype("<u2")
    Path("data/raw").mkdir()
    for split in ("train", "val"):
        ids.tofile(f"data/raw/{split}.bin")
    with pytest.raises(SystemExit, match=r"has the token 1049.*try --vocab_size=1050"):
        train_tiny("--dataset=raw", "--vocab_size=1000")


def test_an_earlier_run_is_named_where_the_new_one_saved_nothing(train_tiny, run):
    train_tiny()
    with pytest.raises(SystemExit, match="best_metric=nothing"):
        train_tiny("--best_metric=nothing")
    with pytest.raises(SystemExit, match="an earlier one is in out/tiny/previous-1"):
        run("sample.py", "--out_dir=out/tiny")


def test_a_full_disk_is_told_and_the_older_checkpoint_kept(train_tiny, monkeypatch):
    train_tiny()
    before = Path("out/tiny/ckpt.pt").read_bytes()

    def full(*_):
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SystemExit, match=r"ckpt\.pt could not be written"):
        save_checkpoint("out/tiny/ckpt.pt", {})
    assert Path("out/tiny/ckpt.pt").read_bytes() == before


def test_an_optimizer_of_pytorchs_and_a_number_in_a_tensor_do(train_tiny, monkeypatch):
    def sgd(model, config):
        return [torch.optim.SGD(model.parameters(), lr=config.learning_rate)]

    plain = train_module.Report.step

    def step(self, *numbers, **more):
        plain(self, *numbers, **more, largest=torch.tensor(0.5))

    monkeypatch.setattr(train_module, "make_optimizers", sgd)
    monkeypatch.setattr(train_module.Report, "step", step)
    train_tiny("--max_iters=3", "--log_interval=1")
    log = read_log(Path("out/tiny/log.jsonl"))
    assert [line["largest"] for line in log if "loss" in line] == [0.5] * 3


@pytest.mark.parametrize("world", [ALONE, HALF], ids=["bfloat16", "float16"])
def test_a_run_stopped_while_it_diverges_keeps_its_last_good_checkpoint(tmp_path, world):
    def inputs(step):
        if step == 8:
            signal.raise_signal(signal.SIGTERM)
        return math.inf if step >= 7 else 1.0

    _, progress = sit(tmp_path, inputs=inputs, world=world, max_iters=20, eval_interval=5)
    transient = world is HALF  # whose scale is too large at first
    assert read_checkpoint(tmp_path / "ckpt.pt")["step"] == (progress.step if transient else 5)
    assert progress.step == 8


def test_saving_a_checkpoint_counts_towards_no_step(train_tiny, monkeypatch):
    seconds = itertools.count()  # every look at the clock takes one, and saving a thousand

    def save(path, contents):
        save_checkpoint(path, contents)
        for _ in range(1000):
            next(seconds)

    monkeypatch.setattr(train_module, "save_checkpoint", save)
    monkeypatch.setattr("support.report.perf_counter", lambda: next(seconds))
    train_tiny("--max_iters=4", "--eval_interval=2", "--log_interval=1")
    log = read_log(Path("out/tiny/log.jsonl"))
    speeds = [line["tokens_per_second"] for line in log if "loss" in line]
    assert len(speeds) == 4
    assert len(set(speeds)) == 1


def test_a_model_of_labels_is_refused_and_named(train_tiny, monkeypatch):
    shape = ModelConfig(300, 32, 1, 2, 16, n_labels=2, tie_weights=False)
    monkeypatch.setattr(
        "support.checkpoint.load_model", lambda source, dtype: (Transformer(shape), None, {})
    )
    with pytest.raises(SystemExit, match="out/labels predicts labels instead of tokens"):
        train_tiny("--init_from=out/labels")


def test_a_run_without_a_tokenizer_goes_on_on_data_that_fit_it_alone(train_tiny):
    def folder(name, largest):
        Path("data", name).mkdir(parents=True)
        for split in ("train", "val"):
            tokens = np.arange(2000, dtype=np.uint16) % (largest + 1)
            tokens.tofile(Path("data", name, f"{split}.bin"))

    folder("small", 40), folder("same", 40), folder("large", 60)
    train_tiny("--dataset=small", "--vocab_size=50", "--max_iters=2")
    train_tiny("--init_from=resume", "--dataset=same", "--max_iters=3")
    with pytest.raises(SystemExit, match="token 60, too large for vocab_size=50"):
        train_tiny("--init_from=resume", "--dataset=large", "--max_iters=4")


def test_a_title_is_no_formula(tmp_path):
    folder = tmp_path / "$_$"
    folder.mkdir()
    lines = [json.dumps({"step": i, "loss": 1.0}) for i in range(3)]
    (folder / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert draw(folder / "log.jsonl")
    assert (folder / "loss.png").exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENAMETOOLONG])
def test_a_place_that_cannot_be_written_is_named(code):
    with pytest.raises(SystemExit, match=r"out/x: .*; make it readable"), open_world("cpu"):
        raise OSError(code, os.strerror(code), "out/x")
    with pytest.raises(OSError), open_world("cpu"):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "out/x")


def test_a_line_ends_between_numbers_and_not_within():
    numbers = {"train_loss": 1, "val_loss": 2, "perplexity": 7.389, "bits_per_byte": 0.9, "f1": 1}
    told = in_columns(f"step 1000000: {in_words(numbers)}")
    assert told.splitlines() == [
        "step 1000000: train loss 1.0000, val loss 2.0000, perplexity 7.389,",
        "  bits/byte 0.9, f1 1",
    ]


@pytest.mark.parametrize("text", ["a fox went home, and " * 20, "从前有一只狐狸，Ben 走了。" * 20])
def test_a_models_text_is_folded_at_80_columns_of_a_terminal(text):
    rows = quoted(text).splitlines()
    assert len(rows) > 3
    assert all(row.startswith("  | ") for row in rows)
    assert all(70 < width(row.rstrip()) <= 80 for row in rows[:-1])
    assert "".join(row[4:] for row in rows).replace(" ", "") == text.replace(" ", "")
    assert quoted("one\n\ntwo") == "  | one\n  | \n  | two"
