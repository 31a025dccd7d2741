"""Atomic writes: a file is either complete or unchanged, never half-written.

Also JSON, text in encodings other than UTF-8, and pipes that nobody reads any more.
"""

import codecs
import errno
import json
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex

ON_WINDOWS = os.name == "nt"
PATIENCE = 10.0  # seconds to wait for another program to close a file, on Windows
# What writing to a pipe that was closed raises.
CLOSED_PIPE = {errno.EPIPE, errno.EINVAL} if ON_WINDOWS else {errno.EPIPE}


def move(path, new_path):
    """Rename a file or folder; a file that has the new name is replaced.

    Windows refuses that while any program has one of them open, be it a virus scanner that looks at
    a new file: it is tried again for PATIENCE seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return os.replace(path, new_path)
        except PermissionError:
            if not ON_WINDOWS or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextmanager
def replacing(path, mode="wb"):
    """Open a file for writing that replaces `path` only once it is complete and on disk.

    An error, a full disk or Ctrl-C leaves the old `path` unchanged. Each of several processes that
    write to `path` at the same time has its own temporary file.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{token_hex(4)}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_figure(path, inches):
    """Yield the axes of a new figure, which replaces `path` once it is drawn, in its format."""
    import matplotlib

    matplotlib.use("Agg")  # renders without a display
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=inches, layout="constrained")
    try:
        yield axes
        with replacing(path) as file:
            figure.savefig(file, format=Path(path).suffix[1:], dpi=120)
    finally:
        pyplot.close(figure)


@contextmanager
def replacing_files(folder, *names):
    """Open files for writing, {name: file}, that replace those in `folder` together.

    An error or Ctrl-C leaves the old files unchanged, and no new folder. The first name appears
    last: while it exists, the others belong to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    new, old = aside / "new", aside / "old"
    try:
        new.mkdir()
        old.mkdir()
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(new / name, "wb")) for name in names}
            yield files
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        older = [(folder / name, old / name) for name in names if (folder / name).exists()]
        rename_all([*older, *((new / name, folder / name) for name in reversed(names))])
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        for left in (old, aside, folder):
            with suppress(OSError):  # a folder that is not empty stays
                left.rmdir()


def rename_all(moves):
    """Rename files, pairs (path, new path), in this order; an error undoes all of it."""
    try:
        for path, new_path in moves:
            move(path, new_path)
    except BaseException:
        for path, new_path in reversed(moves):
            if not path.exists():
                move(new_path, path)
        raise


def read_json(path):
    """The object in a JSON file; raises ValueError if it is not one, OSError without a file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is JSON, but not an object in braces")
    return content


def must_be_new(path):
    """`path` as a Path; exits if it is a file or a folder that is not empty."""
    path = Path(path)
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise SystemExit(f"{path} already exists and is left as it is; choose another --out")
    return path


@contextmanager
def new_folder(path):
    """A folder to write into that becomes `path` once complete; exits if `path` is not new."""
    with replacing_tree(must_be_new(path)) as folder:
        yield folder


@contextmanager
def replacing_tree(path):
    """A folder to write into that replaces `path` once it is complete.

    An error or Ctrl-C leaves the old `path` unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    new, old = aside / "new", aside / "old"
    new.mkdir()
    try:
        yield new
        if path.exists():
            move(path, old)
        move(new, path)
    finally:
        if old.exists() and not path.exists():
            move(old, path)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def until_nobody_reads():
    """Exit quietly when the reader of a pipe, such as `head`, closes it."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in CLOSED_PIPE or error.filename:
            raise
        fall_silent()
        raise SystemExit(0) from None


def fall_silent():
    """Discard whatever is printed from now on: the reader is gone, or the disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --------------------------------------------------------------------------------------- encodings

# Characters that occur on any page of Chinese, simplified or traditional.
COMMON = frozenset(
    "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年這來國個說們為時過後對會沒"
)
WESTERN = "windows-1252"
OTHERS = "gb18030", "cp950", WESTERN  # the likely encodings of text that is not UTF-8
TWO_CHINESE = re.compile("[\u4e00-\u9fff]{2}")


def check_encoding(encoding):
    """Exit if Python does not know the encoding."""
    try:
        "".encode(encoding)
    except (LookupError, UnicodeError):
        raise SystemExit(
            f"encoding={encoding}: expected utf-8 or another, such as {', '.join(OTHERS)}"
        ) from None


def with_mark(encoding):
    """The encoding, where UTF-8 becomes the variant that accepts a byte order mark."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def advice_on_encoding(chunk, encoding, is_cut_off=False):
    """What to do about bytes of a file that are not in the expected encoding.

    is_cut_off: they are an incomplete character at the end of the file.
    """
    without = f"iconv -c -f {encoding} -t utf-8 OLD > NEW"
    if ON_WINDOWS:
        without = "save it as UTF-8 in an editor"
    if is_cut_off:
        return f"the file ends in the middle of a character; to drop it: {without}"
    text = chunk.decode(encoding, "replace")
    broken, likely = text.count("\ufffd"), likely_encoding(chunk)
    if sum(not character.isascii() for character in text) > 10 * broken:
        return f"a few bytes are broken, the others are not; to drop them: {without}"
    if likely == encoding:
        return "save it as UTF-8"
    return f"save it as UTF-8, or name its encoding, perhaps --encoding={likely}"


def likely_encoding(chunk):
    """The likely encoding of bytes that are not UTF-8: the one that yields common characters."""
    found = {}
    for encoding in OTHERS[:2]:
        text = chunk.decode(encoding, "replace")
        found[encoding] = sum(map(COMMON.__contains__, text)) - 10 * text.count("\ufffd")
    best = max(found, key=found.get)
    if found[best] > 0:
        return best
    text = chunk.decode(OTHERS[0], "replace")
    return OTHERS[0] if TWO_CHINESE.search(text) and "\ufffd" not in text else WESTERN
