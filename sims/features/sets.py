"""Training and evaluation sets from files, as arrays with common classes. Imports neither JAX nor plotting.

A set has image features, text features of captions (for training), labels, and where it is known the attribute of each
sample. Features are moved and scaled as one: the mean of the training set is 0, and the mean square of a coordinate 1.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from sims.engine import reading
from sims.engine.flags import UsageError
from sims.features.config import ALONE, Config

Names = tuple[str, ...]
ID = "id"
FEW = 30  # images of a group below which a note is given


@dataclasses.dataclass(frozen=True, eq=False)
class Train:
    """The training set, sorted by image: unit u has the rows first[u] .. first[u] + count[u] - 1, its captions.

    Attributes:
      image, text: (n, d_i) and (n, d_t), float32.
      label: (n,), in 0..K-1.
      group: (n,), in 0..G-1: class and attribute.
      first, count: (U,) of each image.
      class_text, group_text: (K, d_t) and (G, d_t), mean texts of classes, and of classes and attributes.
      prompts: (K, d_t).
    """

    image: np.ndarray
    text: np.ndarray
    label: np.ndarray
    group: np.ndarray
    first: np.ndarray
    count: np.ndarray
    class_text: np.ndarray
    group_text: np.ndarray
    prompts: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Set:
    """An evaluation set.

    Attributes:
      image: (n, d_i), float32.
      label: (n,), in 0..C-1.
      prompts: (C, d_t), of the classes that are scored.
      known: (C,), their places among the classes of training; -1 where one is not among them.
      group: (n,), in 0..G-1: class and attribute. Without attributes all are 0.
      sizes: (G,).
      aligned: (G,), 1 where class and attribute occur together in training more often than if they were independent,
        0 where less often, -1 where training does not tell.
      groups: names of the groups; () without attributes.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    prompts: np.ndarray
    known: np.ndarray
    group: np.ndarray
    sizes: np.ndarray
    aligned: np.ndarray
    groups: Names


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """The training set, the evaluation sets (ID first), the classes of training, and the digest of all arrays.

    notes: a sentence for each thing that makes an accuracy mean less than it seems to.
    """

    train: Train
    sets: tuple[Set, ...]
    classes: Names
    attributes: bool
    digest: str
    notes: Names

    def check(self, config: Config) -> None:
        """Raise UsageError where the flags ask more than the sets have."""
        least = len(self.train.first) * int(min(config.percent)) // 100
        if config.batch_size > least:
            raise UsageError(f"--batch_size must be <= {least}, the fewest training images, got {config.batch_size}.")
        if min(config.attribute) < 1 and not self.attributes:
            raise UsageError("--attribute below 1 needs a training set with `attributes`.")
        for s in self.sets:
            if (s.known < 0).any() and (arms := [arm for arm in config.arms if arm in ALONE]):
                raise UsageError(f"{s.name}: has classes that training lacks, which --arms={arms[0]} cannot answer.")
        if not config.ood and not self.sets[0].groups:
            raise UsageError("--ood must name a set, as --ood=NAME=FILE, where the ID set has no `attributes`.")


@dataclasses.dataclass(frozen=True, eq=False)
class _Raw:
    """What a source holds. flag: for messages."""

    flag: str
    image: np.ndarray
    text: np.ndarray | None
    labels: np.ndarray
    attributes: np.ndarray | None
    units: np.ndarray | None
    prompts: np.ndarray | None
    classes: np.ndarray | None

    def rows(self, at: np.ndarray) -> "_Raw":
        parts = ("image", "text", "labels", "attributes", "units")
        taken = {name: None if (x := getattr(self, name)) is None else x[at] for name in parts}
        return dataclasses.replace(self, **taken)


def load(config: Config) -> Data:
    """Read all sets of a config. Raises: UsageError."""
    digest = hashlib.sha256()
    train = _read("train", config.train, True, digest)
    rest = [_one_row_an_image(_read(f"ood={name}", source, False, digest)) for name, source in config.ood]
    unit = _units(train)
    if config.id is None:
        held_out = _held_out(train, unit, config.holdout, config.seed)
        own = dataclasses.replace(_one_row_an_image(train.rows(held_out)), prompts=None, classes=None)
        train, unit = train.rows(~held_out), unit[~held_out]
    else:
        own = _one_row_an_image(_read(ID, config.id, False, digest))
    kinds = np.unique(train.labels)
    classes = tuple(map(str, kinds))
    if len(classes) < 2:
        raise UsageError(f"--train: labels must have at least two classes, got {len(classes)}.")
    label = _index(train.labels, classes)
    attribute, number = _attributes(train.attributes, len(label))
    assert train.text is not None  # `_read` needs it of a training set
    text = np.asarray(train.text, np.float64)
    pairs, group = np.unique(label * number + attribute, return_inverse=True)
    # A class's mean text, with its attributes in equal parts.
    prompts = _means(_means(text, group), pairs // number)
    if train.prompts is not None and config.prompts == "file":
        prompts = _prompts(train, classes, text.shape[1])
    train_set, images, texts = training(train.image, text, label, group, unit, prompts)
    joint = _joint(train.labels, train.attributes)
    sets = []
    for name, raw in zip((ID, *(name for name, _ in config.ood)), (own, *rest), strict=True):
        if raw.image.shape[1] != len(images.mean):
            wanted = f"{len(images.mean)} features, as in training"
            raise UsageError(f"--{raw.flag}: image must have {wanted}, got {raw.image.shape[1]}.")
        scored = classes if raw.classes is None else tuple(map(str, raw.classes))
        known = _index(np.array(scored), classes)
        if raw.prompts is not None and (config.prompts == "file" or (known < 0).any()):
            own_prompts = _prompts(raw, scored, text.shape[1])
        elif (known < 0).any():
            unknown = scored[int((known < 0).argmax())]
            raise UsageError(f"--{raw.flag}: class {unknown!r} needs `prompts`, as training does not have it.")
        else:
            own_prompts = prompts[known]
        sets.append(_evaluation(name, raw, scored, known, joint, images(raw.image), texts(own_prompts)))
    seen = {row.tobytes() for row in train_set.image}
    notes = tuple(note for s in sets for note in _notes(s, seen))
    if train.attributes is not None and sets[0].groups:
        trained = dict.fromkeys(f"({c}, {a})" for c, a in zip(train.labels, train.attributes, strict=True))
        if missing := sorted(trained.keys() - set(sets[0].groups)):
            notes = (*notes, f"{ID}: has no image of {', '.join(missing)}, which training has")
    return Data(train_set, tuple(sets), classes, train.attributes is not None, digest.hexdigest(), notes)


def _notes(s: Set, seen: set[bytes]) -> Iterator[str]:
    """What to say of an evaluation set.  seen: the features of the training images."""
    if both := sum(row.tobytes() in seen for row in s.image):
        yield f"{s.name}: {both} of its {len(s.image)} images have the features of training images"
    for name, size in zip(s.groups, s.sizes, strict=False):
        if size < FEW:
            yield f"{s.name}: group {name} has {size} images, fewer than {FEW}, so its accuracy is uncertain"


def _prompts(raw: _Raw, classes: Names, width: int) -> np.ndarray:
    """The prompts of a source in the order of the classes. Raises: UsageError."""
    assert raw.prompts is not None
    rows = len(classes) if raw.classes is None else len(raw.classes)
    if raw.prompts.shape != (rows, width):
        got = raw.prompts.shape
        raise UsageError(f"--{raw.flag}: prompts must have shape ({rows}, {width}), a row for each class, got {got}.")
    if raw.classes is None:
        return raw.prompts
    order = _index(np.array(classes), tuple(map(str, raw.classes)))
    if (order < 0).any():
        raise UsageError(f"--{raw.flag}: classes must name {classes[int((order < 0).argmax())]!r}, which has samples.")
    return raw.prompts[order]


def _read(flag: str, source: str, training: bool, digest: Any) -> _Raw:
    """The arrays of a source, checked by themselves. Raises: UsageError."""
    arrays: dict[str, Any] = {}
    for name in ("image", "text", "labels", "attributes", "units", "prompts", "classes"):
        needed = name in ("image", "labels") or (training and name == "text")
        wanted = training or name != "text"
        arrays[name] = reading.read(flag, source, name) if needed or (wanted and reading.holds(source, name)) else None
        if arrays[name] is not None:
            digest.update(f"{flag} {name} {arrays[name].dtype} {arrays[name].shape}".encode())
            digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8))
    rows = len(np.atleast_1d(arrays["image"]))
    for name in ("image", "text", "prompts"):
        if (x := arrays[name]) is None:
            continue
        if x.dtype.kind != "f" or x.ndim != 2 or not x.size:
            raise UsageError(f"--{flag}: {name} must be floats, a row for each sample, got {x.dtype} of {x.shape}.")
        if not (finite := np.isfinite(x).all(1)).all():
            raise UsageError(f"--{flag}: {name} must be finite, got another value in row {int(finite.argmin())}.")
    for name in ("text", "labels", "attributes", "units"):
        if (x := arrays[name]) is None:
            continue
        if name != "text" and (x.dtype.kind not in "biuU" or x.ndim != 1):
            raise UsageError(f"--{flag}: {name} must be whole numbers or words, got {x.dtype} of shape {x.shape}.")
        if len(x) != rows:
            raise UsageError(f"--{flag}: image has {rows} rows and {name} has {len(x)}.")
    if (x := arrays["classes"]) is not None and (
        x.ndim != 1 or x.dtype.kind not in "iuU" or len(np.unique(x)) < len(x)
    ):
        raise UsageError(f"--{flag}: classes must be words or whole numbers that differ, got {x.dtype} of {x.shape}.")
    return _Raw(flag, **arrays)


def _units(raw: _Raw) -> np.ndarray:
    """A number for each row; rows of one image have the same."""
    if raw.units is not None:
        return np.unique(raw.units, return_inverse=True)[1]
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(row.tobytes(), len(seen)) for row in np.ascontiguousarray(raw.image)])


def training(
    image: np.ndarray, text: np.ndarray, label: np.ndarray, group: np.ndarray, unit: np.ndarray, prompts: np.ndarray
) -> tuple[Train, "_Scale", "_Scale"]:
    """The training set of these rows, and the scales of images and texts. Raises: UsageError if one does not vary."""
    order = np.argsort(unit, kind="stable")
    _, first, count = np.unique(unit[order], return_index=True, return_counts=True)
    images, texts = _Scale.of("image", image), _Scale.of("text", text)
    train_set = Train(
        image=images(image[order]),
        text=texts(text[order]),
        label=label[order].astype(np.int32),
        group=group[order].astype(np.int32),
        first=first.astype(np.int32),
        count=count.astype(np.int32),
        class_text=texts(_means(text, label)),
        group_text=texts(_means(text, group)),
        prompts=texts(prompts),
    )
    return train_set, images, texts


def _one_row_an_image(raw: _Raw) -> _Raw:
    """The first row of each image: its captions do not count as images. Raises: UsageError if rows of one disagree."""
    _, first, unit = np.unique(_units(raw), return_index=True, return_inverse=True)
    for name, values in (("labels", raw.labels), ("attributes", raw.attributes)):
        if values is None or not (differ := values != values[first[unit]]).any():
            continue
        row = int(differ.argmax())
        other = int(first[unit[row]])
        raise UsageError(f"--{raw.flag}: rows {other} and {row} are one image by their features or `units`, but have"
                         f" {name} {str(values[other])!r} and {str(values[row])!r}.")  # fmt: skip
    return raw.rows(np.sort(first))


def _held_out(raw: _Raw, unit: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which rows are held out: a share of the images of every class and attribute, at least one of each class."""
    rng = np.random.default_rng(seed)
    _, first = np.unique(unit, return_index=True)
    parts = [raw.labels] if raw.attributes is None else [raw.labels, raw.attributes]
    group = np.unique(np.stack([np.unique(x, return_inverse=True)[1] for x in parts]), axis=1, return_inverse=True)[1]
    held_out = np.zeros(len(first), bool)
    for g in np.unique(group[first]):
        members = rng.permutation(np.flatnonzero(group[first] == g))
        held_out[members[: round(share * len(members))]] = True
    for c in np.unique(raw.labels):
        if not held_out[raw.labels[first] == c].any() or held_out[raw.labels[first] == c].all():
            raise UsageError(f"--holdout={share:g} leaves class {c} without samples on one side; give --id=FILE.")
    return held_out[unit]


def _attributes(values: np.ndarray | None, rows: int) -> tuple[np.ndarray, int]:
    if values is None:
        return np.zeros(rows, int), 1
    kinds, number = np.unique(values, return_inverse=True)
    return number, len(kinds)


def _means(x: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The mean row of each group, (G, d); groups are 0..G-1."""
    sums = np.zeros((group.max() + 1, x.shape[1]))
    np.add.at(sums, group, x)
    return sums / np.bincount(group)[:, None]


def _index(labels: np.ndarray, classes: Names) -> np.ndarray:
    """The place of each label among the classes; -1 where it has none."""
    kinds, inverse = np.unique(labels, return_inverse=True)
    places = {name: i for i, name in enumerate(classes)}
    return np.array([places.get(str(kind), -1) for kind in kinds], np.int32)[inverse]


@dataclasses.dataclass(frozen=True, eq=False)
class _Scale:
    """x -> (x - mean) / size, in float32."""

    mean: np.ndarray
    size: float

    @classmethod
    def of(cls, name: str, x: np.ndarray) -> "_Scale":
        """With the mean and the root mean square of these features. Raises: UsageError if they do not vary."""
        x = np.asarray(x, np.float64)
        mean = x.mean(0)
        size = float(np.sqrt(((x - mean) ** 2).mean()))
        if not size > 0:
            raise UsageError(f"--train: {name} features must differ from sample to sample.")
        return cls(mean, size)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return ((np.asarray(x, np.float64) - self.mean) / self.size).astype(np.float32)


def _joint(labels: np.ndarray, attributes: np.ndarray | None) -> dict[tuple[str, str], int]:
    """1 where class and attribute occur together more often than if independent, 0 less often, -1 as often, by name."""
    if attributes is None:
        return {}
    kinds = [np.unique(x, return_inverse=True) for x in (labels, attributes)]
    joint = np.zeros([len(names) for names, _ in kinds], np.int64)  # counts: rounding must not decide a tie
    np.add.at(joint, tuple(number for _, number in kinds), 1)
    excess = joint * len(labels) - joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    kind = np.where(excess == 0, -1, excess > 0)
    return {(str(c), str(a)): int(kind[i, j]) for i, c in enumerate(kinds[0][0]) for j, a in enumerate(kinds[1][0])}


def _evaluation(
    name: str, raw: _Raw, scored: Names, known: np.ndarray, joint: dict[tuple[str, str], int], image: np.ndarray,
    prompts: np.ndarray,
) -> Set:  # fmt: skip
    label = _index(raw.labels, scored)
    if (label < 0).any():
        row = int((label < 0).argmax())
        raise UsageError(f"--{raw.flag}: label {str(raw.labels[row])!r} in row {row} is none of the scored classes.")
    attribute, number = _attributes(raw.attributes, len(label))
    kinds, group, sizes = np.unique(label * number + attribute, return_inverse=True, return_counts=True)
    named: list[tuple[str, str]] = []
    if raw.attributes is None:
        group, sizes = np.zeros(len(label), int), np.array([len(label)])
    else:
        values = np.unique(raw.attributes)
        named = [(scored[k // number], str(values[k % number])) for k in kinds]
    aligned = np.array([joint.get(g, -1) for g in named] or [-1])
    groups = tuple(f"({c}, {a})" for c, a in named)
    return Set(name, image, label.astype(np.int32), prompts, known, group.astype(np.int32), sizes, aligned, groups)
