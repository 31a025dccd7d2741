"""Hugging Face's model folders: config.json, model.safetensors, tokenizer.json.

We read GPT-2, Llama, Mistral, SmolLM, Qwen 2 and Qwen 3, and write a model of ours as the one that
it equals. Nothing is approximated: what one side cannot express is refused by name.
"""

import json
import re
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from model import ModelConfig
from support.chat import final_token
from support.files import new_folder, read_json
from support.tensor_files import INDEX, WHOLE, TensorFiles
from support.tokenizer import END_OF_TEXT
from support.tokenizer_files import padding, read_tokenizer, tokenizer_files
from support.weights import (
    CHANGEABLE,
    GPT2,
    LLAMA,
    assembled,
    parameter_shapes,
    place_of,
    put,
    take,
)

SHARD_BYTES = 5_000_000_000  # about the maximum size of a file of weights
# Tensors in older files that are not weights: they follow from the config.
COMPUTED = re.compile(r"(.*\.)?(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)")
COPIES = ["consolidated*"]  # the same weights again, in Mistral's own format
HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "*.jinja"]
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
# The fields of a ModelConfig that a config.json can express, or that do not matter to it.
WRITTEN = {
    *("vocab_size block_size n_layer n_head n_embd n_kv_head head_size mlp_size".split()),
    *("norm norm_eps position rope_theta rope_scaling mlp bias qkv_bias qk_norm".split()),
    *("tie_weights init ngram_rows".split()),
    *CHANGEABLE,
}
LLAMA3_KEYS = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"


class Unfit(ValueError):
    """A model that the other side cannot express; the message says why."""


# ------------------------------------------------------------------------------ reading a folder


def read_model(folder, dtype=torch.float32):
    """Read (model, tokenizer or None) from a folder, the weights in `dtype` (None: as stored).

    Tensors are read one at a time, so the memory needed is the model's. Exits with a message about
    what does not fit, rather than load something else.
    """
    folder = Path(folder)
    with mistakes_told(folder):
        content = read_json(folder / "config.json")
        config, modules = model_config(content)
        files = TensorFiles(folder)
        if config.n_layer > len(files):
            raise Unfit(
                f"its config.json has {config.n_layer} layers, but its files {len(files)} tensors"
            )
        tokenizer = tokenizer_for(config, folder)
        weights = read_weights(files, config, modules, dtype)
        return assembled(config, weights).eval(), tokenizer


def tokenizer_for(config, folder):
    """The tokenizer in a folder, or None; raises Unfit if the model has fewer rows than tokens."""
    tokenizer = read_tokenizer(folder)
    if tokenizer and tokenizer.vocab_size > config.vocab_size:
        raise Unfit(f"{tokenizer.vocab_size} tokens, but {config.vocab_size} rows for them")
    return tokenizer


@contextmanager
def mistakes_told(folder):
    """Exit with a one-sentence message if a folder cannot be read."""
    try:
        yield
    except KeyError as error:
        raise SystemExit(f"{folder} cannot be read: its config.json lacks {error}") from None
    except (TypeError, AttributeError) as error:
        raise SystemExit(f"{folder} cannot be read: a value of the wrong kind ({error})") from None
    except (SafetensorError, OSError, ValueError, RecursionError, re.error) as error:
        raise SystemExit(f"{folder} cannot be read: {error}") from None


def read_weights(files, config, modules, dtype):
    """Our name -> tensor for every parameter: none missing, unexpected or of another shape."""
    shapes = parameter_shapes(config)
    places = places_of(shapes, modules)
    stored = with_first_word(files, modules)
    needed = {place.name for place in places.values()}
    surplus = {name for name in stored if not COMPUTED.fullmatch(name)} - needed
    surplus -= {"lm_head.weight"} if config.tie_weights else set()
    for what, names in (("missing", needed - set(stored)), ("unexpected", surplus)):
        if names:
            listed = ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")
            raise Unfit(f"{len(names)} of its tensors are {what}: {listed}")
    weights = {}
    for name, place in places.items():
        tensor = take(files[stored[place.name]], place)
        if tuple(tensor.shape) != shapes[name]:
            raise Unfit(
                f"{place.name} has the wrong shape: it makes {name} {tuple(tensor.shape)}, but by "
                f"its config.json that is {shapes[name]}"
            )
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise Unfit(f"{place.name} is {tensor.dtype}: quantised weights are not supported")
        weights[name] = tensor.to(dtype or tensor.dtype, copy=True).contiguous()
    return weights


def places_of(names, modules):
    """Our name -> its `Place` in Hugging Face's files, where GPT-2's matrices are transposed."""
    return {name: place_of(name, modules, transposed=modules is GPT2) for name in names}


def with_first_word(names, modules):
    """Full name -> name in the files, which may lack the first word, as in the hub's gpt2."""
    first = modules["blocks"].split(".")[0] + "."
    if any(name.startswith(first) for name in names):
        return {name: name for name in names}
    return {name if name.startswith("lm_head.") else first + name: name for name in names}


# ---------------------------------------------------------------------------- their config, ours


def model_config(content):
    """(ModelConfig, table of module names) for a config.json."""
    family = content.get("model_type")
    if family == "gpt2":
        return gpt2_config(content), GPT2
    if family in ("llama", "mistral", "qwen2", "qwen3"):
        return llama_config(content, family), LLAMA
    raise Unfit(f"it is a {family!r}; supported are gpt2, llama, mistral, qwen2 and qwen3")


def expect(content, **known):
    """Raise Unfit if one of these keys in config.json has a value other than the known ones."""
    for key, values in known.items():
        if content.get(key, values[0]) not in values:
            listed = " or ".join(map(repr, values))
            raise Unfit(f"it has {key}={content[key]!r}, and only {listed} is supported")


def gpt2_config(content):
    expect(
        content,
        activation_function=tuple(ACTIVATIONS),
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
    )
    return ModelConfig(
        vocab_size=content["vocab_size"],
        block_size=content["n_positions"],
        n_layer=content["n_layer"],
        n_head=content["n_head"],
        n_embd=content["n_embd"],
        mlp_size=content.get("n_inner"),
        mlp=ACTIVATIONS[content.get("activation_function", "gelu_new")],
        bias=True,
        tie_weights=content.get("tie_word_embeddings", True),
        norm_eps=content.get("layer_norm_epsilon", 1e-5),
    )


def llama_config(content, family):
    expect(
        content,
        hidden_act=("silu",),
        attention_bias=(False, None),
        mlp_bias=(False, None),
        use_sliding_window=(False, None),
        layer_types=(None, ["full_attention"] * content["num_hidden_layers"]),
    )
    context = content["max_position_embeddings"]
    if family == "mistral" and (content.get("sliding_window") or context) < context:
        raise Unfit(f"it has sliding_window={content['sliding_window']}, which is not supported")
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    expect({"rope_type": kind} | rope, rope_type=("default", "llama3"), partial_rotary_factor=(1,))
    theta = rope.get("rope_theta", content.get("rope_theta", 10000))
    return ModelConfig(
        vocab_size=content["vocab_size"],
        block_size=context,
        n_layer=content["num_hidden_layers"],
        n_head=content["num_attention_heads"],
        n_kv_head=content.get("num_key_value_heads"),
        n_embd=content["hidden_size"],
        head_size=content.get("head_dim"),
        mlp_size=content["intermediate_size"],
        norm="rmsnorm",
        position="rope",
        mlp="swiglu",
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tie_weights=content.get("tie_word_embeddings", False),
        norm_eps=content.get("rms_norm_eps", 1e-6),
        rope_theta=float(theta),
        rope_scaling=tuple(rope[key] for key in LLAMA3_KEYS) if kind == "llama3" else None,
    )


def their_config(config):
    """(config.json, table of module names) for a `ModelConfig`; raises Unfit if none fits.

    A field that is not WRITTEN must have its default, also one that a reader has added.
    """
    as_gpt2 = dict(norm=["layernorm"], position=["learned"], mlp=["gelu_tanh", "gelu"])
    as_gpt2 |= dict(qk_norm=[False], n_kv_head=[None, config.n_head], qkv_bias=[None, config.bias])
    as_gpt2 |= dict(head_size=[None, config.n_embd // config.n_head])
    as_llama = dict(norm=["rmsnorm"], position=["rope"], mlp=["swiglu"], bias=[False])
    as_llama |= dict(qkv_bias=[None, False]) if config.qk_norm else {}
    always = {f.name: [f.default] for f in fields(ModelConfig) if f.name not in WRITTEN}
    misfits = [
        [
            f"--{name}={known[0]}"
            for name, known in family.items()
            if getattr(config, name) not in known
        ]
        for family in (as_gpt2 | always, as_llama | always)
    ]
    if not misfits[0]:
        return gpt2_content(config), GPT2
    if not misfits[1]:
        return llama_content(config), LLAMA
    raise Unfit(
        "no Hugging Face architecture computes what this model does. One trained with "
        f"{' '.join(min(misfits, key=len))} could be written; config/llama_tiny.py is an example"
    )


def gpt2_content(config):
    theirs = {ours: name for name, ours in ACTIVATIONS.items() if name != "gelu_pytorch_tanh"}
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.mlp_size,
        "activation_function": theirs[config.mlp],
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "tie_word_embeddings": config.tie_weights,
    }


def llama_content(config):
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    scaling = None
    if config.rope_scaling:
        scaling = {"rope_type": "llama3", **dict(zip(LLAMA3_KEYS, config.rope_scaling))}
    architecture = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM"}
    return {
        "model_type": family,
        "architectures": [architecture.get(family, "LlamaForCausalLM")],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_channels,
        "hidden_size": config.n_embd,
        "intermediate_size": config.mlp_channels,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "attention_bias": False,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tie_weights,
    }


# ------------------------------------------------------------------------------ writing a folder


def write_model(folder, model, tokenizer, dtype=None, bos=None, card=""):
    """Write `model` and its tokenizer as a new folder that transformers, vLLM and llama.cpp read.

    dtype: that of the written weights (None: as they are); bos: id of a token to put before every
    text; card: the text of README.md. Generation ends with a text and, if the tokenizer has a chat
    template, with a turn. Raises Unfit if no architecture fits. The folder appears complete, or not
    at all.
    """
    content, modules = their_config(model.config)
    weights = weights_to_write(model, content["model_type"])
    dtype = dtype or weights["token_embedding.weight"].dtype
    name = str(dtype).removeprefix("torch.")
    eos = tokenizer and final_token(tokenizer)
    ids = {"bos_token_id": bos, "eos_token_id": eos}
    ends = eos
    if tokenizer:
        of_a_text = {tokenizer.special_tokens.get(name) for name in END_OF_TEXT}
        others = {tokenizer.eot, *of_a_text} - {None, eos}
        ends = [eos, *sorted(others)] if others else eos
        ids["pad_token_id"] = padding(tokenizer, eos)
    content |= ids | {"dtype": name, "torch_dtype": name}  # the latter for transformers < 5
    places = places_of(weights, modules)
    with new_folder(folder) as part:
        save_shards(part, ((name, t.to(dtype)) for name, t in put(weights, places)))
        save_json(part / "config.json", content)
        save_json(part / "generation_config.json", ids | {"eos_token_id": ends})
        (part / "README.md").write_text(card, encoding="utf-8")
        if tokenizer:
            files = tokenizer_files(tokenizer, model.config.block_size, bos, eos)
            for name, content in files.items():
                save_json(part / name, content)


def weights_to_write(model, family):
    """Our name -> tensor to write: a tied head only once, GPT-2's biases always."""
    weights = model.state_dict()
    if model.config.tie_weights:
        del weights["head.weight"]
    return weights | (missing_biases(weights) if family == "gpt2" else {})


def missing_biases(weights):
    """Zeros for each bias that GPT-2 has and these weights do not, by our names."""
    zeros = {}
    for name, weight in weights.items():
        bias = name.removesuffix("weight") + "bias"
        has_bias = name.startswith(("blocks.", "norm.")) and name.endswith("weight")
        if has_bias and bias not in weights:
            zeros[bias] = weight.new_zeros(weight.size(0))
    return zeros


def save_shards(folder, tensors):
    """Write (name, tensor) pairs as one file of weights, or as several with an index."""
    shards, part, size, total = [], {}, 0, 0

    def write_part():
        save_weights(folder / part_name(len(shards) + 1), part)
        shards.append(list(part))

    for name, tensor in tensors:
        if part and size + tensor.nbytes > SHARD_BYTES:
            write_part()
            part, size = {}, 0
        part[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    write_part()
    if len(shards) == 1:
        (folder / part_name(1)).rename(folder / WHOLE)
        return
    weight_map = {}
    for i, names in enumerate(shards, start=1):
        file = part_name(i, of=len(shards))
        (folder / part_name(i)).rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    save_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def save_weights(path, tensors):
    """Write {name: tensor} as a file of safetensors."""
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable by the owner only


def part_name(i, of=0):
    """The file name of the i-th shard, as all readers expect it."""
    return f"model-{i:05}-of-{of:05}.safetensors"


def save_json(path, content):
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------- the hub


def from_hub(name):
    """The folder of a model on the hub, downloaded once; an interrupted download is resumed."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SystemExit(
            f"there is no {name} here; to download a model of that name from Hugging Face's hub: "
            "pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=COPIES))
    except Exception as error:  # of many types, from several libraries, all about the connection
        raise SystemExit(
            f"{name} is not a file or folder here, and could not be downloaded from Hugging Face's "
            f"hub ({type(error).__name__}). Check the spelling and the connection, and try again: "
            "an interrupted download is resumed"
        ) from None
