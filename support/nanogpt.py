"""Read and write nanoGPT's checkpoints.

Its `ckpt.pt` has GPT-2's weights under GPT-2's names, not transposed, and AdamW's state by index:
first the matrices, then the vectors, each in the order of the weights.
"""

from pathlib import Path

import torch

from model import ModelConfig
from support.tokenizer_files import tokenizer_from_nanogpt
from support.weights import CHANGEABLE, GPT2, averaged, parameter_shapes, place_of, put, take

SHAPE = "n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"
MOMENTS = "exp_avg", "exp_avg_sq"  # AdamW's state of a weight, each of its shape


def from_nanogpt(contents, path):
    """A nanoGPT checkpoint in the form of ours: weights, optimizer, step, best loss.

    `train_config` stays nanoGPT's. The tokenizer is that of a meta.pkl beside the checkpoint or in
    the data folder that it names, or None. Raises KeyError or ValueError for anything else.
    """
    config = ModelConfig(**{name: contents["model_args"][name] for name in SHAPE})
    theirs = {name.removeprefix("_orig_mod."): w for name, w in contents["model"].items()}
    theirs = {name: w for name, w in theirs.items() if not name.endswith(".attn.bias")}
    shapes = parameter_shapes(config)
    places = {name: place_of(name, GPT2) for name in shapes}
    surplus = theirs.keys() - {place.name for place in places.values()} - {"lm_head.weight"}
    if surplus:
        raise ValueError(f"its model.py is not nanoGPT's: it has {', '.join(sorted(surplus)[:3])}")
    weights = {name: take(theirs[place.name], place).clone() for name, place in places.items()}
    for name, weight in weights.items():
        if tuple(weight.shape) != shapes[name]:
            raise ValueError(f"{places[name].name} does not have the shape of its model_args")
    states = contents.get("optimizer", {}).get("state", {})
    remembered = {name: states[i] for i, name in enumerate(in_groups(theirs)) if i in states}
    memory = {
        name: {"step": torch.as_tensor(remembered[place.name]["step"]).clone()}
        | {moment: take(remembered[place.name][moment], place).clone() for moment in MOMENTS}
        for name, place in places.items()
        if place.name in remembered
    }
    step, best = int(contents["iter_num"]), float(contents["best_val_loss"])
    return {
        "origin": "nanoGPT",
        "step": step,
        "model_config": vars(config),
        "train_config": contents["config"],
        "tokenizer": tokenizer_near(Path(path), contents["config"].get("dataset", "")),
        "data": {},
        "progress": {"step": step, "best": best},
        "model": weights,
        "ema": None,
        "optimizer": memory,
        "scaler": {},
    }


def tokenizer_near(path, dataset):
    """The tokenizer of a meta.pkl where nanoGPT's users have it; None: there is none."""
    folders = path.parent, path.parent.parent / "data" / dataset, Path("data") / dataset
    for folder in folders:
        if (folder / "meta.pkl").is_file():
            return tokenizer_from_nanogpt(folder).to_dict()
    return None


def to_nanogpt(checkpoint):
    """The contents of a `ckpt.pt` for nanoGPT: to sample from and, with AdamW's state, to resume.

    Raises ValueError, with the knobs to train with, for a model that nanoGPT does not support.
    """
    config = ModelConfig(**checkpoint["model_config"])
    usual = ModelConfig(**{name: getattr(config, name) for name in SHAPE})
    same = *CHANGEABLE, "init", "ngram_rows"  # these do not change what it computes
    strange = [
        f"--{name}={value}"
        for name, value in vars(usual).items()
        if name not in same and value != getattr(config, name)
    ]
    if strange:
        raise ValueError(f"nanoGPT only supports models trained with {' '.join(strange)}")
    weights = averaged(checkpoint)
    places = {name: place_of(name, GPT2) for name in weights if name != "head.weight"}
    model = dict(put(weights, places))
    best = checkpoint["progress"]["best"]
    known = checkpoint["train_config"]
    return {
        "model": model | {"lm_head.weight": model["transformer.wte.weight"]},
        "model_args": {name: getattr(config, name) for name in SHAPE},
        "iter_num": checkpoint["step"],
        "best_val_loss": torch.tensor(1e9 if best is None else best),
        "config": known,
        **adamw(model, places, checkpoint["optimizer"], known),
    }


def adamw(model, places, memory, known):
    """{"optimizer": …} as nanoGPT's AdamW loads it; {} if another optimizer trained the weights."""
    names = in_groups(model)
    members = {}
    for ours, place in places.items():
        members.setdefault(place.name, []).append(ours)
    if not all("exp_avg_sq" in memory.get(ours, {}) for ours in places):
        return {}
    moments = {m: dict(put({n: memory[n][m] for n in places}, places)) for m in MOMENTS}
    decay = known.get("weight_decay", 0.1)
    groups = [
        {"params": [model[n] for n in names if model[n].dim() > 1], "weight_decay": decay},
        {"params": [model[n] for n in names if model[n].dim() < 2], "weight_decay": 0.0},
    ]
    betas = known.get("beta1", 0.9), known.get("beta2", 0.95)
    optimizer = torch.optim.AdamW(groups, lr=known.get("learning_rate", 6e-4), betas=betas)
    states = {
        i: {"step": memory[members[name][0]]["step"]} | {m: moments[m][name] for m in MOMENTS}
        for i, name in enumerate(names)
    }
    return {"optimizer": optimizer.state_dict() | {"state": states}}


def in_groups(weights):
    """Weight names in the order of nanoGPT's optimizer: matrices first, without the head."""
    names = [name for name in weights if name != "lm_head.weight"]
    return sorted(names, key=lambda name: weights[name].dim() < 2)
