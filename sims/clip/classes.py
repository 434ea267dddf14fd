"""The class list: wnids, the names that prompts take, and the names that WordNet gives them."""

import dataclasses
import json
import pathlib
import re

from sims.clip.prompts import read_lines
from sims.flags import UsageError

WNID = re.compile(r"n\d{8}")
SYNSETS = "imagenet_class_index.json, the list of wnids and first synonyms that Keras publishes"


@dataclasses.dataclass(frozen=True)
class Classes:
    """c classes in the order of their wnids: names for prompts (two may be the same), and wnids.

    synonyms: WordNet's names, by which ObjectNet's mapping tells classes; the names, where no others are known.
    """

    wnids: tuple[str, ...]
    names: tuple[str, ...]
    synonyms: tuple[str, ...]


def read_classes(root: pathlib.Path, file: str | None = None, wnids: str | None = None) -> Classes:
    """The class list of `file`, by default ROOT/classes.json.

    file: {"0": [wnid, name], ...} as Keras's imagenet_class_index.json, or names alone, one a line or a JSON list, with
    `wnids`: theirs in the same order, one a line, or in Keras's format (which also gives the synonyms).
    Raises: UsageError for a file that is neither, wnids that are none, double or not in order, or a list of names
    without wnids.
    """
    path = root / "classes.json" if file is None else pathlib.Path(file)
    flag = f"--classes={path}"
    if file is None and not path.exists():
        raise UsageError(f"{root} has no classes.json; give --classes=FILE, such as {SYNSETS}.")
    index = _class_index(path, flag)
    if index is None:
        if wnids is None:
            raise UsageError(f"{flag} has names alone: give --wnids=FILE, such as {SYNSETS}.")
        names = read_lines(path, "--classes")
        index_of_wnids = _class_index(pathlib.Path(wnids), f"--wnids={wnids}")
        ids, synonyms = index_of_wnids or (read_lines(wnids, "--wnids"), names)
        if len(ids) != len(names):
            raise UsageError(
                f"{flag} has {len(names)} names and --wnids={wnids} {len(ids)} wnids; they must be as many."
            )
        flag = f"--wnids={wnids}"
    else:
        ids, names = index
        synonyms = names
    for wnid in ids:
        if not WNID.fullmatch(wnid):
            raise UsageError(f"{flag} has the class {wnid!r}, which is no wnid such as n01440764.")
    if list(ids) != sorted(set(ids)):
        raise UsageError(
            f"{flag} must have its classes in the order of their wnids, each once; labels count that order."
        )
    if len(ids) < 2:
        raise UsageError(f"{flag} has one class; two or more can be told apart.")
    return Classes(tuple(ids), tuple(names), tuple(synonyms))


def _class_index(path: pathlib.Path, flag: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """(wnids, names) of a file in Keras's format; None for one that is no JSON object."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UsageError(f"{flag} cannot be read ({reason}).") from None
    if not text.lstrip().startswith("{"):
        return None
    try:
        entries = {int(key): value for key, value in json.loads(text).items()}
        pairs = [entries[i] for i in range(len(entries))]
        wnids, names = (tuple(str(pair[i]) for pair in pairs) for i in (0, 1))
    except (ValueError, TypeError, KeyError, IndexError):
        raise UsageError(f'{flag} must be {{"0": ["n01440764", "tench"], "1": ...}}, keys 0, 1, 2 and so on.') from None
    return wnids, tuple(name.replace("_", " ") for name in names)
