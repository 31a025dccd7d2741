"""Low-precision weights for generating text: every token requires reading all of them from memory.

With one text at a time, memory bandwidth limits a model's speed. This module replaces its linear
layers, from outside, with layers that have 16 or 8 bits per weight and multiply them by a row or
two with a kernel made for that.
"""

import warnings
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from support.processes import pick_dtype
from support.token_files import Windows, open_dataset

HALF_ROWS = 2  # with more rows at once, float16 is no faster on a CPU than a kernel for matrices
SMALL = 4_000_000  # a model with fewer weights is faster in float32 on a CPU, with one thread
ONE_THREAD_ROWS = 4  # and at most so many rows at once
HELD_OUT = 2048  # tokens on which to measure what low precision costs
MPS_DIVISOR = 32  # of the sizes that Apple's int8 kernel supports
INT8_ROWS = 8  # with more rows at once, without FBGEMM, it pays to convert the weights first
SMALLEST_STEP = 6.1e-5  # the finest step to which FBGEMM rounds activations
# Without this instruction FBGEMM accumulates in 16 bits, so activations may have only 7 bits.
NARROW = not getattr(torch.cpu, "get_capabilities", dict)().get("avx512_vnni", False)


def for_inference(model, config, rows_at_once, world):
    """The model in the requested precision, or in the fastest one for this many rows at once."""
    on_cpu, dtype = world.device.type == "cpu", world.dtype
    if config.dtype == "auto" and on_cpu:
        dtype = torch.float16 if rows_at_once <= HALF_ROWS else dtype
        dtype = torch.float32 if is_small(model) else dtype
    if config.quantize == "int8":
        return replace_linears(model, Int8Linear).to(torch.float32 if on_cpu else dtype)
    if dtype == torch.float16 and on_cpu:
        return replace_linears(model, HalfLinear)
    return model.to(dtype)


def is_small(model):
    """Whether a token takes so little work that Python and waiting are most of it."""
    return sum(weight.numel() for weight in model.parameters()) < SMALL


def use_few_threads(model, rows_at_once):
    """On a CPU, make this process use one thread if more of them gain nothing.

    A token of a small model takes a millisecond, with one thread or two; but 24 milliseconds while
    another program keeps the second from running.
    """
    on_cpu = model.token_embedding.weight.device.type == "cpu"
    if on_cpu and is_small(model) and rows_at_once <= ONE_THREAD_ROWS:
        torch.set_num_threads(1)


def cache_dtype(model):
    """The dtype of the KV cache: with low-precision weights 16 bits, where these are fast."""
    weight = model.token_embedding.weight
    is_light = any(isinstance(module, LowPrecisionLinear) for module in model.modules())
    return pick_dtype("auto", weight.device) if is_light else weight.dtype


class LowPrecisionLinear(nn.Module):
    """The base class: a bias, and weights `packed` for a kernel if the processor has one."""

    def __init__(self, linear, packed):
        super().__init__()
        self.packed = packed
        self.register_buffer("bias", linear.bias)

    def forward(self, x):
        y = self.without_kernel(x) if self.packed is None else self.with_kernel(x)
        return y if self.bias is None else y + self.bias


class HalfLinear(LowPrecisionLinear):
    """A linear layer with float16 weights for activations of any precision, on a CPU.

    Its product with a single row takes half the time of bfloat16's, and is more accurate: float16
    has three more mantissa bits. It accumulates in float32. Intel and AMD processors have a kernel
    for it (FBGEMM). Elsewhere a prompt is multiplied in the precision that is fast there.
    """

    def __init__(self, linear):
        weight = linear.weight.detach()
        super().__init__(linear, packed(prepack_half, weight.float()))
        if self.packed is None:
            self.register_buffer("weight", weight.half())

    def with_kernel(self, x):
        """The product in float32 with 16-bit weights."""
        return torch.ops.quantized.linear_dynamic_fp16(x.float(), self.packed).type_as(x)

    def without_kernel(self, x):
        """The product in float16, or for many rows in the processor's fastest precision."""
        few = x.numel() <= HALF_ROWS * x.size(-1)
        dtype = torch.float16 if few else pick_dtype("auto", x.device)
        return F.linear(x.to(dtype), self.weight.to(dtype)).type_as(x)


class Int8Linear(LowPrecisionLinear):
    """A linear layer whose weights are integers within ±127, times a scale for each output.

    On Intel and AMD processors each row of activations is quantised to integers too, and multiplied
    as such (FBGEMM). Elsewhere the activations stay as they are.
    """

    def __init__(self, linear):
        weight = linear.weight.detach().to(torch.float32, copy=True)  # (outputs, inputs)
        scale = weight.amax(dim=1).maximum(-weight.amin(dim=1)).clamp(min=1e-12) / 127  # (outputs)
        super().__init__(linear, packed(prepack_int8, weight, scale))
        integers = weight.div_(scale[:, None]).round_()
        if self.packed is None:
            self.register_buffer("weight", integers.to(torch.int8))
            self.register_buffer("scale", scale)
        else:
            self.register_buffer("sums", integers.sum(dim=1) * scale)  # outputs for inputs of 1

    def with_kernel(self, x):
        """The product with x quantised too, each row to 255 steps (127 if NARROW) over its range.

        FBGEMM does so itself for a single row, but uses one range for several. Here each row has
        its own steps, counted from 0 as FBGEMM does for a single one: a text gives the same result
        whether it is read token by token or at once.
        """
        if x.numel() == x.size(-1):
            return torch.ops.quantized.linear_dynamic(x.float(), self.packed, NARROW).type_as(x)
        rows = x.float()
        least = rows.amin(dim=-1, keepdim=True).clamp(max=0)
        largest = rows.amax(dim=-1, keepdim=True).clamp(min=0).double()
        step = ((largest - least) / (127 if NARROW else 255)).clamp(min=SMALLEST_STEP)
        zero = (least / -step).round().float()  # the zero point
        step = step.float()
        steps = torch.addcmul(zero, rows, step.reciprocal())
        y = kernel_for_steps()(steps, 1.0, 0, self.packed)
        return y.addcmul_(zero, self.sums, value=-1).mul_(step).type_as(x)

    def without_kernel(self, x):
        """The product with x as it is."""
        rows = x.flatten(0, -2)  # (N, inputs)
        kernel = kernel_for_a_few(self.weight) if len(rows) <= INT8_ROWS else None
        if kernel:
            y = kernel(rows, self.weight, self.scale)
        else:  # scaled before the product, which could exceed float16's range
            y = F.linear(rows, self.weight.type_as(x) * self.scale.type_as(x)[:, None])
        return y.type_as(x).unflatten(0, x.shape[:-1])


def packed(prepack, weight, *more):
    """The weights packed for FBGEMM; None if this processor or this PyTorch does not have it."""
    engine = torch.backends.quantized.engine
    if weight.device.type != "cpu" or engine not in ("x86", "fbgemm"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch plans to remove these
        try:
            return prepack(weight, *more)
        except (AttributeError, RuntimeError):
            return None


def prepack_half(weight):
    return torch.ops.quantized.linear_prepack_fp16(weight, None)


def kernel_for_steps():
    """The operator that multiplies rows that are already integers by packed weights."""
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32


def prepack_int8(weight, scale):
    kernel_for_steps()  # raises AttributeError if this PyTorch lacks it
    zeros = torch.zeros(len(scale), dtype=torch.long)
    integers = torch.quantize_per_channel(weight, scale.double(), zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(integers, None)


def kernel_for_a_few(weight):
    """A function (rows, weight, scale) -> product for a few rows; None if there is none."""
    if weight.device.type == "cuda":  # PyTorch's takes many times as long as 16-bit weights do
        return triton_kernel()
    if weight.device.type == "mps" and any(n % MPS_DIVISOR for n in weight.shape):
        return None
    return pytorch_kernel


def pytorch_kernel(x, weight, scale):
    return torch._weight_int8pack_mm(x.bfloat16(), weight, scale.bfloat16())


@cache
def triton_kernel():
    """The one of support/gpu_kernels.py; None where Triton or its compiler is missing."""
    try:
        from support.gpu_kernels import product

        weight = torch.ones(1, 16, dtype=torch.int8, device="cuda")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's
            product(weight.bfloat16(), weight, weight[0].bfloat16())
    except Exception:  # a compiler may raise anything
        return None
    return product


def replace_linears(model, Layer):
    """Replace every linear layer of `model` with a `Layer` made from it."""
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]

    for place in places:  # keeps no layer longer than needed: all of them are the model's memory
        setattr(*place, Layer(getattr(*place)))
    return model


# ---------------------------------------------------------------------- what low precision costs


def held_out(checkpoint, model):
    """Some windows (B, T + 1) of the model's validation set; None if it is not on this machine."""
    T, data = min(model.config.block_size, HELD_OUT), checkpoint["data"]
    try:
        dataset = open_dataset(data["dataset"])
        if dataset.describe()["tokenizer_sha256"] != data["tokenizer_sha256"]:
            return None  # it was prepared again, with another tokenizer
        windows = Windows(dataset.val, T, T + 1)
    except (KeyError, SystemExit):
        return None
    n = min(len(windows), max(1, HELD_OUT // T))
    return torch.from_numpy(windows.read(windows.spread(n))) if n else None


@torch.inference_mode()
def perplexity(model, block):
    """e to the mean loss on windows (B, T + 1): how many tokens the model hesitates between."""
    block = block.to(model.token_embedding.weight.device)
    logits, _ = model(block[:, :-1])  # these layers have no `weight` for the fused loss
    return F.cross_entropy(logits.flatten(0, 1).float(), block[:, 1:].flatten()).exp().item()
