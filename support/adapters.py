"""Fine-tuning methods: which weights are trained, and small modules that are added to a model.

    method    what is trained                                          source
    full      every weight
    last      the last few blocks, the last norm, and an untied head
    head      only the head
    lora      y = W x + alpha/rank · up(down(x))  beside matrices W    arXiv:2106.09685
    adapter   y = f(x) + up(gelu(down(f(x))))  after each branch f     arXiv:1902.00751
    prefix    keys and values that every position attends to as well   arXiv:2101.00190, 2303.16199

The last three leave the model's weights as they are and add to them. `up` and the prefix's gate
start at zero, so training starts exactly at the base model's function. Only what they add is saved.
"""

import math
from hashlib import blake2b

import torch
from torch import nn
from torch.nn import functional as F

from model import product_dtype

# The options of each method, which a checkpoint stores.
SETTINGS = {
    "full": (),
    "last": ("last_blocks",),
    "head": (),
    "lora": ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets"),
    "adapter": ("adapter_size",),
    "prefix": ("prefix_length",),
}
MATRICES = ("query", "key", "value", "output", "gate", "up", "down")  # of a block


class LoRA(nn.Module):
    """A linear layer with a frozen weight, plus a learned low-rank update."""

    def __init__(self, base, rank, alpha, dropout):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.scale = alpha / rank
        nn.init.normal_(self.down.weight, std=1 / math.sqrt(base.in_features))
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.scale * self.up(self.down(self.dropout(x)))

    @torch.no_grad()
    def merged(self):
        """The equivalent linear layer: W + alpha/rank · up down."""
        self.base.weight += (self.scale * self.up.weight @ self.down.weight).type_as(
            self.base.weight
        )
        return self.base


class Adapter(nn.Module):
    """A branch of a block, followed by a learned bottleneck."""

    def __init__(self, base, n_embd, size):
        super().__init__()
        self.base = base
        self.down = nn.Linear(n_embd, size)
        self.up = nn.Linear(size, n_embd)
        for tensor in (self.up.weight, self.up.bias, self.down.bias):
            nn.init.zeros_(tensor)

    def forward(self, *inputs):
        y = self.base(*inputs)
        return y + self.up(F.gelu(self.down(y)))


class Prefix(nn.Module):
    """Attention, plus gated attention to learned positions that every token attends to.

    Prepended to the sequence, as in the first paper, they would take attention from the other
    positions at once; with their own softmax and gate (the second paper) they start with no effect.
    """

    def __init__(self, attend, config, length):
        super().__init__()
        shape = (1, config.kv_heads, length, config.head_channels)  # (1, K, P, D)
        self.attend = attend
        self.keys, self.values = (nn.Parameter(torch.randn(shape)) for _ in range(2))
        self.gate = nn.Parameter(torch.zeros(config.n_head, 1, 1))

    def forward(self, q, k, v, mask=None, dropout=0.0):
        keys, values = (x.expand(len(q), -1, -1, -1).type_as(q) for x in (self.keys, self.values))
        learned = F.scaled_dot_product_attention(
            q, keys, values, enable_gqa=q.size(1) != keys.size(1)
        )
        return self.attend(q, k, v, mask, dropout) + self.gate.tanh().type_as(q) * learned


ADDED = (LoRA, Adapter, Prefix)


class FrozenLinear(nn.Module):
    """A linear layer that is not trained, in 16 bits: autocast would cast it for every step.

    Its output has the precision of other layers': autocast's, or without it the input's.
    """

    def __init__(self, linear, dtype):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        for name in ("weight", "bias"):
            tensor = getattr(linear, name)
            frozen = None if tensor is None else nn.Parameter(tensor.to(dtype), requires_grad=False)
            self.register_parameter(name, frozen)

    def forward(self, x):
        y = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return y.to(product_dtype(x))


def freeze_in_16_bits(model, dtype):
    """Keep the frozen matrices of the blocks in `dtype`, in place, if they are such numbers.

    Those of a published model mostly are: then nothing is lost, and half of its memory is saved.
    All other weights become float32.
    """
    for parent in list(model.blocks.modules()):
        for name, child in list(parent.named_children()):
            frozen = type(child) is nn.Linear and not child.weight.requires_grad
            if frozen and torch.equal(child.weight.float(), child.weight.to(dtype).float()):
                setattr(parent, name, FrozenLinear(child, dtype))
    for module in model.modules():
        if not isinstance(module, FrozenLinear):
            for weight in module.parameters(recurse=False):
                weight.data = weight.data.float()


def settings_of(config):
    """The method of a config and its options, as a dict."""
    return {name: getattr(config, name) for name in ("method", *SETTINGS[config.method])}


def put_in(model, settings):
    """Freeze everything that the method does not train, and insert the modules that it adds.

    A label head is new, and every method trains it.
    """
    method = settings["method"]
    model.requires_grad_(method == "full")
    if method == "last":
        for block in model.blocks[-settings["last_blocks"] :]:
            block.requires_grad_(True)
        model.norm.requires_grad_(True)
    elif method == "lora":
        add_lora(model, settings)
    elif method == "adapter":
        for block in model.blocks:
            n_embd, size = model.config.n_embd, settings["adapter_size"]
            block.attention = Adapter(block.attention, n_embd, size)
            block.mlp = Adapter(block.mlp, n_embd, size)
    elif method == "prefix":
        for block in model.blocks:
            attention = block.attention
            attention.attend = Prefix(attention.attend, model.config, settings["prefix_length"])
    own_head = not model.config.tie_weights and method == "last"
    if method == "head" or own_head or model.config.n_labels:
        model.head.requires_grad_(True)


def add_lora(model, settings):
    """Wrap a `LoRA` around each matrix of the blocks that `lora_targets` names."""
    names = settings["lora_targets"]
    rank, alpha, dropout = (settings[f"lora_{name}"] for name in ("rank", "alpha", "dropout"))
    found = set()
    for parent in list(model.blocks.modules()):
        for name, child in list(parent.named_children()):
            if name in names and isinstance(child, nn.Linear):
                setattr(parent, name, LoRA(child, rank, alpha, dropout))
                found.add(name)
    if not found:
        raise SystemExit(f"lora_targets={' '.join(names)}: this model has no such matrix")


def merge_lora(model):
    """Merge each `LoRA` into its matrix, and return the model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRA):
                setattr(parent, name, child.merged())
    return model


def has_added(model):
    """Whether a model has added modules, which no other program supports."""
    return any(isinstance(module, ADDED) for module in model.modules())


def adds(settings):
    """Whether a method leaves the base model unchanged and saves only what it adds."""
    return settings["method"] in ("lora", "adapter", "prefix")


def weights_to_save(model):
    """{name: weight}: all weights, or only the trained ones of a model with added modules."""
    weights = model.state_dict()
    if not has_added(model):
        return weights
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: weight for name, weight in weights.items() if name in trained}


def fingerprint_of(weights):
    """A short hash of weights {name: tensor}, from a sample of the values of each tensor.

    An adapter only fits the base model that it was trained on.
    """
    digest = blake2b(digest_size=8)
    for name, weight in sorted(weights.items()):
        sample = weight.detach().flatten()[:: max(1, weight.numel() // 1000)].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()
