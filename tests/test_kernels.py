"""The kernels for a GPU, on a CPU: Triton's interpreter runs them, in Python."""

from contextlib import nullcontext

import pytest
import torch

from model import Block, KVCache
from support import fused_blocks, quantize
from support.fused_blocks import FusedBlock, difference, fused, fused_block
from support.quantize import Int8Linear, replace_linears
from tests.test_model import VARIANTS, make, scrambled

pytest.importorskip("triton", reason="needs Triton: it is on PyPI for Linux")
if torch.cuda.is_available():
    pytest.skip("tests/test_gpu.py runs the kernels themselves", allow_module_level=True)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Plain integers as weights, kernels for any device, and few programs with small tiles."""
    from support import gpu_kernels

    monkeypatch.setattr(gpu_kernels, "OUTPUTS", 32)
    monkeypatch.setattr(gpu_kernels, "INPUTS", 64)
    monkeypatch.setattr(quantize, "packed", lambda *_: None)
    monkeypatch.setattr(quantize, "kernel_for_a_few", lambda weight: None)
    monkeypatch.setattr(fused_blocks, "possible", lambda tokens: True)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_block_is_computed_by_its_kernels(variant, int8):
    model = scrambled(make(variant, n_layer=1))
    if int8:
        replace_linears(model, Int8Linear)
    (block,) = model.blocks
    assert difference(model, block, 16) < 1e-6
    assert isinstance(fused_block(model, block, 16), FusedBlock)


SIZES = {
    "heads of an odd size": {"n_embd": 60, "n_head": 3, "head_size": 12, "n_kv_head": 1},
    "more channels than a program reads at once": {"n_embd": 40, "n_head": 2, "mlp_size": 100},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("variant", ["gpt2", "qwen3"])
def test_any_size_will_do(variant, sizes):
    model = scrambled(make(variant, n_layer=1, **sizes))
    assert difference(model, model.blocks[0], 16) < 1e-6


@pytest.mark.parametrize("splits", [1, 2, 32])
def test_a_long_text_is_divided_among_programs(monkeypatch, splits):
    from support import gpu_kernels

    monkeypatch.setattr(gpu_kernels, "SPLITS", splits)
    model = scrambled(make("llama3", n_layer=1, block_size=300))
    assert difference(model, model.blocks[0], 200) < 1e-6


@pytest.mark.parametrize("rows", [[3], [5, 9], [7, 7, 7]])
def test_a_model_reads_on_by_kernels_as_without(rows):
    model = scrambled(make("llama", n_layer=1))
    results = []
    with torch.inference_mode():
        for how in (nullcontext(), fused(model, torch.zeros(len(rows), 1), 16)):
            torch.manual_seed(0)
            cache = KVCache(model.config, len(rows))
            cache.keys.normal_()
            cache.values.normal_()
            cache.truncate(rows)
            cache.static, cache.in_step = True, False
            with how:
                for token in (3, 7, 1):
                    logits, _ = model(torch.full((len(rows), 1), token), cache=cache)
            results.append(logits)
    torch.testing.assert_close(*results)
    assert all(type(block) is Block for block in model.blocks)


class Louder(Block):
    def forward(self, x, *more):
        return super().forward(x, *more) * 1.001


def looks_back(n):
    """model.attention_mask, but of at most n positions."""

    def mask(positions, n_keys, *more):
        distance = positions[:, None, :, None] - torch.arange(n_keys)
        return (distance >= 0) & (distance < n)

    return mask


@pytest.mark.parametrize("compared", [16, 4096])
def test_an_attention_of_your_own_is_kept(monkeypatch, compared):
    monkeypatch.setattr(fused_blocks, "COMPARED", compared)
    monkeypatch.setattr("model.attention_mask", looks_back(20))
    model = scrambled(make("llama", n_layer=1, block_size=64))
    (block,) = model.blocks
    if compared == 16:
        assert fused_block(model, block, 16)  # where it looks back on all, too
    assert not fused_block(model, block, 40)


def nothing(self, x, rotate, mask=None, cache=None):
    return x


def test_a_block_of_your_own_is_kept(monkeypatch):
    model = make("nanogpt")
    model.blocks[1].__class__ = Louder
    assert fused_block(model, model.blocks[0], 16) and not fused_block(model, model.blocks[1], 16)
    other = make("nanogpt")
    monkeypatch.setattr(Block, "forward", nothing)  # as if model.py said so
    assert not fused_block(other, other.blocks[0], 16)


def test_weights_are_joined_where_they_are():
    model = make("qwen2", n_layer=1)
    attention = model.blocks[0].attention
    before = attention.key.weight.clone()
    fast = fused_block(model, model.blocks[0], 16)
    whole = fast.qkv.matrix[0]
    assert torch.equal(attention.key.weight, before)
    assert attention.key.weight.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert len(whole) == sum(
        len(linear.weight) for linear in (attention.query, attention.key, attention.value)
    )
