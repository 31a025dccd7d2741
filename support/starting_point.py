"""What a run starts from: drawn weights, its own checkpoint, or somebody's trained model."""

import dataclasses
import sys

import torch

from model import ModelConfig, Transformer
from support.checkpoint import (
    LAST,
    find_checkpoint,
    load_model,
    read_checkpoint,
    refuse_added,
    set_aside,
)
from support.config import config_files, load_config, typed_options
from support.report import check_tracker
from support.tokenizer import same_tokens
from support.weights import CHANGEABLE, assembled, averaged, fitted

LOOKED_AT = 1_000_000  # tokens at the beginning of each file


def read_config(Config, default_file, fixed=("optimizer",)):
    """(config, None), or for `--init_from=resume` (what was stored and typed, the checkpoint).

    A run that goes on must keep its model's shape and what `fixed` names.
    """
    config = load_config(Config, default_file=default_file)
    if config.init_from != "resume":
        check_tracker(config)
        return config, None
    resumed = read_checkpoint(find_checkpoint(config.out_dir, [LAST]))
    if "origin" in resumed:
        raise SystemExit(
            f"{config.out_dir} is a run of {resumed['origin']}'s; to go on with it, first type: "
            f"python convert.py {config.out_dir} --to=shiftgpt --out=out/NAME"
        )
    out_dir, script = config.out_dir, "finetune.py" if "task" in resumed else "train.py"
    if ("task" in resumed) != hasattr(config, "task"):
        raise SystemExit(
            f"{out_dir} is a run of {script}'s; to go on with it: "
            f"python {script} --init_from=resume --out_dir={out_dir}"
        )
    print(f"going on with {out_dir} at step {resumed['step']}, with its settings")
    files = config_files(sys.argv[1:], Config)
    for file in files.values():
        print(f"{file} is not read again: type what is to be different")
    try:
        stored = Config(**resumed["train_config"])
    except (TypeError, ValueError) as error:
        raise SystemExit(
            f"{out_dir} was trained with another version of this project ({error}); go on with "
            f"that, or from its weights in a new run: --init_from={out_dir} --out_dir={out_dir}_2"
        ) from None
    typed = [word for i, word in enumerate(sys.argv[1:]) if i not in files]
    config = load_config(Config, typed, default=stored)
    config = dataclasses.replace(config, out_dir=out_dir)
    for name in [*(field.name for field in dataclasses.fields(ModelConfig)), *fixed]:
        old, new = getattr(stored, name), getattr(config, name)
        if old != new:
            keeps = name in (*fixed, *CHANGEABLE)  # in a new run from the weights of this one
            raise SystemExit(
                f"{name}={new} does not go on with {config.out_dir}, which has {old}; leave "
                f"it, or start anew: --init_from={config.out_dir if keeps else Config.init_from}"
            )
    check_tracker(config)
    return config, resumed


def check_accumulation(config, world):
    """Exit where the micro-batches of a step cannot be shared out among the processes."""
    if config.gradient_accumulation_steps % world.size:
        raise SystemExit(
            f"gradient_accumulation_steps={config.gradient_accumulation_steps} must be a "
            f"multiple of the {world.size} processes that share it"
        )


def make_room(config, world, resumed):
    """Move another run out of the way, once all processes have read what they need of it."""
    world.wait()
    if world.is_main and not resumed:
        set_aside(config.out_dir)


def make_model(config, dataset, resumed):
    """(config, model): its weights drawn, as they were, or taken from another run."""
    if not resumed and config.init_from != "scratch":
        return pretrained_model(config, dataset)
    if config.n_labels:
        raise SystemExit("n_labels is for finetune.py, which counts the labels; leave it out")
    vocab_size = config.vocab_size or dataset.vocab_size
    if dataset.tokenizer and vocab_size < dataset.vocab_size:
        raise SystemExit(
            f"vocab_size={vocab_size} is too small for {dataset.path}, whose tokenizer has "
            f"{dataset.vocab_size}; leave it out, or give at least that"
        )
    shape = model_part(config, vocab_size=vocab_size)
    if resumed:
        shape.block_size = resumed["model_config"]["block_size"]
        check_tokenizer(resumed["tokenizer"], dataset, config.out_dir)
        tell_changes(resumed["data"], dataset.describe())
        weights = averaged(resumed) if config.eval_only else resumed["model"]
        try:
            return config, assembled(shape, weights)
        except RuntimeError as error:
            raise SystemExit(
                f"the weights in {config.out_dir} do not fit the model in model.py: {error}"
            ) from None
    check_ids(dataset, vocab_size)
    torch.manual_seed(config.seed)
    return config, Transformer(shape)


def model_part(config, **changes):
    """The fields of `config` that shape the model, as a `ModelConfig`."""
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    return ModelConfig(**{name: getattr(config, name) for name in names} | changes)


def pretrained_model(config, dataset):
    """(config, model) with the weights and the shape of the run or checkpoint `init_from`.

    It may be trained on shorter windows than it can look back on; it keeps its own context then.
    """
    model, tokenizer, _ = load_model(config.init_from)
    refuse_added(model, config.init_from)
    check_tokenizer(tokenizer and tokenizer.to_dict(), dataset, config.init_from)
    if dataset.tokenizer and dataset.vocab_size > model.config.vocab_size:
        raise SystemExit(
            f"{config.init_from} knows {model.config.vocab_size} tokens and came without a "
            f"tokenizer, and {dataset.path} has {dataset.vocab_size}: it cannot learn from them"
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
    settled = ", ".join(f"{name}={value}" for name, value in changed.items())
    print(f"{config.init_from} settles: {settled or 'nothing that differs'}")
    return config, fitted(model, model_part(config, block_size=model.config.block_size))


def check_tokenizer(stored, dataset, source):
    """Exit where the weights know other tokens than the data have."""
    if stored and dataset.tokenizer and not same_tokens(stored, dataset.tokenizer.to_dict()):
        raise SystemExit(
            f"{dataset.path} has other tokens than {source} was trained on; prepare it with: "
            f"python prepare_data.py PATH_OF_THE_TEXT --dataset=NAME --tokenizer={source}"
        )


def check_ids(dataset, vocab_size):
    """Exit where the beginning of the data has tokens that the model would not know."""
    for split in (dataset.train, dataset.val):
        for shard in split.shards:
            largest = int(shard[:LOOKED_AT].max(initial=0))
            if largest >= vocab_size:
                raise SystemExit(
                    f"{dataset.path} has the token {largest}, too large for vocab_size="
                    f"{vocab_size}; try --vocab_size={largest + 1}, or prepare the data anew"
                )


def tell_changes(then, now):
    """Say what of the data is no longer as it was when the run that now goes on began."""
    for name in then:
        if then[name] != now.get(name):
            print(f"other data than before: {name} was {then[name]} and is {now.get(name)}")
