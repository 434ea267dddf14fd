"""The class list: wnids, the names that prompts use, and the names that WordNet gives."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from sims.clip.records.reading import brief, parsed, read_lines, reason, text_of
from sims.engine.flags import UsageError

WNID = re.compile(r"n\d{8}")
_NAMED = re.compile(r"(n\d{8})[\s,:;|]+(\S.*)")
SYNSETS = "imagenet_class_index.json, the list of wnids and first synonyms that Keras publishes"


@dataclasses.dataclass(frozen=True)
class Classes:
    """c classes in the order of their wnids.

    Attributes:
      names: for prompts; two may be the same.
      synonyms: WordNet's names, by which ObjectNet's mapping identifies classes; `names`, if no others are known.
    """

    wnids: tuple[str, ...]
    names: tuple[str, ...]
    synonyms: tuple[str, ...]


def read_classes(root: pathlib.Path, file: str | None = None, wnids: str | None = None) -> Classes:
    """The class list of `file`, by default ROOT/classes.json.

    Args:
      file: {"0": [wnid, name], ...} as Keras's imagenet_class_index.json. Or a wnid and its synonyms a line, such as
        `n01440764 tench, Tinca tinca`; the first synonym is the name. Or names alone, one a line or a JSON list.
      wnids: needed with names alone: a file of their wnids in the same order, one a line, or in a format that also
        gives synonyms.

    Raises: UsageError for a file of none of these formats, for names that hold wnids or are numbered, or for names
    without wnids. Also for wnids that are malformed, double or not in order.
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
            raise UsageError(f"{flag} has the class {brief(repr(wnid))}, which is no wnid such as n01440764.")
    if list(ids) != sorted(set(ids)):
        raise UsageError(
            f"{flag} must have its classes in the order of their wnids, each once; labels count that order."
        )
    if len(ids) < 2:
        raise UsageError(f"{flag} has one class; two or more can be told apart.")
    check_names(names, f"--classes={path}")
    return Classes(tuple(ids), tuple(names), tuple(synonyms))


def check_names(names: Sequence[str], flag: str) -> None:
    """Raise UsageError for names that hold a wnid or are numbered: prompts would say them as they are."""
    if wnid := next((name for name in names if WNID.search(name)), None):
        raise UsageError(f"{flag} has the class name {brief(repr(wnid))}, with a wnid, which prompts would say;"
                         " give names, or lines of a wnid and its names.")  # fmt: skip
    for first in (0, 1):
        if len(names) > 1 and all(re.match(rf"{i}\W+\w", name) for i, name in enumerate(names, first)):
            raise UsageError(f"{flag} numbers its names, as {brief(repr(names[0]))}; leave the numbers out.")


def _class_index(path: pathlib.Path, flag: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """(wnids, names) of a file that gives both; None for lines or a JSON list without wnids."""
    try:
        text = text_of(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{flag} cannot be read ({reason(error)}).") from None
    if not text.lstrip().startswith("{"):
        lines = read_lines(path, flag.split("=", 1)[0])
        pairs = [match.groups() for line in lines if (match := _NAMED.fullmatch(line))]
        if len(pairs) < len(lines):
            return None
        return tuple(wnid for wnid, _ in pairs), tuple(_plain(synonyms) for _, synonyms in pairs)
    try:
        content = parsed(text)
        if content and all(WNID.fullmatch(key) and isinstance(value, str) for key, value in content.items()):
            return tuple(content), tuple(map(_plain, content.values()))
        entries = {int(key): value for key, value in content.items()}
        pairs = [entries[i] for i in range(len(entries))]
        wnids, names = (tuple(str(pair[i]) for pair in pairs) for i in (0, 1))
    except (ValueError, TypeError, KeyError, IndexError):
        raise UsageError(f'{flag} must be {{"0": ["n01440764", "tench"], "1": ...}}, keys 0, 1, 2 and so on.') from None
    return wnids, tuple(name.replace("_", " ") for name in names)


def _plain(synonyms: str) -> str:
    """The first of several names."""
    return synonyms.strip('"').split(",")[0].replace("_", " ").strip()
