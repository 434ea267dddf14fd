"""Maps of ImageNet's classes to other categories, and of free labels to ImageNet's classes.

`coco` maps 291 of ImageNet-1K's classes to 57 of COCO's 80 categories, by WordNet's hypernyms; `make_maps.py` made it.
The paper's own map, which is not published, has 320 classes.
"""

import csv
import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence

from sims.clip.records.classes import WNID
from sims.clip.records.reading import brief, read_lines, reason, text_of
from sims.engine.flags import UsageError

_MAPS = pathlib.Path(__file__).parent / "maps"
NAMED = {"coco": _MAPS / "coco.csv"}


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """Categories, and the index of the category that a wnid belongs to; a category may have no wnid."""

    name: str
    categories: tuple[str, ...]
    of: dict[str, int]


def read_map(name: str) -> ClassMap:
    """The map of this name in NAMED, or of a CSV file with the columns category and wnid.

    A category has a row for each of its wnids, or one row with an empty wnid. Categories are in the order of the file.
    Raises: UsageError for another file, a wnid that is malformed or in two categories, or fewer than two categories.
    """
    path, flag = NAMED.get(name, pathlib.Path(name)), f"--class_map={name}"
    try:
        rows = list(csv.DictReader(text_of(path).splitlines(), strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{flag} cannot be read ({reason(error)}); give {', '.join(NAMED)} or a CSV file.") from None
    if not rows or set(rows[0]) != {"category", "wnid"}:
        raise UsageError(f"{flag} must be a CSV file with the columns category and wnid.")
    categories: dict[str, int] = {}
    of: dict[str, int] = {}
    for row in rows:
        category, wnid = row["category"], row["wnid"]
        if not category or wnid is None or not (wnid == "" or WNID.fullmatch(wnid)):
            raise UsageError(
                f"{flag} has {brief(repr(row))}; it needs a category, and a wnid such as n01440764 or none."
            )
        index = categories.setdefault(category, len(categories))
        if wnid and of.setdefault(wnid, index) != index:
            raise UsageError(f"{flag} has {wnid} in two categories; a class belongs to one.")
    if len(categories) < 2 or not of:
        raise UsageError(
            f"{flag} has {len(categories)} categories and {len(of)} classes; it needs two and one or more."
        )
    return ClassMap(name, tuple(categories), of)


def of_names(names: Sequence[str], flag: str) -> ClassMap:
    """The map whose categories are these names, each with the ImageNet class that `wnid_of_label` finds for it, if any.

    Raises: UsageError, after `flag`, if fewer than two names are given, none has a class, or two have the same.
    """
    categories = [(name, wnid_of_label(name)) for name in names]
    owner: dict[str, str] = {}
    for name, wnid in categories:
        if wnid is not None and owner.setdefault(wnid, name) != name:
            raise UsageError(f"{flag}: {owner[wnid]!r} and {name!r} are both names of {wnid}; give a map, --class_map.")
    if len(names) < 2 or not owner:
        raise UsageError(
            f"{flag}: {len(owner)} of the {len(names)} class names are ImageNet's; it needs two names, and one or more"
            " that are."
        )
    return ClassMap("names", tuple(names), {wnid: names.index(name) for wnid, name in owner.items()})


def wnid_of_label(label: str) -> str | None:
    """The ImageNet-1K class that a label names, such as a machine label of Conceptual Captions; None if it names none.

    A label names a class if it is one of the names that WordNet gives the class. Case, hyphens, underscores and double
    blanks do not count. A name of two classes, such as crane, names none.
    """
    return _by_name().get(_plain(label))


@functools.cache
def _by_name() -> dict[str, str]:
    owners: dict[str, set[str]] = {}
    for line in read_lines(_MAPS / "imagenet_names.txt", "imagenet_names"):
        wnid, _, names = line.partition(" ")
        for name in names.split(", "):
            owners.setdefault(_plain(name), set()).add(wnid)
    return {name: next(iter(wnids)) for name, wnids in owners.items() if len(wnids) == 1}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()
