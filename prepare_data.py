"""Turn text into tokens: `python prepare_data.py PATH... --dataset=NAME` writes data/NAME.

Without arguments it writes data/stories, a generated corpus that needs no connection. The text is
read twice, in pieces, so its size does not matter: first as far as needed to build the tokenizer
and plan the split, then to encode it. The result replaces an older data/NAME at the very end, or
not at all.
"""

import errno
import json
import os
import sys
import tempfile
import textwrap
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

from support.config import load_config
from support.corpora import FINEWEB_EDU_URL, NAMES, fineweb_edu_shards, open_corpus
from support.files import (
    ON_WINDOWS,
    check_encoding,
    replacing,
    replacing_files,
    replacing_tree,
    until_nobody_reads,
)
from support.metrics import width
from support.tokenizer import (
    byte_tokenizer,
    char_tokenizer,
    cut,
    fingerprint,
    tiktoken_tokenizer,
    train_bpe,
    visible,
)
from support.tokenizer_files import load_tokenizer, may_be_on_the_hub

MODELS = "ckpt.pt", "best.pt", "config.json"  # files that tell a folder with a model
FOR_A_PUBLISHED_MODEL = " --optimizer=adamw --learning_rate=3e-5"
DATA = Path("data")
FORMAT = 1
TIKTOKEN = ("gpt2", "cl100k_base", "o200k_base")
# (bytes, size): bpe's vocabulary size for text with fewer bytes than this (more for Chinese). A
# model learns a token by seeing it often, and in a small model the vocabulary's embedding rows are
# most of the parameters.
VOCAB_SIZES = ((2_000_000, 1024), (10_000_000, 2048), (float("inf"), 4096))
FEWEST = VOCAB_SIZES[0][1]
# Merges are learned from about this much text, sampled evenly from all of it: more changes little.
TRAINING_BYTES = 100_000_000
# With fewer documents, whole documents cannot add up to a validation set of the requested size.
FEWEST_DOCUMENTS = 100
# An input and its target: with less there is nothing to train on.
FEWEST_TOKENS = 2
WORTH_A_WARNING = 0.01  # of the characters are unknown
STEPS, TOKENS_PER_STEP = 660, 12 * 256  # of config/stories.py
FEWEST_STEPS = 50
# Slots for document hashes, 32 MB in all, to find duplicates.
REMEMBERED = 2**22
# One thread encodes about this many characters at a time.
BATCH_CHARACTERS = 100_000
MOST_THREADS = 8
COUNTED_AT_ONCE = 10_000_000
COLUMNS = 80
# Options that some corpora do not read, and options that only some corpora read.
NOT_READ_BY = {
    "encoding": set(NAMES),
    "field": set(NAMES),
    "val_fraction": {"stories", "python", "tinystories", "fineweb_edu"},
    "vocab_size": {"fineweb_edu"},
}
READ_BY = {
    "megabytes": {"stories"},
    "seed": {"stories"},
    "language": {"stories"},
    "shards": {"fineweb_edu"},
}
# The config to train with on these folders of data/; config/stories.py on all others.
RECIPES = {
    "shakespeare_char": "config/shakespeare_char.py",
    "python": "config/python_code.py",
    "fineweb_edu": "config/gpt2_124m.py",
}

Paths = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH")]


@dataclass
class PrepareConfig:
    """Turn text into tokens: data/NAME/train.bin, val.bin and meta.json.

    - text: .txt .md .py .jsonl (field `text`), .gz of these, folders, - for stdin
    - local corpora: stories (generated), python (the standard library)
    - corpora to download: shakespeare, tinystories, fineweb_edu (as GPT-2 tokens)
    """

    paths: Paths = ("stories",)  # text, or the name of a corpus
    dataset: str | None = None  # the folder in data/; None: named after the first path
    tokenizer: str = "bpe"  # bpe char byte gpt2 cl100k_base o200k_base; PATH or hub/NAME of another
    vocab_size: int | None = None  # of bpe; None: 1024 to 4096 depending on text size, or more
    val_fraction: float = 0.1  # share of text for validation, unless the corpus has its own
    encoding: str = "utf-8"  # of text files; older Chinese files use gb18030 or cp950
    field: str = "text"  # of .jsonl: the name of the field that holds the text
    megabytes: float = 12.0  # stories: size of the training text
    seed: int = 1337  # stories: random seed
    language: Literal["both", "en", "zh"] = "both"  # stories: English, Chinese or both
    shards: int = 10  # fineweb_edu: number of training shards, 1 to 99, 200 MB each


def main(argv=None):
    config = load_config(PrepareConfig, argv, takes_files=False)
    try:
        check(config)
        with until_nobody_reads():
            if "fineweb_edu" in config.paths:
                prepare_fineweb_edu(config)
            else:
                prepare(config)
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; nothing was changed") from None
    except ValueError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error
        raise SystemExit(f"{reason}; nothing was changed") from error


def check(config):
    """Raise ValueError for options that cannot work, before anything is read."""
    known = (*TIKTOKEN, "bpe", "char", "byte")
    on_the_hub = "/" in config.tokenizer and may_be_on_the_hub(config.tokenizer)
    if not (config.tokenizer in known or Path(config.tokenizer).exists() or on_the_hub):
        expected = f"{', '.join(known)}, or the path of a tokenizer, a data folder or a run"
        raise ValueError(f"tokenizer={config.tokenizer}: expected {expected}")
    if config.vocab_size is not None and config.tokenizer != "bpe":
        raise ValueError(
            f"vocab_size={config.vocab_size} is only for --tokenizer=bpe; "
            f"{config.tokenizer} has a fixed size: leave --vocab_size out"
        )
    if not 0 < config.val_fraction < 1:
        raise ValueError(f"val_fraction={config.val_fraction}: expected more than 0, less than 1")
    if not 0 < config.megabytes < 1e6:
        raise ValueError(f"megabytes={config.megabytes}: expected more than 0, less than a million")
    if not config.paths or "" in config.paths:
        raise ValueError(f"nothing to prepare: name files, folders or one of {', '.join(NAMES)}")
    check_encoding(config.encoding)
    for name, corpora in NOT_READ_BY.items():
        value, named = getattr(config, name), corpora & set(config.paths)
        if named and value != getattr(PrepareConfig, name):
            raise ValueError(
                f"{name}={value} is not for {min(named)}, which has its own: leave it out"
            )
    for name, readers in READ_BY.items():
        value = getattr(config, name)
        if value != getattr(PrepareConfig, name) and not readers & set(config.paths):
            only = " or ".join(sorted(readers))
            raise ValueError(f"{name}={value} is only for {only}: leave it out")


def prepare(config):
    """Write data/NAME from text and print a report."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        language = None if config.language == "both" else config.language
        knobs = (config.megabytes, config.seed, language, config.encoding, config.field)
        corpus = open_corpus(config.paths, DATA, scratch, *knobs)
        folder = folder_for(config.dataset or own_name(corpus, config.paths))
        replaces = ", replacing an older one" if (folder / "meta.json").exists() else ""
        survey = Counter()
        texts = first_pass(corpus, survey)
        tokenizer = make_tokenizer(config, corpus, texts)
        plan = make_plan(corpus, texts, survey, config.val_fraction)
        texts.close()  # and with it the file that it reads
        if not survey["characters"]:
            raise ValueError(f"there is no text in {', '.join(config.paths)}: everything is empty")
        if tokenizer.eot is None and tokenizer.bos is None and survey["documents"] > 1:
            nothing = "nothing separates one document from the next"
            print(f"the tokenizer has no end-of-text token: {nothing}", file=sys.stderr)
        tasks = corpus.tasks()
        meta, dropped = write(folder, corpus, tokenizer, plan, tasks)
    print(f"{folder} is ready, after {time.monotonic() - started:.1f} s{replaces}.\n")
    print(report(meta, tokenizer, first_tokens(folder / "train.bin", meta), dropped, tasks))
    n_tokens = meta["splits"]["train"]["tokens"]
    print(f"\nNext: {next_command(folder.name, config.tokenizer, n_tokens)}")


def own_name(corpus, paths):
    """The default name of a corpus; a user's file must not take that of a named corpus."""
    if corpus.name.lower() in NAMES and corpus.name not in paths:  # not every disk has both cases
        raise ValueError(
            f"{paths[0]} would become data/{corpus.name}, which belongs to another corpus; "
            f"give it a name, such as --dataset=my_{corpus.name}"
        )
    return corpus.name


def folder_for(name):
    """data/NAME; raises ValueError unless NAME is a plain folder name."""
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"dataset={name}: expected a name, such as --dataset=my_text")
    return DATA / name


# --------------------------------------------------------------------- first pass: count and learn


def first_pass(corpus, survey):
    """Yield every piece of text once, counting documents and characters in the Counter `survey`."""
    with progress_bar(corpus, "reading") as bar:
        for document, _ in distinct(corpus, survey):
            survey["documents"] += 1
            for piece in pieces_of(document, bar):
                survey["characters"] += len(piece)
                yield piece


def progress_bar(corpus, verb):
    """A progress bar over the bytes of the source; hidden if stderr is not a terminal."""
    return tqdm(total=corpus.size, unit="B", unit_scale=True, desc=verb, disable=None, leave=False)


def pieces_of(document, bar):
    """The document's text in pieces that can be encoded independently."""

    def texts():
        for text, size in document.pieces:
            bar.update(size)
            yield text

    return cut(texts())


def distinct(corpus, survey):
    """Yield (document, its 64-bit hash) for each that has text and is not a copy of an earlier one.

    The table of hashes has a fixed size: a document is forgotten when another one takes its slot,
    so among many millions a copy may slip through.
    """
    seen = np.zeros(REMEMBERED, np.uint64)
    for document in corpus.documents():
        text_hash, has_text = blake2b(digest_size=8), False
        for text, _ in document.pieces:
            text_hash.update(text.encode())
            has_text = has_text or bool(text)
        number = int.from_bytes(text_hash.digest(), "big")
        if has_text and seen[number % REMEMBERED] != number:
            seen[number % REMEMBERED] = number
            yield document, number
        elif has_text:
            survey["duplicates"] += 1


def make_tokenizer(config, corpus, texts):
    """The tokenizer that the config asks for; one that is learned reads the texts."""
    if config.tokenizer == "bpe":
        fitting = next(size for limit, size in VOCAB_SIZES if corpus.size < limit)
        wanted = fitting if config.vocab_size is None else config.vocab_size
        evenly = islice(texts, 0, None, 1 + corpus.size // TRAINING_BYTES)
        tokenizer = train_bpe(evenly, wanted, at_least=config.vocab_size is None)
        if tokenizer.vocab_size < wanted and corpus.size:
            fewer = f"the vocabulary is smaller than {wanted:,}"
            print(f"the text has no more pairs to merge: {fewer}", file=sys.stderr)
        if config.vocab_size is None and tokenizer.vocab_size > 1.5 * wanted and wanted == FEWEST:
            more = "with so little Chinese, a model learns more from characters: --tokenizer=char"
            print(more, file=sys.stderr)
        return tokenizer
    if config.tokenizer == "char":
        return char_tokenizer(texts)
    if config.tokenizer == "byte":
        return byte_tokenizer()
    if config.tokenizer in TIKTOKEN:
        return tiktoken_tokenizer(config.tokenizer)
    return load_tokenizer(config.tokenizer)


# ------------------------------------------------------------------------ assigning text to splits


@dataclass
class Plan:
    """How the text is split, unless its documents bring their own split."""

    rule: str  # in words
    fraction: float
    border: int | None = None  # the character where validation begins; None: by whole documents


def make_plan(corpus, texts, survey, fraction):
    """Split by the hash of whole documents or, with few documents, at the end of the text.

    Reads on in `texts` as far as needed to decide which.
    """
    while survey["documents"] < FEWEST_DOCUMENTS and next(texts, None) is not None:
        pass
    if corpus.split_rule:
        return Plan(corpus.split_rule, fraction)
    if survey["documents"] >= FEWEST_DOCUMENTS:
        return Plan(f"whole documents by hash, {fraction:.3g} of them for val", fraction)
    # nanoGPT's formula: tiny Shakespeare is split at the same character.
    border = int(survey["characters"] * (1 - fraction))
    few = f"fewer than {FEWEST_DOCUMENTS} documents"
    return Plan(f"val is the last {fraction:.3g} of the text ({few})", fraction, border)


class Piece(NamedTuple):
    """A piece of text for one split, or (`ends`) the end of a document."""

    split: str
    text: str
    starts: bool = False
    ends: bool = False
    bits: float = 0.0


def split_pieces(corpus, plan, survey):
    """Yield every piece of text with its split and, after each document, its end."""
    position = 0
    with progress_bar(corpus, "encoding") as bar:
        for document, number in distinct(corpus, survey):
            last = None
            for piece in pieces_of(document, bar):
                for split, text in assign(plan, document, number, position, piece):
                    yield Piece(split, text, starts=split != last)
                    last = split
                position += len(piece)
            yield Piece(last, "", ends=True, bits=document.bits)


def assign(plan, document, number, position, piece):
    """The piece as [(split, text)]; two entries if the border runs through it."""
    if document.split:
        return [(document.split, piece)]
    if plan.border is None:
        return [("val" if number < plan.fraction * 2**64 else "train", piece)]
    inside = min(max(plan.border - position, 0), len(piece))
    halves = [("train", piece[:inside]), ("val", piece[inside:])]
    return [(split, text) for split, text in halves if text]


# ---------------------------------------------------------------------- second pass: encode, write


def write(folder, corpus, tokenizer, plan, tasks):
    """Write the data folder; return (content of meta.json, what was dropped, in words)."""
    survey = Counter()
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    tallies = {"train": Counter(), "val": Counter()}
    batches = batched(split_pieces(corpus, plan, survey))
    with replacing_files(folder, "meta.json", "val.bin", "train.bin") as files:
        for encoded in in_order(partial(encode, tokenizer, dtype), batches):
            for split, (tokens, tally) in encoded.items():
                files[f"{split}.bin"].write(tokens)
                tallies[split].update(tally)
        for split, tally in tallies.items():
            if tally["tokens"] < FEWEST_TOKENS:
                more = "--megabytes" if corpus.split_rule else "text or another --val_fraction"
                raise ValueError(
                    f"there is too little text for two splits: {split} would have "
                    f"{tally['tokens']} tokens; use more {more}"
                )
        meta = describe(tokenizer, dtype, tallies, corpus.source, plan.rule)
        files["meta.json"].write(json.dumps(meta, indent=1).encode())
        write_tasks(folder / "tasks", tasks)
    total = tallies["train"] + tallies["val"]
    unknown, characters = total["unknown"], total["characters"]
    dropped = f"{survey['duplicates']:,} duplicate documents, {unknown:,} unknown characters"
    if unknown > WORTH_A_WARNING * characters:
        dropped += f" ({unknown / characters:.0%} of all: another --tokenizer would know more)"
    return meta, dropped


def write_tasks(folder, tasks):
    """Write the fine-tuning examples, TASK/SPLIT.jsonl; other tasks in the folder stay."""
    for task, splits in tasks.items():
        with replacing_tree(folder / task) as new:
            for split, examples in splits.items():
                lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
                (new / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def batched(pieces):
    """Yield the pieces in lists of about BATCH_CHARACTERS characters."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch


def in_order(function, items):
    """Yield function(item) for each item in order, computed by threads with a short queue."""
    threads = min(os.cpu_count() or 1, MOST_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def encode(tokenizer, dtype, batch):
    """{split: (ids, Counter)} for a list of pieces.

    A document begins with the tokenizer's `bos` and ends with its `eot`, if it has them.
    """
    first, last = ([] if t is None else [t] for t in (tokenizer.bos, tokenizer.eot))
    parts, tallies = {"train": [], "val": []}, {"train": Counter(), "val": Counter()}
    inside = {}  # whether the first piece of a split continues a document
    for piece in batch:
        text = tokenizer.known(piece.text)
        if not piece.ends:
            inside.setdefault(piece.split, not piece.starts)
        parts[piece.split] += last if piece.ends else [*(first if piece.starts else []), text]
        tally = tallies[piece.split]
        tally["bytes"] += len(text.encode())
        tally["documents"] += piece.starts
        tally["characters"] += len(piece.text)
        tally["unknown"] += len(piece.text) - len(text)
        tally["bits"] += piece.bits
    encoded = {}
    for split in parts:
        tokens = tokenizer.encode_all(parts[split], inside.get(split))
        tokens = as_ids(tokens, tokenizer, dtype)
        tallies[split]["tokens"] = len(tokens)
        encoded[split] = (tokens, tallies[split])
    return encoded


def as_ids(tokens, tokenizer, dtype):
    """The tokens in the dtype of the file; checked, as numpy silently turns 70,000 into 4,464."""
    highest = int(tokens.max(initial=0))
    if highest >= min(tokenizer.vocab_size, np.iinfo(dtype).max + 1):
        raise ValueError(
            f"the tokenizer produced the id {highest:,}, beyond its own {tokenizer.vocab_size:,} "
            f"entries or beyond {dtype.name}: it is damaged and cannot be used"
        )
    return tokens.astype(dtype)


def describe(tokenizer, dtype, splits, source, split_rule):
    """The content of meta.json."""
    shown = ("files", "tokens", "bytes", "documents")
    meta = {
        "format": FORMAT,
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "eot": tokenizer.eot,
        "tokenizer_sha256": fingerprint(tokenizer),
        "splits": {
            split: {name: tally[name] for name in shown if name in tally}
            for split, tally in splits.items()
        },
        "source": source,
        "split_rule": split_rule,
    }
    if all(tally.get("bits") for tally in splits.values()):
        floor = {split: tally["bits"] / tally["bytes"] for split, tally in splits.items()}
        meta["floor_bits_per_byte"] = floor
    return meta | {"tokenizer": tokenizer.to_dict()}


# ---------------------------------------------------------------- corpora that come as token files


def prepare_fineweb_edu(config):
    """Download FineWeb-Edu as GPT-2 tokens into data/NAME; train.py reads these files directly."""
    if len(config.paths) > 1 or config.tokenizer not in ("bpe", "gpt2"):
        raise ValueError("fineweb_edu is prepared alone, as GPT-2 tokens: leave --tokenizer out")
    folder = folder_for(config.dataset or "fineweb_edu")
    shards = fineweb_edu_shards(folder, config.shards)
    tokenizer = tiktoken_tokenizer("gpt2")
    splits = {split: tally_shards(files, tokenizer) for split, files in shards.items()}
    rule = "by its publisher: val is shard 0"
    meta = describe(tokenizer, np.dtype("<u2"), splits, [FINEWEB_EDU_URL], rule)
    with replacing(folder / "meta.json", "w") as file:
        json.dump(meta, file, indent=1)
    beginning = first_tokens(shards["train"][0], meta, offset=1024)
    print(f"{folder} is ready.\n")
    print(report(meta, tokenizer, beginning, dropped="nothing"))
    print(f"\nNext: {next_command(folder.name)}")


def tally_shards(files, tokenizer):
    """The entry in meta.json of a split that consists of these llm.c shards."""
    from support.token_files import HEADER_BYTES, open_shard  # here, as torch takes memory

    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for file in files:
        tokens = open_shard(file)
        if file.stat().st_size != HEADER_BYTES + 2 * len(tokens):
            raise ValueError(f"{file} is damaged: delete it and run the same command again")
        for start in range(0, len(tokens), COUNTED_AT_ONCE):
            chunk = tokens[start : start + COUNTED_AT_ONCE]
            counts += np.bincount(chunk, minlength=len(counts))
    lengths = np.array([len(tokenizer.token_bytes(token)) for token in range(len(counts))])
    lengths[tokenizer.eot] = 0
    return {
        "files": [file.name for file in files],
        "tokens": int(counts.sum()),
        "bytes": int(counts @ lengths),
        "documents": int(counts[tokenizer.eot]),
    }


# -------------------------------------------------------------------------------------- the report


def first_tokens(path, meta, offset=0):
    """The first ids in a token file."""
    return np.fromfile(path, meta["dtype"], COLUMNS, offset=offset)


def report(meta, tokenizer, beginning, dropped, tasks=()):
    """A summary of the data, 80 columns wide."""
    splits = meta["splits"]
    per_token = splits["train"]["bytes"] / splits["train"]["tokens"]
    rows = {"": f"{'train':>15}{'val':>15}"}
    for name in ("documents", "bytes", "tokens"):
        rows[name] = "".join(f"{splits[split][name]:>15,}" for split in ("train", "val"))
    rows["per token"] = f"{per_token:>15.2f} bytes of text"
    rows["vocabulary"] = f"{tokenizer.vocab_size:>15,} entries ({tokenizer.kind})"
    if "floor_bits_per_byte" in meta:
        floor = meta["floor_bits_per_byte"]["val"]
        rows["floor"] = f"{floor:>15.3f} bits per byte on val, which no model can beat"
    rows["dropped"] = dropped
    rows["split"] = meta["split_rule"]
    if tasks:
        rows["tasks"] = f"{', '.join(tasks)} (config/finetune_*.py)"
    rows["begins"] = glimpse(beginning, tokenizer, COLUMNS - 14)
    return "\n".join(
        textwrap.fill(
            f"{name:<12}{text}", COLUMNS, initial_indent=" " * 2, subsequent_indent=" " * 14
        )
        for name, text in rows.items()
    )


def glimpse(tokens, tokenizer, columns):
    """As many tokens as fit on a line, with spaces between them."""
    line = ""
    for token in tokens:
        longer = f"{line} {visible(tokenizer, token)}".lstrip()
        if width(longer) > columns:
            break
        line = longer
    return line


def next_command(name, tokenizer="", n_tokens=None):
    """The command that trains on this data, from the model whose tokenizer it uses, if any.

    Few tokens are to be read four times, and no more often.
    """
    if name == "stories":
        return "python train.py"
    recipe = RECIPES.get(name)
    if recipe:
        return f"python train.py {recipe}"
    dataset, out_dir = in_quotes(name), in_quotes(f"out/{name}")
    command = f"python train.py --dataset={dataset} --out_dir={out_dir}"  # with config/stories.py
    steps = STEPS if n_tokens is None else max(FEWEST_STEPS, 4 * n_tokens // TOKENS_PER_STEP)
    command += f" --max_iters={steps}" if steps < STEPS else ""
    if not tokenizer:
        return command
    there = [name for name in MODELS if (Path(tokenizer) / name).is_file()]
    if there or ("/" in tokenizer and may_be_on_the_hub(tokenizer)):
        command += f" --init_from={in_quotes(tokenizer)}"
        command += "" if there and there[0].endswith(".pt") else FOR_A_PUBLISHED_MODEL
    return command


def in_quotes(value):
    """The value as it can be typed into a shell, quoted only where needed."""
    plain = "-_./:\\" if ON_WINDOWS else "-_./:"
    if all(character.isalnum() or character in plain for character in value):
        return value
    quote = "'" if set(value) & set('$`\\"!') and not ON_WINDOWS else '"'
    return f"{quote}{value}{quote}"


if __name__ == "__main__":
    main()
