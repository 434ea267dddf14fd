"""Files written whole or not at all, a probe of folders before long work, a lock that waits. No NumPy, no JAX."""

import contextlib
import fcntl
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from sims.engine.flags import UsageError


def beside(path: pathlib.Path) -> pathlib.Path:
    """Where a file is written before it is moved to `path`."""
    return path.with_name(f".{path.name}.new")


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write to, which becomes `path` if the block ends well: a reader finds the old file or the new one.

    For one writer at a time. What a block that fails has written stays at `beside(path)` until the next one.
    """
    yield beside(path)
    os.replace(beside(path), path)


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a whole file, or none of it."""
    with whole(path) as new:
        new.write_text(text, encoding="utf-8")


def check_folder(folder: pathlib.Path, flag: str) -> None:
    """Raises: UsageError, which names the flag, if nothing can be written in the folder. Leaves nothing."""
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        os.rmdir(tempfile.mkdtemp(prefix=".", dir=existing))
    except OSError as error:
        raise UsageError(f"{flag} cannot be used ({error.strerror}); give a folder that can be written.") from None


@contextlib.contextmanager
def locked(path: pathlib.Path, waiting: str | None = None) -> Iterator[None]:
    """Alone in here, among processes of this file system; a killed one's lock ends with it.

    waiting: said on stderr where another process is in here.
    Raises: OSError if the file cannot be made or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                print(waiting, file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
