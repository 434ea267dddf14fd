"""Handwritten digits from scikit-learn or from IDX files (MNIST, Fashion-MNIST), each with a kind and a measured style.

The kind is the class of the experiment: by default +1 for the digits 5-9 and -1 for 0-4.
"""

import dataclasses
import gzip
import hashlib
import math
import os
import pathlib
import struct
import sys
import zlib
from typing import Any

import jax
import numpy as np

from sims.digits.config import ITEMS
from sims.engine.flags import UsageError

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# MD5 of the uncompressed files.
_KNOWN = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
_BUILTIN_MARGIN = 2  # pixels of background around scikit-learn's 8 x 8 digits, which fill their frame
_BUILTIN_TEST = 0.2  # share of the images kept for tests: the last ones, by other writers
_POOLED_SIDE = 12  # least pixels a side, where --pool is not given
_LARGEST_IDX = 1 << 30  # bytes, uncompressed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """Images of single items, sorted by kind: the first `low` are of kind -1, the others of kind +1.

    Attributes:
      ink: (n, h, h) uint8, the share of each pixel that is ink, in 255ths.
      small: (n, h/2, h/2), the same at half the size.
      item: (n,) the digit, 0..9.
      style: (n, 3) of 0, 1: slanted, thick, large; 1 means over the median of the training images.
    """

    ink: Any
    small: Any
    item: Any
    style: Any
    low: Any  # ()

    @property
    def side(self) -> int:
        """Pixels along a side."""
        return self.ink.shape[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Training and test items.

    Attributes:
      name: builtin, mnist, fashion or idx.
      kinds: -1 or +1 for each digit.
      digest: SHA-256 of all images and labels.
    """

    name: str
    train: Items
    test: Items
    kinds: tuple[int, ...]
    digest: str


def load(data: str, kinds: tuple[int, ...], pool: int | None = 1) -> Source:
    """The training and test items of a source.

    Args:
      data: `builtin`, or `idx:DIR`: a folder with four IDX files named as MNIST's, plain or with .gz.
      kinds: -1 or +1 for each digit.
      pool: squares of pool x pool pixels are averaged into one; it must divide half the side. None: the largest pool
        that leaves 12 or more pixels a side.

    Raises: UsageError naming the file, what is wrong and what is wanted.
    """
    name, parts = _builtin() if data == "builtin" else _idx(data)
    digest = hashlib.sha256()
    for images, labels in parts.values():
        digest.update(images.tobytes() + labels.tobytes())
    side = parts["train"][0].shape[1]
    if pool is None:
        pool = max(p for p in range(1, side) if p == 1 or (side % (2 * p) == 0 and side // p >= _POOLED_SIDE))
    if side % (2 * pool):
        raise UsageError(f"--pool must divide half of the images' side, {side // 2}, got {pool}.")
    pooled = {k: (_pooled(images, pool), labels) for k, (images, labels) in parts.items()}
    thresholds = np.median(measure_style(pooled["train"][0]), axis=0)
    train, test = (_items(*pooled[k], np.array(kinds), thresholds) for k in ("train", "test"))
    return Source(name, train, test, kinds, digest.hexdigest())


def _builtin() -> tuple[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError("--data=builtin needs scikit-learn: pip install mmcl-theory[digits].") from None
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.pad(images, ((0, 0), (_BUILTIN_MARGIN,) * 2, (_BUILTIN_MARGIN,) * 2))
    test = np.arange(len(images)) >= (1 - _BUILTIN_TEST) * len(images)
    labels = digits.target.astype(np.uint8)
    return "builtin", {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


def _idx(data: str) -> tuple[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    kind, _, folder = data.partition(":")
    if kind != "idx" or not folder:
        raise UsageError(f"--data must be builtin or idx:DIR, got {data}.")
    folder = os.path.expanduser(folder)
    parts, checksums = {}, {}
    for part, names in _FILES.items():
        (images, labels), digests = zip(*(read_idx(pathlib.Path(folder), name) for name in names), strict=True)
        checksums |= dict(zip(names, digests, strict=True))
        where = f"{folder}: {names[0]}"
        if images.ndim != 3 or images.shape[1] != images.shape[2] or images.shape[1] < 8 or images.shape[1] % 2:
            raise UsageError(f"{where} must hold square images of an even side >= 8, has shape {images.shape}.")
        if labels.ndim != 1 or len(labels) != len(images):
            raise UsageError(f"{folder}: {names[1]} must hold a label for each of {len(images)} images, has"
                             f" shape {labels.shape}.")  # fmt: skip
        if set(np.unique(labels)) != set(range(ITEMS)):
            outside = sorted(set(np.unique(labels)) - set(range(ITEMS)))
            problem = f"has label {outside[0]}" if outside else "lacks some of them"
            raise UsageError(f"{folder}: {names[1]} must hold labels 0-9, {problem}.")
        parts[part] = images, labels
    if parts["train"][0].shape[1] != parts["test"][0].shape[1]:
        raise UsageError(f"{folder}: training and test images differ in size.")
    for name, digests in _KNOWN.items():
        if checksums == digests:
            return name, parts
    wrong = _nearest(checksums)
    print(f"warning: {folder}: {wrong}; used as digits 0-9 all the same.", file=sys.stderr)
    return "idx", parts


def _nearest(checksums: dict[str, str]) -> str:
    """A message that names the files whose checksums differ from the known set with the most matching ones."""
    shared = {name: sum(checksums[f] == d for f, d in digests.items()) for name, digests in _KNOWN.items()}
    best = max(shared, key=lambda name: shared[name])
    if shared[best] == 0:
        return "the checksums are neither MNIST's nor Fashion-MNIST's"
    differing = [f for f, d in _KNOWN[best].items() if checksums[f] != d]
    return f"the checksum of {', '.join(differing)} is not {best}'s"


def read_idx(folder: pathlib.Path, name: str) -> tuple[np.ndarray, str]:
    """The array of an IDX file, and the MD5 of its uncompressed bytes.

    The file is folder/name or folder/name.gz; its name may have .idx in place of -idx. IDX: two zero bytes, a type (8:
    uint8, the only one accepted), the number of dimensions, their lengths as big-endian uint32, the values.

    Raises: UsageError for a file that is missing, cut short, too long, or of another kind.
    """
    names = [f"{plain}{suffix}" for plain in (name, name.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    path = folder / name
    try:
        path = next((folder / n for n in names if (folder / n).exists()), path)
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"  # the name may mislead: downloads get renamed, and browsers unpack them
        with gzip.open(path) if packed else open(path, "rb") as file:
            content = file.read(_LARGEST_IDX + 1)
    except FileNotFoundError:
        raise UsageError(f"--data=idx:{folder} has no {name} or {name}.gz.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if len(content) > _LARGEST_IDX:
        raise UsageError(f"{path} is larger than {_LARGEST_IDX >> 20} MiB; MNIST's files are of 45 at most.")
    if content[:200].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UsageError(f"{path} is a web page, not an IDX file: the download went wrong.")
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 3:
        raise UsageError(f"{path} is not an IDX file of bytes: it starts with {content[:4].hex()}, not 00000801 or"
                         " 00000803.")  # fmt: skip
    dimensions = content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise UsageError(f"{path} is cut short: {len(content)} bytes.")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) != start + math.prod(shape):
        raise UsageError(f"{path} must have {start + math.prod(shape)} bytes for shape {shape}, has {len(content)}.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape), hashlib.md5(content).hexdigest()


def _pooled(images: np.ndarray, pool: int) -> np.ndarray:
    """Means over pool x pool pixels, rounded."""
    n, side, _ = images.shape
    blocks = images.reshape(n, side // pool, pool, side // pool, pool).astype(np.uint32)
    return ((blocks.sum((2, 4)) + pool * pool // 2) // (pool * pool)).astype(np.uint8)


def _items(images: np.ndarray, labels: np.ndarray, kinds: np.ndarray, thresholds: np.ndarray) -> Items:
    order = np.argsort(kinds[labels], kind="stable")
    images, labels = images[order], labels[order]
    style = (measure_style(images) > thresholds).astype(np.int32)
    low = np.asarray((kinds[labels] < 0).sum(), np.int32)
    return Items(images, _pooled(images, 2), labels.astype(np.int32), style, low)


def measure_style(images: np.ndarray) -> np.ndarray:
    """(slant, stroke width, size) of each image, (n, 3), from its ink f(row, column) >= 0 as a density.

    slant: -Cov(row, column) / Var(row), the shear that would make the digit upright, positive where it leans right.
    stroke width: 2 sum f / sum |grad f|, area over half the outline's length, in pixels.
    size: sqrt(Var(row) + Var(column)), in pixels.
    An image without ink has zeros.
    """
    f = images.astype(np.float64) / 255
    side = f.shape[1]
    total = f.sum((1, 2))
    mass = np.maximum(total, 1e-12)
    row, column = np.arange(side)[None, :, None], np.arange(side)[None, None, :]
    mean_row, mean_column = ((f * at).sum((1, 2)) / mass for at in (row, column))
    dr, dc = row - mean_row[:, None, None], column - mean_column[:, None, None]
    rr, cc, rc = ((f * x).sum((1, 2)) / mass for x in (dr * dr, dc * dc, dr * dc))
    padded = np.pad(f, ((0, 0), (1, 1), (1, 1)))
    down = padded[:, 1:, :-1] - padded[:, :-1, :-1]
    right = padded[:, :-1, 1:] - padded[:, :-1, :-1]
    outline = np.sqrt(down**2 + right**2).sum((1, 2))
    style = np.stack([-rc / np.maximum(rr, 1e-12), 2 * total / np.maximum(outline, 1e-12), np.sqrt(rr + cc)], axis=1)
    return np.where(total[:, None] > 0, style, 0.0)
