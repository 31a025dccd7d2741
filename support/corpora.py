"""Where text comes from: a user's files and folders, standard input, and a few named corpora.

A corpus iterates over its documents, any number of times, with no more than a piece of one in
memory. Nothing here knows about tokens.
"""

import codecs
import errno
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import ssl
import sys
import sysconfig
import urllib.error
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from support.code_tasks import code_tasks, split_of
from support.files import advice_on_encoding, move
from support.stories.tasks import story_tasks
from support.tokenizer import repair

NAMES = ("stories", "python", "shakespeare", "tinystories", "fineweb_edu")
SUFFIXES = (".txt", ".md", ".py", ".jsonl")
CHUNK_BYTES = 2**16
MOST_ENDINGS = 5  # of skipped files that are listed
JSON_BEGINS = re.compile(rb'(\xef\xbb\xbf)?\s*\{\s*"')
# Byte order marks. One of UTF-32's begins with one of UTF-16's, so UTF-32 goes first.
WIDE_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
TIMEOUT_SECONDS = 30
CERTIFICATES = "run 'Install Certificates.command' in its folder in /Applications"
OFFLINE = "These need no connection: python prepare_data.py stories, python prepare_data.py python"

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# This revision fixed the encoding of the files of Eldan and Li, 2023
# (https://arxiv.org/abs/2305.07759); they have not changed since.
TINYSTORIES_URL = (
    "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/"
    "5485261731eaac25dd8e5ebbc3839d0a9870b185"
)
TINYSTORIES_SHA256 = {
    "TinyStories-train.txt": "c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f",
    "TinyStories-valid.txt": "94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4",
}
TINYSTORIES_SEPARATOR = "<|endoftext|>"
# FineWeb-Edu as GPT-2 tokens in llm.c's format: one shard for validation, 99 for training.
FINEWEB_EDU_URL = "https://huggingface.co/datasets/kjj0/finewebedu10B-gpt2/resolve/main"
FINEWEB_EDU_SHARDS = 99

# Size of the held-out stories, as a share of the training stories.
STORIES_VAL_SHARE = 0.05
MEGABYTES_FOR_ALL_TASKS = 12  # with less training text there are fewer fine-tuning examples
NO_TEXT = ("log.jsonl", "predictions.jsonl")  # written by train.py and finetune.py
# Left out of the corpus `python`: tests, what pip installed, and generated tables.
NOT_WRITTEN_BY_PEOPLE = {
    *("site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"),
    *("entities.py",),
}


@dataclass
class Document:
    """One text, which can be read any number of times.

    `pieces` yields pairs (text, number of source bytes). `split` is "train" or "val" if the corpus
    brings its own split. `bits` is -log2 of a generated text's probability.
    """

    pieces: Iterable[tuple[str, int]]
    split: str | None = None
    bits: float = 0.0


@dataclass
class Corpus:
    """Documents, and what is known about them in advance."""

    name: str
    documents: Callable[[], Iterable[Document]]
    size: int  # bytes of the source, for the progress bar
    source: list[str]  # the paths or URLs that it came from, for people
    split_rule: str | None = None  # one sentence, if the corpus brings its own split
    # {task: {split: fine-tuning examples}}, if the corpus knows the right answers
    tasks: Callable[[], dict] = dict


def open_corpus(paths, data, scratch, megabytes, seed, language, encoding="utf-8", field="text"):
    """The corpus that the paths on the command line stand for.

    Downloads stay in the folder `data`; what can be generated again is kept in `scratch` as long as
    it is needed. `megabytes`, `seed` and `language` ("en", "zh", None for both) apply to stories;
    `encoding` and the `field` of .jsonl to a user's own files.
    Raises ValueError for a path that does not exist or contains no text.
    """
    scratch = Path(scratch)
    named = [path for path in paths if path in NAMES]
    if named and len(paths) > 1:
        raise ValueError(
            f"{named[0]} is a corpus of its own: prepare it separately from the other paths"
        )
    if not named:
        return own_files(paths, scratch, encoding, field)
    raw = Path(data, named[0], "raw")
    corpora = {
        "stories": partial(stories, megabytes, seed, language, scratch),
        "python": standard_library,
        "shakespeare": partial(shakespeare, raw),
        "tinystories": partial(tinystories, raw),
    }
    return corpora[named[0]]()


# ------------------------------------------------------------------------------- a user's own files


def own_files(paths, scratch, encoding="utf-8", field="text"):
    """The corpus of the given files, folders and standard input (`-`)."""
    if paths.count("-") > 1:
        raise ValueError("standard input (-) is named twice, but can be read only once")
    files, skipped = [], Counter()
    for path in paths:
        files += [spooled(scratch)] if path == "-" else files_under(Path(path), skipped)
    if skipped:
        endings = [ending for ending, _ in skipped.most_common(MOST_ENDINGS)]
        endings += ["…"] if len(skipped) > MOST_ENDINGS else []
        counts = f"files to read: {len(files):,}, skipped: {skipped.total():,}"
        print(f"{counts} ({', '.join(endings)})", file=sys.stderr)
    if field != "text" and not any(kind(file) == ".jsonl" for file in files):
        raise ValueError(
            f"field={field} is for .jsonl, and none of these files is one: leave it out"
        )
    first = "stdin" if paths[0] == "-" else name_of(Path(paths[0]).resolve())
    size = sum(map(unpacked_size, files))
    return Corpus(first, lambda: documents_in(files, encoding, field), size, list(paths))


def converting(kind, file=None):
    """The Python lines that save a dataset of the package `datasets` as .jsonl."""
    source = f"'{kind}', data_files='{file}'" if file else f"'{kind}'"
    return (
        "in Python, after `pip install datasets`: from datasets import load_dataset; "
        f"load_dataset({source}, split='train').to_json('text.jsonl', force_ascii=False)"
    )


def name_of(path):
    """The default dataset name: that of the folder, or of the file without .txt, .jsonl.gz, …"""
    name = path.name[: -len(".gz")] if is_packed(path) else path.name
    return Path(name).stem if kind(name) in SUFFIXES else name


def spooled(scratch):
    """A copy of standard input: text is read twice, and a pipe can be read only once."""
    copy = scratch / "standard input"
    with open(copy, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, CHUNK_BYTES)
    with open(copy, "rb") as file:
        if JSON_BEGINS.match(file.read(CHUNK_BYTES)):
            raise ValueError(
                "standard input is JSON, and would be learned with all its brackets and commas; "
                "save it as a .jsonl file, and name that"
            )
    return copy


def files_under(path, skipped):
    """The text files in a folder and its subfolders, in order; a file stands for itself.

    Other files are counted in the Counter `skipped`, by suffix or, without one, by name.
    """
    if path.is_file() and kind(path.name) in (".json", ".csv", ".tsv", ".xlsx", ".docx", ".pdf"):
        raise ValueError(
            f"{path} is not plain text, and would be learned with all its brackets and commas; "
            'convert it to .txt, or to .jsonl with {"text": "..."} on each line'
        )
    if path.is_file() and path.suffix.lower() in (".parquet", ".arrow"):
        raise ValueError(f"{path} is not text; to convert it: {converting('parquet', path)}")
    if path.is_file():
        return [path]
    if not path.exists():
        hint = "; a dataset on Hugging Face's hub can be saved as text: "
        hint = "" if path.suffix else hint + converting(path.as_posix())
        raise ValueError(
            f"there is no file or folder {path}; named corpora: {', '.join(NAMES)}{hint}"
        )
    if not path.is_dir():
        raise ValueError(
            f"{path} is neither a file nor a folder; for a pipe, use - (standard input)"
        )
    files = []
    for file in files_in(path):
        suffix = file.name if file.name in NO_TEXT else kind(file)
        if suffix not in SUFFIXES:
            skipped[suffix or file.name] += 1
        elif file.is_file():
            files.append(file)
        else:
            raise ValueError(f"{file} is neither a file nor a link to one: remove it")
    if not files:
        raise ValueError(f"the folder {path} contains no {', '.join(SUFFIXES)} (or .gz of these)")
    return files


def files_in(path, without=frozenset()):
    """Yield all files in a folder and its subfolders, in order, except hidden and prepared ones.

    `without`: names of files and folders to leave out. Links to folders are followed, but each
    folder is read once. Raises ValueError for a folder that cannot be read.
    """

    def refuse(error):
        raise ValueError(f"the folder {error.filename} cannot be read ({error.strerror})")

    entered = set()
    for folder, folders, names in os.walk(path, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        identity = status.st_dev, status.st_ino
        if identity in entered:
            folders.clear()
            continue
        entered.add(identity)
        folders[:] = [
            name for name in visible(folders, without) if not is_prepared(Path(folder, name))
        ]
        yield from (Path(folder, name) for name in visible(names, without))


def visible(names, without):
    return sorted(name for name in names if not name.startswith(".") and name not in without)


def is_prepared(folder):
    """Whether prepare_data.py wrote this folder: tokens, or the examples beside them."""
    beside = folder.parent if folder.name == "tasks" else folder
    return any(os.path.isfile(place / "train.bin") for place in (folder, beside))


def kind(name):
    """The suffix that determines how a file is read, ignoring `.gz`."""
    return Path(str(name).lower().removesuffix(".gz")).suffix


def documents_in(files, encoding="utf-8", field="text"):
    """Yield one document per file, or per line of a .jsonl file."""
    for file in files:
        if kind(file) == ".jsonl":
            yield from lines_of(file, encoding, field)
        else:
            yield Document(TextFile(file, encoding))


class TextFile:
    """A file as pieces of text, read again on each iteration."""

    def __init__(self, path, encoding="utf-8"):
        self.path, self.encoding = path, encoding

    def __iter__(self):
        # As in text mode: a byte order mark is dropped, every kind of line end becomes "\n".
        decoder = codecs.getincrementaldecoder(self.encoding)()
        decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        fed, begun = 0, False
        with open_bytes(self.path) as file:
            while chunk := file.read(CHUNK_BYTES):
                if not is_wide(self.encoding):
                    refuse_binary(self.path, chunk, fed)
                fed += len(chunk)
                text = decode(self.path, self.encoding, decoder, chunk, fed)
                yield text if begun else text.removeprefix("\ufeff"), len(chunk)
                begun = begun or bool(text)
            yield decode(self.path, self.encoding, decoder, b"", fed, final=True), 0


@contextmanager
def open_bytes(path):
    """Open a file for reading bytes, unpacked if it is a .gz."""
    try:
        with gzip.open(path) if is_packed(path) else open(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is not a complete .gz file ({error})") from error


def is_packed(path):
    return path.suffix.lower() == ".gz"


def unpacked_size(path):
    """The size of a file's content in bytes; for a .gz, an estimate.

    A .gz ends with the size of its last member, modulo 4 GB: the estimate is that, but no less than
    the packed size.
    """
    size = path.stat().st_size
    if not is_packed(path):
        return size
    with open(path, "rb") as file:
        file.seek(max(size - 4, 0))
        return max(size, int.from_bytes(file.read(), "little"))


def is_wide(encoding):
    """Whether every character takes several bytes, which may be zero."""
    return codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))


def refuse_binary(path, chunk, start):
    """Raise ValueError for bytes that are clearly not text."""
    for name, marks in WIDE_MARKS.items():
        if start == 0 and chunk.startswith(marks):
            other = "" if ".jsonl" in path.suffixes else f", or use --encoding={name.lower()}"
            raise ValueError(f"{path} is {name}; save it as UTF-8{other}")
    if b"\0" in chunk:
        raise ValueError(f"{path} is a binary file: byte {start + chunk.index(0):,} is zero")


def decode(path, encoding, decoder, chunk, fed, final=False):
    """Decode the chunk that ends at byte `fed` of the file."""
    try:
        return decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        offset = fed - len(error.object) + error.start
        is_cut_off = final and error.end == len(error.object)
        advice = advice_on_encoding(error.object, encoding, is_cut_off)
        raise ValueError(
            f"{path} is not {encoding.upper()}: byte {offset:,} is "
            f"0x{error.object[error.start]:02x}; {advice}"
        ) from error


def lines_of(path, encoding, field):
    """Yield the documents of a .jsonl file: one field of each line."""
    fed = 0
    if is_wide(encoding):
        raise ValueError(f"{path}: .jsonl in {encoding} is not supported; save it as UTF-8")
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            refuse_binary(path, line, fed)
            fed += len(line)
            decoder = codecs.getincrementaldecoder(encoding)()
            text = decode(path, encoding, decoder, line, fed, final=True)
            text = text.removeprefix("\ufeff") if number == 1 else text
            if text.strip():
                yield Document([(text_field(path, number, text, field), len(line))])


def text_field(path, number, line, field):
    """The text in one line of JSON."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    text = fields.get(field) if isinstance(fields, dict) else None
    if not isinstance(text, str):
        found = ", ".join(fields) if isinstance(fields, dict) else type(fields).__name__
        if text is not None:
            found = str(text)[:40]
        raise ValueError(
            f'{path}, line {number}: expected {{"{field}": "..."}}, found {found or "nothing"}; '
            "if the text is in another field, use --field=NAME"
        )
    return repair(text).replace("\r\n", "\n").replace("\r", "\n")  # as in a text file


# ---------------------------------------------------------------------------------- named corpora


def stories(megabytes, seed, language, scratch):
    """Generated stories: `megabytes` of them for training, and held-out ones for validation."""
    from support.stories import floor_bits_per_byte, generate  # here, as tests replace it

    generated = scratch / "stories.jsonl"
    size = int(megabytes * 1e6 * (1 + STORIES_VAL_SHARE))
    bar = tqdm(total=size, unit="B", unit_scale=True, desc="generating", disable=None, leave=False)
    with open(generated, "w", encoding="utf-8") as file, bar:
        for split, share in (("train", 1.0), ("val", STORIES_VAL_SHARE)):
            left = megabytes * 1e6 * share
            for story in generate(seed, held_out=split == "val", language=language):
                n_bytes = len(story.text.encode())
                left -= n_bytes
                if left < 0:
                    break
                bits = floor_bits_per_byte([story]) * n_bytes
                file.write(json.dumps([story.text, n_bytes, split, bits]) + "\n")
                bar.update(n_bytes)

    def documents():
        with open(generated, encoding="utf-8") as file:
            for text, n_bytes, split, bits in map(json.loads, file):
                yield Document([(text, n_bytes)], split, bits)

    rule = (
        "by the story world: val has combinations of names, things and plots that train never has"
    )
    source = [f"stories: seed {seed}, language {language or 'both'}"]
    share = min(1, megabytes / MEGABYTES_FOR_ALL_TASKS)
    tasks = partial(story_tasks, seed, language, share)
    return Corpus("stories", documents, size, source, rule, tasks)


def standard_library():
    """The standard library of this Python, without tests and tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    if root.is_dir():
        files = [file for file in files_in(root, NOT_WRITTEN_BY_PEOPLE) if kind(file) == ".py"]
    if not files:
        raise ValueError(
            "this Python has no source code of its standard library; try the corpus stories"
        )

    def documents():
        for file in files:
            split = split_of(file.relative_to(root).as_posix())
            yield Document(TextFile(file), "train" if split == "train" else "val")

    version = ".".join(map(str, sys.version_info[:3]))
    size = sum(file.stat().st_size for file in files)
    source = [f"the standard library of Python {version}"]
    rule = "by file; the tasks' validation and test examples are from val's files"
    tasks = partial(code_tasks, files, root)
    return Corpus("python", documents, size, source, rule, tasks)


def shakespeare(raw):
    """Karpathy's tiny Shakespeare, 1.1 MB: one document."""
    file = download(SHAKESPEARE_URL, Path(raw, "input.txt"), SHAKESPEARE_SHA256)
    size = file.stat().st_size
    return Corpus("shakespeare", lambda: documents_in([file]), size, [SHAKESPEARE_URL])


def tinystories(raw):
    """Eldan and Li's two million stories by GPT-3.5 and GPT-4, 1.9 GB, with their own split."""
    files = {
        name: download(f"{TINYSTORIES_URL}/{name}", Path(raw, name), sha256)
        for name, sha256 in TINYSTORIES_SHA256.items()
    }

    def documents():
        for split, file in zip(("train", "val"), files.values(), strict=True):
            yield from separated(file, split)

    source = [f"{TINYSTORIES_URL}/{name}" for name in files]
    size = sum(file.stat().st_size for file in files.values())
    return Corpus("tinystories", documents, size, source, "by its authors: their validation file")


def separated(file, split):
    """Yield the documents between the separators of a file."""
    rest = ""
    for text, _ in TextFile(file):
        *whole, rest = (rest + text).split(TINYSTORIES_SEPARATOR)
        for story in whole:
            yield Document(
                [(story.strip(), len(story.encode()) + len(TINYSTORIES_SEPARATOR))], split
            )
    yield Document([(rest.strip(), len(rest.encode()))], split)


def fineweb_edu_shards(folder, n_shards):
    """Download FineWeb-Edu, {"train": [...], "val": [...]}: files of 100 million tokens each."""
    if not 1 <= n_shards <= FINEWEB_EDU_SHARDS:
        raise ValueError(f"shards={n_shards}: expected 1 to {FINEWEB_EDU_SHARDS}")
    names = {
        "val": ["finewebedu_val_000000.bin"],
        "train": [f"finewebedu_train_{i:06d}.bin" for i in range(1, n_shards + 1)],
    }
    return {
        split: [download(f"{FINEWEB_EDU_URL}/{name}", Path(folder, name)) for name in names[split]]
        for split in names
    }


# --------------------------------------------------------------------------------------- downloads


def download(url, path, sha256=None):
    """Download `url` to `path`, unless it exists; an interrupted download is resumed.

    Raises ValueError if no more data arrives, or if the content does not match `sha256`.
    """
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    complete, reason = False, "the connection was lost"
    while not complete:
        before = size_of(part)
        try:
            complete = fetch_rest(url, part)
        except (OSError, HTTPException) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise
            reason = getattr(error, "reason", "") or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                reason = f"{reason}; Python from python.org on a Mac: {CERTIFICATES}"
        # As long as each attempt makes progress, another one is worth it.
        if not complete and size_of(part) <= before:
            kept = (
                f"{before / 1e6:,.1f} MB are kept: run the same command to resume. "
                if before
                else ""
            )
            raise ValueError(f"{url} could not be downloaded ({reason}). {kept}{OFFLINE}")
    if sha256 and sha256_of(part) != sha256:
        part.unlink()
        raise ValueError(f"{url} is damaged or has changed: its sha256 is not {sha256}; try again")
    move(part, path)
    return path


def fetch_rest(url, part):
    """Append to `part` what is missing of the file at `url`; True if it is now complete."""
    have = size_of(part)
    headers = {"User-Agent": "shiftgpt"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        part.unlink()  # longer than the whole file: it was the start of another one
        return fetch_rest(url, part)
    # A server without range support sends everything again, with status 200.
    resumed = response.status == HTTPStatus.PARTIAL_CONTENT
    have = have if resumed else 0
    total = have + int(response.headers.get("Content-Length", 0))
    part.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None)
    with response, bar, open(part, "ab" if resumed else "wb") as file:
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))
    return size_of(part) >= total


def size_of(path):
    return path.stat().st_size if path.exists() else 0


def sha256_of(path):
    """The sha256 of a file's content, hexadecimal."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
    return sha256.hexdigest()
