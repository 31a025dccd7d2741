"""Which device and precision are taken, and how a run is asked to stop."""

import math
import signal

import pytest
import torch

from model import ModelConfig, Transformer
from support.processes import (
    StopSignal,
    World,
    compiled,
    open_world,
    pick_device,
    pick_dtype,
)
from support.report import is_long
from train import TrainConfig

CPU = torch.device("cpu")


def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
    assert pick_device("cpu").type == "cpu"


def test_processes_that_share_the_work_do_not_take_mps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert pick_device("auto").type == "cpu"
    with pytest.raises(SystemExit, match="device=mps is not usable here; expected cpu"):
        pick_device("mps")


@pytest.mark.parametrize("device", ["cpu:foo", "cpu:0", "cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_told(device):
    with pytest.raises(SystemExit, match=rf"device={device} is not usable here"):
        pick_device(device)


def test_bfloat16_is_taken_where_the_hardware_multiplies_it_fast(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert pick_dtype("auto", CPU) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert pick_dtype("auto", CPU) == torch.float32
    for native, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native
        )
        assert pick_dtype("auto", torch.device("cuda")) == expected


def test_precision_changes_matrix_products_and_not_weights():
    linear = torch.nn.Linear(4, 4)
    with World(CPU, torch.bfloat16).precision():
        assert linear(torch.randn(1, 4)).dtype == torch.bfloat16
    assert linear.weight.dtype == torch.float32
    with World(CPU, torch.float32).precision():
        assert linear(torch.randn(1, 4)).dtype == torch.float32


def test_alone_sums_are_the_numbers_themselves():
    with open_world("cpu", "float32") as world:
        assert world.is_main
        assert world.sum(3, True, 0.5) == [3.0, 1.0, 0.5]


def test_the_first_signal_asks_and_the_second_insists(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    assert "SIGTERM: saving after this step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "device", "is_long", "expected"),
    [
        ("auto", "cuda", True, True),
        ("auto", "cuda", False, False),
        ("auto", "cpu", True, False),
        (True, "cpu", False, True),
        (False, "cuda", True, False),
    ],
)
def test_auto_compiles_long_runs_on_a_gpu(monkeypatch, setting, device, is_long, expected):
    asked = []
    monkeypatch.setattr(torch, "compile", asked.append)
    world = World(torch.device(device), torch.float32)
    compiled(torch.nn.Linear(1, 1), setting, world, {}, lambda: is_long)
    assert bool(asked) == expected


def test_a_run_is_long_by_its_passes_or_by_what_it_computes():
    config = TrainConfig(vocab_size=50304, n_layer=1, n_embd=12, gradient_accumulation_steps=2)
    tiny = Transformer(ModelConfig(vocab_size=50304, n_layer=1, n_embd=12))
    assert is_long(tiny, config, 10_000) and not is_long(tiny, config, 9_999)
    assert is_long(tiny, config, 2_500, processes=2) and not is_long(tiny, config, 2_499, 2)
    config.record = False
    assert is_long(tiny, config, 2_500) and not is_long(tiny, config, 2_499)
    with torch.device("meta"):
        large = Transformer(ModelConfig())
    per_step = 2 * 12 * 1024 * 854_654_976
    assert is_long(large, config, math.ceil(1e16 / per_step))
    assert not is_long(large, config, math.floor(1e16 / per_step))
