"""Which device and precision are taken, and how a run is asked to stop."""

import signal

import pytest
import torch

from support.processes import (
    WORTH_COMPILING,
    StopSignal,
    World,
    compiled,
    open_world,
    pick_device,
    pick_dtype,
)

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
    ("setting", "device", "flops", "expected"),
    [
        ("auto", "cuda", WORTH_COMPILING, True),
        ("auto", "cuda", WORTH_COMPILING / 2, False),
        ("auto", "cpu", WORTH_COMPILING, False),
        (True, "cpu", 0, True),
        (False, "cuda", WORTH_COMPILING, False),
    ],
)
def test_auto_compiles_long_runs_on_a_gpu(monkeypatch, setting, device, flops, expected):
    asked = []
    monkeypatch.setattr(torch, "compile", asked.append)
    world = World(torch.device(device), torch.float32)
    compiled(torch.nn.Linear(1, 1), setting, world, {}, lambda: flops)
    assert bool(asked) == expected
