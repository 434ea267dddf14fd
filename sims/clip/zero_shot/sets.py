"""The evaluation sets on disk: which images, which classes are scored, and what a whole set would hold.

ImageNet val, V2, Sketch, R, A and ObjectNet in the layouts they are published in, and the generated scenes in the same.
A set's labels number its scored classes. Each of these is one class of the class list, or several (ObjectNet's).
"""

import collections
import csv
import dataclasses
import io
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from sims.clip.records.class_maps import ClassMap
from sims.clip.records.classes import SYNSETS, WNID, Classes
from sims.clip.records.reading import brief, parsed, reason, separated, text_of
from sims.clip.records.sources import Source, open_source
from sims.clip.zero_shot.scoring import Scored
from sims.engine.flags import UsageError, check_choice

FOLDERS = {
    "val": "val",
    "balanced": "balanced",
    "v2": "imagenetv2-matched-frequency",
    "sketch": "sketch",
    "r": "imagenet-r",
    "a": "imagenet-a",
    "objectnet": "objectnet-1.0",
}
SETS = tuple(FOLDERS)
_UNPACKED = {"v2": "imagenetv2-matched-frequency-format-val"}  # as the published archive names it
_WHOLE = ("val", "balanced", "sketch")  # sets that have images of every class
# (images, classes) of the published sets.
EXPECTED = {
    "val": (50_000, 1000),
    "v2": (10_000, 1000),
    "sketch": (50_889, 1000),
    "r": (30_000, 200),
    "a": (7_500, 200),
    "objectnet": (18_574, 113),
}
OBJECTNET_BORDER = 2  # pixels, red, on every side of every image
_IMAGES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}
_LABEL_FILES = ("val.txt", "val_labels.txt", "LOC_val_solution.csv")


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """A set of n images.

    Attributes:
      labels: (n,) into scored.
      groups: (n,) names such as aligned, or None.
      crop: pixels to cut off every side.
      expected: (images, classes) of the whole set; None: not known.
      dropped: number of images in folders that are not scored.
      absent: number of images that a list names but that are not there.
    """

    name: str
    paths: tuple["pathlib.Path | Item", ...]
    labels: np.ndarray
    scored: Scored
    rule: str
    crop: int = 0
    expected: tuple[int | None, int] | None = None
    groups: np.ndarray | None = None
    dropped: int = 0
    absent: int = 0

    @property
    def chance(self) -> float:
        """Accuracy of a guess among the scored classes."""
        return 1 / len(self.scored)

    @property
    def counts(self) -> tuple[int, int]:
        """(images, classes that have any)."""
        return len(self.paths), len(np.unique(self.labels))

    def shortfall(self, unreadable: int = 0) -> str | None:
        """What is not as expected, as one line; None if all is there and can be read."""
        images, classes = self.counts[0] - unreadable, self.counts[1]
        parts = []
        wanted, count = self.expected or (None, None)
        if wanted not in (None, images) or count not in (None, classes):
            whole = f"{count}" if wanted is None else f"{wanted} of {count}"
            parts.append(f"{images} images of {classes} classes, not {whole}")
        if self.absent:
            parts.append(f"{self.absent} listed images that are not there")
        if unreadable:
            parts.append(f"{unreadable} images that cannot be read")
        return f"{self.name} has {' and '.join(parts)}" if parts else None


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """Record i of a source, in place of a file."""

    source: Source
    i: int

    def __str__(self) -> str:
        return f"{self.source.name}, record {self.i}"


def of_source(spec: str) -> tuple[dict[str, EvaluationSet], Classes]:
    """The labelled records of a source, named by its spec, and its classes. Raises: UsageError if it has no labels."""
    source = open_source(spec)
    kept = np.flatnonzero(source.labels >= 0)
    if not len(kept):
        raise UsageError(f"--data={spec} has no labels to score by.")
    return {spec: of_records(source, kept, spec)}, Classes(source.classes, source.classes, source.classes)


def of_records(source: Source, kept: np.ndarray, name: str) -> EvaluationSet:
    """These records of a source, all with labels, as a set."""
    paths = tuple(Item(source, int(i)) for i in kept)
    scored = tuple((c,) for c in range(len(source.classes)))
    rule = f"labels of the data; all {len(scored)} classes scored"
    return EvaluationSet(name, paths, source.labels[kept], scored, rule, dropped=len(source) - len(kept))


def open_sets(root: pathlib.Path, names: Sequence[str] | None, classes: Classes) -> dict[str, EvaluationSet]:
    """The sets of these names, in the order of SETS; names None: all whose folder is there.

    Raises: UsageError if a folder is missing or none is there, or is not laid out as its set is.
    """
    for name in names or ():
        check_choice("sets", name, SETS)
    wanted = [name for name in SETS if (name in names if names is not None else _folder(root, name).is_dir())]
    if not wanted:
        raise UsageError(f"--root={root} has no evaluation set: none of the folders {', '.join(FOLDERS.values())}.")
    for name in wanted:
        if not _folder(root, name).is_dir():
            raise UsageError(f"--root={root} has no folder {FOLDERS[name]}; without it leave {name} out of --sets.")
    expected = _expected(root, classes)
    return {name: _open(root, name, classes, expected.get(name)) for name in wanted}


def mapped(sets: dict[str, EvaluationSet], classes: Classes, by: ClassMap) -> tuple[dict[str, EvaluationSet], Classes]:
    """The sets, labelled by the categories of a map, and the categories as their classes.

    All categories are scored in every set. Images of a class without a category are dropped and counted; so are those
    of an ObjectNet object whose ImageNet classes are not of one category.
    Raises: UsageError if the class list lacks a class of the map, or a set has no image of a category.
    """
    index = {wnid: i for i, wnid in enumerate(classes.wnids)}
    if lacking := sorted(set(by.of) - set(index)):
        raise UsageError(
            f"--class_map={by.name} has {len(lacking)} classes, such as {lacking[0]}, that the class list has not; give"
            f" --classes={SYNSETS}."
        )
    category = np.full(len(index), -1)
    category[[index[wnid] for wnid in by.of]] = list(by.of.values())
    singles = tuple((c,) for c in range(len(by.categories)))
    result = {}
    for name, one in sets.items():
        groups = [set(category[list(group)]) for group in one.scored]
        labels = np.array([group.pop() if len(group) == 1 else -1 for group in groups], np.int32)[one.labels]
        kept = np.flatnonzero(labels >= 0)
        if not len(kept):
            raise UsageError(f"{name} has no image of a category of --class_map={by.name}; leave it out of --sets.")
        result[name] = dataclasses.replace(
            one,
            paths=tuple(one.paths[i] for i in kept),
            labels=labels[kept],
            scored=singles,
            rule=f"{one.rule}; as {len(np.unique(labels[kept]))} of the {len(singles)} categories of {by.name}",
            expected=None,
            groups=None if one.groups is None else one.groups[kept],
            dropped=one.dropped + len(labels) - len(kept),
        )
    return result, Classes(by.categories, by.categories, by.categories)


def absent(root: pathlib.Path, classes: Classes) -> tuple[str, ...]:
    """The sets that a whole root has, ImageNet's or the generated scenes', and this one lacks."""
    return tuple(lacking(root, list(_expected(root, classes))))


def lacking(root: pathlib.Path, names: Sequence[str]) -> list[str]:
    """The sets of these names whose folder is not there."""
    return [name for name in names if not _folder(root, name).is_dir()]


def _folder(root: pathlib.Path, name: str) -> pathlib.Path:
    places = (root / FOLDERS[name], root / _UNPACKED.get(name, FOLDERS[name]))
    return next((place for place in places if place.is_dir()), places[0])


def _open(root: pathlib.Path, name: str, classes: Classes, expected: tuple[int, int] | None) -> EvaluationSet:
    folder, lacking = _folder(root, name), 0
    if name == "objectnet":
        return _with_groups(folder, _objectnet(folder, classes, expected))
    if name == "v2":
        by_class, rule = _numbered(folder, len(classes.wnids)), "the folder's number is the class"
    elif name == "val" and not any(path.is_dir() for path in _entries(folder)):
        (by_class, lacking), rule = _flat(root, folder, classes), "labels from a list"
    else:
        by_class, rule = _by_wnid(folder, classes), "the folder's wnid is the class"
    if name in ("r", "a"):
        scored = sorted(c for c, files in by_class.items() if files)
    else:
        scored = list(range(len(classes.wnids)))
    place = {c: i for i, c in enumerate(scored)}
    pairs = [(path, place[c]) for c in sorted(by_class) for path in by_class[c]]
    if not pairs:
        raise UsageError(f"{folder} has no images ({', '.join(sorted(_IMAGES))}).")
    rule = f"{rule}; {len(scored)} of {len(classes.wnids)} classes scored"
    labels = np.array([label for _, label in pairs], np.int32)
    paths, singles = tuple(p for p, _ in pairs), tuple((c,) for c in scored)
    counts = (None, len(scored)) if expected is None and name in _WHOLE else expected
    evaluation_set = EvaluationSet(name, paths, labels, singles, rule, expected=counts, absent=lacking)
    return _with_groups(folder, evaluation_set)


def _by_wnid(folder: pathlib.Path, classes: Classes) -> dict[int, list[pathlib.Path]]:
    index = {wnid: i for i, wnid in enumerate(classes.wnids)}
    by_class = {}
    for path in _folders(folder):
        if not WNID.fullmatch(path.name):
            raise UsageError(f"{path} is no class folder: its name is no wnid such as n01440764; move it elsewhere.")
        if path.name not in index:
            raise UsageError(
                f"{path} is of no class of the list of {len(index)}; give the list it belongs to, --classes."
            )
        by_class[index[path.name]] = _images(path)
    return by_class


def _numbered(folder: pathlib.Path, count: int) -> dict[int, list[pathlib.Path]]:
    """Images by class, which is the folder's number.

    Sorted as strings, 10 would come before 2, and nearly every label would be wrong.
    """
    by_class: dict[int, list[pathlib.Path]] = {}
    for path in _folders(folder):
        if not re.fullmatch(r"[0-9]+", path.name) or int(path.name) >= count or int(path.name) in by_class:
            raise UsageError(
                f"{path} is no class folder of V2: their names are the numbers 0 to {count - 1}, each once."
            )
        by_class[int(path.name)] = _images(path)
    missing = [i for i in range(count) if not by_class.get(i)]
    if missing:
        raise UsageError(
            f"{folder} is incomplete: {len(missing)} of its {count} class folders are missing or empty, the first"
            f" {missing[0]}; unpack it again."
        )
    return by_class


def _flat(root: pathlib.Path, folder: pathlib.Path, classes: Classes) -> tuple[dict[int, list[pathlib.Path]], int]:
    """(images by class, number of listed images that are not there), for images without class folders.

    A list gives the labels: FILE WNID or FILE NUMBER a line, blank or comma between. A file's ending may be left out.
    """
    places = [place / name for place in (folder, root) for name in _LABEL_FILES]
    listing = next((path for path in places if path.is_file()), None)
    if listing is None:
        raise UsageError(
            f"{folder} has neither class folders nor a list of labels; put {_LABEL_FILES[0]} beside it, a line an"
            " image: its file's name and its wnid."
        )
    index = {wnid: i for i, wnid in enumerate(classes.wnids)}
    index |= {str(i): i for i in range(len(classes.wnids))}
    files: dict[str, pathlib.Path] = {}
    for path in _images(folder):
        if files.setdefault(path.stem, path) is not path:
            raise UsageError(f"{folder} has both {files[path.stem].name} and {path.name}, which a list does not tell"
                             " apart; remove one.")  # fmt: skip
    by_class: dict[int, list[pathlib.Path]] = collections.defaultdict(list)
    listed = set()
    for number, line in enumerate(_text(listing).splitlines(), 1):
        parts = line.replace(",", " ").split()
        if not parts or (number == 1 and parts[0] == "ImageId"):
            continue
        if len(parts) < 2 or parts[1] not in index:
            raise UsageError(
                f"{listing}, line {number}: needs a file's name and its wnid, a blank or a comma between, or the place"
                f" of its wnid among the {len(classes.wnids)} in order, from 0."
            )
        stem = pathlib.PurePath(parts[0]).stem
        if stem in listed:
            raise UsageError(f"{listing}, line {number}: {brief(parts[0])} is listed twice.")
        listed.add(stem)
        if stem in files:
            by_class[index[parts[1]]].append(files[stem])
    unlisted = sorted(set(files) - listed)
    if unlisted:
        raise UsageError(f"{listing} has no label for {len(unlisted)} images of {folder}, the first {unlisted[0]}.")
    return by_class, len(listed - set(files))


def _objectnet(folder: pathlib.Path, classes: Classes, expected: tuple[int, int] | None) -> EvaluationSet:
    """An ObjectNet class is scored by the best of its ImageNet classes; folders without any are dropped and counted.

    The mapping's ImageNet classes are looked up by name. The numbers that come with it start at 0 in some copies of the
    public code and at 1 in others.
    """
    mappings, shots = folder / "mappings", folder / "images"
    names = ("folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json")
    for path in (*(mappings / name for name in names), shots):
        if not path.exists():
            raise UsageError(
                f"{folder} has no {path.relative_to(folder)}; ObjectNet's archive holds it, unpack all of it."
            )
    label_of, synonyms_of = (_mapping(mappings / name) for name in names)
    paths: list[pathlib.Path] = []
    labels: list[int] = []
    scored: list[tuple[int, ...]] = []
    owner: dict[int, str] = {}
    dropped, index = 0, _by_name(classes)
    for path in _folders(shots):
        label = label_of.get(path.name)
        if label is None:
            raise UsageError(f"{path} is not in {mappings / names[0]}; it is no folder of ObjectNet.")
        if label not in synonyms_of:
            dropped += len(_images(path))
            continue
        members = tuple(_named(text, index, mappings / names[1]) for text in synonyms_of[label].split(";"))
        for c in members:
            if owner.setdefault(c, label) != label:
                raise UsageError(f"{mappings / names[1]} gives the class {classes.names[c]!r} to two of ObjectNet's.")
        files = _images(path)
        labels += [len(scored)] * len(files)
        scored.append(members)
        paths += files
    if not paths:
        raise UsageError(f"{shots} has no images of a mapped class.")
    rule = f"the best of an object's ImageNet classes, found by name; {len(scored)} objects scored"
    labels, members = np.array(labels, np.int32), tuple(scored)
    return EvaluationSet("objectnet", tuple(paths), labels, members, rule, OBJECTNET_BORDER, expected, dropped=dropped)


def _by_name(classes: Classes) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """Classes by name: as it is written, and in lower case."""
    exact: dict[str, set[int]] = {}
    folded: dict[str, set[int]] = {}
    for i, name in enumerate(classes.synonyms):
        exact.setdefault(name, set()).add(i)
        folded.setdefault(name.lower(), set()).add(i)
    return exact, folded


def _named(synonyms: str, index: tuple[dict[str, set[int]], dict[str, set[int]]], file: pathlib.Path) -> int:
    """The class whose name is the first of these synonyms; if there is none, the one whose name is another of them."""
    parts = [part.strip() for part in synonyms.split(",")]
    exact, folded = index
    for tried in (parts[:1], parts[1:]):
        matches = {i for part in tried for i in exact.get(part, ())}
        matches = matches or {i for part in tried for i in folded.get(part.lower(), ())}
        if len(matches) == 1:
            return matches.pop()
        if matches:
            break
    problem = "is the name of several classes" if matches else "is no class's name"
    shown = brief(repr(synonyms.strip()))
    raise UsageError(f"{file}: {shown} {problem} in the list; give {SYNSETS}, as --classes or --wnids.")


def _with_groups(folder: pathlib.Path, evaluation_set: EvaluationSet) -> EvaluationSet:
    """The set with the groups of scenes.csv, if there is one. Its columns: path (within the folder) and group."""
    table = folder / "scenes.csv"
    if not table.is_file():
        return evaluation_set
    text = _text(table)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UsageError(f"{table} is no table ({error}).") from None
    if not rows or not {"path", "group"} <= set(rows[0]):
        hint = separated(text.partition("\n")[0], ",", lambda fields: {"path", "group"} <= set(fields))
        raise UsageError(f"{table} must have columns path and group{hint}.")
    of = {row["path"]: row["group"] or "" for row in rows}
    try:
        groups = np.array([of[path.relative_to(folder).as_posix()] for path in evaluation_set.paths])
    except KeyError as error:
        raise UsageError(f"{table} has no line for {error.args[0]}; make the scenes again.") from None
    return dataclasses.replace(evaluation_set, groups=groups) if groups.any() else evaluation_set


def _expected(root: pathlib.Path, classes: Classes) -> dict[str, tuple[int, int]]:
    """(images, classes) by set: the published counts for ImageNet's classes; for generated scenes, scenes.json's."""
    path = root / "scenes.json"
    if len(classes.wnids) == 1000:
        return EXPECTED
    if not path.is_file():
        return {}
    by_folder = {folder: name for name, folder in FOLDERS.items()}
    try:
        sets = parsed(_text(path))["sets"]
        return {by_folder.get(k, k): (int(v["images"]), int(v["classes"])) for k, v in sets.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise UsageError(
            f'{path} is damaged: it needs "sets", each with images and classes; make the scenes again.'
        ) from None


def _mapping(path: pathlib.Path) -> dict[str, str]:
    try:
        content = parsed(_text(path))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise UsageError(f"{path} must be a JSON object of names to names.")
    return content


def _text(path: pathlib.Path) -> str:
    try:
        return text_of(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({reason(error)}).") from None


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in _entries(folder) if path.suffix.lower() in _IMAGES]
