"""A model's blocks as the kernels of support/gpu_kernels.py compute them, for a token at a time.

model.py stays as it is: its blocks are replaced, from outside, while a step is recorded. Before
that each is compared with its kernels. One that computes something else, such as yours, is kept.
"""

import copy
import importlib.util
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from model import KVCache, RMSNorm, apply_rotary, not_rotated
from support.quantize import Int8Linear

ROWS = 4  # texts at once; with eight, PyTorch's products are faster for large models
TOLERANCE = 1e-4  # by which a block and its kernels may differ in float32, relative to the norm
LINEARS = nn.Linear, Int8Linear
NORMS = nn.LayerNorm, RMSNorm


@contextmanager
def fused(model, tokens, capacity):
    """Within this, `model` reads tokens (B, 1) by the kernels of its blocks, where these agree with
    the blocks on texts of up to `capacity` tokens.
    """
    if not possible(tokens):
        yield
        return
    blocks = model.blocks
    fast = nn.ModuleList(fused_block(model, block, capacity) or block for block in blocks)
    model.blocks = fast if tokens.size(1) == 1 else blocks  # their weights are joined in any case
    try:
        yield
    finally:
        model.blocks = blocks


def possible(tokens):
    """Whether there are kernels to read tokens (B, T) with, or to read on with later."""
    nvidia = tokens.is_cuda and torch.version.cuda is not None
    return nvidia and len(tokens) <= ROWS and importlib.util.find_spec("triton") is not None


@torch.inference_mode(False)  # whose tensors could not become weights
@torch.no_grad()
def fused_block(model, block, capacity):
    """The FusedBlock that computes what `block` does; None if none is known to."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        agree = difference(model, block, capacity) <= TOLERANCE
        return FusedBlock(block, model.config.mlp) if agree else None
    except Exception:  # a block may be anything, and a compiler may raise anything
        return None
    finally:
        torch.set_float32_matmul_precision(precision)


def difference(model, block, capacity):
    """How far apart the two are in float32, relative to the norm: in what they add to their input,
    or in what they cache.

    They read two tokens of two texts with random numbers. The second text ends where the cache
    does, and has large keys, so that attention is sharp.
    """
    exact, device = copy.deepcopy(block).float(), model.token_embedding.weight.device
    layer, results = exact.attention.layer, []
    for forward in (exact, FusedBlock(exact, model.config.mlp)):
        random = torch.Generator(device).manual_seed(0)
        cache = KVCache(replace(model.config, n_layer=1), 2, device, torch.float32, capacity)
        keys = cache.keys[0].normal_(generator=random)
        values = cache.values[0].normal_(generator=random)
        keys[1] *= 10
        cache.keys, cache.values = {layer: keys}, {layer: values}  # another layer's are an error
        cache.truncate([capacity // 3, capacity - 2])
        cache.static, cache.in_step = True, False
        outputs = []
        for _ in range(2):
            x = torch.randn(2, 1, model.config.n_embd, generator=random, device=device)
            tokens = torch.zeros(2, 1, dtype=torch.long, device=device)
            positions, mask = model.positions_and_mask(tokens, cache, None)
            x, rotate = model.position(x, positions)
            outputs.append(forward(x.float(), rotate, mask, cache) - x.float())
            cache.advance(1)
        results.append([*outputs, keys, values])
    return max(((a - b).norm() / a.norm()).item() for a, b in zip(*results))


class FusedBlock(nn.Module):
    """A Block's forward pass for one new token of each text, in five kernels."""

    def __init__(self, block, activation):
        super().__init__()
        attention, mlp = block.attention, block.mlp
        self.layer = attention.layer
        self.qkv = Product([attention.query, attention.key, attention.value], block.attention_norm)
        self.norms = [norm_in(norm) for norm in (attention.query_norm, attention.key_norm)]
        self.output = Product([attention.output])
        up = [mlp.gate, mlp.up] if activation == "swiglu" else [mlp.up]
        self.up = Product(up, block.mlp_norm, activation)
        self.down = Product([mlp.down])

    def forward(self, x, rotate, mask, cache):
        """As Block.forward, with a cache that is not in step; x (B, 1, C)."""
        from support.gpu_kernels import attention, attention_scratch

        keys, values = cache.keys[self.layer], cache.values[self.layer]  # (B, K, capacity, D)
        x = x[:, 0].contiguous()
        qkv = self.qkv(x)  # (B, (H + 2 K) D)
        if not hasattr(cache, "scratch"):  # for all blocks, one after the other
            heads = qkv.size(1) // keys.size(3) - 2 * keys.size(1)
            cache.scratch = attention_scratch(heads, keys)
        rotation, at = angles_of(rotate), cache.new[:, 0]
        y = attention(qkv, rotation, *self.norms, at, keys, values, cache.scratch)  # (B, H D)
        x = self.output(y, residual=x)
        x = self.down(self.up(x), residual=x)
        return x[:, None]


def angles_of(rotate):
    """(cos, sin), each (B, D/2), by which `rotate` turns a position; None if it does not."""
    if rotate is not_rotated:
        return None
    assert rotate.func is apply_rotary
    return [rotate.keywords[name].flatten(1) for name in ("cos", "sin")]


def norm_in(norm):
    """A norm's module, or None for none."""
    if isinstance(norm, nn.Identity):
        return None
    assert type(norm) in NORMS
    return norm


class Product:
    """Linear layers that read the same input as one product, with what comes before and after.

    Their weights become parts of the joint matrix: no memory is needed twice.
    """

    def __init__(self, linears, norm=None, activation="none"):
        assert all(type(linear) in LINEARS for linear in linears)
        weight, scale, bias = (joined(linears, name) for name in ("weight", "scale", "bias"))
        self.rest = {"norm": norm and norm_in(norm), "activation": activation}
        self.matrix = weight, scale, bias

    def __call__(self, x, residual=None):
        """x (B, inputs), residual (B, outputs)."""
        from support.gpu_kernels import product

        return product(x, *self.matrix, **self.rest, residual=residual)


def joined(linears, name):
    """The layers' tensors of this name, one below the other; None if they have none.

    Afterwards each layer's is a part of it.
    """
    tensors = [tensor for linear in linears if (tensor := getattr(linear, name, None)) is not None]
    if len(tensors) < len(linears):
        assert not tensors
        return None
    if are_joined(tensors):
        shape = sum(map(len, tensors)), *tensors[0].shape[1:]
        return tensors[0].detach().as_strided(shape, tensors[0].stride())
    whole = torch.cat([tensor.detach() for tensor in tensors])
    for tensor, part in zip(tensors, whole.split([len(tensor) for tensor in tensors])):
        tensor.data = part
    return whole


def are_joined(tensors):
    """Whether they lie one behind the other in the same memory."""
    memory = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    ends = [tensor.data_ptr() + tensor.nbytes for tensor in tensors[:-1]]
    return len(memory) == 1 and ends == [tensor.data_ptr() for tensor in tensors[1:]]
