"""From `python train.py config/x.py --learning_rate=1e-3` to one typed dataclass.

A config file is plain Python. Its public names become options, placed before those on the command
line: later ones win, and a file may compute values. Everything here only rewrites the argument
list; tyro parses it. So there is one parser, one kind of error, and one `--help`, made from the
comments behind the fields.
"""

import dataclasses
import difflib
import math
import runpy
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import get_args, get_origin

import tyro

from support.files import until_nobody_reads

# Other names that are accepted for our options.
SAME = {"data": "dataset"}
BOOLEANS = ("true", "false")
# nanoGPT's options that have another form here: what each value stands for.
TRANSLATED = {
    "decay_lr": {
        "True": ["--schedule=cosine"],
        "False": ["--schedule=constant", "--warmup_iters=0"],
    },
    "wandb_log": {"True": ["--log_to=wandb"], "False": ["--log_to=file"]},
}
# nanoGPT's options that are not needed here, and why.
NOT_NEEDED = {
    "compile": "text is generated without compiling",
    "always_save_checkpoint": "the last checkpoint (ckpt.pt) and the best (best.pt) are both kept",
    "backend": "it follows from the device: nccl on CUDA, gloo elsewhere",
}
# Other trainers' names for our options.
ELSEWHERE = {
    "lr": "learning_rate",
    "max_steps": "max_iters",
    "num_iterations": "max_iters",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "epochs": "max_iters",
    "train_data": "dataset",
    "lora_r": "lora_rank",
    "r": "lora_rank",
    "peft_method": "method",
    "per_device_train_batch_size": "batch_size",
    "device_batch_size": "batch_size",
    "output_dir": "out_dir",
    "sequence_length": "block_size",
    "max_seq_len": "block_size",
    "warmup_steps": "warmup_iters",
    "lr_scheduler_type": "schedule",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "max_grad_norm": "grad_clip",
    "eval_steps": "eval_interval",
    "eval_every": "eval_interval",
    "logging_steps": "log_interval",
    "report_to": "log_to",
    "resume_from_checkpoint": "init_from",
    "max_length": "max_new_tokens",
    "prompt": "start",
}


def load_config(Config, argv=None, default_file=None, default=None, takes_files=True):
    """Build a `Config` from its defaults (or `default`), then config files and options as typed.

    `default_file` is read, and announced, if no file is named. A user's mistake ends the program
    with a message.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the locale says
    raw = list(sys.argv[1:] if argv is None else argv)
    argv = with_values(raw, Config)
    for word in argv:
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise SystemExit(f"{word!a} is not UTF-8: set the terminal to UTF-8 and try again")
    files = config_files(argv, Config) if takes_files else {}
    for i in words_alone(argv, Config) if takes_files else []:
        if i not in files:
            if i and argv[i - 1] != raw[i - 1]:
                raise SystemExit(f"{raw[i - 1]} takes True or False, not {argv[i]}")
            hint = meant_by(argv[i], Config)
            raise SystemExit(f"{argv[i]} is neither an option nor a config file{hint}")
    typed = typed_options(argv)
    if default_file is not None and not files and not {"-h", "--help"} & set(argv):
        if typed.get("init_from") != "resume":  # which uses the settings of the run
            print(f"no config file named: using {as_typed(default_file)}")
        argv, files = [str(default_file), *argv], {0: str(default_file)}
    knobs = {field.name for field in dataclasses.fields(Config)}
    for file in files.values():
        if Path(file).name.startswith("finetune_") and "task" not in knobs:
            raise SystemExit(f"{file} is for finetune.py: python finetune.py {file}")
    words = []
    for i, word in enumerate(argv):
        for option in options_in(word, typed) if i in files else [[word]]:
            words += translate(option, knobs, where=f"{as_typed(word)}: " if i in files else "")
    try:
        flags_take_a_value = (tyro.conf.FlagConversionOff,)  # --compile=False, not --no-compile
        with until_nobody_reads():
            return tyro.cli(
                Config, args=words, default=default, use_underscores=True, config=flags_take_a_value
            )
    except SystemExit as stop:
        if stop.code and files:
            names = ", ".join(files.values())
            print(f"({names} was read first, then the command line)", file=sys.stderr)
        raise


def typed_options(argv):
    """{name: value} of the options, in any notation: --n_layer=4, --n-layer 4."""
    typed = {}
    for word, after in zip(argv, [*argv[1:], "--"]):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            typed[name.replace("-", "_")] = value if equals or after.startswith("--") else after
    return typed


def with_values(argv, Config):
    """The arguments with a bare switch such as `--chat` written as `--chat=True`."""
    switches = {field.name for field in dataclasses.fields(Config) if field.type is bool}
    words = []
    for word, after in zip(argv, [*argv[1:], ""]):
        is_switch = word.startswith("--") and word[2:].replace("-", "_") in switches
        words.append(f"{word}=True" if is_switch and after.lower() not in BOOLEANS else word)
    return words


def words_alone(argv, Config):
    """The positions of words that are neither an option nor a value of one (`--start x.py`)."""
    types = {field.name: field.type for field in dataclasses.fields(Config)}
    alone, room = [], 0  # for values behind the last option
    for i, word in enumerate(with_values(argv, Config)):
        if word.startswith("--"):
            name, equals, _ = word[2:].replace("-", "_").partition("=")
            kinds = types.get(name), *get_args(types.get(name))
            several = any(get_origin(kind) is tuple for kind in kinds)  # --stop "The end" "。"
            room = 0 if equals else math.inf if several else 1
        elif room and not (room == math.inf and word.endswith(".py") and Path(word).is_file()):
            room -= 1
        elif not word.startswith("-"):
            alone.append(i)
    return alone


def config_files(argv, Config):
    """The arguments that name a config file, {position: `config/x.py`}."""
    return {i: argv[i] for i in words_alone(argv, Config) if argv[i].endswith(".py")}


def meant_by(word, Config):
    """A hint at what a word typed without an option may have been meant as."""
    if Path(f"{word}.py").is_file():
        return f"; did you mean {word}.py?"
    if Path(word).is_file():
        return f"; to tokenise a text: python prepare_data.py {word} --dataset=NAME"
    names = {field.name for field in dataclasses.fields(Config)}
    if Path(word).is_dir() and "out_dir" in names:
        return f"; did you mean --out_dir={word}?"
    if "start" in names:
        return f'; to give a prompt: --start="{word} …"'
    return " (see --help)"


def options_in(path, typed=None):
    """The public names of a config file, each as an option: [["--n_layer=4"], ["--bias=True"]].

    The file sees the command-line options as `_typed`, a dict of strings, so it can compute some
    knobs from another, as config/depth.py does.
    """
    if not Path(path).is_file():
        there = {file.name: file for file in Path(path).parent.glob("*.py")}
        near = difflib.get_close_matches(Path(path).name, there, n=1)
        hint = "".join(f"; did you mean {there[name]}?" for name in near)
        raise SystemExit(f"there is no config file {path}{hint}")
    options = []
    for name, value in runpy.run_path(str(path), {"_typed": typed or {}}).items():
        if name.startswith("_") or callable(value) or isinstance(value, ModuleType):
            continue
        several = isinstance(value, (tuple, list))
        options.append([f"--{name}", *map(str, value)] if several else [f"--{name}={value}"])
    return options


def translate(option, knobs, where=""):
    """The words of one option under our names; exits with our name for another trainer's."""
    name, _, value = option[0].partition("=")
    name = name.lstrip("-").replace("-", "_")
    if name in knobs or not option[0].startswith("--"):
        return option
    if SAME.get(name) in knobs:
        return [f"--{SAME[name]}={value}" if value else f"--{SAME[name]}", *option[1:]]
    if name in NOT_NEEDED:
        print(f"{name} is not needed here: {NOT_NEEDED[name]}")
        return []
    if name in TRANSLATED:
        choices = TRANSLATED[name]
        if value not in choices:
            raise SystemExit(f"{where}{option[0]}: expected --{name}={' or '.join(choices)}")
        return choices[value]
    ours = ELSEWHERE.get(name)
    if ours not in knobs:
        ours = ELSEWHERE.get(ours)  # train.py counts updates, finetune.py epochs
    if ours in knobs:
        raise SystemExit(f"{where}--{name} is called --{ours} here (see --help)")
    near = difflib.get_close_matches(name, knobs, n=1) if name not in ("h", "help") else []
    if near:
        raise SystemExit(f"{where}--{name} is unknown; did you mean --{near[0]}? (see --help)")
    return option


def show_config(config):
    """Print every knob once: one line for each that differs from its default, then all others."""
    changed, rest = [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        (rest if value == field.default else changed).append((field, value))
    print("settings that differ from the defaults:" if changed else "all settings are defaults:")
    width = max((len(field.name) for field, _ in changed), default=0)
    for field, value in changed:
        print(f"  {field.name:<{width}} = {value!s:<18} ({field.default})")
    text = "the others: " + ", ".join(f"{field.name}={value!r}" for field, value in rest)
    print(textwrap.fill(text, width=78, initial_indent="  ", subsequent_indent="    "))


def as_typed(path):
    """The path as a user in this folder would type it."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
