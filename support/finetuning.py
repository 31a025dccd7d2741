"""What a fine-tuning run starts from: a trained model, a task, examples, and how these fit."""

import dataclasses
import json
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from model import ModelConfig, Transformer
from support.adapters import adds, fingerprint_of, put_in, settings_of
from support.chat import MARKS, end_of_turn
from support.checkpoint import load_model, model_in, refuse_added
from support.examples import open_examples
from support.labelling import is_chinese_word
from support.starting_point import check_tokenizer, model_part, tell_changes
from support.tasks import Task, open_task
from support.token_files import Dataset, open_dataset
from support.tokenizer import tokenizer_from_dict
from support.tokenizer_files import assumed_tokenizer, chat_template_of
from support.weights import CHANGEABLE, averaged, fitted

KEPT = ("model_config", "tokenizer", "data", "task", "method")  # when a run goes on


class Start(NamedTuple):
    """All that a run needs besides its config."""

    model: nn.Module
    task: Task
    lines: dict | None  # {"train": […], "val": […], "test": […]}: the examples
    dataset: Dataset | None  # or a folder of tokens
    metadata: dict  # what a checkpoint says besides


def begin(config, resumed):
    """(config with the model's shape and the task's metric, Start) of a new run, or one resumed."""
    return go_on(config, resumed) if resumed else begin_anew(config)


def begin_anew(config):
    """What `begin` gives for a run from a trained model."""
    base, tokenizer, documents = start_from(config)
    config = dataclasses.replace(config, block_size=block_size_for(config, base))
    lines, dataset, data = examples_or_tokens(config, tokenizer, documents)
    task = open_task(config, lines, tokenizer, documents)
    config, model = model_for_task(config, base, task, tokenizer)
    metadata = {
        "model_config": dataclasses.asdict(model.config),
        "tokenizer": tokenizer.to_dict(),
        "data": data,
        "task": describe_answers(config, task, lines),
        "method": describe_method(config, base),
    }
    return config, Start(model, task, lines, dataset, metadata)


def go_on(config, resumed):
    """What `begin` gives for a run that goes on from its last checkpoint."""
    tokenizer = tokenizer_from_dict(resumed["tokenizer"])
    documents = resumed["data"]["train_documents"]
    lines, dataset, data = examples_or_tokens(config, tokenizer, documents)
    task = open_task(config, lines, tokenizer, documents)
    check_resumed(resumed, task, data)
    metadata = {name: resumed[name] for name in KEPT}
    weights = averaged(resumed) if config.eval_only else resumed["model"]
    return config, Start(model_in(resumed | {"model": weights}), task, lines, dataset, metadata)


def examples_or_tokens(config, tokenizer, documents):
    """(examples, None) or (None, Dataset), and what a checkpoint says of them."""
    if is_token_folder(config.dataset):
        dataset = open_tokens(config, tokenizer)
        return None, dataset, dataset.describe() | {"train_documents": documents}
    how = config.format, config.fields, config.val_fraction, config.encoding
    lines = open_examples(config.dataset, config.task, *how)
    if config.document_mask:
        raise SystemExit("document_mask=True: examples never see each other; leave it out")
    return lines, None, describe_examples(config, lines, documents)


def is_token_folder(name):
    """Whether `dataset` is a folder that prepare_data.py, nanoGPT or llm.c wrote."""
    folders = Path("data") / name, Path(name)
    return any((f / "meta.json").is_file() or any(f.glob("*.bin")) for f in folders)


def open_tokens(config, tokenizer):
    """The Dataset of a folder of tokens, which are to be those of the model."""
    if config.task != "text":
        raise SystemExit(
            f"{config.dataset} is a folder of tokens, for --task=text; --task={config.task} "
            "needs examples, as in data/stories/tasks"
        )
    dataset = open_dataset(config.dataset)
    check_tokenizer(tokenizer.to_dict(), dataset, config.init_from)
    return dataset


def block_size_for(config, base):
    """The context asked for, or the model's; exits where the model cannot have such."""
    known = base.config
    if known.position == "learned" and (config.block_size or 0) > known.block_size:
        raise SystemExit(
            f"block_size={config.block_size}: {config.init_from} has learned "
            f"{known.block_size} positions and knows no others: --block_size={known.block_size}"
        )
    return config.block_size or known.block_size


def describe_examples(config, lines, documents):
    """What a checkpoint keeps of its examples: enough to notice when they have changed."""
    content = json.dumps(lines, sort_keys=True).encode()
    return {
        "dataset": str(config.dataset),
        "examples": len(lines["train"]),
        "examples_hash": blake2b(content, digest_size=8).hexdigest(),
        "train_documents": documents,
    }


def describe_answers(config, task, lines):
    """What a checkpoint says of the task: all that it takes to answer."""
    answers = {"task": config.task, "generative": config.generative, "labels": list(task.labels)}
    if config.task == "tagging":
        words = chain.from_iterable(line["tokens"] for line in lines["train"])
        answers["blanks"] = any(map(is_chinese_word, words))
    return answers


def describe_method(config, base):
    """What a checkpoint says of how it was trained, and of the base that an adapter needs."""
    method = settings_of(config)
    if not adds(method):
        return method
    if Path(config.init_from).resolve() == Path(config.out_dir).resolve():
        raise SystemExit(
            f"out_dir={config.out_dir} is where the base is, which the {config.method} will "
            f"need: choose another, --out_dir={config.out_dir}_{config.method}"
        )
    known = {"base": config.init_from, "base_fingerprint": fingerprint_of(base.state_dict())}
    return method | known


def check_resumed(resumed, task, data):
    """Exit where the labels are others than before; say so where the examples are."""
    labels = resumed["task"]["labels"]
    if labels != list(task.labels):
        raise SystemExit(
            f"the run knows the labels {', '.join(labels)}, these examples have "
            f"{', '.join(task.labels)}: start anew with --init_from=BASE"
        )
    tell_changes(resumed["data"], data)


def start_from(config):
    """(model, tokenizer, number of documents it was trained on) of `init_from`."""
    if config.init_from == "scratch":
        raise SystemExit(
            "init_from=scratch: finetune.py needs a trained model, init_from=PATH; with "
            "--pretrained=False it takes its shape alone and draws the weights"
        )
    model, tokenizer, checkpoint = load_model(config.init_from)
    refuse_added(model, config.init_from)
    tokenizer = tokenizer or assumed_tokenizer(config.init_from, model)
    if model.config.n_labels:
        raise SystemExit(
            f"{config.init_from} gives labels instead of tokens; start from what it was made from"
        )
    if config.vocab_size not in (None, model.config.vocab_size):
        raise SystemExit(
            f"vocab_size={config.vocab_size} does not fit {config.init_from}, which has "
            f"{model.config.vocab_size}; leave it out"
        )
    documents = checkpoint["data"].get("train_documents", 0)
    if config.task == "chat":
        tokenizer, documents = for_chat(tokenizer), 0  # a chat begins as its template says
    if tokenizer.vocab_size > model.config.vocab_size and config.method != "full":
        raise SystemExit(
            f"{config.init_from} has no tokens that mark who speaks, and --method={config.method} "
            "cannot teach it new ones: use --method=full, or a model that was made for chat"
        )
    return model, tokenizer, documents


def for_chat(tokenizer):
    """The tokenizer with marks of who speaks, if it had none, and a turn's end as a text's end."""
    saved, n = tokenizer.to_dict(), tokenizer.vocab_size
    if chat_template_of(tokenizer) is None:
        new = {mark: n + i for i, mark in enumerate(MARKS)}
        saved["special_tokens"] = saved["special_tokens"] | new
    tokenizer = tokenizer_from_dict(saved)
    try:
        tokenizer.eot = end_of_turn(tokenizer) or tokenizer.eot
    except ValueError as error:
        raise SystemExit(str(error)) from None
    return tokenizer


def model_for_task(config, base, task, tokenizer):
    """(config with the shape of the model, the model), ready to be trained by `method`."""
    known = base.config
    if not config.pretrained and config.method != "full":
        raise SystemExit(f"pretrained=False leaves nothing for --method={config.method}: use full")
    own = ("block_size", "causal", *CHANGEABLE)
    shape = vars(known) | {name: getattr(config, name) for name in own}
    for field in dataclasses.fields(ModelConfig):
        asked, settled = getattr(config, field.name), shape[field.name]
        if asked not in (None, field.default, settled):
            print(f"{config.init_from} settles: {field.name}={settled}")
    shape |= {
        "vocab_size": max(known.vocab_size, tokenizer.vocab_size),
        "n_labels": len(task.labels),
        "tie_weights": known.tie_weights and not task.labels,
    }
    if config.redraw and config.method != "full":
        raise SystemExit(
            f"redraw={' '.join(config.redraw)} leaves parts that --method={config.method} would "
            "not train: use full"
        )
    if not config.causal and not task.labels:
        raise SystemExit("causal=False sees what it is to write; it is for labels and tags alone")
    metric = config.best_metric or task.best_metric
    config = dataclasses.replace(config, **shape, best_metric=metric)
    torch.manual_seed(config.seed)
    if config.pretrained:
        context = max(config.block_size, known.block_size)  # what it could, it still can
        model = fitted(base, model_part(config, block_size=context))
        if config.redraw:
            redraw(model, config.redraw)
    else:
        model = Transformer(model_part(config))
    put_in(model, settings_of(config))
    return config, model


def redraw(model, parts):
    """Give these parts of every block, their norms with them, weights as before any training."""
    drawn = Transformer(model.config).state_dict()
    anew = [n for n in drawn if n.startswith("blocks.") and n.split(".")[2].startswith(parts)]
    model.load_state_dict({name: drawn[name] for name in anew}, strict=False)
