"""LoRA in the format of the package peft: adapter_config.json and adapter_model.safetensors.

transformers and vLLM load such a folder beside the base model, and convert_lora_to_gguf.py of
llama.cpp converts it. Its lora_A (rank, in) and lora_B (out, rank) are our `down` and `up`, and

    W + scale · lora_B lora_A        scale = lora_alpha / rank

takes the place of a matrix W (out, in). Where theirs is one matrix and ours are three, as GPT-2's
queries, keys and values, one LoRA of three times the rank is equal to three:

    ⎡ up_q            ⎤ ⎡ down_q ⎤
    ⎢      up_k       ⎥ ⎢ down_k ⎥
    ⎣           up_v  ⎦ ⎣ down_v ⎦
"""

import math
import re
from pathlib import Path

import torch
from torch.nn import functional as F

from support.checkpoint import PEFT_CONFIG
from support.files import new_folder, read_json
from support.huggingface import (
    Unfit,
    expect,
    mistakes_told,
    places_of,
    save_json,
    save_weights,
    their_config,
    tokenizer_for,
    with_first_word,
)
from support.tensor_files import TensorFiles
from support.weights import GPT2, PARTS, parameter_shapes, place_of, take

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
EMBEDDINGS = "embed_tokens.weight", "wte.weight", "lm_head.weight"
WRAPPED = "base_model.model."  # what peft puts before the names in the base
# The settings that change what an adapter means, and their values that are supported here.
SUPPORTED = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva"),  # others change the base
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "trainable_token_indices": (None,),
}


# ---------------------------------------------------------------------------------------- reading


def base_of(folder):
    """The name or path of the model that an adapter was trained on."""
    with mistakes_told(folder):
        base = read_json(folder / PEFT_CONFIG).get("base_model_name_or_path")
        if not base or not isinstance(base, str) or Path(base).resolve() == folder.resolve():
            raise Unfit(
                f"its {PEFT_CONFIG} does not name its base model; type it: "
                f"python sample.py --init_from=BASE --adapter={folder}"
            )
        return base


def adapter_tensors(folder):
    """The tensors in an adapter's folder."""
    files = [folder / name for name in (WEIGHTS, PICKLED) if (folder / name).is_file()]
    if not files:
        raise Unfit(f"it has no weights: neither {WEIGHTS} nor {PICKLED}")
    return TensorFiles(files[0])


@torch.no_grad()
def merge_adapter(folder, model):
    """Put an adapter into the weights of its base model, in place.

    Every tensor of the adapter is used; exits with a message about one that does not fit. Returns
    the tokenizer beside the adapter, or None.
    """
    with mistakes_told(folder):
        settings, tensors = read_json(folder / PEFT_CONFIG), adapter_tensors(folder)
        expect(settings, **SUPPORTED)
        _, modules = their_config(model.config)
        places = places_of(parameter_shapes(model.config), modules)
        short = {in_the_base(name): name for name in tensors}
        stored = {full: short[name] for full, name in with_first_word(short, modules).items()}
        check_names(stored, {place.name for place in places.values()}, model.config)
        weights = model.state_dict()
        for name, place in places.items():
            weight, module = weights[name], place.name.removesuffix(".weight")
            if place.name in stored:  # trained as a whole (modules_to_save)
                whole = take(tensors[stored[place.name]], place)
                check_shape(place.name, tuple(whole.shape), weight)
                weight.copy_(whole)
            if f"{module}.lora_A.weight" in stored:
                down, up = (tensors[stored[f"{module}.lora_{x}.weight"]].float() for x in "AB")
                scale = scale_of(module, down, up, settings)
                up = up if place.part is None else up.chunk(len(PARTS))[place.part]
                check_shape(module, (len(up), down.size(1)), weight)
                weight.copy_(weight.float() + scale * up @ down)
        return tokenizer_for(model.config, folder)


def in_the_base(name):
    """The name of what a tensor of an adapter changes, or is: without peft's own words."""
    return name.removeprefix(WRAPPED).replace(".base_layer.", ".")


def check_names(names, known, config):
    """Raise Unfit unless each tensor belongs to one of the base's, and each LoRA is complete."""
    if not names:
        raise Unfit("it has no tensors")
    for name in names:
        module, lora, kind = name.partition(".lora_")
        changed = f"{module}.weight" if lora else name
        other = {"A.weight": "B.weight", "B.weight": "A.weight"}.get(kind)
        if config.tie_weights and not lora and changed.endswith(EMBEDDINGS):
            raise Unfit(
                f"it has {name}, and its base has one matrix for the embedding and the head: merge "
                "it there, with merge_and_unload(), and save that model"
            )
        if changed not in known or (lora and not other):
            raise Unfit(f"it has {name}, and its base has nothing that this changes")
        if lora and f"{module}.lora_{other}" not in names:
            raise Unfit(f"it has {name}, but no {module}.lora_{other}")


def check_shape(name, shape, tensor):
    """Raise Unfit if what the adapter has for a weight of the base has another shape."""
    if shape != tuple(tensor.shape):
        raise Unfit(f"{name}: it has the shape {shape}, and its base {tuple(tensor.shape)}")


def scale_of(module, down, up, settings):
    """What the product of a module's two matrices is multiplied by."""
    if down.dim() != 2 or up.dim() != 2 or not len(down) or len(down) != up.size(1):
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise Unfit(f"{module}: its matrices have the shapes {shapes}, which do not fit")
    patterns = (settings.get("alpha_pattern") or {}).items()
    own = (alpha for pattern, alpha in patterns if re.fullmatch(rf"(.*\.)?({pattern})", module))
    alpha = next(own, settings.get("lora_alpha", 8))
    return alpha / (math.sqrt(len(down)) if settings.get("use_rslora") else len(down))


# ---------------------------------------------------------------------------------------- writing


def write_adapter(folder, model_config, method, weights, base, files):
    """Write what finetune.py's LoRA has trained as a new folder.

    method: the settings of the LoRA; weights: name -> trained tensor; base: the name or path of the
    base model; files: {name: content}, JSON-able, to write beside it. Raises Unfit if the base is
    none of transformers' architectures.
    """
    _, modules = their_config(model_config)
    loras = {}  # the name of a matrix in the base -> [(Place, down, up), …]
    for name in weights:
        matrix, kind, _ = name.rsplit(".", 2)
        if kind == "up":
            place = place_of(f"{matrix}.weight", modules)
            pair = weights[f"{matrix}.down.weight"], weights[name]
            loras.setdefault(place.name.removesuffix(".weight"), []).append((place, *pair))
    rank = method["lora_rank"] * max(map(len, loras.values()))
    tensors = {}
    for module, parts in loras.items():
        both = joined(parts, rank)
        tensors |= {f"{WRAPPED}{module}.lora_{x}.weight": tensor for x, tensor in zip("AB", both)}
    before_target = r".*\.\d+\." if modules is GPT2 else r".*\."  # GPT-2 has two c_proj
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": method["lora_alpha"] * rank / method["lora_rank"],
        "lora_dropout": method["lora_dropout"],
        "target_modules": sorted({re.sub(before_target, "", module) for module in loras}),
        "fan_in_fan_out": modules is GPT2,
        "bias": "none",
        "inference_mode": True,
    }
    with new_folder(folder) as part:
        save_weights(part / WEIGHTS, tensors)
        for name, content in ({PEFT_CONFIG: settings} | files).items():
            save_json(part / name, content)


def joined(parts, rank):
    """(lora_A, lora_B) of this rank that are equal to LoRAs of parts of a matrix together."""
    pairs = {place.part: (down, up) for place, down, up in parts}
    down, up = parts[0][1:]
    untrained = down[:0], up[:, :0]  # a LoRA of rank 0
    numbers = [None] if None in pairs else range(len(PARTS))
    downs, ups = zip(*(pairs.get(number, untrained) for number in numbers))
    lora_a, lora_b = torch.cat(downs), torch.block_diag(*ups)
    missing = rank - len(lora_a)  # peft's `r` is one number: smaller LoRAs are filled with zeros
    return F.pad(lora_a, (0, 0, 0, missing)), F.pad(lora_b, (0, missing))
