"""Atomic writes of files, a check that a folder can be written, a lock that waits. Imports neither NumPy nor JAX."""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from sims.engine.flags import UsageError


def beside(path: pathlib.Path) -> pathlib.Path:
    """The temporary path where a file is written before it is moved to `path`."""
    return path.with_name(f".{path.name}.new")


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path, moved to `path` if the block succeeds: a reader sees the old file or the new one.

    One writer at a time. If the block fails, its file stays at `beside(path)` until the next call.
    """
    yield beside(path)
    os.replace(beside(path), path)


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file atomically."""
    with whole(path) as new:
        new.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write a JSON file atomically, with null for NaN and infinities, which JSON lacks."""
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False))


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def check_folder(folder: pathlib.Path, flag: str) -> None:
    """Check that the folder can be written, and leave nothing in it. Raises: UsageError, which names the flag."""
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        os.rmdir(tempfile.mkdtemp(prefix=".", dir=existing))
    except OSError as error:
        raise UsageError(f"{flag} cannot be used ({error.strerror}); give a folder that can be written.") from None


@contextlib.contextmanager
def locked(path: pathlib.Path, waiting: str | None = None) -> Iterator[None]:
    """Hold the lock of `path`, for which other processes wait; the lock of a killed process is released.

    waiting: message on stderr if another process holds the lock.
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
