"""The table of results: one JSON object a line, added under a lock, so that several commands can share a table."""

import csv
import io
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from sims.clip.records.reading import parsed, reason, separated, text_of
from sims.engine import files
from sims.engine.flags import UsageError

# What every line of a table must have; tables of models may come from elsewhere.
_NEEDED = {"run": str, "set": str, "accuracy": float}
_SHARES = ("accuracy", "id_accuracy", "val_accuracy")
_COUNTS = ("images", "id_images", "classes_scored")


def read(path: pathlib.Path, flag: str) -> list[dict[str, Any]]:
    """The lines of a table; [] if the file does not exist.

    A .csv file has at least the columns run, set and accuracy. To be compared with a line, it also has id_accuracy (on
    val over the set's classes), images and id_images. Shares are in [0, 1]. The columns classes_scored and classes (a
    digest), if given, keep rows of other classes apart.
    Raises: UsageError for a line that is damaged or lacks one of these.
    """
    try:
        text = text_of(path)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UsageError(f"{flag}={path} cannot be read ({reason(error)}).") from None
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(text, newline=""))
        if hint := separated(text.partition("\n")[0], ",", lambda fields: set(_NEEDED) <= set(fields)):
            raise UsageError(f"{flag}={path} needs run, set and accuracy{hint}.")
        try:
            return [_checked(row, f"{flag}={path}, line {rows.line_num}") for row in rows]
        except csv.Error as error:
            raise UsageError(f"{flag}={path}, line {rows.reader.line_num}: {error}.") from None
    checked = []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        try:
            row = parsed(line)
        except ValueError:
            row = None
        checked.append(_checked(row, f"{flag}={path}, line {number}"))
    return checked


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UsageError(f"{where}, is no JSON object; mend or remove the line.")
    row = {name: value for name, value in row.items() if value not in ("", None)}
    try:
        row |= {name: float(row[name]) for name in _SHARES if name in row}
        row |= {name: int(row[name]) for name in _COUNTS if name in row}
        bad = [name for name in _SHARES if not 0 <= row.get(name, 0) <= 1]
        bad += [name for name in _COUNTS if row.get(name, 1) < 1]
        bad += [name for name, kind in _NEEDED.items() if not isinstance(row.get(name), kind)]
    except (TypeError, ValueError, OverflowError):
        bad = [*_SHARES, *_COUNTS]
    if bad:
        raise UsageError(
            f"{where}: needs run, set and accuracy, shares in [0, 1] and counts >= 1; see {', '.join(bad)}."
        )
    return row


def append(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add lines, all or none. Earlier lines stay as they are, and a second writer waits for the first.

    If the path is a link, its target is written.
    Raises: UsageError if the file cannot be written, or what it holds is damaged.
    """
    new = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    path = pathlib.Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(path.with_name(f".{path.name}.lock")):
            read(path, "--table")
            old = path.read_text(encoding="utf-8") if path.exists() else ""
            files.write_text(path, old + ("" if old.endswith("\n") or not old else "\n") + new)
    except OSError as error:
        raise UsageError(f"--table={path} cannot be written ({error.strerror}).") from None
