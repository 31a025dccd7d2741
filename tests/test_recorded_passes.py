"""How passes are recorded and compared, with stand-ins; tests/test_gpu.py records real ones."""

import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train as train_module
from support import recorded_passes
from support.recorded_passes import COMPARED_FIRST, MOST_SHAPES, PASSES_BEFORE, RecordedPasses
from tests.test_train import last


class Replay:
    """Stands for a Recording: makes the pass again, and multiplies its gradients by `error`."""

    error = 1.0
    made = 0

    def __init__(self, add_gradients, batch, pool):
        self.add_gradients = add_gradients
        self.graph = SimpleNamespace(pool=lambda: None)

    def __call__(self, batch, share):
        Replay.made += 1
        return self.add_gradients(batch, share * Replay.error)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(Replay, "error", 1.0)
    monkeypatch.setattr(Replay, "made", 0)
    monkeypatch.setattr(recorded_passes, "Recording", Replay)
    seen = SimpleNamespace(waits=False, is_held_up=True)
    monkeypatch.setattr(recorded_passes, "watched", lambda: nullcontext(seen))
    monkeypatch.setattr(recorded_passes, "has_room_for_a_pass", lambda gradients: True)


def learning(add=lambda weight, batch: (weight * batch["inputs"]).sum()):
    """(RecordedPasses of a model with one weight, its weight)."""
    weight = torch.nn.Parameter(torch.ones(()))

    def add_gradients(batch, share, more_to_come=False):
        loss = add(weight, batch) * share
        loss.backward()
        return loss.detach()

    return RecordedPasses(add_gradients, torch.nn.ParameterList([weight])), weight


def of_length(n):
    return {"inputs": torch.ones(n)}


@pytest.mark.parametrize("options", [[], ["--ema_decay=0.9", "--optimizer=muon"]])
def test_a_run_with_recordings_is_the_run_without(train_tiny, monkeypatch, capsys, options):
    train_tiny("--dropout=0.2", *options)
    expected = last()["model"]
    monkeypatch.setattr(recorded_passes, "states_of_chance", lambda: None)  # dropout's is the CPU's
    monkeypatch.setattr(
        train_module, "recorded_passes", lambda add, model, world: RecordedPasses(add, model)
    )
    train_tiny("--dropout=0.2", *options)
    assert Replay.made == 2 * 20 - PASSES_BEFORE
    assert "not possible" not in capsys.readouterr().out
    assert all(torch.equal(weight, expected[name]) for name, weight in last()["model"].items())


def test_gradients_keep_their_places_and_are_added_up():
    passes, weight = learning()
    places = set()
    for _ in range(2 * PASSES_BEFORE):
        assert passes(of_length(2), 0.5) == 1
        assert passes(of_length(3), 1.0) == 3
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


def test_a_replay_that_differs_is_told_and_not_used(capsys):
    passes, weight = learning()
    for i in range(30):
        Replay.error = 1.2 if i > PASSES_BEFORE + 1 else 1.0
        assert passes(of_length(1), 1.0) == 1
        assert weight.grad == 1
        weight.grad = None
    assert Replay.made == 3
    assert capsys.readouterr().out == (
        "record: not possible here (a replay differs from the model); continuing without it\n"
    )


def test_replays_are_compared_later_too(monkeypatch):
    monkeypatch.setattr(recorded_passes, "COMPARED_EVERY", 40)
    passes, _ = learning()
    for _ in range(39):
        passes(of_length(1), 1.0)
    Replay.error = 1.2
    assert passes.is_possible
    passes(of_length(1), 1.0)
    assert not passes.is_possible


def test_gradients_that_are_not_finite_prove_nothing():
    passes, weight = learning()
    for i in range(PASSES_BEFORE + COMPARED_FIRST):
        passes(of_length(1), float("inf") if i == PASSES_BEFORE + 1 else 1.0)
        weight.grad = None
    assert passes.is_possible


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(()).item()])
def test_chance_of_the_processor_is_not_recorded(draw, capsys):
    passes, weight = learning(lambda weight, batch: weight * (1 if draw() < 2 else 0))
    for i in range(1, 2 * PASSES_BEFORE):
        passes(of_length(1), 1.0)
        assert weight.grad == i
    assert "draws random numbers" in capsys.readouterr().out
    assert Replay.made == 0


@pytest.mark.parametrize(("is_held_up", "has_room"), [(False, True), (True, False)])
def test_what_would_gain_nothing_or_has_no_room_is_not_recorded(
    monkeypatch, capsys, is_held_up, has_room
):
    seen = SimpleNamespace(waits=False, is_held_up=is_held_up)
    monkeypatch.setattr(recorded_passes, "watched", lambda: nullcontext(seen))
    monkeypatch.setattr(recorded_passes, "has_room_for_a_pass", lambda gradients: has_room)
    passes, _ = learning()
    for _ in range(2 * PASSES_BEFORE):
        passes(of_length(1), 1.0)
    assert Replay.made == 0 and not passes.gradients
    assert capsys.readouterr().out == ""


def test_a_recording_that_fails_is_told(monkeypatch, capsys):
    def failing(*_):
        raise RuntimeError

    monkeypatch.setattr(recorded_passes, "Recording", failing)
    passes, weight = learning()
    for i in range(1, 2 * PASSES_BEFORE):
        passes(of_length(1), 1.0)
        assert weight.grad == i
    assert "not possible here (RuntimeError)" in capsys.readouterr().out
