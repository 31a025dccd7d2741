"""Setting up a fine-tuning run: load the model, task and examples, check them, print a summary."""

import dataclasses
import json
import math
import sys
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from model import IGNORED, ModelConfig, Transformer
from support.adapters import adds, fingerprint_of, freeze_in_16_bits, put_in, settings_of
from support.chat import MARKS, converses, end_of_turn
from support.checkpoint import load_base, model_in, source_of
from support.config import typed_options
from support.examples import open_examples
from support.labelling import is_chinese_word
from support.metrics import cut
from support.report import show_shift
from support.starting_point import check_tokenizer, model_part, tell_changes
from support.tasks import Task, open_task
from support.token_files import Dataset, open_dataset
from support.tokenizer import tokenizer_from_dict
from support.tokenizer_files import assumed_tokenizer, chat_template_of
from support.weights import CHANGEABLE, averaged, fitted

KEPT = ("model_config", "tokenizer", "data", "task", "method", "of_base")  # by a resumed run
FEW_STEPS, FEW_TESTS = 20, 20  # fewer updates teach little, fewer test examples say little


class Start(NamedTuple):
    """Everything that a run needs besides its config."""

    model: nn.Module
    task: Task
    lines: dict | None  # the examples: {"train": […], "val": […], "test": […]}
    dataset: Dataset | None  # or a folder of tokens
    metadata: dict  # what else a checkpoint stores


def begin(config, resumed, world):
    """(config with the model's shape and the task's metric, Start) of a new or a resumed run.

    What is added to a model is trained in float32, and the model itself kept in 16 bits where it is
    published and multiplied in such.
    """
    method = resumed["method"] if resumed else settings_of(config)
    in_16_bits = adds(method) and world.dtype != torch.float32 and not config.fp8
    dtype = None if in_16_bits else torch.float32  # None: as the base's weights are stored
    config, start = go_on(config, resumed, dtype) if resumed else begin_anew(config, dtype)
    if in_16_bits:
        freeze_in_16_bits(start.model, world.dtype)
    return config, start


def begin_anew(config, dtype):
    """`begin` for a new run from a trained model."""
    base, tokenizer, documents, in_chat = start_from(config, dtype)
    config = dataclasses.replace(config, block_size=block_size_for(config, base))
    lines, dataset, data = examples_or_tokens(config, tokenizer, documents)
    task = open_task(config, lines, tokenizer, documents, in_chat)
    config, model = model_for_task(config, base, task, tokenizer)
    metadata = {
        "model_config": dataclasses.asdict(model.config),
        "tokenizer": tokenizer.to_dict(),
        "data": data,
        "task": describe_answers(config, task, lines),
        "method": describe_method(config, base),
    }
    return config, Start(model, task, lines, dataset, metadata)


def go_on(config, resumed, dtype):
    """`begin` for a run resumed from its last checkpoint."""
    tokenizer = tokenizer_from_dict(resumed["tokenizer"])
    documents = resumed["data"]["train_documents"]
    lines, dataset, data = examples_or_tokens(config, tokenizer, documents)
    task = open_task(config, lines, tokenizer, documents, resumed["task"]["task"] == "chat")
    check_resumed(resumed, task, data)
    metadata = {name: resumed[name] for name in KEPT if name in resumed}
    weights = averaged(resumed) if config.eval_only else resumed["model"]
    model = model_in(resumed | {"model": weights}, dtype=dtype)
    return config, Start(model, task, lines, dataset, metadata)


def examples_or_tokens(config, tokenizer, documents):
    """(examples, None, description) or (None, Dataset, description), for the checkpoint."""
    if is_token_folder(config.dataset):
        dataset = open_tokens(config, tokenizer)
        return None, dataset, dataset.describe() | {"train_documents": documents}
    how = config.format, config.fields, config.val_fraction, config.encoding
    lines = open_examples(config.dataset, config.task, *how)
    if config.document_mask:
        raise SystemExit("document_mask=True: examples never attend to each other; leave it out")
    return lines, None, describe_examples(config, lines, documents)


def is_token_folder(name):
    """Whether `dataset` is a folder that prepare_data.py, nanoGPT or llm.c wrote."""
    folders = Path("data") / name, Path(name)
    return any((f / "meta.json").is_file() or any(f.glob("*.bin")) for f in folders)


def open_tokens(config, tokenizer):
    """The Dataset of a folder of tokens; exits unless its tokenizer is the model's."""
    if config.task != "text":
        raise SystemExit(
            f"{config.dataset} is a folder of tokens, for --task=text; --task={config.task} "
            "needs examples, as in data/stories/tasks"
        )
    dataset = open_dataset(config.dataset)
    check_tokenizer(tokenizer.to_dict(), dataset, source_of(config))
    return dataset


def block_size_for(config, base):
    """The context length of a run: the model's, or what is asked for.

    More than the model's has to be typed, and is refused if it has learned positions.
    """
    known, asked = base.config.block_size, config.block_size or base.config.block_size
    if asked <= known or "block_size" not in typed_options(sys.argv[1:]):
        return min(asked, known)
    if base.config.position == "learned":
        raise SystemExit(
            f"block_size={asked}: {config.init_from} has learned embeddings for only {known} "
            f"positions; use --block_size={known}"
        )
    print(f"block_size={asked}: positions beyond {known} are new to {config.init_from}")
    return asked


def describe_examples(config, lines, documents):
    """What a checkpoint stores about its examples: enough to detect that they have changed."""
    content = json.dumps(lines, sort_keys=True).encode()
    return {
        "dataset": str(config.dataset),
        "examples": len(lines["train"]),
        "examples_hash": blake2b(content, digest_size=8).hexdigest(),
        "train_documents": documents,
    }


def describe_answers(config, task, lines):
    """What a checkpoint stores about the task: everything needed to answer."""
    kind = task.asked_as or config.task
    answers = {"task": kind, "generative": config.generative, "labels": list(task.labels)}
    if config.task == "tagging":
        words = chain.from_iterable(line["tokens"] for line in lines["train"])
        answers["blanks"] = any(map(is_chinese_word, words))
    return answers


def describe_method(config, base):
    """What a checkpoint stores about its method, and about the base that an adapter needs."""
    method = settings_of(config)
    if not adds(method):
        return method
    path = Path(config.init_from)
    folder = path.parent if path.is_file() else path
    if folder.resolve() == Path(config.out_dir).resolve():
        raise SystemExit(
            f"out_dir={config.out_dir} holds the base model, which --method={config.method} "
            f"needs: choose another, --out_dir={config.out_dir}_{config.method}"
        )
    known = {"base": config.init_from, "base_fingerprint": fingerprint_of(base.state_dict())}
    return method | known


def check_resumed(resumed, task, data):
    """Exit if the labels differ from those of the run; report it if the examples do."""
    labels = resumed["task"]["labels"]
    if labels != list(task.labels):
        raise SystemExit(
            f"the run has the labels {', '.join(labels)}, these examples have "
            f"{', '.join(task.labels)}: start a new run with --init_from=BASE"
        )
    tell_changes(resumed["data"], data)


def start_from(config, dtype):
    """(model, tokenizer, number of documents that it was trained on, whether it is to converse) of
    `init_from`.
    """
    if config.init_from == "scratch":
        raise SystemExit(
            "init_from=scratch: finetune.py needs a trained model, --init_from=PATH; with "
            "--pretrained=False it uses only its shape and initialises the weights randomly"
        )
    model, tokenizer, checkpoint = load_base(config.init_from, dtype)
    tokenizer = tokenizer or assumed_tokenizer(config.init_from, model)
    if config.vocab_size not in (None, model.config.vocab_size):
        raise SystemExit(
            f"vocab_size={config.vocab_size} does not fit {config.init_from}, which has "
            f"{model.config.vocab_size}; leave it out"
        )
    documents = checkpoint["data"].get("train_documents", 0)
    keeps_form = config.task == "preference"  # in which the base is asked
    in_chat = config.task == "chat" or (keeps_form and converses(tokenizer, checkpoint))
    if in_chat:
        tokenizer, documents = for_chat(tokenizer), 0  # the chat template says how a text begins
    if tokenizer.vocab_size > model.config.vocab_size and config.method != "full":
        raise SystemExit(
            f"{config.init_from} has no special tokens for chat, and --method={config.method} "
            "cannot train new ones: use --method=full, or a chat model"
        )
    check_ending(config, model, checkpoint, tokenizer)
    return model, tokenizer, documents, in_chat


def check_ending(config, base, checkpoint, tokenizer):
    """Exit if the base has never seen the token that ends an answer, and its head is frozen.

    Such a head scores the token like any other that never occurred, whatever is added to the model.
    """
    if not adds(settings_of(config)):
        return
    task = checkpoint.get("task", {}).get("task")  # that the base was fine-tuned for
    # Nothing is known about the documents of other people's tokens, which have no tokenizer.
    one_text = checkpoint.get("tokenizer") and checkpoint["data"].get("train_documents", 2) < 2
    other = "full" if base.config.tie_weights else "full or last"
    if config.task == "chat" and task != "chat" and not tokenizer.chat_template:
        lesson = "chat"
    elif (config.task == "completion" or config.generative) and task is None and one_text:
        lesson = "end a text"
    else:
        return
    raise SystemExit(
        f"{config.init_from} was not taught to {lesson}, and --method={config.method} does not "
        f"train the head, which has to learn the token that ends an answer: use --method={other}, "
        f"or a base that was taught to {lesson}"
    )


def for_chat(tokenizer):
    """The tokenizer with special tokens for chat, added if missing; its `eot` ends a turn."""
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
    """(config with the model's shape, the model), ready to be trained with `method`."""
    known = base.config
    if not config.pretrained and config.method != "full":
        raise SystemExit(
            f"pretrained=False leaves --method={config.method} nothing to build on: "
            "use --method=full"
        )
    own = ("block_size", "causal", *CHANGEABLE)
    shape = vars(known) | {name: getattr(config, name) for name in own}
    for field in dataclasses.fields(ModelConfig):
        asked, settled = getattr(config, field.name), shape[field.name]
        if asked not in (None, field.default, settled):
            print(f"{config.init_from} determines {field.name}={settled}")
    shape |= {
        "vocab_size": max(known.vocab_size, tokenizer.vocab_size),
        "n_labels": len(task.labels),
        "tie_weights": known.tie_weights and not task.labels,
    }
    if config.redraw and config.method != "full":
        raise SystemExit(
            f"redraw={' '.join(config.redraw)} reinitialises parts that "
            f"--method={config.method} does not train: use --method=full"
        )
    if not config.causal and not task.labels:
        raise SystemExit("causal=False sees the text to generate; it is for labels and tags only")
    metric = config.best_metric or task.best_metric
    config = dataclasses.replace(config, **shape, best_metric=metric)
    torch.manual_seed(config.seed)
    if config.pretrained:
        context = max(config.block_size, known.block_size)  # keep the longer one
        model = fitted(base, model_part(config, block_size=context))
        if config.redraw:
            redraw(model, config.redraw)
    else:
        model = Transformer(model_part(config))
    put_in(model, settings_of(config))
    return config, model


def redraw(model, parts):
    """Reinitialise these parts of every block, along with their norms."""
    fresh = Transformer(model.config).state_dict()
    names = [n for n in fresh if n.startswith("blocks.") and n.split(".")[2].startswith(parts)]
    model.load_state_dict({name: fresh[name] for name in names}, strict=False)


# ------------------------------------------------------------------------- what a run prints


def show_examples(task, lines, examples, counts, config):
    """Print how many examples there are, and how many do not fit."""
    n_targets = sum(sum(t != IGNORED for t in example.targets) for example in examples)
    sizes = ", ".join(f"{len(of_split):,} {split}" for split, of_split in lines.items())
    print(f"examples: {sizes}; {n_targets:,} targets per epoch")
    done = "split" if task.long == "chunk" or task.splits else task.cut
    if counts["long"]:
        print(f"{counts['long']:,} are longer than block_size={config.block_size}: {done}")
    if counts["without a target"]:
        print(f"{counts['without a target']:,} {task.nothing} and are left out")
    if len(lines["test"]) < FEW_TESTS:
        print(f"{len(lines['test'])} test examples are too few to tell a good model from a bad one")


def show_example(task, batch):
    """Print what the first example of a batch teaches: each input above its target."""
    for title, shown in task.to_show(batch).items():
        if title:
            print(f"  {title}")
        show_shift(shown, task.tokenizer, task.labels)


def tell_few_steps(config, n):
    """Warn if `n` examples make too few updates to learn from."""
    if config.max_iters >= FEW_STEPS:
        return
    size = min(config.batch_size, 4)
    more = math.ceil(3 * FEW_STEPS * size / n)
    options = f"--batch_size={size} --epochs={more}"
    if config.gradient_accumulation_steps > 1:
        options += " --gradient_accumulation_steps=1"
    print(
        f"{n:,} examples make {config.max_iters:,} updates of batch_size={config.batch_size}: "
        f"too few to learn from; try {options}"
    )


def show_weights(model):
    """Print how many of the model's weights are trained."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    print(f"trained weights: {trained:,} of {total:,} ({trained / total:.2%})")


def shown(answer):
    """An answer on one line, shortened."""
    if isinstance(answer, dict):  # of a choice, with its scores
        answer = answer["choice"]
    text = " ".join(answer) if isinstance(answer, list) else answer.strip().replace("\n", " / ")
    return cut(text, 70)


def short_start(start):
    """A short test text that is easy to type, to try the model with; … if there is none."""
    task = start.task
    for line in start.lines["test"] if start.lines else []:
        text = line[task.noisy_field] if task.noisy_field else " ".join(line.get("tokens", ()))
        if 0 < len(text) < 60 and not set(text) & set('\n"\\$`!%'):
            return text
    return "…"


def table(rows):
    """{model: {metric: value}} as text: a line for each metric, a column for each model."""
    first, *others = rows
    heads = [first, *(f"({i})" for i in range(1, len(rows)))]
    lines = [" " * 18 + "".join(f"{head:>12}" for head in heads)]
    for metric in rows[first]:
        values = [row.get(metric, math.nan) for row in rows.values()]
        cells = ["" if math.isnan(value) else f"{value:.4g}" for value in values]
        lines.append(f"{metric.replace('_', ' '):<18}" + "".join(f"{cell:>12}" for cell in cells))
    legend = [f"({i}) {name}" for i, name in enumerate(others, 1)]
    return "\n".join(line.rstrip() for line in [*lines, "", *legend])
