"""Read files that others wrote or a disk damaged: text, JSON, archives of arrays. Each failure has one short reason."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sims.engine.flags import UsageError

_STARTS = (
    (b"\x1f\x8b", "it is compressed by gzip; unpack it first"),
    (b"BZh", "it is compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ\0", "it is compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "it is compressed by zstd; unpack it first"),
    (b"PK\x03\x04", "it is a zip archive; unpack it first"),
    (b"\xff\xfe", "it is UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "it is UTF-16 text; save it as UTF-8"),
    (b"version https://git-lfs", "it is a pointer of Git LFS; `git lfs pull` fetches the file"),
)
_HTML = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--", b"<script", b"<title", b"<meta")
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


def brief(value: Any, most: int = 120) -> str:
    """The value on one line; a long one is cut, and its length is given."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text)} characters)"


def reason(error: Exception) -> str:
    """Why something cannot be read, in a few words."""
    return brief(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def foreign(data: bytes) -> str | None:
    """What a file is, by its first bytes, if it is not plain content; None if they are of no known kind."""
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(_HTML):
        return "it is an HTML page, such as a server's error message; download the file again"
    return next((kind for begins, kind in _STARTS if data.startswith(begins)), None)


def text_of(path: str | os.PathLike[str]) -> str:
    """The UTF-8 text of a file, without a byte order mark.

    Raises: OSError; ValueError, whose message is what the file is instead.
    """
    data = pathlib.Path(path).read_bytes()
    if kind := foreign(data):
        raise ValueError(kind)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text: byte {error.start}") from None


def parsed(text: str | bytes, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of JSON text.  Raises: ValueError, also for text that is nested too deeply."""
    try:
        return json.loads(text, object_hook=object_hook)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_of(path: str | os.PathLike[str], object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON file.  Raises: OSError; ValueError."""
    return parsed(text_of(path), object_hook)


def own_json(path: pathlib.Path, mend: str) -> dict[str, Any]:
    """The object in a JSON file that a command wrote.

    Raises: UsageError if it is damaged; `mend` says what to do then.
    """
    try:
        content = json_of(path)
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        return content
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({reason(error)}); {mend}.") from None


def sealed(content: Mapping[str, Any]) -> str:
    """The content as JSON with its digest, for `unsealed`."""
    return json.dumps({**content, "sha256": digest(content)})


def unsealed(path: pathlib.Path, mend: str) -> dict[str, Any]:
    """The content that was `sealed` in a file.

    Raises: UsageError if it is damaged; `mend` says what to do then.
    """
    content = own_json(path, mend)
    if content.pop("sha256", None) != digest(content):
        raise UsageError(f"{path} is damaged or of an earlier version (its digest differs); {mend}.")
    return content


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content as canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def arrays_of(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, verified by its checksums.  Raises: OSError; ValueError."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive}
    except OSError:
        raise
    except Exception as error:  # NumPy and its archives raise many kinds on damaged bytes
        raise ValueError(reason(error)) from None


def separated(line: str, by: str, fit: Callable[[list[str]], Any]) -> str:
    """A hint if the fields of a line fit when it is split by another separator than `by`; else ''."""
    for other, named in _SEPARATORS.items():
        if other != by and other in line and fit([field.strip().strip('"') for field in line.split(other)]):
            return f"; its fields are separated by {named}, where {_SEPARATORS[by]} are read"
    return ""


def read_lines(path: str | pathlib.Path, flag: str) -> tuple[str, ...]:
    """The lines of a text file that are not blank, or the strings of a JSON list.

    Raises: UsageError if the file cannot be read, or holds none.
    """
    try:
        text = text_of(path)
        lines = parsed(text) if text.lstrip().startswith("[") else text.splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"{flag}={path} cannot be read ({reason(error)}).") from None
    if not all(isinstance(line, str) for line in lines):
        raise UsageError(f"{flag}={path} must be one string a line, or a JSON list of strings.")
    filled = tuple(line.strip() for line in lines if line.strip())
    if not filled:
        raise UsageError(f"{flag}={path} is empty; it needs one string a line, or a JSON list of strings.")
    return filled
