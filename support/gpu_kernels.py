"""What a GPU computes for the next token of a text: two kernels in Triton.

For one token a GPU reads all weights once, and computes next to nothing. Of PyTorch's kernels a
block needs about twenty, most of which do so little that starting them takes longer. Here a block
is five: a product that normalises its input on the way, attention, and three more products.
"""

import torch
import triton
from triton import language as tl

OUTPUTS, INPUTS = 4, 1024  # weights that a program multiplies at a time: rows, columns
EACH = 8  # neighbouring ones that a thread multiplies
SPLITS = 32  # programs among which a text is divided, at most
KEYS = 64  # keys that a program looks at, at a time
FIRST_WITH_OVERLAP = 9, 0  # compute capability: H100 and later


@triton.jit
def begin_next(OVERLAP: tl.constexpr):
    """Let the next kernel begin, as far as it gets without the results of this one."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_last(OVERLAP: tl.constexpr):
    """Wait until the kernel before this one has ended and its results can be read."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()


@triton.jit
def normalised(x, gain, mean, factor, i, inside):
    """x with the mean taken off and scaled, by the factor and the channel's gain."""
    return (x - mean) * factor * tl.load(gain + i, inside, 0).to(tl.float32)


@triton.jit
def statistics(x, row, n_rows, n_inputs, eps, NORM: tl.constexpr, WIDTH: tl.constexpr):
    """The mean of each row, 0 for an RMS norm, and the factor that scales the rest to a mean square
    of 1.
    """
    i = tl.arange(0, WIDTH)[None, :]
    inside = (row < n_rows) & (i < n_inputs)
    values = tl.load(x + row * n_inputs + i, inside, 0).to(tl.float32)
    total = tl.sum(values, 1)
    mean = total / n_inputs if NORM == "layernorm" else tl.zeros_like(total)
    distance = tl.where(inside, values - mean[:, None], 0)
    return mean, tl.rsqrt(tl.sum(distance * distance, 1) / n_inputs + eps)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """x, after the nonlinearity of the MLP that has this name in model.py."""
    if ACTIVATION == "gelu":
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))  # 1/√2
    elif ACTIVATION == "gelu_tanh":
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))  # 2 √(2/π)
    elif ACTIVATION == "relu2":
        return tl.maximum(x, 0) * tl.maximum(x, 0)
    else:
        return x


@triton.jit
def product_kernel(
    x,
    weight,
    scale,
    bias,
    gain,
    shift,
    residual,
    y,
    n_rows,
    n_outputs,
    eps,
    n_inputs: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    EACH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A program computes OUTPUTS outputs of all rows, from INPUTS inputs at a time.

    A thread reads EACH neighbouring weights at once, and adds up their products: so it keeps few
    sums for each row. Tiles are (rows, outputs, inputs); gates count as outputs.
    """
    begin_next(OVERLAP)
    first = tl.program_id(0) * OUTPUTS
    gated: tl.constexpr = ACTIVATION == "swiglu"
    n: tl.constexpr = 2 * OUTPUTS if gated else OUTPUTS
    output = first + (tl.arange(0, n) // 2 if gated else tl.arange(0, n))
    o = output  # row of the weights
    if gated:  # gates are the first half of them: gate 0, up 0, gate 1, …
        o += tl.arange(0, n) % 2 * n_outputs
    exists = output < n_outputs
    sums = tl.zeros((ROWS, n, INPUTS // EACH), tl.float32)
    tile = tl.max_contiguous(tl.arange(0, INPUTS), EACH)[None, None, :]
    weight += o[None, :, None].to(tl.int64) * n_inputs
    w = tl.load(weight + tile, exists[None, :, None] & (tile < n_inputs), 0)  # known beforehand
    wait_for_last(OVERLAP)

    r = tl.arange(0, ROWS)
    row = r[:, None, None]
    mean, factor = 0.0, 1.0
    if NORM != "none":
        mean, factor = statistics(x, r[:, None], n_rows, n_inputs, eps, NORM, WIDTH)
        mean, factor = mean[:, None, None], factor[:, None, None]
    for start in range(0, n_inputs, INPUTS):
        i = start + tile
        values = tl.load(x + row * n_inputs + i, (row < n_rows) & (i < n_inputs), 0).to(tl.float32)
        if NORM != "none":
            values = normalised(values, gain, mean, factor, i, i < n_inputs)
        if shift is not None:
            values += tl.load(shift + i, i < n_inputs, 0).to(tl.float32)
        products = w.to(tl.float32) * values
        sums += tl.sum(tl.reshape(products, (ROWS, n, INPUTS // EACH, EACH)), 3)
        i += INPUTS
        w = tl.load(weight + i, exists[None, :, None] & (i < n_inputs), 0)
    total = tl.sum(sums, 2)
    if scale is not None:
        total *= tl.load(scale + o, exists, 0).to(tl.float32)[None, :]
    if bias is not None:
        total += tl.load(bias + o, exists, 0).to(tl.float32)[None, :]

    if gated:
        gate, up = tl.split(tl.reshape(total, (ROWS, OUTPUTS, 2)))
        total = gate * tl.sigmoid(gate) * up
    else:
        total = activated(total, ACTIVATION)
    output = first + tl.arange(0, OUTPUTS)[None, :]
    at, inside = r[:, None] * n_outputs + output, (r[:, None] < n_rows) & (output < n_outputs)
    if residual is not None:
        total += tl.load(residual + at, inside, 0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), inside)


def product(x, weight, scale=None, bias=None, norm=None, activation="none", residual=None):
    """activation(norm(x) · (scale weight)ᵀ + bias) + residual, for a few rows x (N, inputs).

    weight (outputs, inputs), contiguous, of any precision; scale and bias (outputs); norm a layer
    or RMS norm over the inputs; residual (N, outputs). swiglu: the first half of the outputs gates
    the second. The result has x's precision.
    """
    n_outputs, n_inputs = weight.shape
    n_outputs //= 2 if activation == "swiglu" else 1
    y = x.new_empty(len(x), n_outputs)
    kind = {type(None): "none", torch.nn.LayerNorm: "layernorm"}.get(type(norm), "rmsnorm")
    product_kernel[(triton.cdiv(n_outputs, OUTPUTS),)](
        x.contiguous(),
        weight,
        scale,
        bias,
        getattr(norm, "weight", None),
        getattr(norm, "bias", None),
        residual,
        y,
        len(x),
        n_outputs,
        getattr(norm, "eps", 0.0),
        n_inputs,
        kind,
        activation,
        triton.next_power_of_2(n_inputs),
        triton.next_power_of_2(len(x)),
        OUTPUTS,
        INPUTS,
        EACH,
        **overlap(x),
    )
    return y


@triton.jit
def turned(
    x, gain, cos, sin, at, eps, SIZE: tl.constexpr, ROTARY: tl.constexpr, HALF: tl.constexpr
):
    """The two halves of a head's query or key: normalised and rotated, if it has those."""
    i = tl.arange(0, HALF)
    inside = i < SIZE // 2
    a = tl.load(x + i, inside, 0).to(tl.float32)
    b = tl.load(x + SIZE // 2 + i, inside, 0).to(tl.float32)
    if gain is not None:
        factor = tl.rsqrt((tl.sum(a * a) + tl.sum(b * b)) / SIZE + eps)
        a = normalised(a, gain, 0.0, factor, i, inside)
        b = normalised(b, gain + SIZE // 2, 0.0, factor, i, inside)
    if ROTARY:
        c = tl.load(cos + at + i, inside, 0).to(tl.float32)
        s = tl.load(sin + at + i, inside, 0).to(tl.float32)
        return a * c - b * s, a * s + b * c
    return a, b


@triton.jit
def attention_kernel(
    qkv,
    query_gain,
    key_gain,
    cos,
    sin,
    positions,
    keys,
    values,
    parts,
    finished,
    y,
    eps,
    capacity,
    span: tl.constexpr,
    n_heads: tl.constexpr,
    kv_heads: tl.constexpr,
    SIZE: tl.constexpr,
    ROTARY: tl.constexpr,
    HALF: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A program attends from one head to `span` keys; the last to finish adds up their results.

    The softmax over some keys is corrected as more of them are seen (FlashAttention,
    arXiv:2205.14135). The new key and value come from `qkv`; one program for each of their heads
    stores them.
    """
    begin_next(OVERLAP)
    wait_for_last(OVERLAP)
    row, head = tl.program_id(0) // n_heads, tl.program_id(0) % n_heads
    kv_head = head * kv_heads // n_heads
    position = tl.load(positions + row)
    start = tl.program_id(1) * span
    if start > position:
        return
    d = tl.arange(0, 2 * HALF)
    exists = d < SIZE
    at = row * (SIZE // 2)
    new = qkv + row * (n_heads + 2 * kv_heads) * SIZE
    qa, qb = turned(new + head * SIZE, query_gain, cos, sin, at, eps, SIZE, ROTARY, HALF)
    qa, qb = qa / tl.sqrt(SIZE * 1.0), qb / tl.sqrt(SIZE * 1.0)
    new += (n_heads + kv_head) * SIZE
    cached = ((row * kv_heads + kv_head) * capacity).to(tl.int64) * SIZE
    keys += cached
    values += cached
    i = tl.arange(0, HALF)
    inside = i < SIZE // 2

    highest, total = -float("inf"), 0.0  # score so far, sum of the weights relative to it
    sums = tl.zeros((2 * HALF,), tl.float32)  # values, so weighted
    if position < start + span:  # it has the new key too
        ka, kb = turned(new, key_gain, cos, sin, at, eps, SIZE, ROTARY, HALF)
        ka, kb = ka.to(keys.dtype.element_ty), kb.to(keys.dtype.element_ty)
        v = tl.load(new + kv_heads * SIZE + d, exists, 0).to(values.dtype.element_ty)
        if head * kv_heads % n_heads < kv_heads:  # the first of those that share this key
            tl.store(keys + position * SIZE + i, ka, inside)
            tl.store(keys + position * SIZE + SIZE // 2 + i, kb, inside)
            tl.store(values + position * SIZE + d, v, exists)
        highest = tl.sum(qa * ka.to(tl.float32) + qb * kb.to(tl.float32))
        total = 1.0
        sums = v.to(tl.float32)
    for some in range(0, span, KEYS):
        n = start + some + tl.arange(0, KEYS)
        seen = n < position
        key = keys + n[:, None] * SIZE + i[None, :]
        mask = seen[:, None] & inside[None, :]
        ka = tl.load(key, mask, 0).to(tl.float32)
        kb = tl.load(key + SIZE // 2, mask, 0).to(tl.float32)
        v = tl.load(values + n[:, None] * SIZE + d[None, :], seen[:, None] & exists[None, :], 0)
        scores = tl.where(seen, tl.sum(ka * qa[None, :] + kb * qb[None, :], 1), -float("inf"))
        higher = tl.maximum(highest, tl.max(scores))
        weights = tl.exp(scores - higher)
        shrink = tl.exp(highest - higher)
        total = total * shrink + tl.sum(weights)
        sums = sums * shrink + tl.sum(weights[:, None] * v.to(tl.float32), 0)
        highest = higher

    y += tl.program_id(0) * SIZE + d
    if SPLITS == 1:
        tl.store(y, (sums / total).to(y.dtype.element_ty), exists)
        return
    size: tl.constexpr = 2 * HALF  # a part is its sums, then its highest score and its total
    part = parts + tl.program_id(0) * SPLITS * (size + 2)
    mine = part + tl.program_id(1) * (size + 2)
    tl.store(mine + d, sums)
    tl.store(mine + size, highest)
    tl.store(mine + size + 1, total)
    tl.debug_barrier()  # all of its threads have written
    last = position // span
    if tl.atomic_add(finished + tl.program_id(0), 1) == last:
        s = tl.arange(0, SPLITS)
        theirs, used = part + s * (size + 2), s <= last
        heights = tl.load(theirs + size, used, -float("inf"), cache_modifier=".cg")
        shares = tl.exp(heights - tl.max(heights))
        totals = tl.load(theirs + size + 1, used, 0, cache_modifier=".cg")
        all_sums = tl.load(theirs[:, None] + d[None, :], used[:, None], 0, cache_modifier=".cg")
        result = tl.sum(shares[:, None] * all_sums, 0) / tl.sum(shares * totals)
        tl.store(y, result.to(y.dtype.element_ty), exists)
        tl.store(finished + tl.program_id(0), 0)


def attention(qkv, rotation, query_norm, key_norm, positions, keys, values, scratch):
    """Store the new key and value of each text, and attend to all of them up to `positions`.

    qkv (B, (H + 2 K) D); rotation (cos, sin), each (B, D/2), or None; the norms RMS norms over D,
    or None; positions (B) of the new tokens; keys and values (B, K, capacity, D), to write to;
    scratch from `attention_scratch`. Returns (B, H D).
    """
    B, K, capacity, D = keys.shape
    H = qkv.size(1) // D - 2 * K
    half, span, splits = division(D, capacity)
    assert len(scratch[1]) >= B * H
    cos, sin = rotation or (None, None)
    y = qkv.new_empty(B, H * D)
    attention_kernel[(B * H, triton.cdiv(capacity, span))](
        qkv,
        getattr(query_norm, "weight", None),
        getattr(key_norm, "weight", None),
        cos,
        sin,
        positions,
        keys,
        values,
        *scratch,
        y,
        getattr(key_norm, "eps", 0.0),
        capacity,
        span,
        H,
        K,
        D,
        rotation is not None,
        half,
        KEYS,
        splits,
        **overlap(qkv),
    )
    return y


def division(D, capacity):
    """Half a head's channels, the keys of a program, and the programs of a head; powers of 2."""
    span = KEYS * triton.cdiv(capacity, KEYS * SPLITS)
    return [triton.next_power_of_2(n) for n in (D // 2, span, triton.cdiv(capacity, span))]


def attention_scratch(n_heads, keys):
    """Memory for `attention` to work with: what each program of a head adds up, and how many of
    them have finished. For n_heads of queries, and a cache's keys (B, K, capacity, D).
    """
    B, _, capacity, D = keys.shape
    half, _, splits = division(D, capacity)
    parts = keys.new_empty(B * n_heads * splits * (2 * half + 2), dtype=torch.float32)
    return parts, keys.new_zeros(B * n_heads, dtype=torch.int32)


def overlap(x):
    """The options by which a kernel reads its weights while the one before it still runs."""
    nvidia = x.is_cuda and torch.version.cuda is not None and hasattr(tl.extra.cuda, "gdc_wait")
    possible = nvidia and torch.cuda.get_device_capability(x.device) >= FIRST_WITH_OVERLAP
    return {"OVERLAP": True, "launch_pdl": True} if possible else {"OVERLAP": False}
