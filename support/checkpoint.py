"""One self-contained file per run: `sample.py` needs nothing else, on any machine.

A checkpoint is a dict of tensors, numbers and text, so that reading one can execute nothing:

    format         1                                  model         name -> weight
    step           updates made so far                ema           the same, averaged; or None
    model_config   fields of ModelConfig              optimizer     name -> its state
    train_config   fields of the script's config      scaler        of float16's loss
    tokenizer      as support/tokenizer.py writes it  progress      fields of train.Progress
    data           which data it was trained on       versions      of torch and Python, as text
"""

import pickle
import platform
from dataclasses import asdict
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch

from model import ModelConfig, Transformer
from support.files import replacing
from support.tokenizer import tokenizer_from_dict

FORMAT = 1
LAST, BEST = "ckpt.pt", "best.pt"
KEPT = (LAST, BEST, "log.jsonl", "loss.png")  # what a run leaves in its out_dir


def save_checkpoint(path, contents):
    """Write a checkpoint; a reader of `path` sees the old one or the new one, whole."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    with replacing(path) as file:
        torch.save({"format": FORMAT, "versions": versions, **contents}, file)


def find_checkpoint(source, names=(BEST, LAST)):
    """The file that `source` means: itself, or in a folder the first of `names` that is there."""
    source = Path(source)
    if source.is_file():
        return source
    found = [source / name for name in names if (source / name).is_file()]
    if found:
        return found[0]
    if source.is_dir():
        raise SystemExit(f"{source} holds no {' or '.join(names)}: no run was saved there yet")
    raise SystemExit(f"there is no checkpoint {source}; train one with: python train.py")


def read_checkpoint(path):
    """The contents of a checkpoint file, on the CPU; exits with a message where it is none."""
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise SystemExit(f"{path} would execute code: refused, nothing was executed") from None
    except (BadZipFile, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0][:100]
        raise SystemExit(f"{path} is no checkpoint, or was cut off: {reason}") from None
    if damaged:
        raise SystemExit(f"{path} is damaged (in {damaged}); take another copy of it")
    if not isinstance(contents, dict) or "model_config" not in contents:
        raise SystemExit(f"{path} holds tensors, but is no checkpoint of train.py or finetune.py")
    if contents["format"] > FORMAT:
        raise SystemExit(f"{path} was written by a newer version of this project: update it first")
    return contents


def load_model(source, device="cpu"):
    """(model, tokenizer, checkpoint) of a run's folder or a checkpoint, with the averaged weights.

    The tokenizer is None for a run on data that came without one.
    """
    checkpoint = read_checkpoint(find_checkpoint(source))
    model = Transformer(ModelConfig(**checkpoint["model_config"]))
    model.load_state_dict({**checkpoint["model"], **(checkpoint["ema"] or {})})
    tokenizer = checkpoint["tokenizer"] and tokenizer_from_dict(checkpoint["tokenizer"])
    return model.to(device).eval(), tokenizer, checkpoint


def load_tokenizer_of_run(source):
    """The tokenizer that the run in this folder or checkpoint was trained with."""
    checkpoint = read_checkpoint(find_checkpoint(source))
    if checkpoint["tokenizer"] is None:
        raise SystemExit(f"{source} was trained on tokens without a tokenizer: it has none")
    return tokenizer_from_dict(checkpoint["tokenizer"])


def set_aside(out_dir):
    """Move the run that `out_dir` holds, if any, to `out_dir/previous-N`: nothing gets lost."""
    kept = [Path(out_dir) / name for name in KEPT if (Path(out_dir) / name).exists()]
    if not kept:
        return
    numbers = [int(p.name.split("-")[1]) for p in Path(out_dir).glob("previous-*")]
    aside = Path(out_dir) / f"previous-{max(numbers, default=0) + 1}"
    aside.mkdir()
    for file in kept:
        file.rename(aside / file.name)
    print(f"the run that was in {out_dir} is kept in {aside}")


def snapshot(progress, config, model, optimizers, average, scaler):
    """What a run must find again to go on as if it had never stopped: part of a checkpoint."""
    return {
        "step": progress.step,
        "progress": asdict(progress),
        "train_config": asdict(config),
        "model": model.state_dict(),
        "ema": average.weights or None,
        "optimizer": optimizer_state(model, optimizers),
        "scaler": scaler.state_dict(),
    }


def restore(checkpoint, model, optimizers, average, scaler):
    """Put everything but the weights back as `snapshot` found it; the fields of its progress."""
    restore_optimizer_state(model, optimizers, checkpoint["optimizer"])
    for name, weight in average.weights.items():
        weight.copy_((checkpoint["ema"] or checkpoint["model"])[name])
    scaler.load_state_dict(checkpoint["scaler"])
    return checkpoint["progress"]


def optimizer_state(model, optimizers):
    """What the optimizers remember, by the name of the parameter it belongs to."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: state for o in optimizers for p, state in o.state.items()}


def restore_optimizer_state(model, optimizers, states):
    """Give each optimizer back what it remembered of its parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        ordered = [names[p] for group in optimizer.param_groups for p in group["params"]]
        known = {i: states[name] for i, name in enumerate(ordered) if name in states}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": known})
