"""What a run starts from: random weights, its own checkpoint, or a trained model."""

import dataclasses
import sys
from contextlib import suppress

import torch

from model import ModelConfig, Transformer
from support.checkpoint import (
    LAST,
    changed_code,
    code_in_use,
    find_checkpoint,
    load_base,
    read_checkpoint,
    set_aside,
)
from support.config import config_files, load_config, typed_options
from support.report import check_tracker
from support.tokenizer import same_tokens
from support.weights import CHANGEABLE, assembled, averaged, fitted

LOOKED_AT = 1_000_000  # tokens checked at the beginning of each file


def read_config(Config, default_file, fixed=("optimizer",)):
    """(config, None), or for `--init_from=resume` (stored config with typed options, checkpoint).

    A resumed run must keep its model's shape and the options that `fixed` names.
    """
    config = load_config(Config, default_file=default_file)
    code = code_in_use(hasattr(config, "task"))  # before somebody edits it
    if config.init_from != "resume":
        check_tracker(config)
        return config, None
    resumed = read_checkpoint(find_checkpoint(config.out_dir, [LAST]))
    if "origin" in resumed:
        raise SystemExit(
            f"{config.out_dir} is a run of {resumed['origin']}; to continue it, first type: "
            f"python convert.py {config.out_dir} --to=shiftgpt --out=out/NAME"
        )
    out_dir, script = config.out_dir, "finetune.py" if "task" in resumed else "train.py"
    if ("task" in resumed) != hasattr(config, "task"):
        raise SystemExit(
            f"{out_dir} is a run of {script}; to continue it: "
            f"python {script} --init_from=resume --out_dir={out_dir}"
        )
    print(f"resuming {out_dir} at step {resumed['step']}, with its settings")
    for name in changed_code(resumed.get("code", {}), code):
        print(f"the code of {name} has changed since: the run goes on with the new one")
    files = config_files(sys.argv[1:], Config)
    for file in files.values():
        print(f"{file} is not read again: type the options to change")
    try:
        stored = Config(**resumed["train_config"])
    except (TypeError, ValueError) as error:
        advice = ""
        with suppress(TypeError, ValueError):
            ModelConfig(**resumed["model_config"])
            advice = ", or start a new run from its weights: "
            advice += f"--init_from={out_dir} --out_dir={out_dir}_2"
        raise SystemExit(
            f"{out_dir} was trained with another version of this project ({error}); use that "
            f"one{advice}"
        ) from None
    typed = [word for i, word in enumerate(sys.argv[1:]) if i not in files]
    config = load_config(Config, typed, default=stored)
    config = dataclasses.replace(config, out_dir=out_dir)
    for name in [*(field.name for field in dataclasses.fields(ModelConfig)), *fixed]:
        old, new = getattr(stored, name), getattr(config, name)
        if old != new:
            keeps = name in (*fixed, *CHANGEABLE)  # in a new run from the weights of this one
            raise SystemExit(
                f"{name}={new} does not match {config.out_dir}, which has {old}; leave it out or "
                f"start a new run: --init_from={config.out_dir if keeps else Config.init_from}"
            )
    check_tracker(config)
    return config, resumed


def check_accumulation(config, world):
    """Exit if the micro-batches of a step cannot be divided evenly among the processes."""
    if config.gradient_accumulation_steps % world.size:
        raise SystemExit(
            f"gradient_accumulation_steps={config.gradient_accumulation_steps} must be a multiple "
            f"of the {world.size} processes that share it, such as "
            f"--gradient_accumulation_steps={world.size} with a smaller --batch_size"
        )


def make_room(config, world, resumed):
    """Move an earlier run out of the way, once all processes have read what they need of it."""
    world.wait()
    if world.is_main and not resumed:
        set_aside(config.out_dir)


def make_model(config, dataset, resumed):
    """(config, model) with weights that are random, resumed, or taken from another run."""
    if not resumed and config.init_from != "scratch":
        return pretrained_model(config, dataset)
    if config.n_labels:
        raise SystemExit("n_labels is for finetune.py, which counts the labels; leave it out")
    vocab_size = config.vocab_size or dataset.vocab_size
    if resumed:
        vocab_size = resumed["model_config"]["vocab_size"]
        check_tokenizer(resumed["tokenizer"], dataset, config.out_dir)
    if dataset.tokenizer and vocab_size < dataset.vocab_size:
        raise SystemExit(
            f"vocab_size={vocab_size} is too small for {dataset.path}, whose tokenizer has "
            f"{dataset.vocab_size}; leave it out, or set at least that"
        )
    check_ids(dataset, vocab_size)
    shape = model_part(config, vocab_size=vocab_size)
    if resumed:
        shape.block_size = resumed["model_config"]["block_size"]
        tell_changes(resumed["data"], dataset.describe())
        weights = averaged(resumed) if config.eval_only else resumed["model"]
        try:
            return config, assembled(shape, weights)
        except RuntimeError as error:
            raise SystemExit(
                f"the weights in {config.out_dir} do not fit the model in model.py: {error}"
            ) from None
    torch.manual_seed(config.seed)
    return config, Transformer(shape)


def model_part(config, **changes):
    """The fields of `config` that shape the model, as a `ModelConfig`."""
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    return ModelConfig(**{name: getattr(config, name) for name in names} | changes)


def pretrained_model(config, dataset):
    """(config, model) with the weights and the shape of the run or checkpoint `init_from`.

    The model may be trained on windows shorter than its context; it keeps its context then.
    """
    model, tokenizer, _ = load_base(config.init_from)
    check_tokenizer(tokenizer and tokenizer.to_dict(), dataset, config.init_from)
    if dataset.tokenizer and dataset.vocab_size > model.config.vocab_size:
        raise SystemExit(
            f"{config.init_from} has {model.config.vocab_size} tokens and no tokenizer, but "
            f"{dataset.path} has {dataset.vocab_size} tokens: it cannot be trained on them"
        )
    check_ids(dataset, model.config.vocab_size)
    shape = {f.name: getattr(model.config, f.name) for f in dataclasses.fields(ModelConfig)}
    shape["block_size"] = min(config.block_size, model.config.block_size)
    changed = {k: v for k, v in shape.items() if k not in CHANGEABLE and v != getattr(config, k)}
    for name in typed_options(sys.argv[1:]).keys() & changed.keys():
        raise SystemExit(
            f"{name}={getattr(config, name)} does not fit {config.init_from}, which has "
            f"{changed[name]}: leave it out"
        )
    config = dataclasses.replace(config, **changed)
    taken = ", ".join(f"{name}={value}" for name, value in changed.items())
    print(f"taken from {config.init_from}: {taken or 'nothing that differs'}")
    return config, fitted(model, model_part(config, block_size=model.config.block_size))


def check_tokenizer(stored, dataset, source):
    """Exit if the data have different tokens from those that the weights were trained on."""
    if stored and dataset.tokenizer and not same_tokens(stored, dataset.tokenizer.to_dict()):
        raise SystemExit(
            f"{dataset.path} has different tokens from {source}'s; prepare it with: "
            f"python prepare_data.py PATH_OF_THE_TEXT --dataset=NAME --tokenizer={source}"
        )


def check_ids(dataset, vocab_size):
    """Exit if the beginning of the data has tokens that are not in the model's vocabulary."""
    for split in (dataset.train, dataset.val):
        for shard in split.shards:
            largest = int(shard[:LOOKED_AT].max(initial=0))
            if largest >= vocab_size:
                raise SystemExit(
                    f"{dataset.path} has the token {largest}, too large for vocab_size="
                    f"{vocab_size}; try --vocab_size={largest + 1}, or prepare the data again"
                )


def tell_changes(then, now):
    """Print what has changed in the data since the resumed run began."""
    for name in then:
        if then[name] != now.get(name):
            print(f"the data have changed: {name} was {then[name]} and is now {now.get(name)}")
