"""A decoder-only transformer in one file: GPT-2, Llama, Qwen and a fast variant of our own.

Letters in the shape comments:
    B batch      T time, the positions that ask     S positions looked at: T, or more with a cache
    C channels   H heads (K of keys and values)     D channels of one head     V vocabulary
"""

import math
import operator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Literal, get_args, get_origin

import torch
from torch import nn
from torch.nn import functional as F

IGNORED = -1  # a target that does not count towards the loss


@dataclass
class ModelConfig:
    """The shape of a transformer; the defaults are GPT-2 124M as nanoGPT trains it."""

    vocab_size: int = 50304  # rows of the embedding (GPT-2's 50,257, rounded up)
    block_size: int = 1024  # context: the most tokens the model looks back on
    n_layer: int = 12  # blocks, one after the other
    n_head: int = 12  # attention heads in a block
    n_embd: int = 768  # channels of the residual stream
    n_kv_head: int | None = None  # heads of keys and values, each for several queries; None: n_head
    head_size: int | None = None  # channels of a head; None: n_embd / n_head
    mlp_size: int | None = None  # hidden channels of the MLP; None: 4 n_embd (swiglu: 8/3)
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"  # normalises the input of each branch
    position: Literal["learned", "rope"] = "learned"  # how the model knows the order of tokens
    ngrams: int = 1  # 3: embed pairs and triples of tokens too; 1: single tokens only
    ngram_rows: int = 32768  # of their hash table: n-grams that collide share a vector
    mlp: Literal["gelu", "gelu_tanh", "relu2", "swiglu"] = "gelu"  # OpenAI's GPT-2 has gelu_tanh
    bias: bool = False  # biases in linear layers and layer norms
    qkv_bias: bool | None = None  # biases of query, key and value (Qwen 2); None: as bias
    qk_norm: bool = False  # RMS-normalise queries and keys in each head
    tie_weights: bool = True  # the embedding matrix is also the output head
    dropout: float = 0.0  # share of activations zeroed in training
    attention_dropout: float | None = None  # the same for attention weights; None: as dropout
    shared_dropout: bool = False  # one mask for all sequences of a batch: fewer random numbers
    label_smoothing: float = 0.0  # share of each target spread over the vocabulary in training
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    # Llama 3's stretched rotation: factor, low_freq_factor, high_freq_factor, original block_size
    rope_scaling: tuple[float, float, float, int] | None = None
    norm_eps: float = 1e-5  # keeps the norms from dividing by zero
    n_labels: int = 0  # classes to score instead of the vocabulary (finetune.py); 0: the vocabulary
    softcap: float = 0.0  # squash logits smoothly into ± this; 0: off
    init: Literal["gpt2", "zero"] = "gpt2"  # zero: each block starts as the identity
    causal: bool = True  # False: every position also sees the future (to classify, not to generate)
    fused_attention: Literal["auto", True, False] = "auto"  # True: one kernel; False: the formula
    fused_loss: bool = True  # never hold all logits at once; False: the formula of cross-entropy
    narrow_residual: bool = False  # carry the residual stream in 16 bits where products have 16

    def __post_init__(self):
        check_shape(self)

    @property
    def kv_heads(self):
        return self.n_kv_head or self.n_head

    @property
    def head_channels(self):
        return self.head_size or self.n_embd // self.n_head

    @property
    def mlp_channels(self):
        if self.mlp == "swiglu":  # three matrices instead of two: as many weights, rounded up
            return self.mlp_size or 64 * math.ceil(self.n_embd * 8 / 3 / 64)
        return self.mlp_size or 4 * self.n_embd


# -------------------------------------------------------------------------- attention, in functions


def causal_attention(q, k, v, mask=None, dropout=0.0):
    """softmax(q kᵀ / √D) v, where scores that the mask forbids count as -∞.

    q (B, H, T, D); k and v (B, K, S, D); mask as from attention_mask, None for the plain triangle.
    A score is a sum over D channels; divided by √D it is about as large for any D, so that the
    softmax neither picks a single key nor weights all of them alike.
    """
    if k.size(1) != q.size(1):  # grouped-query attention: k1 k2 -> k1 k1 k2 k2
        k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
        v = v.repeat_interleave(q.size(1) // v.size(1), dim=1)           # (B, H, S, D)
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)           # (B, H, T, S)
    if mask is None:
        T, S = scores.shape[-2:]
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    weights = (scores + mask.float().log()).softmax(dim=-1)  # log 0 = -∞; rows sum to 1
    return F.dropout(weights, dropout).type_as(v) @ v                    # (B, H, T, D)


def fused_causal_attention(q, k, v, mask=None, dropout=0.0):
    """`causal_attention` in one kernel that never stores the scores."""
    triangle = bool(mask is None and q.size(2) > 1)  # a single query sees all keys
    shared = bool(q.size(1) != k.size(1))  # (in a trace, sizes are tensors: hence bool)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, triangle, enable_gqa=shared)


SHORT_CONTEXT = 256  # up to here, on a CPU, the formula can be faster than the kernel


def short_causal_attention(q, k, v, mask=None, dropout=0.0):
    """`causal_attention` by the faster way for a short context: the formula on a CPU in 16 bits,
    which the kernel there converts to 32, and with dropout, which it does not have.
    """
    converts = product_dtype(q) != torch.float32 and q.size(2) > 1
    formula = bool(q.device.type == "cpu" and (converts or dropout > 0))
    return (causal_attention if formula else fused_causal_attention)(q, k, v, mask, dropout)


def choose_attention(config):
    """The function for attention: a kernel, as long as that gives what `causal_attention` gives."""
    wanted = config.fused_attention
    shape = config.n_head, config.kv_heads, config.head_channels
    if wanted is False or (wanted == "auto" and not kernel_agrees(causal_attention, *shape)):
        return causal_attention
    is_short = wanted == "auto" and config.block_size <= SHORT_CONTEXT
    return short_causal_attention if is_short else fused_causal_attention


def attention_mask(positions, n_keys, causal=True, segments=None, static=False):
    """Which of S keys each of T queries may look at: (B or 1, 1, T, S), True where it may.

        causal          the same, packed documents (segments 0 0 0 1 1)
        1 . . . .       1 . . . .
        1 1 . . .       1 1 . . .
        1 1 1 . .       1 1 1 . .
        1 1 1 1 .       . . . 1 .
        1 1 1 1 1       . . . 1 1

    positions (B or 1, T) are those of the queries among the keys; with one row the last query is
    at the last key, unless the keys are `static`. segments (B, T) are the numbers of the documents
    that the tokens belong to. None stands for the plain triangle or its last row, which a kernel
    knows by itself.
    """
    T, in_step = positions.size(-1), positions.size(0) == 1
    if causal and segments is None and (n_keys == T or (T == 1 and in_step and not static)):
        return None
    keys = torch.arange(n_keys, device=positions.device)
    horizon = positions if causal else torch.full_like(positions, n_keys)
    mask = keys <= horizon[:, None, :, None]                             # (B or 1, 1, T, S)
    if segments is not None:
        mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
    return mask


# ---------------------------------------------------------------------------------------- positions


class LearnedPositions(nn.Module):
    """A vector for each position, added to the tokens' (GPT-2)."""

    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.block_size, config.n_embd)

    def forward(self, x, positions):
        x = x + self.embedding(positions)                                # (B, T, C)
        return x, not_rotated


class RotaryPositions(nn.Module):
    """Queries and keys are rotated by angles that grow with their position (arXiv:2104.09864).

    The product of a rotated query and a rotated key depends on how far apart they are, not on where
    they are. Channel i is paired with i + D/2, as in Hugging Face's Llama.
    """

    def __init__(self, config):
        super().__init__()
        frequencies = rotary_frequencies(
            config.head_channels, config.rope_theta, config.rope_scaling
        )
        angles = torch.outer(torch.arange(config.block_size), frequencies)         # (block, D/2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x, positions):
        cos, sin = self.cos[positions], self.sin[positions]              # (B or 1, T, D/2)
        return x, partial(apply_rotary, cos=cos.unsqueeze(1), sin=sin.unsqueeze(1))


def not_rotated(x):
    """Queries and keys where the positions are in the tokens' vectors: as they are."""
    return x


def apply_rotary(x, cos, sin):
    """x (B, H, T, D) with each pair of channels (a, b) rotated: (a cos - b sin, a sin + b cos)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.type_as(x), sin.type_as(x)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def rotary_frequencies(head_channels, theta, scaling=None):
    """How fast each pair of channels rotates, in radians per position: (D/2,), falling from 1."""
    half = head_channels // 2
    frequencies = theta ** -(torch.arange(half) / half)
    return frequencies if scaling is None else stretched(frequencies, *scaling)


def stretched(frequencies, factor, low, high, old_context):
    """Llama 3's frequencies: wavelengths beyond the old context slowed by `factor`, others kept."""
    waves_in_context = old_context * frequencies / (2 * math.pi)
    kept = ((waves_in_context - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


# Each returns x (B, T, C), and a function for queries and keys (B, heads, T, D).
POSITIONS = {"learned": LearnedPositions, "rope": RotaryPositions}


# -------------------------------------------------------------------------------------- the modules


class RMSNorm(nn.RMSNorm):
    """x / √(mean x² + eps), times a weight per channel, in x's precision (arXiv:1910.07467)."""

    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight.type_as(x), self.eps)


def make_norm(config):
    """The norm over the channels that `config` names."""
    return {
        "layernorm": partial(nn.LayerNorm, bias=config.bias),
        "rmsnorm": RMSNorm,
    }[config.norm](config.n_embd, eps=config.norm_eps)


class SharedDropout(nn.Dropout):
    """Dropout with one mask for all sequences of a batch, x (B, T, C).

    It regularises nearly as well with 1/B of the random numbers, which a CPU is slow to make.
    """

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        return x * F.dropout(x.new_ones(x.shape[1:]), self.p)                      # (T, C)


def make_dropout(config):
    """The dropout that `config` names, for what joins the residual stream."""
    return (SharedDropout if config.shared_dropout else nn.Dropout)(config.dropout)


class CausalSelfAttention(nn.Module):
    """Positions exchange information: each compares its query with the keys of those that it may
    look at, and receives their values, weighted by how well they match.

    `rotate` turns queries and keys by their positions; with learned positions it does nothing.
    """

    def __init__(self, config, layer):
        super().__init__()
        C, H, K, D = config.n_embd, config.n_head, config.kv_heads, config.head_channels
        qkv_bias = config.bias if config.qkv_bias is None else config.qkv_bias
        self.layer, self.head_channels = layer, D
        self.query = nn.Linear(C, H * D, bias=qkv_bias)
        self.key = nn.Linear(C, K * D, bias=qkv_bias)
        self.value = nn.Linear(C, K * D, bias=qkv_bias)
        self.output = nn.Linear(H * D, C, bias=config.bias)
        self.query_norm = RMSNorm(D, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(D, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.attend = choose_attention(config)
        shared = config.attention_dropout is None
        self.attention_dropout = config.dropout if shared else config.attention_dropout
        self.dropout = make_dropout(config)

    def forward(self, x, rotate, mask=None, cache=None):
        q = rotate(self.query_norm(self.heads(self.query(x))))           # (B, H, T, D)
        k = rotate(self.key_norm(self.heads(self.key(x))))               # (B, K, T, D)
        v = self.heads(self.value(x))                                    # (B, K, T, D)
        if cache is not None:  # which may hold 16 bits
            k, v = cache.append(self.layer, k, v)                        # (B, K, S, D)
        dropout = self.attention_dropout if self.training else 0.0
        y = self.attend(q.type_as(k), k, v, mask, dropout).type_as(x)    # (B, H, T, D)
        return self.dropout(self.output(y.transpose(1, 2).flatten(2)))   # (B, T, C)

    def heads(self, x):
        """(B, T, heads·D) -> (B, heads, T, D)"""
        return x.unflatten(-1, (-1, self.head_channels)).transpose(1, 2)


def squared_relu(x):
    """max(x, 0)²: sparse like ReLU, better in transformers (Primer, arXiv:2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu2": squared_relu,
}


class MLP(nn.Module):
    """Each position computes by itself: project up, apply a nonlinearity, project down."""

    def __init__(self, config):
        super().__init__()
        hidden = config.mlp_channels
        self.up = nn.Linear(config.n_embd, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, config.n_embd, bias=config.bias)
        self.activation = ACTIVATIONS[config.mlp]
        self.dropout = make_dropout(config)

    def forward(self, x):
        return self.dropout(self.down(self.activation(self.up(x))))


class SwiGLU(nn.Module):
    """The MLP of Llama: one projection gates another (arXiv:2002.05202)."""

    def __init__(self, config):
        super().__init__()
        hidden = config.mlp_channels
        self.gate = nn.Linear(config.n_embd, hidden, bias=config.bias)
        self.up = nn.Linear(config.n_embd, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, config.n_embd, bias=config.bias)
        self.dropout = make_dropout(config)

    def forward(self, x):
        return self.dropout(self.down(F.silu(self.gate(x)) * self.up(x)))


MLPS = {"swiglu": SwiGLU}  # by their name in ModelConfig.mlp; the other names are activations


class Block(nn.Module):
    """Communication, then computation.

    Each branch reads a normalised copy of x and adds to x itself. So x, the residual stream, passes
    through all blocks as a sum, and gradients reach the first block as directly as the last.
    """

    def __init__(self, config, layer):
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = CausalSelfAttention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MLPS.get(config.mlp, MLP)(config)

    def forward(self, x, rotate, mask=None, cache=None):
        x = x + self.attention(self.attention_norm(x), rotate, mask, cache)
        x = x + self.mlp(self.mlp_norm(x))
        return x


class Transformer(nn.Module):
    """Tokens in, a score for every possible next token out."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.ngram_embedding = NGramEmbedding(config) if config.ngrams > 1 else None
        self.position = POSITIONS[config.position](config)
        self.dropout = make_dropout(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config)
        self.head = nn.Linear(config.n_embd, config.n_labels or config.vocab_size, bias=False)
        V = self.head.out_features
        self.fused_loss = config.fused_loss and fused_loss_agrees(next_token_loss, V)
        initialize(self, config)

    def forward(self, inputs, targets=None, cache=None, segments=None, at=None):
        """(logits, loss): scores of the token after each input (B, T, V), and with targets their
        mean loss in nats. The fused loss does not keep the logits: they are None then.

        inputs (B, T) tokens; targets (B, T), -1 where they do not count; cache a KVCache that the
        inputs continue; segments (B, T) numbers of packed documents, which do not see each other;
        with `at` (B, n) the logits are those of these positions only: (B, n, V).
        """
        positions, mask = self.positions_and_mask(inputs, cache, segments)
        x = self.token_embedding(inputs)                                 # (B, T, C)
        if self.ngram_embedding is not None:
            tokens = inputs if cache is None else cache.append_tokens(inputs, positions)   # (B, S)
            x = x + self.ngram_embedding(tokens, positions, segments)
        x, rotate = self.position(x, positions)
        x = self.dropout(x)
        if self.config.narrow_residual:
            x = x.to(product_dtype(x))
        for block in self.blocks:
            x = block(x, rotate, mask, cache)
        if at is not None:
            x = x.gather(1, at[:, :, None].expand(-1, -1, x.size(2)))    # (B, n, C)
        x = self.norm(x)

        if cache is not None:
            cache.advance(inputs.size(1))
        softcap = self.config.softcap
        smoothing = self.config.label_smoothing if self.training else 0.0
        if targets is not None and self.fused_loss:
            return None, fused_next_token_loss(x, self.head.weight, targets, softcap, smoothing)
        logits = capped(self.head(x), softcap)                           # (B, T, V)
        loss = None if targets is None else next_token_loss(logits, targets, smoothing)
        return logits, loss

    def positions_and_mask(self, inputs, cache, segments):
        """The positions of the inputs (B or 1, T), and the mask of what each may look at."""
        T = inputs.size(1)
        if cache is None:
            length, n_keys, static = T, T, False
            positions = torch.arange(T, device=inputs.device)[None]
        else:
            length, n_keys, static = cache.longest + T, cache.n_keys(T), cache.static
            positions = cache.reserve(T)
        if length > self.config.block_size:
            raise ValueError(f"{length} tokens do not fit block_size={self.config.block_size}")
        return positions, attention_mask(positions, n_keys, self.config.causal, segments, static)


# -------------------------------------------------------------------------- weights before training


@torch.no_grad()
def initialize(model, config):
    """Draw the weights of linear layers and embeddings, and set the biases to 0.

    gpt2: N(0, 0.02²), narrower by √(2 n_layer) where a branch joins the residual stream.
    zero: inner matrices N(0, 1/(4 inputs)); 0 where a branch joins, and in an untied head: every
    block starts as the identity, every token as equally likely. Embeddings N(0, 1), or tied 0.02².
    N-gram vectors start at 0 in both. All other parameters, such as a gate of your own, are kept.
    """
    if config.tie_weights:
        model.head.weight = model.token_embedding.weight
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, nn.Embedding)):
            continue
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()
        weight, joins = module.weight, name.endswith((".output", ".down"))
        if name.startswith("ngram_embedding"):
            weight.zero_()
        elif name == "head" and config.tie_weights:
            continue  # it is the embedding
        elif config.init == "gpt2":
            weight.normal_(std=0.02 / math.sqrt(2 * config.n_layer) if joins else 0.02)
        elif joins or name == "head":
            weight.zero_()
        elif isinstance(module, nn.Embedding):
            weight.normal_(std=0.02 if config.tie_weights else 1.0)
        else:
            weight.normal_(std=0.5 / math.sqrt(weight.size(1)))


# ----------------------------------------------------------------------------------------- the loss

LOGITS_AT_ONCE = 2**21  # in a piece of the loss, or 512 rows if that is more: 8 MB of float32
LOGITS_AT_ONCE_ON_A_GPU = 2**28  # which prefers large products: 2.7 GB in all


def capped(logits, softcap):
    """Logits squashed smoothly into ± softcap (Gemma 2, arXiv:2408.00118); 0: unchanged."""
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def next_token_loss(logits, targets, label_smoothing=0.0):
    """Cross-entropy: the mean of -log p(target) over the targets that are not ignored, in nats.

    logits (B, T, V), targets (B, T), -1 where ignored; 0 if all of them are.
    """
    total = F.cross_entropy(
        logits.flatten(0, 1).float(),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / (targets != IGNORED).sum().clamp(min=1)


def fused_next_token_loss(hidden, weight, targets, softcap=0.0, label_smoothing=0.0):
    """`next_token_loss` of the logits hidden · weightᵀ, without holding all of them at once.

    hidden (B, T, C), weight (V, C), targets (B, T).
    """
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    n_targets = (targets != IGNORED).sum().clamp(min=1)
    rows = hidden.flatten(0, 1), targets.flatten()                                 # (N, C), (N)
    return SummedLoss.apply(*rows, weight, softcap, label_smoothing) / n_targets


class SummedLoss(torch.autograd.Function):
    """-log p(target), summed over the targets that count; its gradients are computed in forward.

    The logits are computed some rows at a time. Their gradient overwrites them, is multiplied into
    the gradients of hidden and weight, and makes way for the next rows. With a large vocabulary,
    all B·T·V logits would take more memory than everything else; with a small one, a few rows stay
    in the processor's cache, where all of them would go through memory many times.
    """

    @staticmethod
    def forward(ctx, hidden, targets, weight, softcap, smoothing):
        to_hidden, _, to_weight, *_ = ctx.needs_input_grad  # true under no_grad too: hence detach
        cast_weight = weight.to(product_dtype(hidden))                             # (V, C)
        hidden_grad = torch.zeros_like(hidden) if to_hidden else None
        weight_grad = torch.zeros_like(weight) if to_weight else None
        total = torch.zeros((), device=hidden.device)
        for rows in rows_to_score(targets).split(rows_per_piece(len(weight), weight.device)):
            is_scored = (targets[rows] != IGNORED)[:, None]                        # (n, 1)
            h = (hidden[rows] * is_scored).type_as(cast_weight)                    # (n, C)
            target = targets[rows, None].clamp(min=0)                              # (n, 1)
            logits = capped(F.linear(h, cast_weight).float(), softcap)             # (n, V)
            log_p = logits.log_softmax(dim=1)
            target_log_p = log_p.gather(1, target)                                 # (n, 1)
            if smoothing:
                target_log_p = target_log_p.lerp(log_p.mean(dim=1, keepdim=True), smoothing)
            total = total - (target_log_p * is_scored).sum()  # (-= compiles wrong in torch 2.11)
            if to_hidden or to_weight:
                grad = logits_gradient(log_p, logits, target, softcap, smoothing).type_as(h)
            if to_hidden:
                hidden_grad[rows] = ((grad @ cast_weight) * is_scored).type_as(hidden)
            if to_weight:
                weight_grad += grad.t() @ h
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx, grad_output):
        saved = ctx.saved_tensors
        hidden_grad, weight_grad = (None if g is None else g * grad_output for g in saved)
        return hidden_grad, None, weight_grad, None, None


def logits_gradient(log_p, logits, target, softcap, smoothing):
    """p - onehot(target), the gradient of the loss (n, V). Overwrites log_p and logits."""
    grad = log_p.exp_()
    if smoothing:
        grad -= smoothing / grad.size(1)
    if torch.compiler.is_compiling():  # in one kernel with the rest, which a scatter would end
        is_target = torch.arange(grad.size(1), device=grad.device) == target
        grad = grad - (1 - smoothing) * is_target
    else:
        grad.scatter_add_(1, target, grad.new_full(target.shape, smoothing - 1))
    if softcap:  # the derivative of tanh
        grad.addcmul_(grad, logits.div_(softcap).square_(), value=-1)
    return grad


def rows_per_piece(vocab_size, device):
    """How many rows of logits the loss computes at a time."""
    few = LOGITS_AT_ONCE if device.type == "cpu" else LOGITS_AT_ONCE_ON_A_GPU
    return max(512, few // vocab_size)


def rows_to_score(targets):
    """Which of the N targets to score: those that count; on a GPU all, which needs no sync."""
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        return (targets != IGNORED).nonzero().squeeze(1)
    return torch.arange(len(targets), device=targets.device)


def product_dtype(x):
    """The precision of matrix products with x: autocast's where that is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


# ------------------------------------------------------------------------------- n-grams, an option

MIXER = 2654435761  # 2³² / golden ratio, a multiplicative hash (Knuth)


class NGramEmbedding(nn.Module):
    """A vector for each token together with the one before it, with the two before it, and so on.

    Which token follows which, on which a small model spends much of its training, is looked up here
    (arXiv:2501.16975). There are more n-grams than rows: a hash assigns the rows, and some n-grams
    share one. Those that would reach back beyond the beginning have row 0, which stays 0.
    """

    def __init__(self, config):
        super().__init__()
        self.longest = config.ngrams
        self.table = nn.Embedding(config.ngram_rows, config.n_embd, padding_idx=0)

    def forward(self, tokens, positions, segments=None):
        """(B, T, C) for the T positions (B or 1, T) among the tokens (B, S) seen so far."""
        at = positions.expand(len(tokens), -1)                           # (B, T)
        hashed, rows = tokens.gather(1, at), []
        for back in range(1, self.longest):
            before = (at - back).clamp(min=0)
            hashed = hashed * MIXER + tokens.gather(1, before)
            hashed = hashed % (self.table.num_embeddings - 1)
            exists = at >= back
            if segments is not None:
                exists = exists & (segments.gather(1, before) == segments)
            rows.append(torch.where(exists, 1 + hashed, 0))
        return self.table(torch.stack(rows)).sum(dim=0)


# -------------------------------------------------------------------- the cache, to write text with


class KVCache:
    """Keys and values of the positions seen so far: a new token costs the work of one position.

    It is allocated once, for `capacity` positions (None: `block_size`). Each row of the batch may
    have filled another number of them.
    """

    def __init__(self, config, batch_size, device=None, dtype=None, capacity=None):
        K, D = config.kv_heads, config.head_channels
        self.capacity = capacity or config.block_size
        shape = (config.n_layer, batch_size, K, self.capacity, D)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.tokens = torch.zeros(batch_size, self.capacity, dtype=torch.long, device=device)
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)    # filled, per row
        self.longest = 0  # the largest of them, known without asking the device
        self.in_step = True  # whether all of them are equal
        self.static = False  # True: hand out all positions, filled or not: shapes stay the same
        self.new = None  # positions of the tokens that are being read, from `reserve`

    def n_keys(self, T):
        """How many positions are handed out after T new ones are stored: S."""
        return self.capacity if self.static else self.longest + T

    def reserve(self, T):
        """The positions of T new tokens: (B, T), or (1, T) where all rows have the same."""
        filled = self.lengths[:1, None] if self.in_step else self.lengths[:, None]
        self.new = filled + torch.arange(T, device=self.lengths.device)
        return self.new

    def append_tokens(self, inputs, positions):
        """Store tokens (B, T), for the n-grams; all that are stored then: (B, S)."""
        self.tokens.scatter_(1, positions.expand(inputs.shape), inputs)
        return self.tokens[:, : self.n_keys(inputs.size(1))]

    def append(self, layer, k, v):
        """Append k and v (B, K, T, D) to those of `layer`; all of them then: (B, K, S, D)."""
        S = self.n_keys(k.size(2))
        keys, values = self.keys[layer], self.values[layer]
        if self.in_step:
            keys[:, :, self.longest:S] = k
            values[:, :, self.longest:S] = v
        else:
            at = self.new[:, None, :, None].expand_as(k)                           # (B, K, T, D)
            keys.scatter_(2, at, k.to(keys.dtype))
            values.scatter_(2, at, v.to(values.dtype))
        return keys[:, :, :S], values[:, :, :S]

    def advance(self, T):
        """Count T more positions as filled, once every layer has stored them."""
        self.lengths += T
        self.longest += T

    def truncate(self, lengths):
        """Forget all but the first `lengths` positions: one number, or one for each row."""
        self.lengths.copy_(torch.as_tensor(lengths))
        shortest, self.longest = map(int, self.lengths.aminmax())
        self.in_step = shortest == self.longest

    def copy_from(self, other):
        """Take over the contents of another cache with as many rows."""
        S = other.longest
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            mine[:, :, :, :S] = theirs[:, :, :, :S]
        self.tokens[:, :S] = other.tokens[:, :S]
        self.truncate(other.lengths)


# ------------------------------------------------------------------------------------- the checks


@cache
def kernel_agrees(formula, H, K, D):
    """Whether the attention kernel gives what `formula` does: no longer once you change that.

    Looked at are a long text, one with a mask, and a single query; not dropout.
    """
    S = 300
    with on_the_cpu_in_float32(), torch.no_grad():
        waves = torch.arange(float(S * H * D)).mul(1.7)
        q, k = 4 * waves.sin().view(1, H, S, D), waves.cos()[: S * K * D].view(1, K, S, D)
        v, positions = k.roll(1, dims=2), torch.arange(S)[None]
        mask = attention_mask(positions, S, segments=positions // 100)
        try:
            return all(
                is_close(formula(*inputs), fused_causal_attention(*inputs), 1e-3)
                for inputs in ((q, k, v), (q, k, v, mask), (q[:, :, -1:], k, v))
            )
        except RuntimeError:  # for other shapes, or another device
            return False


@cache
def fused_loss_agrees(formula, V):
    """Whether `fused_next_token_loss` gives what `formula` does, and the same gradients."""
    with on_the_cpu_in_float32(), torch.inference_mode(False), torch.enable_grad():
        waves = torch.arange(6.0 * (4 + V)).mul(1.7).sin()
        hidden, weight = waves[:24].view(1, 4, 6), waves[24:].view(V, 6)
        leaves = hidden.requires_grad_(), weight.requires_grad_()
        some, none = torch.tensor([[0, V - 1, IGNORED, 1]]), torch.full((1, 4), IGNORED)
        try:
            for targets, softcap, smoothing in ((some, 0, 0), (some, 2, 0.1), (none, 0, 0)):
                plain = formula(capped(hidden @ weight.t(), softcap), targets, smoothing)
                fused = fused_next_token_loss(*leaves, targets, softcap, smoothing)
                gradients = (torch.autograd.grad(loss, leaves) for loss in (fused, plain))
                same = [is_close(*pair, 5e-3) for pair in zip(*gradients)]  # long sums round
                same.append(is_close(fused, plain, 1e-5))
                if not all(same):
                    return False
        except RuntimeError:
            return False
    return True


@contextmanager
def on_the_cpu_in_float32():
    """A context for small computations, whatever device and precision a model is made for."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(before)


def is_close(a, b, share):
    """Whether a and b differ by less than this share of b."""
    return bool((a - b).norm() <= share * b.norm() + 1e-7)


BOUNDS = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


def check_range(config, names, **bounds):
    """Raise ValueError where one of these fields is out of `bounds`; None always passes."""
    for name in names.split():
        value = getattr(config, name)
        if value is not None and not all(BOUNDS[b](value, limit) for b, limit in bounds.items()):
            words = " and ".join(f"{b.replace('_', ' ')} {limit}" for b, limit in bounds.items())
            raise ValueError(f"{name}={value} must be {words}")


def check_shape(config):
    """Raise ValueError, with the field's name, for a config of which no model can be made."""
    for field in fields(config):
        value, choices = getattr(config, field.name), get_args(field.type)
        if get_origin(field.type) is Literal and value not in choices:
            expected = ", ".join(map(str, choices))
            raise ValueError(f"{field.name}={value!r} must be one of {expected}")
    sizes = "block_size n_layer n_head n_embd n_kv_head head_size mlp_size ngrams"
    check_range(config, sizes, at_least=1)
    check_range(config, "ngram_rows", at_least=2)  # one for no n-gram, and one at least for some
    check_range(config, "dropout attention_dropout label_smoothing", at_least=0, below=1)
    check_range(config, "n_labels softcap norm_eps", at_least=0)
    if config.head_size is None and config.n_embd % config.n_head:
        raise ValueError(f"n_embd={config.n_embd} must be a multiple of n_head={config.n_head}")
    if config.n_head % config.kv_heads:
        raise ValueError(
            f"n_head={config.n_head} must be a multiple of n_kv_head={config.n_kv_head}"
        )
    if config.position == "rope" and config.head_channels % 2:
        raise ValueError(f"position=rope needs an even head_size, not {config.head_channels}")
    if config.n_labels and config.tie_weights:
        raise ValueError(f"n_labels={config.n_labels} needs a head of its own: tie_weights=False")
