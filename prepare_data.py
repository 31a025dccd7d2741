"""Turn text into tokens: `python prepare_data.py PATH... --dataset=NAME` writes data/NAME.

Alone it writes data/stories, a generated corpus that needs no connection. The text is gone through
twice, in pieces, so that its size does not matter: to count it and make the tokenizer, then to encode
it. What is written takes the place of an older data/NAME at the very end, or not at all.
"""

import errno
import json
import os
import sys
import tempfile
import textwrap
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

from support.config import load_config
from support.corpora import NAMES, fineweb_edu_shards, open_corpus
from support.files import replacing
from support.token_files import HEADER_BYTES, MAGIC_DTYPES
from support.tokenizer import (
    byte_tokenizer,
    char_tokenizer,
    cut,
    fingerprint,
    load_tokenizer,
    tiktoken_tokenizer,
    train_bpe,
)

DATA = Path("data")
FORMAT = 1
TIKTOKEN = ("gpt2", "cl100k_base", "o200k_base")
# The largest bpe vocabulary for a source of so many bytes. A model learns a token by seeing it often,
# and in a small model the rows of the vocabulary are most of the parameters.
VOCAB_SIZES = ((2_000_000, 1024), (20_000_000, 2048), (float("inf"), 4096))
# With fewer documents, whole ones cannot add up to a validation split of the size asked for.
FEWEST_DOCUMENTS = 100
# An input and its target: with less there is nothing to train on.
FEWEST_TOKENS = 2
# So many fingerprints of documents are remembered, 32 MB in all, to find copies.
REMEMBERED = 2**22
# One thread encodes about so many characters at a time.
BATCH_CHARACTERS = 500_000
MOST_THREADS = 8
# The recipe to try first on a corpus; config/stories.py for all others.
RECIPES = {"python": "config/python_code.py", "fineweb_edu": "config/gpt2_124m.py"}
GLIMPSE_TOKENS = 16


@dataclass
class PrepareConfig:
    """Turn text into tokens: data/NAME/train.bin, val.bin and meta.json.

    A path is a .txt, .md or .py file, a .jsonl file whose lines have a field `text`, a .gz of these,
    a folder of them, or - for standard input. A name stands for a corpus: stories (generated) and
    python (the standard library on this machine) need no connection; shakespeare, tinystories and
    fineweb_edu are downloaded.
    """

    paths: tyro.conf.Positional[tuple[str, ...]] = ("stories",)  # text, or the name of a corpus
    dataset: str | None = None  # the folder in data/; None: named after the first path
    tokenizer: str = "bpe"  # bpe char byte gpt2 cl100k_base o200k_base, or PATH of an existing one
    vocab_size: int | None = None  # of bpe; None: 1024, from 2 MB of text 2048, from 20 MB 4096
    val_fraction: float = 0.1  # share of the text to validate on, unless a corpus has its own
    megabytes: float = 12.0  # stories: how many to train on
    seed: int = 1337  # stories: which
    shards: int = 10  # fineweb_edu: how many to train on, 1 to 99, 200 MB each


def main(argv=None):
    config = load_config(PrepareConfig, argv, takes_files=False)
    sys.stdout.reconfigure(errors="replace")  # a console without Chinese must not stop the report
    try:
        check(config)
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
    named = (*TIKTOKEN, "bpe", "char", "byte")
    if config.tokenizer not in named and not Path(config.tokenizer).exists():
        expected = f"one of {', '.join(named)}, or the path of a tokenizer, a data folder or a run"
        raise ValueError(f"tokenizer={config.tokenizer}: expected {expected}")
    if config.vocab_size is not None and config.tokenizer != "bpe":
        raise ValueError(
            f"vocab_size={config.vocab_size} is for --tokenizer=bpe; the size of "
            f"{config.tokenizer} is what it is: leave --vocab_size out"
        )
    if not 0 < config.val_fraction < 1:
        raise ValueError(f"val_fraction={config.val_fraction}: expected more than 0, less than 1")
    name = config.dataset
    if name is not None and (Path(name).name != name or name == ".."):
        raise ValueError(f"dataset={name}: expected a name, such as my_text; data/my_text is made")
    if not config.paths:
        raise ValueError(f"nothing to prepare: expected paths or one of {', '.join(NAMES)}")
    if config.megabytes <= 0:
        raise ValueError(f"megabytes={config.megabytes}: expected more than 0")


def prepare(config):
    """Write data/NAME from text, and print what it has become."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        corpus = open_corpus(config.paths, DATA, scratch, config.megabytes, config.seed)
        folder = DATA / (config.dataset or corpus.name)
        survey = Survey()
        tokenizer = make_tokenizer(config, corpus, first_pass(corpus, survey))
        if not survey.characters:
            raise ValueError(f"there is no text in {', '.join(config.paths)}: nothing but emptiness")
        plan = Plan.make(corpus, survey, config.val_fraction)
        meta, unknown = write(folder, corpus, tokenizer, plan)
    dropped = f"{survey.duplicates:,} copies of documents, {unknown:,} unknown characters"
    command = next_command(folder.name, corpus.name, tokenizer)
    print_report(folder, meta, tokenizer, dropped, command, time.monotonic() - started)


# ------------------------------------------------------------------- first pass: count, and learn


@dataclass
class Survey:
    """What the first pass finds; copies of documents count as duplicates and nowhere else."""

    documents: int = 0
    duplicates: int = 0
    characters: int = 0


def first_pass(corpus, survey):
    """Every piece of text once; the survey is filled on the way."""
    with bar(corpus, "reading") as progress:
        for document, _ in distinct(corpus, progress, survey):
            survey.documents += 1
            for piece in cut(text for text, _ in document.pieces):
                survey.characters += len(piece)
                yield piece


def bar(corpus, verb):
    """A progress bar over the bytes of the source, on a terminal."""
    return tqdm(total=corpus.size, unit="B", unit_scale=True, desc=verb, disable=None, leave=False)


def distinct(corpus, progress, survey=None):
    """(document, its 64-bit fingerprint) for every document that has text and is no copy.

    A table of fixed size forgets a document when another takes its place, so among very many
    documents a copy may slip through.
    """
    seen = np.zeros(REMEMBERED, np.uint64)
    for document in corpus.documents():
        text_hash, used = blake2b(digest_size=8), 0
        n_characters = 0
        for text, size in document.pieces:
            text_hash.update(text.encode())
            n_characters += len(text)
            used += size
        progress.update(used)
        number = int.from_bytes(text_hash.digest(), "big")
        if n_characters and seen[number % REMEMBERED] == number:
            if survey:
                survey.duplicates += 1
        elif n_characters:
            seen[number % REMEMBERED] = number
            yield document, number


def make_tokenizer(config, corpus, texts):
    """The tokenizer that the config asks for; the texts are gone through to the end in any case."""
    if config.tokenizer == "bpe":
        fitting = next(size for limit, size in VOCAB_SIZES if corpus.size < limit)
        return train_bpe(texts, config.vocab_size or fitting)
    if config.tokenizer == "char":
        return char_tokenizer(texts)
    if config.tokenizer == "byte":
        tokenizer = byte_tokenizer()
    elif config.tokenizer in TIKTOKEN:
        tokenizer = tiktoken_tokenizer(config.tokenizer)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    deque(texts, maxlen=0)
    return tokenizer
