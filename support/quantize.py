"""Lighter weights for writing: a token costs one reading of them all, whatever is computed.

With one text at a time a model is as fast as its weights come out of memory. Here its linear layers
are exchanged, from outside, for ones that hold 16 or 8 bits for each weight, and multiply them by a
row or two with a kernel made for that.
"""

import warnings

import torch
from torch import nn
from torch.nn import functional as F

from support.processes import pick_dtype
from support.token_files import Windows, open_dataset

HALF_ROWS = 2  # with more at once, float16 is no longer faster on a CPU than whole matrices
FLOAT32_BELOW = 4_000_000  # with fewer weights than this, a CPU is faster in float32
HELD_OUT = 2048  # tokens on which it is measured what lighter weights cost
INT8_ROWS = 8  # with more at once, it pays to widen the weights first where FBGEMM is not there
SMALLEST_STEP = 6.1e-5  # what FBGEMM rounds activations to at the finest
# Without this instruction FBGEMM sums in 16 bits, so that activations may have but 7.
NARROW = not getattr(torch.cpu, "get_capabilities", dict)().get("avx512_vnni", False)


def for_inference(model, config, rows_at_once, world):
    """The model in the precision asked for, or in the fastest one for this many rows at once."""
    on_cpu, dtype = world.device.type == "cpu", world.dtype
    if config.dtype == "auto" and on_cpu:
        small = sum(weight.numel() for weight in model.parameters()) < FLOAT32_BELOW
        dtype = torch.float16 if rows_at_once <= HALF_ROWS else dtype
        dtype = torch.float32 if small else dtype
    if config.quantize == "int8":
        return replace_linears(model, Int8Linear).to(torch.float32 if on_cpu else dtype)
    if dtype == torch.float16 and on_cpu:
        return replace_linears(model, HalfLinear)
    return model.to(dtype)


def cache_dtype(model):
    """What keys and values are kept in: 16 bits beside lighter weights, where these are fast."""
    weight = model.token_embedding.weight
    is_light = any(isinstance(module, LowPrecisionLinear) for module in model.modules())
    return pick_dtype("auto", weight.device) if is_light else weight.dtype


class LowPrecisionLinear(nn.Module):
    """What both have: a bias, and weights `packed` for a kernel where the processor has one."""

    def __init__(self, linear, packed):
        super().__init__()
        self.packed = packed
        self.register_buffer("bias", linear.bias)

    def forward(self, x):
        y = self.without_kernel(x) if self.packed is None else self.with_kernel(x)
        return y if self.bias is None else y + self.bias


class HalfLinear(LowPrecisionLinear):
    """A linear layer with float16 weights for activations of any precision, on a CPU.

    Its product with a single row takes half the time of bfloat16's, and loses less: float16 has
    three more binary digits. The sums are made in float32. Intel's and AMD's processors have a
    kernel for it (FBGEMM). Elsewhere a prompt is multiplied in the precision that is fast there.
    """

    def __init__(self, linear):
        weight = linear.weight.detach()
        super().__init__(linear, packed(prepack_half, weight.float()))
        if self.packed is None:
            self.register_buffer("weight", weight.half())

    def with_kernel(self, x):
        """The product in float32 with weights of 16 bits."""
        return torch.ops.quantized.linear_dynamic_fp16(x.float(), self.packed).type_as(x)

    def without_kernel(self, x):
        """The product in float16, or of many rows in the processor's favourite."""
        few = x.numel() <= HALF_ROWS * x.size(-1)
        dtype = torch.float16 if few else pick_dtype("auto", x.device)
        return F.linear(x.to(dtype), self.weight.to(dtype)).type_as(x)


class Int8Linear(LowPrecisionLinear):
    """A linear layer whose weights are whole numbers within ±127, times a scale for each output.

    On Intel's and AMD's processors each row of activations becomes whole numbers too, and is
    multiplied as such (FBGEMM). Elsewhere the activations stay as they are.
    """

    def __init__(self, linear):
        weight = linear.weight.detach().float()  # (outputs, inputs)
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127  # (outputs)
        super().__init__(linear, packed(prepack_int8, weight, scale))
        whole = (weight / scale[:, None]).round()
        if self.packed is None:
            self.register_buffer("weight", whole.to(torch.int8))
            self.register_buffer("scale", scale)
        else:
            self.register_buffer("sums", whole.sum(dim=1) * scale)  # what an input of ones gives

    def with_kernel(self, x):
        """The product with x rounded too, every row to 255 steps from its least to its largest.

        FBGEMM does so itself with a single row, but takes one range for several. Here each row is
        counted in steps of its own, from 0, as FBGEMM counts a single one: a text comes out the
        same, read token by token or at once.
        """
        if x.numel() == x.size(-1):
            return torch.ops.quantized.linear_dynamic(x.float(), self.packed, NARROW).type_as(x)
        rows = x.float()
        least = rows.amin(dim=-1, keepdim=True).clamp(max=0)
        largest = rows.amax(dim=-1, keepdim=True).clamp(min=0).double()
        step = ((largest - least) / (127 if NARROW else 255)).clamp(min=SMALLEST_STEP)
        zero = (least / -step).round().float()  # the step at which 0 stands
        step = step.float()
        steps = torch.addcmul(zero, rows, step.reciprocal())
        y = kernel_for_steps()(steps, 1.0, 0, self.packed)
        return y.addcmul_(zero, self.sums, value=-1).mul_(step).type_as(x)

    def without_kernel(self, x):
        """The product with x as it is."""
        rows = x.flatten(0, -2)  # (N, inputs)
        if len(rows) <= INT8_ROWS:
            y = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, self.scale.bfloat16())
        else:
            y = F.linear(rows, self.weight.type_as(x)) * self.scale
        return y.type_as(x).unflatten(0, x.shape[:-1])


def packed(prepack, weight, *more):
    """The weights as FBGEMM wants them; None where this processor or this PyTorch has it not."""
    engine = torch.backends.quantized.engine
    if weight.device.type != "cpu" or engine not in ("x86", "fbgemm"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch means to remove these one day
        try:
            return prepack(weight, *more)
        except (AttributeError, RuntimeError):
            return None


def prepack_half(weight):
    return torch.ops.quantized.linear_prepack_fp16(weight, None)


def kernel_for_steps():
    """The product of rows that are whole numbers already with packed weights."""
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32


def prepack_int8(weight, scale):
    kernel_for_steps()  # an AttributeError where this PyTorch has none
    zeros = torch.zeros(len(scale), dtype=torch.long)
    whole = torch.quantize_per_channel(weight, scale.double(), zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(whole, None)


def replace_linears(model, Layer):
    """Exchange every linear layer of `model` for a `Layer` made from it."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Layer(child))
    return model


# --------------------------------------------------------------------- what lighter weights cost


def held_out(checkpoint, model):
    """Some windows (B, T + 1) of what the model was validated on; None where that is not here."""
    T, data = min(model.config.block_size, HELD_OUT), checkpoint["data"]
    try:
        dataset = open_dataset(data["dataset"])
        if dataset.describe()["tokenizer_sha256"] != data["tokenizer_sha256"]:
            return None  # it was prepared again, as other tokens
        windows = Windows(dataset.val, T, T + 1)
    except (KeyError, SystemExit):
        return None
    n = min(len(windows), max(1, HELD_OUT // T))
    return torch.from_numpy(windows.read(windows.spread(n))) if n else None


@torch.inference_mode()
def perplexity(model, block):
    """e to the mean loss on windows (B, T + 1): among how many tokens the model hesitates."""
    block = block.to(model.token_embedding.weight.device)
    logits, _ = model(block[:, :-1])  # lighter layers give no weight to compute a loss with
    return F.cross_entropy(logits.flatten(0, 1).float(), block[:, 1:].flatten()).exp().item()
