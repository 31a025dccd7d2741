"""Open token files for training: ours, nanoGPT's, llm.c's or modded-nanogpt's.

`data/<name>/` contains `train.bin` and `val.bin` (ids without a header) and `meta.json`; or shards
with headers, `*_train_*.bin` and `*_val_*.bin`. The files are memory-mapped: a batch reads only the
pages that it needs.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from support.tokenizer import fingerprint, tokenizer_from_dict
from support.tokenizer_files import tokenizer_from_nanogpt

# llm.c's shards begin with 256 int32: a magic number, a version, the number of tokens, …
HEADER_BYTES = 1024
MAGIC_DTYPES = {20240520: "<u2", 20240801: "<u4"}
NANOGPT_VOCAB_SIZE = 50304  # nanoGPT's default if a folder does not give one


@dataclass
class Tokens:
    """One split: its shards, each a memory-mapped array of ids."""

    shards: list
    bytes_per_token: float | None  # of the text in UTF-8; None: unknown

    def __len__(self):
        return sum(len(shard) for shard in self.shards)


@dataclass
class Dataset:
    """A folder's two splits and what is known about them."""

    path: Path
    train: Tokens
    val: Tokens
    vocab_size: int
    tokenizer: object | None  # None: not in the folder; GPT-2's is assumed, as in nanoGPT
    documents: int = 1  # in the training split, as far as is known
    floor: float | None = None  # bits per byte that no model can go below, if known

    @property
    def eot(self):
        """The token that ends a document; None if unknown."""
        return self.tokenizer and self.tokenizer.eot

    def describe(self):
        """What a checkpoint records about its data: enough to notice when they have changed."""
        return {
            "dataset": str(self.path),
            "train_tokens": len(self.train),
            "val_tokens": len(self.val),
            "train_documents": self.documents,
            "tokenizer_sha256": self.tokenizer and fingerprint(self.tokenizer),
        }


def open_dataset(name):
    """Open `data/<name>`, or the folder `name` itself; or exit with the command that makes it."""
    path = Path("data") / name
    if not path.is_dir() and Path(name).is_dir():
        path = Path(name)
    if (path / "meta.json").is_file():
        return open_prepared(path)
    if path.is_dir():
        return open_foreign(path)
    if Path(name).is_file():
        short = Path(name).name.split(".")[0]
        raise SystemExit(
            f"dataset={name} is a file. Tokenise it: python prepare_data.py {name} "
            f"--dataset={short}, then use --dataset={short}"
        )
    raise SystemExit(f"there is no data in {path}; prepare it with: {how_to_make(name)}")


def how_to_make(name):
    """The command that prepares the dataset `name`."""
    from support.corpora import NAMES  # here, as it is needed only after a mistake

    if name == "shakespeare_char":
        return "python prepare_data.py shakespeare --dataset=shakespeare_char --tokenizer=char"
    if name == "shakespeare":  # nanoGPT's, to fine-tune GPT-2 on
        return "python prepare_data.py shakespeare --tokenizer=gpt2"
    source = name if name in NAMES else f"PATH_OF_YOUR_TEXT --dataset={name}"
    return f"python prepare_data.py {source}"


def open_prepared(path):
    """Open a folder that `prepare_data.py` wrote, checked against its meta.json."""
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        return Dataset(
            path,
            open_split(path, "train", meta),
            open_split(path, "val", meta),
            meta["vocab_size"],
            tokenizer_from_dict(meta["tokenizer"]),
            documents=meta["splits"]["train"]["documents"],
            floor=meta.get("floor_bits_per_byte", {}).get("val"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(
            f"{path}/meta.json is damaged ({error!r}); prepare the data again with prepare_data.py"
        ) from None


def open_split(path, split, meta):
    """The Tokens of a split, as meta.json describes it."""
    count = meta["splits"][split]
    if "files" in count:
        shards = [open_shard(path / file) for file in count["files"]]
    else:
        shards = [open_ids(path / f"{split}.bin", meta["dtype"], count["tokens"])]
    return Tokens(shards, count["bytes"] / max(count["tokens"], 1))


def open_ids(file, dtype, n):
    """The n ids in a file without a header."""
    dtype = np.dtype(dtype).newbyteorder("<")
    size = file.stat().st_size if file.is_file() else 0
    if size != n * dtype.itemsize:
        raise SystemExit(
            f"{file} has {size:,} bytes, but by meta.json {n * dtype.itemsize:,}: it is not "
            f"complete; prepare it again with prepare_data.py --dataset={file.parent.name}"
        )
    return np.memmap(file, dtype=dtype, mode="r").view(np.ndarray)


def open_foreign(path):
    """Open a folder from nanoGPT, llm.c or modded-nanogpt."""
    splits = {}
    for split in ("train", "val"):
        files = sorted({*path.glob(f"{split}.bin"), *path.glob(f"*_{split}_*.bin")})
        if not files:
            raise SystemExit(
                f"{path} has no {split}.bin and no *_{split}_*.bin; prepare them with: "
                f"{how_to_make(path.name)}"
            )
        splits[split] = Tokens([open_shard(file) for file in files], None)
    tokenizer, vocab_size = None, NANOGPT_VOCAB_SIZE
    if (path / "meta.pkl").is_file():
        try:
            tokenizer = tokenizer_from_nanogpt(path)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        vocab_size = tokenizer.vocab_size
    return Dataset(path, splits["train"], splits["val"], vocab_size, tokenizer)


def open_shard(file):
    """The ids in one file, with llm.c's header or, as in nanoGPT, without one."""
    if not file.is_file():
        raise SystemExit(f"{file} is missing: copy it there, or prepare the data again")
    size = file.stat().st_size
    header = np.fromfile(file, dtype="<i4", count=3)
    dtype = MAGIC_DTYPES.get(int(header[0])) if len(header) == 3 else None
    if dtype and size == HEADER_BYTES + int(header[2]) * np.dtype(dtype).itemsize:
        return np.memmap(file, dtype=dtype, mode="r", offset=HEADER_BYTES).view(np.ndarray)
    if dtype:
        raise SystemExit(
            f"{file} is damaged: it does not have the {header[2]:,} tokens of its header; "
            "delete it, and prepare or download it again"
        )
    if size == 0 or size % 2:
        raise SystemExit(f"{file} has {size} bytes: not a file of 16-bit tokens")
    return np.memmap(file, dtype="<u2", mode="r").view(np.ndarray)


class Windows:
    """A split cut into windows of `length` tokens, each beginning `stride` after the one before.

    If `movable`, the cuts of each shard may start at a later token, giving as many windows.
    """

    def __init__(self, tokens, stride, length, movable=True):
        self.shards, self.stride, self.length = tokens.shards, stride, length
        room = stride - 1 if movable else 0
        self.slack = [max(0, min(room, len(s) - length)) for s in self.shards]
        counts = [(len(s) - length - a) // stride + 1 for s, a in zip(self.shards, self.slack)]
        self.ends = np.cumsum(np.maximum(counts, 0))

    def __len__(self):
        return int(self.ends[-1])

    def spread(self, n):
        """The indices of `n` windows, spread evenly over the split."""
        return np.arange(n) * len(self) // n

    def read(self, numbers, offset=0.0):
        """The windows with these indices as a block (len(numbers), length) of tokens.

        offset, 0 ≤ offset < 1, shifts the cuts by that share of the slack.
        """
        block = np.empty((len(numbers), self.length), np.int64)
        for row, number in enumerate(numbers):
            i = int(np.searchsorted(self.ends, number, side="right"))
            first = int(number) - int(self.ends[i - 1] if i else 0)
            start = first * self.stride + int(offset * (self.slack[i] + 1))
            block[row] = self.shards[i][start : start + self.length]
        return block

    def shuffled(self, numbers, seed):
        """Windows of an endless stream: each once per epoch, shuffled and cut anew every epoch.

        A pure function of `numbers` and `seed`: any process gets the same windows at any time.
        """
        block = np.empty((len(numbers), self.length), np.int64)
        epochs, places = np.divmod(numbers, len(self))
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            offset = np.random.SeedSequence([seed, epoch, 1]).generate_state(1)[0] / 2**32
            order = permuted(places[rows], len(self), [seed, epoch])
            block[rows] = self.read(order, offset)
        return torch.from_numpy(block)


def permuted(numbers, n, key):
    """Apply to each of `numbers` a pseudorandom permutation of 0…n-1, selected by `key`.

    A Feistel network (Luby and Rackoff, 1988): halves of the bits are mixed into each other, which
    is invertible, so no two numbers collide. Results outside 0…n-1 are permuted again.
    It needs no memory, however large n is.
    """
    half = max(1, math.ceil(math.log2(n) / 2))
    rounds = np.random.SeedSequence(key).generate_state(4, np.uint64)
    numbers = numbers.astype(np.uint64)
    todo = np.ones(len(numbers), bool)
    while todo.any():
        left, right = numbers[todo] >> half, numbers[todo] & ((1 << half) - 1)
        for round_key in rounds:
            mixed = (right + round_key) * np.uint64(0x9E3779B97F4A7C15)
            left, right = right, left ^ (mixed >> np.uint64(64 - half))
        numbers[todo] = left << half | right
        todo = numbers >= n
    return numbers.astype(np.int64)
