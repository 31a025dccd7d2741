"""Our weights under other programs' names: GPT-2 and Llama on Hugging Face, nanoGPT, GGUF.

Our parameter and the tensor in a file differ in name; in GPT-2's files also in shape: there
queries, keys and values are one tensor, and matrices are transposed. A `Place` describes all that.
"""

import re
from dataclasses import dataclass

import torch

from model import Transformer

# Fields of a model's config that do not change what its weights mean.
CHANGEABLE = (
    "dropout attention_dropout shared_dropout label_smoothing fused_attention fused_loss "
    "narrow_residual".split()
)
# Our module -> theirs. `blocks` precedes the block's index; the others precede or follow both.
GPT2 = {
    "token_embedding": "transformer.wte",
    "position.embedding": "transformer.wpe",
    "blocks": "transformer.h",
    "attention_norm": "ln_1",
    "attention.query": "attn.c_attn",
    "attention.key": "attn.c_attn",
    "attention.value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
LLAMA = {
    "token_embedding": "model.embed_tokens",
    "blocks": "model.layers",
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
GGUF = {
    "token_embedding": "token_embd",
    "position.embedding": "position_embd",
    "blocks": "blk",
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "norm": "output_norm",
    "head": "output",
}
GGUF_GPT2 = GGUF | dict.fromkeys(
    ("attention.query", "attention.key", "attention.value"), "attn_qkv"
)
PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class Place:
    """Where our parameter is in a file."""

    name: str  # of the tensor in the file
    part: int | None = None  # which third of its rows; None: all of them
    transposed: bool = False  # whether its rows are our columns


def place_of(name, modules, transposed=False):
    """The `Place` of our parameter `name` in files with these module names.

    transposed: the files store the blocks' matrices transposed, as GPT-2's on Hugging Face.
    """
    found = re.fullmatch(r"(blocks\.(\d+)\.)?(.+)\.(weight|bias)", name)
    if not found or found[3] not in modules:
        raise ValueError(f"the model has a parameter {name}, which other programs do not have")
    _, block, module, kind = found.groups()
    theirs = modules[module]
    part = None
    if modules.get("attention.query") == modules.get("attention.key") == theirs:
        part = PARTS.index(module.split(".")[1])
    if block is None:
        return Place(f"{theirs}.{kind}")
    is_matrix = kind == "weight" and not module.endswith("norm")
    return Place(f"{modules['blocks']}.{block}.{theirs}.{kind}", part, transposed and is_matrix)


def take(tensor, place):
    """Extract our parameter from their tensor."""
    tensor = tensor.T if place.transposed else tensor
    return tensor if place.part is None else tensor.chunk(len(PARTS))[place.part]


def put(weights, places):
    """Yield their tensors, assembled from our `weights`: (name, tensor)."""
    parts = {}
    for ours, place in places.items():
        parts.setdefault(place.name, []).append((place.part or 0, ours))
    for name, members in parts.items():
        tensors = [weights[ours] for _, ours in sorted(members)]
        tensor = torch.cat(tensors) if tensors[1:] else tensors[0]
        yield name, (tensor.T if places[members[0][1]].transposed else tensor).contiguous()


def parameter_shapes(config):
    """Our name -> shape of every parameter that a model with this config has in its files.

    A head that is tied to the embedding has no entry of its own.
    """
    with torch.device("meta"):
        weights = Transformer(config).state_dict()
    if config.tie_weights:
        del weights["head.weight"]
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def averaged(checkpoint):
    """The weights of a checkpoint by name: the averaged (EMA) ones, if it has them."""
    weights = checkpoint["model"] | (checkpoint["ema"] or {})
    if checkpoint["model_config"]["tie_weights"] and "head.weight" in weights:
        weights["head.weight"] = weights["token_embedding.weight"]  # `ema` has it only once
    return weights


def assembled(config, weights):
    """A `Transformer` with these tensors, {name: tensor}: not copied, none randomly initialised.

    Other tensors in its modules must follow from the config. Raises RuntimeError if the names or
    shapes of the weights are not the model's.
    """
    with torch.device("meta"):  # no memory, no random numbers
        model = Transformer(config)
    if not list(model.position.parameters()):
        model.position = type(model.position)(config)
    if any(tensor.is_meta for tensor in held_tensors(model)):  # added by a reader
        with torch.random.fork_rng(devices=[]):  # the random weights are overwritten
            model = Transformer(config)
    buffers = dict(model.named_buffers()).keys() & model.state_dict().keys()
    weights = {name: model.state_dict()[name] for name in buffers} | weights
    if config.tie_weights:
        weights = weights | {"head.weight": weights["token_embedding.weight"]}
    model.load_state_dict(weights, assign=True)
    if config.tie_weights:
        model.head.weight = model.token_embedding.weight
    return model


def held_tensors(model):
    """Yield the modules' tensors besides parameters: buffers and plain attributes."""
    for module in model.modules():
        yield from module.buffers(recurse=False)
        yield from filter(torch.is_tensor, vars(module).values())


def fitted(model, config):
    """A `Transformer` of `config` with a trained model's weights, where the two may differ in:

    a shorter context (or, with rotary positions, any), more rows in the vocabulary, which start as
    the mean of the others, and a head for labels, which starts at 0: all are equally likely.
    """
    weights = model.state_dict()
    if config.position == "learned":
        name = "position.embedding.weight"
        weights[name] = weights[name][: config.block_size].clone()
    for name in ("token_embedding.weight", "head.weight"):
        rows = weights[name]
        if config.vocab_size > len(rows):
            new = rows.mean(dim=0).expand(config.vocab_size - len(rows), -1)
            weights[name] = torch.cat([rows, new])
    if config.n_labels:
        weights["head.weight"] = torch.zeros(config.n_labels, config.n_embd)
    return assembled(config, weights)
