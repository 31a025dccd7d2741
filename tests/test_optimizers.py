"""AdamW and Muon: what they do is what PyTorch's do, sooner and in fewer calls."""

import copy
import subprocess
import sys

import pytest
import torch

import support.optimizers
from support.checkpoint import optimizer_state, restore_optimizer_state
from support.optimizers import AdamW, Muon, newton_schulz

SHAPES = [(16, 16), (16, 16), (64, 16), (16, 64), (8, 16), (16, 64)]


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def take_ten_steps(*runs):
    """Ten steps of each (parameters, optimizer), with the same gradients for all."""
    for step in range(10):
        for params, optimizer in runs:
            give_gradients(params, step)
            optimizer.step()


def in_one_group(params, lr=0.05, weight_decay=0.0):
    return [{"params": params, "lr": lr, "weight_decay": weight_decay}]


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_ten_steps_of_adamw_are_those_of_pytorch(weight_decay):
    ours, theirs = parameters(), parameters()
    a = AdamW(in_one_group(ours, weight_decay=weight_decay), betas=(0.8, 0.95))
    b = torch.optim.AdamW(theirs, lr=0.05, weight_decay=weight_decay, betas=(0.8, 0.95), fused=True)
    take_ten_steps((ours, a), (theirs, b))
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


def test_adamw_counts_the_steps_of_each_weight_and_pytorchs_can_go_on():
    ours, theirs = parameters(), parameters()
    a = AdamW(in_one_group(ours))
    b = torch.optim.AdamW(theirs, lr=0.05, weight_decay=0.0, betas=(0.9, 0.95), fused=True)
    for step in range(6):
        for params, optimizer in ((ours, a), (theirs, b)):
            give_gradients(params, step)
            params[0].grad = params[0].grad if step % 3 == 2 else None  # an expert, rarely asked
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
    names = {p: str(i) for i, p in enumerate(ours)}
    saved = copy.deepcopy({names[p]: state for p, state in a.state.items()})
    b.load_state_dict(b.state_dict() | {"state": {int(i): saved[i] for i in saved}})
    give_gradients(theirs, 6)
    b.step()
    assert [int(b.state[q]["step"]) for q in theirs] == [3, 7, 7, 7, 7, 7]


def test_a_first_step_of_adamw_is_the_formula():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    weight.grad = torch.tensor([0.5, -3.0])
    AdamW(in_one_group([weight], lr=0.1, weight_decay=0.5)).step()
    expected = torch.tensor([1.0, -2.0]) * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_ten_steps_of_muon_are_those_of_pytorch(weight_decay, dtype, monkeypatch):
    monkeypatch.setattr(support.optimizers, "pick_dtype", lambda name, device: dtype)
    ours, theirs = parameters(), parameters()
    a = Muon(in_one_group(ours, weight_decay=weight_decay), momentum=0.9)
    b = torch.optim.Muon(theirs, lr=0.05, weight_decay=weight_decay, momentum=0.9)
    take_ten_steps((ours, a), (theirs, b))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-2)  # theirs in bfloat16, in another order
        assert (p - q).abs().mean() < 1e-3


def test_a_step_of_muon_is_made_in_the_precision_that_the_machine_multiplies_fast(monkeypatch):
    asked = []

    def pick(name, device):
        asked.append((name, device.type))
        return torch.float64

    monkeypatch.setattr(support.optimizers, "pick_dtype", pick)
    assert newton_schulz(torch.randn(2, 4, 8)).dtype == torch.float64
    assert asked == [("auto", "cpu")]


def test_training_starts_without_pytorchs_compiler():
    program = (
        "import sys, torch\n"
        "from model import ModelConfig, Transformer\n"
        "from train import TrainConfig, make_optimizers, update\n"
        "model = Transformer(ModelConfig(20, 8, 1, 2, 8))\n"
        "config = TrainConfig(optimizer='muon')\n"
        "optimizers = make_optimizers(model, config)\n"
        "model(torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long))"
        "[1].backward()\n"
        "update(model, optimizers, config, torch.amp.GradScaler('cpu', enabled=False))\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_rows_of_a_step_are_about_orthonormal():
    matrices = torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(0))
    products = newton_schulz(matrices).float()
    singular = torch.linalg.svdvals(products)
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def test_a_matrix_without_a_gradient_stays_as_it_is():
    params = parameters()
    give_gradients(params, 0)
    params[0].grad = None
    before = [p.detach().clone() for p in params]
    Muon(in_one_group(params)).step()
    changed = [not torch.equal(p, q) for p, q in zip(params, before, strict=True)]
    assert changed == [False, True, True, True, True, True]


def test_a_gradient_of_zeros_makes_no_step_and_no_nan():
    params = parameters()
    for p in params:
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in params]
    Muon(in_one_group(params)).step()
    for p, q in zip(params, before, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


@pytest.mark.parametrize("Kind", [AdamW, Muon, "torch"])
def test_a_run_goes_on_from_what_was_stored_as_if_never_stopped(Kind):
    """Of an optimizer of PyTorch's, put into make_optimizers, too."""

    def make(model):
        if Kind == "torch":
            return torch.optim.AdamW(model.parameters(), lr=0.05)
        return Kind(in_one_group(list(model.parameters())))

    straight, stopped = (torch.nn.ParameterList(parameters()) for _ in range(2))
    a, b = make(straight), make(stopped)
    for step in range(4):
        if step == 2:
            stored = copy.deepcopy(optimizer_state(stopped, [b]))
            b = make(stopped)
            restore_optimizer_state(stopped, [b], stored)
        for params, optimizer in ((straight, a), (stopped, b)):
            give_gradients(params, step)
            optimizer.step()
    for p, q in zip(straight, stopped, strict=True):
        assert torch.equal(p, q)
