"""Muon: what it does is what PyTorch's does, in fewer calls."""

import pytest
import torch

from support.muon import Muon, orthogonalized

SHAPES = [(16, 16), (16, 16), (64, 16), (16, 64), (8, 16), (16, 64)]


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_ten_steps_are_those_of_pytorch(weight_decay):
    ours, theirs = parameters(), parameters()
    a = Muon(ours, lr=0.05, weight_decay=weight_decay, momentum=0.9)
    b = torch.optim.Muon(theirs, lr=0.05, weight_decay=weight_decay, momentum=0.9)
    for step in range(10):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-2)  # bfloat16, in another order
        assert (p - q).abs().mean() < 1e-3


def test_the_rows_of_a_step_are_about_orthonormal():
    matrices = torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(0))
    products = orthogonalized(matrices).float()
    singular = torch.linalg.svdvals(products)
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def test_a_matrix_without_a_gradient_stays_as_it_is():
    params = parameters()
    give_gradients(params, 0)
    params[0].grad = None
    before = [p.detach().clone() for p in params]
    Muon(params).step()
    changed = [not torch.equal(p, q) for p, q in zip(params, before, strict=True)]
    assert changed == [False, True, True, True, True, True]


def test_a_gradient_of_zeros_makes_no_step_and_no_nan():
    params = parameters()
    for p in params:
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in params]
    Muon(params).step()
    for p, q in zip(params, before, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_a_run_goes_on_from_stored_momentum_as_if_never_stopped():
    straight, stopped = parameters(), parameters()
    a, b = Muon(straight), Muon(stopped)
    for step in range(4):
        if step == 2:
            state = b.state_dict()
            b = Muon(stopped)
            b.load_state_dict(state)
        for params, optimizer in ((straight, a), (stopped, b)):
            give_gradients(params, step)
            optimizer.step()
    for p, q in zip(straight, stopped, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
