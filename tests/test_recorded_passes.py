"""How passes are recorded and compared, with stand-ins; tests/test_gpu.py records real ones."""

import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train as train_module
from support import recorded_passes
from support.processes import World
from support.recorded_passes import (
    COMPARED_UNTIL,
    MOST_SHAPES,
    PASSES_BEFORE,
    RecordedPasses,
)
from tests.test_train import last


class Replay:
    """Stands for a Recording: makes the pass again, with the gradients or the loss a little off."""

    loss_error = gradient_error = 1.0
    made = 0

    def __init__(self, add_gradients, batch, weights, pool):
        self.add_gradients, self.weights = add_gradients, weights
        self.graph = SimpleNamespace(pool=lambda: None)

    def __call__(self, batch, share):
        Replay.made += 1
        loss = self.add_gradients(batch, share * Replay.gradient_error)
        return loss / Replay.gradient_error * Replay.loss_error


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    for name, value in (("loss_error", 1.0), ("gradient_error", 1.0), ("made", 0)):
        monkeypatch.setattr(Replay, name, value)
    monkeypatch.setattr(recorded_passes, "Recording", Replay)
    seen = SimpleNamespace(waits=False, is_held_up=True)
    monkeypatch.setattr(recorded_passes, "watched", lambda: nullcontext(seen))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2**30))
    monkeypatch.setattr(recorded_passes, "timed", as_if_timed)


def as_if_timed(function, *inputs):
    """A replay takes half as long as a pass."""
    return function(*inputs).clone(), 0.5 if isinstance(function, Replay) else 1.0


class Weight(torch.nn.Module):
    """A model with one weight: the loss is its product with the sum of the inputs, plus 10."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, inputs):
        return (self.weight * inputs).sum() + 10


def learning(change=lambda model, loss: loss):
    """(RecordedPasses of a Weight, whose loss is changed by a function; its weight)."""
    model = Weight()

    def add_gradients(batch, share, more_to_come=False):
        loss = change(model, model(**batch)) * share
        loss.backward()
        return loss.detach()

    return RecordedPasses(add_gradients, model), model.weight


def of_length(n):
    return {"inputs": torch.ones(n)}


@pytest.mark.parametrize("options", [[], ["--ema_decay=0.9", "--optimizer=muon"]])
def test_a_run_with_recordings_is_the_run_without(train_tiny, monkeypatch, capsys, options):
    train_tiny("--dropout=0.2", *options)
    expected = last()["model"]
    monkeypatch.setattr(recorded_passes, "states_of_chance", lambda: None)  # dropout's is the CPU's
    monkeypatch.setattr(
        train_module,
        "recorded_passes",
        lambda add, model, world, show: RecordedPasses(add, model, show),
    )
    train_tiny("--dropout=0.2", *options)
    assert Replay.made == 2 * 20 - PASSES_BEFORE
    told = capsys.readouterr().out
    assert told.count("record: ") == 1 and "passes are replayed now" in told
    assert all(torch.equal(weight, expected[name]) for name, weight in last()["model"].items())


def test_gradients_keep_their_places_and_are_added_up():
    passes, weight = learning()
    places = set()
    for _ in range(2 * PASSES_BEFORE):
        assert passes(of_length(2), 0.5) == 6
        assert passes(of_length(3), 1.0) == 13
        assert weight.grad == 4
        places |= {weight.grad.data_ptr()} if passes.recordings else set()
        weight.grad = None
    assert len(places) == 1 and len(passes.recordings) == 2


def test_not_every_length_of_a_batch_is_recorded():
    passes, _ = learning()
    for length in range(1, MOST_SHAPES + 3):
        for _ in range(PASSES_BEFORE + 1):
            passes(of_length(length), 1.0)
    assert len(passes.recordings) == MOST_SHAPES and passes.is_possible


@pytest.mark.parametrize("error", ["loss_error", "gradient_error"])
def test_a_replay_that_differs_is_told_and_not_used(monkeypatch, capsys, error):
    passes, weight = learning()
    for i in range(30):
        if i == PASSES_BEFORE + 2:
            monkeypatch.setattr(Replay, error, 1.1)
        assert passes(of_length(1), 1.0) == 11
        assert weight.grad == 1
        weight.grad = None
    assert Replay.made == 3 and not passes.recordings
    assert capsys.readouterr().out.splitlines()[1] == (
        "record: not possible here (a replay differs from the model, perhaps since the last "
        "comparison); continuing without it"
    )


def test_replays_are_compared_later_too(monkeypatch):
    monkeypatch.setattr(recorded_passes, "COMPARED_EVERY", 40)
    passes, _ = learning()
    for _ in range(39):
        passes(of_length(1), 1.0)
    monkeypatch.setattr(Replay, "gradient_error", 1.1)
    assert passes.is_possible
    passes(of_length(1), 1.0)
    assert not passes.is_possible


def counting(model, loss):
    model.calls += 1
    return loss


def test_a_module_that_counts_its_passes_is_not_recorded(capsys):
    passes, _ = learning(counting)
    for _ in range(30):
        passes(of_length(1), 1.0)
    assert passes.model.calls == 30 and Replay.made == 0
    assert "changes a number of a module" in capsys.readouterr().out


def test_a_number_that_the_loop_changes_is_noticed(monkeypatch, capsys):
    monkeypatch.setattr(recorded_passes, "COMPARED_EVERY", 40)
    passes, _ = learning()
    for i in range(40):
        passes.model.dropout = 0.1 if i < 20 else 0.2
        passes(of_length(1), 1.0)
    assert not passes.is_possible
    assert "differs from the model" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["place", "weight", "module"])
def test_weights_that_move_or_are_added_end_the_replays(capsys, change):
    passes, weight = learning()
    for _ in range(20):
        passes(of_length(1), 1.0)
    made = Replay.made
    if change == "place":
        weight.data = weight.data + 1
    elif change == "weight":
        passes.model.register_parameter("more", torch.nn.Parameter(torch.ones(())))
    else:
        passes.model.add_module("more", torch.nn.Linear(1, 1))
    assert passes(of_length(1), 1.0) == (12 if change == "place" else 11)
    assert Replay.made == made
    assert "not where they were" in capsys.readouterr().out


def test_gradients_that_are_not_finite_prove_nothing():
    passes, weight = learning()
    for i in range(COMPARED_UNTIL):
        passes(of_length(1), float("inf") if i == PASSES_BEFORE + 1 else 1.0)
        weight.grad = None
    assert passes.is_possible


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(()).item()])
def test_chance_of_the_processor_is_not_recorded(draw, capsys):
    passes, weight = learning(lambda model, loss: loss * (1 if draw() < 2 else 0))
    for i in range(1, 2 * PASSES_BEFORE):
        passes(of_length(1), 1.0)
        assert weight.grad == i
    assert "draws random numbers" in capsys.readouterr().out
    assert Replay.made == 0


@pytest.mark.parametrize("has_room", [True, False])
def test_shapes_that_gain_nothing_or_have_no_room_are_not_recorded(monkeypatch, has_room):
    passes, weight = learning()
    for _ in range(20):
        passes(of_length(1), 1.0)
    made = Replay.made
    if has_room:
        seen = SimpleNamespace(waits=False, is_held_up=False)
        monkeypatch.setattr(recorded_passes, "watched", lambda: nullcontext(seen))
    else:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (15, 2**30))
    for _ in range(20):
        passes(of_length(2), 1.0)
    assert len(passes.recordings) == 1 and Replay.made == made
    passes(of_length(1), 1.0)
    assert Replay.made == made + 1 and weight.grad == 20 + 40 + 1


def test_the_memory_of_recordings_is_not_free(monkeypatch):
    passes, weight = learning()
    weight.grad = torch.zeros(())
    numbers = {"memory_allocated": 100, "memory_reserved": 300, "max_memory_allocated": 150}
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (16, 1000))  # of 2 × (50 + 2 × 4)
    passes.kept = 100
    assert passes.has_room()
    passes.kept = 101
    assert not passes.has_room()


def test_a_replay_that_is_no_faster_is_forgotten(monkeypatch, capsys):
    monkeypatch.setattr(
        recorded_passes, "timed", lambda function, *inputs: (function(*inputs).clone(), 1.0)
    )
    passes, weight = learning()
    for _ in range(30):
        passes(of_length(1), 1.0)
        assert weight.grad == 1
        weight.grad = None
    assert Replay.made == COMPARED_UNTIL - PASSES_BEFORE
    assert not passes.recordings and not passes.gradients
    assert "not possible" not in capsys.readouterr().out


def test_a_recording_that_fails_is_told(monkeypatch, capsys):
    def failing(*_):
        raise RuntimeError("no\nsuch thing")

    monkeypatch.setattr(recorded_passes, "Recording", failing)
    monkeypatch.setattr(recorded_passes, "check_intact", lambda: None)
    passes, weight = learning()
    for i in range(1, 2 * PASSES_BEFORE):
        passes(of_length(1), 1.0)
        assert weight.grad == i
    assert "not possible here (RuntimeError: no); continuing" in capsys.readouterr().out


@pytest.mark.parametrize(("device", "size"), [("cpu", 1), ("cuda", 2)])
def test_only_one_process_on_a_gpu_records(device, size):
    world = World(torch.device(device), torch.float32, size=size)
    assert recorded_passes.recorded_passes(counting, Weight(), world) is counting
