"""Files that are either whole or not there: nothing a user made is ever half-written."""

import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path, mode="wb"):
    """A file to write to that takes the place of `path` only once it is complete and on disk.

    An error, a full disk or Ctrl-C on the way leaves the old `path` as it was.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
