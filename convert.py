"""Convert models to and from other programs' formats, or inspect them: `python convert.py PATH`.

`python convert.py out/llama_tiny --to=hf --out=tiny-hf` writes a folder for transformers and vLLM,
`--to=gguf --out=tiny.gguf` a file for llama.cpp and Ollama. To sample from their models or train
them further, no conversion is needed: `--init_from=PATH` reads them.
"""

import dataclasses
import pickle
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from safetensors import SafetensorError

from model import ModelConfig
from support.chat import converses, final_token
from support.checkpoint import (
    BEST,
    LAST,
    PEFT_CONFIG,
    find_checkpoint,
    huggingface_folder,
    in_a_line,
    load_model,
    merged_checkpoint,
    read_checkpoint,
    refuse_added,
    save_checkpoint,
)
from support.config import TRANSLATED, load_config
from support.files import must_be_new, new_folder, read_json, until_nobody_reads
from support.gguf_file import write_gguf
from support.huggingface import write_model
from support.nanogpt import to_nanogpt
from support.peft_folder import adapter_tensors, write_adapter
from support.tensor_files import TensorFiles
from support.tokenizer import GPT2_VOCAB_SIZES, tokenizer_from_dict
from support.tokenizer_files import (
    assumed_tokenizer,
    chat_template_of,
    read_tokenizer,
    token_before,
    tokenizer_files,
)
from support.weights import averaged
from train import Progress, TrainConfig

COLUMNS = 80
USE = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}")
{inputs}
tokens = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(tokens[0]))"""
TEXT = 'inputs = tokenizer("Once", return_tensors="pt")'
CHAT = """messages = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""
GGUF_KINDS = {"auto": "f16", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}
# nanoGPT's settings that depend on the machine or are determined by the conversion.
NOT_KEPT = {"out_dir", "init_from", "eval_only", "device", "dtype", "compile", "vocab_size"}


@dataclass
class ConvertConfig:
    """Convert a model to another program's format or, without --to, describe it.

    - PATH: a run or checkpoint, nanoGPT's, a Hugging Face folder or name, .safetensors, .bin
    - hf: a folder for transformers, vLLM and llama.cpp's converter
    - peft: the same for a LoRA alone, to be loaded beside its base
    - gguf: a file for llama.cpp, Ollama and LM Studio
    - nanogpt, shiftgpt: a folder with a ckpt.pt, to sample from or resume
    """

    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")]  # the model
    to: Literal["hf", "peft", "gguf", "nanogpt", "shiftgpt"] | None = None  # the format to write
    out: str | None = None  # the folder or file to write, which must not exist yet
    dtype: Literal["auto", "float32", "bfloat16", "float16", "q8_0"] = "auto"  # of the weights

    def __post_init__(self):
        if self.to and not self.out:
            raise ValueError(f"--to={self.to} needs an output path: --out=out/{self.to}")
        if self.out and not self.to:
            raise ValueError(f"out={self.out} needs a format: --to={', '.join(FORMATS)}")
        if self.dtype == "q8_0" and self.to != "gguf":
            raise ValueError("dtype=q8_0 is only for --to=gguf")
        if self.dtype != "auto" and self.to not in ("hf", "gguf"):
            raise ValueError(f"dtype={self.dtype} is only for --to=hf and --to=gguf: leave it out")


# ------------------------------------------------------------------------------------- describing


def describe(source):
    """Print what a file or folder is, how it was made, and a row for each of its tensors."""
    path = Path(source)
    folder = huggingface_folder(source)
    if folder:
        facts, tensors = huggingface_facts(folder)
    elif path.suffix in (".safetensors", ".bin") and path.is_file():
        facts, tensors = {"what": f"{path}: tensors, without a config"}, TensorFiles(path)
    else:
        facts, tensors = checkpoint_facts(find_checkpoint(path))
    rows, count, size = [("tensor", "shape", "dtype", "norm")], 0, 0
    for name in tensors:
        tensor = tensors[name]
        count, size = count + tensor.numel(), size + tensor.nbytes
        shape, dtype = "×".join(map(str, tensor.shape)), str(tensor.dtype).removeprefix("torch.")
        rows.append((name, shape, dtype, f"{tensor.float().norm():.4g}"))
    for name, fact in (facts | {"weights": f"{count:,} in {size / 1e6:,.1f} MB"}).items():
        indent = " " * 11
        print(textwrap.fill(f"{name:<11}{fact}", COLUMNS, subsequent_indent=indent))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip())


def huggingface_facts(folder):
    """What a Hugging Face or peft folder says about itself; its tensors."""
    if (folder / PEFT_CONFIG).is_file():
        content, tensors = read_json(folder / PEFT_CONFIG), adapter_tensors(folder)
        targets = content.get("target_modules") or ""
        targets = targets if isinstance(targets, str) else " ".join(targets)
        what = f"a {content.get('peft_type')} of peft, of {targets}"
    else:
        content, tensors = read_json(folder / "config.json"), TensorFiles(folder)
        what = f"a {content.get('model_type')} in Hugging Face's format"
    try:
        tokenizer = tokenizer_in_words(read_tokenizer(folder))
    except ValueError as error:
        tokenizer = f"not read: {error}"
    facts = {
        "what": f"{folder}: {what}",
        "config": listed({k: v for k, v in content.items() if not isinstance(v, list)}),
        "tokenizer": tokenizer,
    }
    return facts, tensors


def checkpoint_facts(path):
    """What a checkpoint, ours or nanoGPT's, says about itself; its tensors, each of them once."""
    checkpoint = read_checkpoint(path, to_look_at=True) | {"path": path}
    tokenizer = checkpoint["tokenizer"] and tokenizer_from_dict(checkpoint["tokenizer"])
    facts = {
        "what": in_a_line(checkpoint),
        "from": checkpoint.get("origin", "train.py or finetune.py"),
        "config": listed(checkpoint["model_config"]),
        "tokenizer": tokenizer_in_words(tokenizer),
        "data": listed(checkpoint["data"]) or "not recorded",
    }
    facts |= {name: listed(checkpoint[name]) for name in ("method", "task") if name in checkpoint}
    tied = {"head.weight"} if checkpoint["model_config"]["tie_weights"] else set()
    return facts, {name: w for name, w in checkpoint["model"].items() if name not in tied}


def listed(settings):
    """The settings in a line: a=1, b=2."""
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def tokenizer_in_words(tokenizer):
    if tokenizer is None:
        return "none"
    special = " ".join(tokenizer.special_tokens) or "no special tokens"
    return f"{tokenizer.kind}, {tokenizer.vocab_size:,} entries; {special[:200]}"


# ------------------------------------------------------------------------------------- converting


def load_plain(source):
    """`load_model`'s (model, tokenizer, checkpoint); exits if no other program can represent it."""
    model, tokenizer, checkpoint = load_model(source, dtype=None)
    refuse_added(model, source)
    refuse_labels(model.config, source)
    if tokenizer is None and model.config.vocab_size in GPT2_VOCAB_SIZES:
        try:
            tokenizer = assumed_tokenizer(source, model)
        except SystemExit as error:  # there is no connection
            print(error)
    return model, with_template(tokenizer, checkpoint), checkpoint


def refuse_labels(model_config, source):
    """Exit if a model predicts labels, which no other program here does."""
    if model_config.n_labels:
        raise SystemExit(f"{source} predicts labels instead of tokens and cannot be converted")


def with_template(tokenizer, checkpoint):
    """The tokenizer, with the chat template that the model was trained with."""
    if tokenizer and checkpoint.get("task", {}).get("task") == "chat":
        tokenizer.chat_template = chat_template_of(tokenizer)
    return tokenizer


def to_huggingface(config):
    """Write the model as a Hugging Face folder, with a model card that has the run's numbers."""
    model, tokenizer, checkpoint = load_plain(config.path)
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    readme = card(model, tokenizer, checkpoint, Path(config.out).name)
    write_model(config.out, model, tokenizer, dtype, bos_of(tokenizer, checkpoint), readme)
    if tokenizer is None:
        print(f"{config.out} is written, without a tokenizer")
    else:
        print(f"{config.out} is written; to use it:\n\n{use(config.out, tokenizer, checkpoint)}")


def to_peft(config):
    """Write a LoRA as a folder of the package peft, to be loaded beside its base model."""
    folder = huggingface_folder(config.path)
    if folder:
        raise SystemExit(f"{folder} is not a LoRA that finetune.py trained")
    path = find_checkpoint(config.path)
    checkpoint = read_checkpoint(path, to_look_at=True)
    method, shape = checkpoint.get("method") or {}, ModelConfig(**checkpoint["model_config"])
    if method.get("method") != "lora":
        raise SystemExit(f"{path} is not a LoRA: --to=hf writes a whole model")
    refuse_labels(shape, path)
    tokenizer = with_template(tokenizer_from_dict(checkpoint["tokenizer"]), checkpoint)
    bos, eos = bos_of(tokenizer, checkpoint), final_token(tokenizer)
    files = tokenizer_files(tokenizer, shape.block_size, bos, eos)
    base = in_their_format = method["base"]
    if Path(base).exists() and not (Path(base) / "config.json").is_file():  # a run
        in_their_format = f"{base.removesuffix('.pt')}_hf"
    write_adapter(config.out, shape, method, averaged(checkpoint), in_their_format, files)
    if in_their_format != base:
        print(f"its base is written by: python convert.py {base} --to=hf --out={in_their_format}")
    lines = use(config.out, tokenizer, checkpoint)
    print(f"{config.out} is written; to use it (pip install peft):\n\n{lines}")


def to_gguf(config):
    """Write the model as a GGUF file."""
    model, tokenizer, checkpoint = load_plain(config.path)
    kind = GGUF_KINDS[config.dtype]
    write_gguf(must_be_new(config.out), model, tokenizer, kind, bos_of(tokenizer, checkpoint))
    options = "" if converses(tokenizer, checkpoint) else ' -no-cnv -p "Once"'
    print(f"{config.out} is written, its matrices in {kind}; to use it: ", end="")
    print(f"llama-cli -m {config.out}{options}")
    if tokenizer.kind == "sentencepiece" and tokenizer.prefix_rule in ("always", "first"):
        print("llama.cpp's tokens may differ slightly where a text or a message begins")
    if model.config.mlp == "gelu":
        print("llama.cpp approximates GELU by tanh, this model is exact: they will differ slightly")


def to_nanogpt_folder(config):
    """Write a nanoGPT checkpoint and, for a character tokenizer, its meta.pkl."""
    checkpoint = as_checkpoint(config)
    contents = to_nanogpt(checkpoint)
    with new_folder(config.out) as folder:
        torch.save(contents, folder / LAST)
        saved = checkpoint["tokenizer"] or {}
        if saved.get("kind") == "char":
            stoi = {character: i for i, character in enumerate(saved["characters"])}
            itos = {i: text for text, i in (stoi | saved["special_tokens"]).items()}
            meta = {"vocab_size": len(itos), "itos": itos, "stoi": stoi}
            (folder / "meta.pkl").write_bytes(pickle.dumps(meta, protocol=2))
    print(f"{config.out}/{LAST} is written; in nanoGPT: python sample.py --out_dir={config.out}")
    dataset = contents["config"].get("dataset", "NAME")
    if saved.get("kind") == "char":
        print(f"nanoGPT looks for the characters in its data/{dataset}: put meta.pkl there")
    elif contents["model_args"]["vocab_size"] not in GPT2_VOCAB_SIZES:
        print("nanoGPT decodes tokens as GPT-2's: the text that it shows will be wrong")
    if "optimizer" not in contents:
        print("it has no AdamW state, so nanoGPT can sample from it, but not resume it")


def to_shiftgpt(config):
    """Write a ShiftGPT checkpoint that `train.py --init_from=resume` can resume."""
    checkpoint = as_checkpoint(config)
    with new_folder(config.out) as folder:
        save_checkpoint(folder / LAST, checkpoint)
    if not checkpoint["step"] and "task" not in checkpoint:  # weights only
        print(f"{config.out} is written; train it further with: python train.py", end=" ")
        print(f"--init_from={config.out} --out_dir=out/NAME --dataset=NAME")
        return
    script = "finetune.py" if "task" in checkpoint else "train.py"
    data = "" if checkpoint["data"] else " --dataset=NAME"
    print(f"{config.out} is written; resume with: python {script} --init_from=resume", end=" ")
    print(f"--out_dir={config.out}{data}")


def as_checkpoint(config):
    """The model at `path` as a ShiftGPT checkpoint, with settings that a run can resume with."""
    folder = huggingface_folder(config.path)
    if not folder:
        checkpoint = merged_checkpoint(find_checkpoint(config.path, [LAST, BEST]))
        if checkpoint.pop("origin", None) == "nanoGPT":
            checkpoint |= {"train_config": settings_of_nanogpt(checkpoint, config.out)}
        return checkpoint
    model, tokenizer, _ = load_model(folder)
    shape = dataclasses.asdict(model.config)
    windows = shape | {"block_size": min(shape["block_size"], TrainConfig.block_size)}
    return {
        "step": 0,
        "progress": dataclasses.asdict(Progress()),
        "model_config": shape,
        "train_config": dataclasses.asdict(TrainConfig(**windows, out_dir=config.out)),
        "tokenizer": tokenizer and tokenizer.to_dict(),
        "data": {},
        "model": model.state_dict(),
        "ema": None,
        "optimizer": {},
        "scaler": {},
    }


def settings_of_nanogpt(checkpoint, out_dir):
    """The fields of a `TrainConfig` equivalent to the settings in a nanoGPT checkpoint."""
    known = {field.name for field in dataclasses.fields(TrainConfig)} | TRANSLATED.keys()
    words = [
        f"--{name}={value}"
        for name, value in checkpoint["train_config"].items()
        if name in known - NOT_KEPT
    ]
    config = load_config(TrainConfig, words)
    return dataclasses.asdict(config) | checkpoint["model_config"] | {"out_dir": out_dir}


def bos_of(tokenizer, checkpoint):
    """The token to put before every text, as `sample.py` does, or None."""
    return tokenizer and token_before(tokenizer, checkpoint["data"].get("train_documents", 0))


def use(folder, tokenizer, checkpoint):
    """Example code that generates text, or answers, with the model in a folder."""
    return USE.format(folder=folder, inputs=CHAT if converses(tokenizer, checkpoint) else TEXT)


def card(model, tokenizer, checkpoint, name):
    """The README.md of a Hugging Face folder: what the model is, and its results."""
    count = sum(weight.numel() for weight in model.parameters())
    known = checkpoint["train_config"]
    lines = [f"A transformer of {count:,} parameters, made with ShiftGPT."]
    if "step" in checkpoint:
        best, metric = checkpoint["progress"]["best"], known.get("best_metric", "val_loss")
        lines += [f"- trained on {known.get('dataset')}: {checkpoint['step']:,} steps"]
        lines += [f"- {metric.replace('_', ' ')}: {best:.4f}"] if best is not None else []
    lines += [f"- its shape: {listed(vars(model.config))}", ""]
    lines += ["```python", use(name, tokenizer, checkpoint), "```", ""]
    return "\n".join([f"# {name}", "", *lines])


FORMATS = {
    "hf": to_huggingface,
    "peft": to_peft,
    "gguf": to_gguf,
    "nanogpt": to_nanogpt_folder,
    "shiftgpt": to_shiftgpt,
}


def main():
    config = load_config(ConvertConfig, takes_files=False)
    try:
        with until_nobody_reads():
            FORMATS[config.to](config) if config.to else describe(config.path)
    except (ValueError, KeyError, TypeError, OSError, RecursionError, SafetensorError) as error:
        raise SystemExit(f"{config.path}: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; no partial output was left") from None


if __name__ == "__main__":
    main()
