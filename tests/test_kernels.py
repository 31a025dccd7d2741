"""The kernels for a GPU, on a CPU: Triton's interpreter runs them, in Python."""

import math
from contextlib import nullcontext

import pytest
import torch

from model import Block, CausalSelfAttention, KVCache, not_rotated
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


@pytest.mark.parametrize(
    ("variant", "int8"), [*((name, False) for name in VARIANTS), ("gpt2", True), ("qwen3", True)]
)
def test_a_block_is_computed_by_its_kernels(variant, int8):
    model = scrambled(make(variant, n_layer=1))
    if int8:
        replace_linears(model, Int8Linear)
    (block,) = model.blocks
    assert difference(model, block, 16) < 1e-5
    assert isinstance(fused_block(model, block, 16), FusedBlock)


SIZES = {
    "heads of no power of two": {"n_embd": 60, "n_head": 3, "head_size": 12, "n_kv_head": 1},
    "more channels than a program reads at once": {"n_embd": 40, "n_head": 2, "mlp_size": 100},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("variant", ["gpt2", "qwen3"])
def test_any_size_will_do(variant, sizes):
    model = scrambled(make(variant, n_layer=1, **sizes))
    assert difference(model, model.blocks[0], 16) < 1e-5


@pytest.mark.parametrize("splits", [1, 2, 32])
def test_a_long_text_is_divided_among_programs(monkeypatch, splits):
    from support import gpu_kernels

    monkeypatch.setattr(gpu_kernels, "SPLITS", splits)
    model = scrambled(make("llama3", n_layer=1, block_size=300))
    assert difference(model, model.blocks[0], 200) < 1e-5


@pytest.mark.parametrize("rows", [[3], [5, 9], [7, 7, 7]])
def test_a_model_reads_on_by_kernels_as_without(rows):
    model = scrambled(make("llama", n_layer=1))
    results, kinds = [], []
    with torch.inference_mode():
        for how in (nullcontext(), fused(model, torch.zeros(len(rows), 1), 16)):
            torch.manual_seed(0)
            cache = KVCache(model.config, len(rows))
            cache.keys.normal_()
            cache.values.normal_()
            cache.truncate(rows)
            cache.static, cache.in_step = True, False
            with how:
                kinds.append(type(model.blocks[0]))
                for token in (3, 7, 1):
                    logits, _ = model(torch.full((len(rows), 1), token), cache=cache)
            results.append(logits)
    torch.testing.assert_close(*results)
    assert kinds == [Block, FusedBlock] and type(model.blocks[0]) is Block


class Louder(Block):
    def forward(self, x, *more):
        return super().forward(x, *more) * 1.001


class MoreOfBefore(Block):
    def forward(self, x, rotate, mask=None, cache=None):
        before = getattr(cache, "before", torch.zeros_like(x))
        cache.before = x
        return super().forward(x + 0.1 * before, rotate, mask, cache)


class RotatedAtFirst(CausalSelfAttention):
    def forward(self, x, rotate, mask=None, cache=None):
        return super().forward(x, not_rotated if self.layer else rotate, mask, cache)


class TheFirstValues(CausalSelfAttention):
    def forward(self, x, rotate, mask=None, cache=None):
        return super().forward(x, rotate, mask, cache) + cache.values[0].mean()


def louder(module, inputs, output):
    return output * 1.001


def capped_attention(q, k, v, *more):
    scores = 50 * torch.tanh(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)) / 50)
    return scores.masked_fill(~more[0], -math.inf).softmax(dim=-1) @ v


CHANGES = {
    "a block": lambda block: setattr(block, "__class__", Louder),
    "a block that remembers": lambda block: setattr(block, "__class__", MoreOfBefore),
    "rotation in some layers": lambda block: setattr(block.attention, "__class__", RotatedAtFirst),
    "another layer's values": lambda block: setattr(block.attention, "__class__", TheFirstValues),
    "capped scores": lambda block: setattr(block.attention, "attend", capped_attention),
    "an activation": lambda block: setattr(block.mlp, "activation", torch.sigmoid),
    "a hook": lambda block: block.register_forward_hook(louder),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_block_of_your_own_is_kept(change):
    model = make("nanogpt", position="rope", n_kv_head=4)
    block = model.blocks[1]
    assert fused_block(model, block, 16)
    change(block)
    assert not fused_block(model, block, 16)


def looks_back(n):
    """model.attention_mask, but of at most n positions."""

    def mask(positions, n_keys, *more):
        distance = positions[:, None, :, None] - torch.arange(n_keys)
        return (distance >= 0) & (distance < n)

    return mask


def test_an_attention_of_your_own_is_kept(monkeypatch):
    monkeypatch.setattr("model.attention_mask", looks_back(20))
    model = scrambled(make("llama", n_layer=1, block_size=64))
    (block,) = model.blocks
    assert fused_block(model, block, 16)  # where it looks back on all, too
    assert not fused_block(model, block, 40)


def nothing(self, x, rotate, mask=None, cache=None):
    return x


def test_a_changed_model_is_run_as_it_is(monkeypatch):
    model = make("nanogpt", n_layer=1)
    monkeypatch.setattr(Block, "forward", nothing)
    assert not fused_block(model, model.blocks[0], 16)


def test_weights_are_joined_where_they_are():
    model = make("qwen2", n_layer=1)
    (block,) = model.blocks
    parts = block.attention.query, block.attention.key, block.attention.value
    before = torch.cat([linear.weight for linear in parts])
    places = []
    for _ in range(2):  # they are moved once
        whole = fused_block(model, block, 16).qkv.matrix[0]
        assert torch.equal(whole, before)
        assert torch.equal(torch.cat([linear.weight for linear in parts]), before)
        places.append(whole.data_ptr())
        assert parts[0].weight.data_ptr() == whole.data_ptr()
    assert places[0] == places[1]
