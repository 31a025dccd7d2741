"""Lighter weights say nearly the same as the full ones."""

import copy

import pytest
import torch
from torch import nn

import support.quantize
from model import ModelConfig, Transformer
from support.quantize import HalfLinear, Int8Linear, replace_linears

ROWS = [1, 2, 3, 20]


def linear(bias=True):
    torch.manual_seed(0)
    return nn.Linear(64, 96, bias=bias)


def relative_error(layer, reference, x):
    with torch.no_grad():
        expected = reference(x)
        return ((layer(x) - expected).norm() / expected.norm()).item()


@pytest.fixture
def no_kernel(monkeypatch):
    monkeypatch.setattr(support.quantize, "packed", lambda *weights: None)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [True, False])
def test_half_precision_weights_lose_little(rows, bias):
    reference = linear(bias)
    x = torch.randn(1, rows, 64)
    error = relative_error(HalfLinear(reference), reference, x)
    assert error < (1e-3 if rows <= 2 else 1e-2)  # more rows may be multiplied in bfloat16


@pytest.mark.parametrize("rows", ROWS)
def test_without_the_processors_kernel_half_precision_still_works(rows, no_kernel):
    reference = linear()
    layer = HalfLinear(reference)
    assert layer.weight.dtype == torch.float16
    error = relative_error(layer, reference, torch.randn(1, rows, 64))
    assert error < (1e-3 if rows <= 2 else 1e-2)


@pytest.mark.parametrize("fast", [torch.float32, torch.bfloat16])
def test_a_prompt_is_multiplied_in_what_the_processor_is_fast_in(fast, no_kernel, monkeypatch):
    monkeypatch.setattr(support.quantize, "pick_dtype", lambda name, device: fast)
    layer, x = HalfLinear(linear(bias=False)), torch.randn(1, 20, 64)
    expected = nn.functional.linear(x.to(fast), layer.weight.to(fast)).float()
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [True, False])
def test_weights_of_eight_bits_lose_about_a_hundredth(rows, bias):
    reference = linear(bias)
    assert relative_error(Int8Linear(reference), reference, torch.randn(1, rows, 64)) < 0.02


@pytest.mark.parametrize("rows", ROWS)
def test_without_the_processors_kernel_eight_bits_still_work(rows, no_kernel):
    reference = linear()
    layer = Int8Linear(reference)
    assert layer.weight.dtype == torch.int8
    assert relative_error(layer, reference, torch.randn(1, rows, 64)) < 0.02


def test_an_output_with_small_weights_keeps_its_precision_beside_one_with_large():
    reference = linear(bias=False)
    with torch.no_grad():
        reference.weight[0] *= 1000
    x = torch.randn(1, 64)
    small = Int8Linear(reference)(x)[0, 1:]
    assert (small - reference(x)[0, 1:]).norm() / reference(x)[0, 1:].norm() < 0.02


def test_a_row_with_large_activations_does_not_blur_the_others():
    reference = linear(bias=False)
    x = torch.randn(4, 64)
    x[0] *= 1000
    quiet = Int8Linear(reference)(x)[1:]
    assert (quiet - reference(x)[1:]).norm() / reference(x)[1:].norm() < 0.02


@pytest.mark.parametrize("narrow", [True, False])
def test_rows_at_once_are_rounded_as_each_alone(narrow, monkeypatch):
    monkeypatch.setattr(support.quantize, "NARROW", narrow)
    layer = Int8Linear(linear())
    x = torch.randn(3, 200, 64) * torch.tensor([0.1, 1, 10]).view(3, 1, 1)
    x[:, ::2] = x[:, ::2].relu() ** 2
    alone = torch.stack([torch.cat([layer(row[None]) for row in rows]) for rows in x])
    torch.testing.assert_close(layer(x), alone, rtol=1e-5, atol=1e-5)


def test_rows_of_zeros_give_zeros():
    assert not Int8Linear(linear(bias=False))(torch.zeros(1, 3, 64)).any()


@pytest.mark.parametrize("Layer", [HalfLinear, Int8Linear])
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_a_whole_model_with_lighter_weights_says_nearly_the_same(Layer, mlp):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(60, 16, 2, 2, 32, mlp=mlp, bias=True)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5)
    lighter = replace_linears(copy.deepcopy(model), Layer)
    assert not any(isinstance(module, nn.Linear) for module in lighter.modules())
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        full, light = (m(tokens)[0].log_softmax(-1) for m in (model, lighter))
    divergence = (full.exp() * (full - light)).sum(-1).mean()
    # Where a processor has no instruction for it, activations have 7 bits instead of 8.
    narrow = Layer is Int8Linear and support.quantize.NARROW
    assert divergence < (0.03 if narrow else 0.01)
    assert torch.equal(model.token_embedding.weight, lighter.token_embedding.weight)


def test_a_prompt_in_float16_does_not_overflow_where_its_product_does_not(no_kernel):
    torch.manual_seed(0)
    reference = nn.Linear(768, 4, bias=False)
    x = torch.randn(1, 20, 768)
    x = x * (100 / reference(x).abs().max())
    layer = Int8Linear(reference).to(torch.float16)
    assert relative_error(lambda x: layer(x.half()).float(), reference, x) < 0.02
