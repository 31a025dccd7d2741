"""One self-contained file per run: `sample.py` needs nothing else, on any machine.

A checkpoint is a dict of tensors, numbers and text, so reading one cannot execute code:

    format         1                                  model         name -> weight
    step           updates made so far                ema           their moving average, or None
    model_config   fields of ModelConfig              optimizer     name -> its state
    train_config   fields of the script's config      scaler        float16's loss scaling
    tokenizer      as support/tokenizer.py writes it  progress      fields of train.Progress
    data           which data it was trained on       versions      of torch and Python, as text
    code           fingerprints of model.py and others, to tell whether they were changed

and of finetune.py's runs

    task           what the model answers, with which labels
    of_base        of pairs of answers: how likely the base found them
    method         what was trained; for an adapter also its base, and `model` then holds only
                   the added weights
"""

import ast
import pickle
import platform
import time
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch

from model import ModelConfig
from support.adapters import adds, fingerprint_of, has_added, merge_lora, put_in, weights_to_save
from support.files import ON_WINDOWS, rename_all, replacing
from support.nanogpt import from_nanogpt
from support.tokenizer import tokenizer_from_dict
from support.tokenizer_files import may_be_on_the_hub
from support.weights import assembled, averaged, fitted

FORMAT = 1
ROOT = Path(__file__).parent.parent
CODE = ("model.py", "train.py", "support/optimizers.py")  # what a run computes
CODE_OF_FINETUNING = (
    "finetune.py",
    "support/tasks.py",
    "support/preference.py",
    "support/adapters.py",
)
LAST, BEST = "ckpt.pt", "best.pt"
PEFT_CONFIG = "adapter_config.json"
# The files that a run leaves in its out_dir.
MERGED = "merged.pt"
RESULTS = ("test.json", "predictions.jsonl", "confusion.png")
KEPT = (LAST, BEST, MERGED, "log.jsonl", "loss.png", "*.tfevents.*", *RESULTS)


def save_checkpoint(path, contents):
    """Write a checkpoint atomically: a reader of `path` sees the old or the new one, complete."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    try:
        with replacing(path) as file:
            torch.save({"format": FORMAT, "versions": versions, **contents}, file)
    except RuntimeError as error:  # torch raises this if the disk is full
        raise SystemExit(f"{path} could not be written, an older one is intact ({error})") from None


def find_checkpoint(source, names=(BEST, LAST)):
    """The checkpoint file `source`, or the first of `names` that exists in the folder `source`."""
    source = Path(source)
    if source.is_file():
        return source
    found = [source / name for name in names if (source / name).is_file()]
    if found:
        return found[0]
    if source.is_dir():
        earlier = max(source.glob("previous-*"), key=lambda p: p.stat().st_mtime, default=None)
        hint = f"; an earlier one is in {earlier}" if earlier else ""
        raise SystemExit(
            f"{source} does not contain {' or '.join(names)}: no run was saved there yet{hint}"
        )
    raise SystemExit(
        f"there is no checkpoint {source}: check its name, or train one with: {recipe_for(source)}"
    )


def source_of(config):
    """The run or model that the options name: `out_dir` or, unless it is `resume`, `init_from`."""
    return config.out_dir if config.init_from == "resume" else config.init_from


def recipe_for(out_dir):
    """The command that trains a run into this folder."""
    for recipe in sorted((Path(__file__).parent.parent / "config").glob("*.py")):
        if f'out_dir = "{Path(out_dir).as_posix()}"' in recipe.read_text(encoding="utf-8"):
            script = "finetune.py" if recipe.name.startswith("finetune_") else "train.py"
            return f"python {script} config/{recipe.name}"
    return f"python train.py --out_dir={out_dir} (or finetune.py)"


def read_checkpoint(path, to_look_at=False):
    """The contents of a checkpoint file, on the CPU; exits with a message if it is not one.

    to_look_at: tensors are read from the file only where they are used, such as the weights and not
    the optimizer's state. (Windows does not replace a file that is used in this way.)
    """
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
        mapped = to_look_at and not ON_WINDOWS
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise SystemExit(f"{path} would execute code: refused, and nothing was executed") from None
    except PermissionError:
        raise SystemExit(f"{path} cannot be read: permission denied") from None
    except (BadZipFile, RuntimeError, OSError) as error:
        if Path(path).suffix in (".safetensors", ".bin"):
            raise SystemExit(
                f"{path} contains only tensors: name the folder with config.json"
            ) from None
        if Path(path).suffix == ".gguf":
            raise SystemExit(f"{path}: GGUF is written here, not read; name the model") from None
        reason = str(error).splitlines()[0][:100]
        raise SystemExit(f"{path} is not a checkpoint, or was cut off: {reason}") from None
    if damaged:
        raise SystemExit(f"{path} is damaged (in {damaged}); use another copy of it")
    if isinstance(contents, dict) and "model_args" in contents:
        try:
            return from_nanogpt(contents, path)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SystemExit(f"{path} looks like a nanoGPT checkpoint, but: {error!r}") from None
    if not isinstance(contents, dict) or "model_config" not in contents:
        raise SystemExit(f"{path} has tensors, but is not a checkpoint of train.py or finetune.py")
    if contents["format"] > FORMAT:
        raise SystemExit(f"{path} was written by a newer version of this project: update it first")
    return contents


def load_model(source, device="cpu", dtype=torch.float32, base=None):
    """(model, tokenizer, checkpoint) of a run's folder or a checkpoint, with the averaged weights.

    nanoGPT's checkpoints are read too, as is a Hugging Face folder, one of the package peft, or
    either on the hub: there the checkpoint has little more than its `origin`, and the weights have
    `dtype` (None: as they are stored). The tokenizer is None for a run on data without one. `base`
    may name the model that an adapter is applied to.
    """
    folder = huggingface_folder(source)
    if folder:
        model, tokenizer, checkpoint = load_published(folder, dtype, base)
        return model.to(device), tokenizer, checkpoint
    path = find_checkpoint(source)
    checkpoint = read_checkpoint(path, to_look_at=True) | {"path": path}
    try:
        model = merge_lora(model_in(checkpoint | {"model": averaged(checkpoint)}, base))
        tokenizer = checkpoint["tokenizer"] and tokenizer_from_dict(checkpoint["tokenizer"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SystemExit(f"{path} is incomplete, or of another version: {error!r:.200}") from None
    return model.to(device).eval(), tokenizer, checkpoint


def load_published(folder, dtype, base):
    """`load_model` of a Hugging Face folder; of peft's, its LoRA merged into its base."""
    from support.huggingface import read_model
    from support.peft_folder import base_of, merge_adapter

    checkpoint = {"origin": "Hugging Face", "path": folder, "data": {}, "train_config": {}}
    if not (folder / PEFT_CONFIG).is_file():
        return *read_model(folder, dtype), checkpoint
    base = base or base_of(folder)
    try:
        model, tokenizer, checkpoint_of_base = load_base(base, dtype)
    except SystemExit as error:
        raise SystemExit(without_base("LoRA", base, error)) from None
    own_tokenizer = merge_adapter(folder, model)
    checkpoint |= {"origin": f"peft, a LoRA on {base}", "data": checkpoint_of_base["data"]}
    checkpoint["method"] = {"method": "lora", "base": base}
    return model, own_tokenizer or tokenizer, checkpoint


def model_in(checkpoint, base=None, dtype=torch.float32):
    """The model whose weights are in a checkpoint; for an adapter, its base with the adapter.

    The base is loaded from where it was when the adapter was trained, or from `base`, its weights
    in `dtype` (None: as they are stored).
    """
    config = ModelConfig(**checkpoint["model_config"])
    settings = checkpoint.get("method")
    if not settings:
        return assembled(config, checkpoint["model"])
    if not adds(settings):
        model = assembled(config, checkpoint["model"])
        put_in(model, settings)
        return model
    source = base or settings["base"]
    try:
        plain, _, _ = load_model(source, dtype=dtype)
    except SystemExit as error:
        raise SystemExit(without_base(settings["method"], source, error)) from None
    if fingerprint_of(plain.state_dict()) != settings["base_fingerprint"]:
        raise SystemExit(
            f"this {settings['method']} was trained on other weights than {source} has now; "
            f"it only fits {settings['base']} as it was then"
        )
    model = fitted(plain, config)
    put_in(model, settings)
    missing, surplus = model.load_state_dict(checkpoint["model"], strict=False)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    if surplus or trained & set(missing):
        raise ValueError(f"its weights do not fit: {[*surplus, *missing][:3]}")
    return model


def without_base(method, base, error):
    """The message for an adapter whose base cannot be read."""
    return (
        f"this {method} needs its base {base}: {error}. Put it back there, or say where it is now: "
        "python sample.py --init_from=BASE --adapter=PATH"
    )


def refuse_added(model, path):
    """Exit if an adapter or a prefix was added to the model."""
    if has_added(model):
        raise SystemExit(
            f"{path} holds an adapter or a prefix, which cannot be merged into its base: only "
            "sample.py reads it; train with --method=lora or full, or start from its base"
        )


def load_base(source, dtype=torch.float32):
    """`load_model` of a model to train further; exits if it is not one of tokens alone."""
    model, tokenizer, checkpoint = load_model(source, dtype=dtype)
    refuse_added(model, source)
    if model.config.n_labels:
        raise SystemExit(f"{source} predicts labels instead of tokens; start from its base model")
    return model, tokenizer, checkpoint


def merged_checkpoint(path):
    """The contents of a checkpoint with a complete `model`: LoRA is merged into its base's weights.

    Exits for an adapter or a prefix, which are separate modules.
    """
    checkpoint = read_checkpoint(path, to_look_at=True)
    checkpoint.pop("of_base", None)  # for a run to be resumed
    settings = checkpoint.get("method")
    if not settings or not adds(settings):
        return checkpoint
    model, _, _ = load_model(path)
    refuse_added(model, path)
    whole = {"model": model.state_dict(), "ema": None, "optimizer": {}}
    whole["method"] = {"method": "full"}
    whole["train_config"] = checkpoint["train_config"] | {"method": "full", "merge": False}
    return checkpoint | whole


def huggingface_folder(source):
    """A folder of Hugging Face's or peft's: `source`, or a copy of the hub's; None if neither."""
    path = Path(source)
    if (path / "config.json").is_file() or (path / PEFT_CONFIG).is_file():
        return path
    if not may_be_on_the_hub(source):
        return None
    from support.huggingface import from_hub

    return from_hub(str(source))


def in_a_line(checkpoint):
    """A one-line summary of a checkpoint that `load_model` returned."""
    path = checkpoint["path"]
    if "step" not in checkpoint:
        return f"{path}: from {checkpoint['origin']}"
    best, metric = checkpoint["progress"]["best"], checkpoint["train_config"].get("best_metric")
    best_value = "" if best is None else f", best {metric or 'val_loss'} {best:.4f}"
    saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    return f"{path}: step {checkpoint['step']:,}{best_value}, saved {saved}"


def load_tokenizer_of_run(source):
    """The tokenizer that the run in this folder or checkpoint was trained with."""
    checkpoint = read_checkpoint(find_checkpoint(source), to_look_at=True)
    if checkpoint["tokenizer"] is None:
        raise SystemExit(f"{source} was trained on tokens without a tokenizer, and has none")
    return tokenizer_from_dict(checkpoint["tokenizer"])


def set_aside(out_dir):
    """Move the run in `out_dir`, if any, to `out_dir/previous-N`, so that nothing is lost.

    Exits if `out_dir` has a Hugging Face model, which would be read instead of the new run.
    """
    if (Path(out_dir) / "config.json").is_file():
        raise SystemExit(
            f"out_dir={out_dir} has a model in Hugging Face's format: choose another folder"
        )
    kept = [file for name in KEPT for file in Path(out_dir).glob(name)]
    if not kept:
        return
    names = [path.name.removeprefix("previous-") for path in Path(out_dir).glob("previous-*")]
    numbers = [int(name) for name in names if name.isdecimal()]
    aside = Path(out_dir) / f"previous-{max(numbers, default=0) + 1}"
    aside.mkdir()
    try:
        rename_all([(file, aside / file.name) for file in kept])
    except BaseException:
        aside.rmdir()
        raise
    print(f"the previous run in {out_dir} is kept in {aside}")


@cache
def code_in_use(finetunes=False):
    """{file: fingerprint} of what a run computes; comments and docstrings make no difference.

    The files are read at the first call, which should be soon after they are imported.
    """
    found = {"python": ".".join(platform.python_version_tuple()[:2])}  # others parse otherwise
    for name in (*CODE, *(CODE_OF_FINETUNING if finetunes else ())):
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            if documented and ast.get_docstring(node) is not None:
                del node.body[0]
        found[name] = sha256(ast.dump(tree).encode()).hexdigest()
    return found


def changed_code(before, after):
    """The files whose code differs, where that is known: ["model.py", …]."""
    if before.get("python") != after.get("python"):
        return []
    return sorted(name for name in before.keys() & after.keys() if before[name] != after[name])


def snapshot(progress, config, model, optimizers, ema, scaler):
    """The part of a checkpoint that a run needs to resume as if it had never stopped."""
    return {
        "step": progress.step,
        "progress": asdict(progress),
        "train_config": asdict(config),
        "code": code_in_use(hasattr(config, "task")),
        "model": weights_to_save(model),
        "ema": ema.weights or None,
        "optimizer": optimizer_state(model, optimizers),
        "scaler": scaler.state_dict(),
    }


def restore(checkpoint, model, optimizers, ema, scaler):
    """Restore all that `snapshot` saved but the model's weights; return the progress's fields."""
    restore_optimizer_state(model, optimizers, checkpoint["optimizer"])
    for name, weight in ema.weights.items():
        weight.copy_((checkpoint["ema"] or checkpoint["model"])[name])
    if checkpoint["scaler"]:
        scaler.load_state_dict(checkpoint["scaler"])
    return checkpoint["progress"]


def optimizer_state(model, optimizers):
    """The state of the optimizers, keyed by parameter name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: state for o in optimizers for p, state in o.state.items()}


def restore_optimizer_state(model, optimizers, states):
    """Restore each optimizer's state from the states keyed by parameter name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            if names[p] in states:
                saved = states[names[p]]
                optimizer.state[p] = {key: moved(saved[key], p.device) for key in saved}


def moved(value, device):
    """A value with the tensors in it on the device."""
    if torch.is_tensor(value):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(moved(part, device) for part in value)
    return value
