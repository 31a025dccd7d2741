"""The product of a few rows with 8-bit weights on a GPU, written in Triton.

PyTorch converts such weights to 16 bits first and writes the result to memory, which takes longer
than 16-bit weights would. Here they are converted on their way to the multiplication.
"""

import triton
from triton import language as tl

TILE = {"OUTPUTS": 4, "INPUTS": 1024}  # weights that a program multiplies at a time


@triton.jit
def product(
    x,
    weight,
    scale,
    y,
    n_rows,
    n_outputs,
    n_inputs: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """A program computes OUTPUTS outputs of a row. Neighbours share weights and differ in row."""
    row = tl.program_id(0) % n_rows
    o = tl.program_id(0) // n_rows * OUTPUTS + tl.arange(0, OUTPUTS)
    exists = o < n_outputs
    sums = tl.zeros((OUTPUTS, INPUTS), tl.float32)
    for start in range(0, n_inputs, INPUTS):
        i = start + tl.arange(0, INPUTS)
        inside = i < n_inputs
        w = tl.load(weight + o[:, None] * n_inputs + i, exists[:, None] & inside, 0)
        sums += w.to(tl.float32) * tl.load(x + row * n_inputs + i, inside, 0).to(tl.float32)
    total = tl.sum(sums, 1) * tl.load(scale + o, exists, 0).to(tl.float32)
    tl.store(y + row * n_outputs + o, total, exists)


def int8_product(x, weight, scale):
    """(x · weightᵀ) scale in x's precision: x (N, inputs), weight (outputs, inputs) of int8 and
    contiguous, scale (outputs). For a few rows: each takes the weights from the GPU's cache.
    """
    n_outputs, n_inputs = weight.shape
    y = x.new_empty(len(x), n_outputs)
    grid = (triton.cdiv(n_outputs, TILE["OUTPUTS"]) * len(x),)
    product[grid](x.contiguous(), weight, scale, y, len(x), n_outputs, n_inputs, **TILE)
    return y
