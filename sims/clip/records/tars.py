"""Tars of captioned images as img2dataset writes them: indexed once, read by offset, never extracted.

A tar holds KEY.jpg (or png, webp, ...) and KEY.txt. Each line of KEY.txt is a caption, unless img2dataset's KEY.json
has the lines as one caption. Members after the end of a tar, as in `cat a.tar b.tar`, are read too.

The index is stored in a sidecar `TAR.index.npz` beside the tar, or in the user's cache if the tar's folder cannot be
written. It is valid as long as the tar's size and modification time stay the same.
"""

import concurrent.futures
import dataclasses
import glob
import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from sims.clip.records.images import MAX_BYTES
from sims.clip.records.reading import arrays_of, brief, foreign, parsed, reason
from sims.engine import processes
from sims.engine.flags import UsageError, WorkFailed

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_VERSION = 3
_BLOCK = 512  # bytes; a tar ends with blocks of zeros
_MAX_CAPTION = _MAX_HEADER = _MAX_PADDING = 1 << 20  # bytes; more zeros than that are a download cut short
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_SHARDS = 100_000


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """Many strings in two buffers.

    Millions of str objects would fill the memory and be slow to copy to a worker process.

    Attributes:
      blob: UTF-8, one string after the other.
      ends: (n + 1,) int64, where each string begins and the last one ends.
    """

    blob: bytes
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> str:
        return self.blob[self.ends[i] : self.ends[i + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    @property
    def sound(self) -> bool:
        """Whether the ends rise from 0 to the length of the blob."""
        return _rises(self.ends) and self.ends[-1] == len(self.blob)


def _rises(ends: np.ndarray) -> bool:
    return bool(ends.ndim == 1 and ends.dtype.kind == "i" and ends.size and ends[0] == 0 and (np.diff(ends) >= 0).all())


def texts(strings: Iterable[str]) -> Texts:
    """The strings as Texts."""
    parts = [s.encode(errors="replace") for s in strings]
    return Texts(b"".join(parts), np.cumsum([0, *map(len, parts)], dtype=np.int64))


def concatenate(parts: list[Texts]) -> Texts:
    """The strings of all parts, in order."""
    starts = np.cumsum([0, *(len(p.blob) for p in parts)], dtype=np.int64)
    ends = [p.ends[1:] + start for p, start in zip(parts, starts, strict=False)]
    return Texts(b"".join(p.blob for p in parts), np.concatenate([np.zeros(1, np.int64), *ends]))


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Where the images of a tar lie.

    Attributes:
      stamp: (2,) int64, the tar's size in bytes and its modification time in ns.
      offset, size: (n,) int64, bytes.
      keys: n.
      captions: those of image i are first[i] to first[i + 1].
      left_out: images without a caption, captions without an image, and both with a dot in their key.
    """

    stamp: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    keys: Texts
    captions: Texts
    first: np.ndarray
    left_out: int

    @property
    def sound(self) -> bool:
        """Whether the arrays fit each other."""
        n = len(self.keys)
        fits = self.offset.shape == self.size.shape == (n,) and self.first.shape == (n + 1,) and _rises(self.first)
        return fits and self.keys.sound and self.captions.sound and self.first[-1] == len(self.captions)


@dataclasses.dataclass(frozen=True, eq=False)
class TarBytes:
    """Reads image i: bytes offset[i] to offset[i] + size[i] of paths[tar[i]], whose stamp must be stamps[tar[i]]."""

    paths: tuple[str, ...]
    stamps: np.ndarray
    tar: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def __call__(self, i: int) -> bytes:
        """Raises: OSError; WorkFailed if the tar has changed since it was indexed."""
        if self.size[i] > MAX_BYTES:
            raise OSError(f"larger than {MAX_BYTES >> 20} MiB")
        t = self.tar[i]
        # The tar is opened for each image: a process may not hold thousands open, and decoding takes a hundred times
        # as long as opening.
        with open(self.paths[t], "rb") as file:
            if (_stamp(file.fileno()) != self.stamps[t]).any():
                raise WorkFailed(f"{self.paths[t]} changed while it was in use; start again, and it is indexed again.")
            return os.pread(file.fileno(), int(self.size[i]), int(self.offset[i]))


def expand(spec: str) -> tuple[str, ...]:
    """The files of comma-separated globs with ranges: `cc3m/{00000..00331}.tar,more/*.tar`.

    A range keeps its leading zeros. The files of a glob are sorted. A file that is named twice is taken once.
    Raises: UsageError naming a glob that matches no file.
    """
    paths: list[str] = []
    for pattern in filter(None, (p.strip() for p in spec.split(","))):
        for each in _ranges(pattern):
            files = sorted(glob.glob(each, recursive=True)) if glob.has_magic(each) else [each]
            files = [f for f in files if os.path.isfile(f)]
            if not files:
                raise UsageError(f"tars:{spec} finds no file for {each}; give globs or ranges such as"
                                 " cc3m/{00000..00331}.tar.")  # fmt: skip
            paths += files
    if not paths:
        raise UsageError("tars: needs globs or ranges of tar files, such as tars:cc3m/{00000..00331}.tar.")
    return tuple(dict.fromkeys(paths))


def _ranges(pattern: str) -> list[str]:
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < _MAX_SHARDS:
        raise UsageError(f"{pattern}: a range must go up and have at most {_MAX_SHARDS} numbers.")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    middle = [f"{head}{i:0{len(match[1])}d}" for i in range(first, last + 1)]
    return [m + t for t in _ranges(tail) for m in middle]


def indices(paths: tuple[str, ...]) -> list[Index]:
    """The index of each tar, read from its sidecar, or made and stored there. Raises: UsageError as `scan` does."""
    by_path = {path: stored(path) for path in paths}
    missing = [path for path, index in by_path.items() if index is None]

    def made(path: str) -> Index:
        index = scan(path)
        store(path, index)
        return index

    pool = concurrent.futures.ThreadPoolExecutor(2 * processes.cores())  # threads wait for the disk
    try:
        pairs, quiet = zip(missing, pool.map(made, missing), strict=True), None if len(missing) > 1 else True
        by_path |= tqdm(pairs, "indexing tars", len(missing), unit="tar", disable=quiet)
    finally:
        pool.shutdown(cancel_futures=True)
    return [by_path[path] for path in paths]


class _Member(NamedTuple):
    """A member of a tar. type: as in its header.  offset: of its content."""

    name: str
    type: bytes
    offset: int
    size: int


def scan(path: str) -> Index:
    """The index of a tar, made from its headers and captions; images are skipped.

    Raises: UsageError for a file that is no plain tar or is cut short. Also for a key that occurs twice, a link, a
    device, a sparse file, and a name that is absolute or climbs out by `..`.
    """
    images: dict[str, tuple[int, int]] = {}
    captions: dict[str, list[str]] = {}
    described: dict[str, tuple[int, int]] = {}
    dotted = 0
    try:
        with open(path, "rb") as opened:
            file = opened.fileno()
            stamp = _stamp(file)
            for member in _members(path, file):
                if not _allowed(path, member):
                    continue
                key, extension = _split(member.name)
                if extension == ".json":
                    described[key] = member.offset, member.size
                    continue
                parts = images if extension in IMAGES else captions if extension == ".txt" else None
                if parts is None:
                    dotted += extension.endswith((*IMAGES, ".txt"))
                    continue
                if key in parts:
                    raise UsageError(f"{path} holds {brief(key)}{extension} twice; make it again.")
                if parts is images:
                    images[key] = member.offset, member.size
                else:
                    captions[key] = _lines(os.pread(file, min(member.size, _MAX_CAPTION), member.offset))
            for key in described.keys() & images.keys():
                if len(lines := captions.get(key, ())) > 1:
                    offset, size = described[key]
                    captions[key] = _joined(lines, os.pread(file, min(size, _MAX_HEADER), offset))
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(f"{path} cannot be read as an uncompressed tar ({reason(error)}).") from None
    keys = [key for key in images if captions.get(key)]
    where = np.array([images[key] for key in keys], np.int64).reshape(-1, 2)
    left_out = len(set(images) | set(captions)) - len(keys) + dotted
    first = np.cumsum([0, *(len(captions[key]) for key in keys)], dtype=np.int64)
    every = texts(line for key in keys for line in captions[key])
    return Index(stamp, where[:, 0], where[:, 1], texts(keys), every, first, left_out)


def _members(path: str, file: int) -> Iterator[_Member]:
    """The members of a tar, also those after its end: `cat a.tar b.tar` has two ends.

    Time and memory grow as the headers do: no header is read twice, and a chain of long names is followed in a loop.
    Raises: UsageError if the tar is cut short; ValueError for a header that is none.
    """
    at, end, attributes = 0, None, {}
    while block := os.pread(file, _BLOCK, at):
        if not block.strip(b"\0") and not attributes and (end is not None or len(block) == _BLOCK):
            end = at if end is None else end
            at += _BLOCK
            if at - end > _MAX_PADDING:
                raise UsageError(f"{path} has only zeros from byte {end}, as a download that was cut short; fetch it"
                                 " again or leave it out.")  # fmt: skip
            continue
        if len(block) < _BLOCK or not _is_header(block):
            if at == 0:
                raise ValueError(foreign(block) or "it does not begin with a tar's header")
            if end is not None:
                raise UsageError(f"{path} goes on after its end, at byte {at}, with what is no tar; cut that off.")
            raise _cut(path, at)
        kind, size, end = block[156:157], _number(block[124:136]), None
        at += _BLOCK
        if kind in (b"L", b"K", b"x", b"X", b"g"):  # headers about the next member, or (g) about all
            if size > _MAX_HEADER:
                raise ValueError(f"a header of {size} bytes")
            data = os.pread(file, size, at)
            if len(data) < size:
                raise _cut(path, at)
            if kind == b"L":
                attributes = {b"path": data.split(b"\0", 1)[0], **attributes}
            elif kind != b"K":
                attributes |= _records(data)
            if kind == b"g" and attributes:
                raise ValueError("a header that names or measures all that follows")
            at += -(-size // _BLOCK) * _BLOCK
            continue
        if attributes.keys() - {b"path", b"size"}:
            raise UsageError(f"{path} holds a sparse file; only plain files are read.")
        size = _number(attributes.get(b"size", b""), 10) or size
        prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
        name = attributes.get(b"path") or b"/".join(filter(None, (prefix, block[:100].split(b"\0", 1)[0])))
        kind = b"5" if kind == b"\0" and name.endswith(b"/") else kind
        yield _Member(name.decode("utf-8", "surrogateescape"), kind, at, size)
        at += -(-size // _BLOCK) * _BLOCK if kind in _PLAIN else 0
        attributes = {}
    if at == 0:
        raise ValueError("it is empty")
    if end is None:
        raise _cut(path, at)


_PLAIN = (b"0", b"\0")


def _cut(path: str, at: int) -> UsageError:
    return UsageError(f"{path} is cut short or damaged at byte {at}; download it again or leave it out.")


def _is_header(block: bytes) -> bool:
    """Whether a block has the checksum of a header: the sum of its bytes, with blanks in place of the checksum.

    Some old tars take the bytes as signed.
    """
    counted = block[:148] + b" " * 8 + block[156:]
    try:
        checksum = _number(block[148:156])
    except ValueError:
        return False
    return checksum == sum(counted) or checksum == sum(counted) - 256 * sum(byte > 127 for byte in counted)


def _number(field: bytes, base: int = 8) -> int:
    """A number of a header: digits, or base 256 for larger numbers. An empty field is 0."""
    large = field[:1] == b"\x80"
    number = int.from_bytes(field[1:], "big") if large else int(field.split(b"\0", 1)[0].strip()[:40] or b"0", base)
    if not 0 <= number < 1 << 62:
        raise ValueError("a number that no file can have")
    return number


def _records(data: bytes) -> dict[bytes, bytes]:
    """Path, size and the signs of a sparse file, from a PAX header: records `LENGTH KEY=VALUE\\n` in their order."""
    values, at = {}, 0
    while at < len(data) and data[at]:  # zeros may follow the records
        blank = data.find(b" ", at, at + 20)
        length = int(data[at:blank]) if blank > 0 and data[at:blank].isdigit() else 0
        key, equals, value = data[blank + 1 : at + length].partition(b"=")
        if not equals or at + length > len(data) or not value.endswith(b"\n"):
            raise ValueError("a damaged PAX header")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            values[key] = value[:-1]
        at += length
    return values


def _allowed(path: str, member: _Member) -> bool:
    """Whether a member is a file; False for a folder.

    Raises: UsageError for a member of another type, or a name that leads out of the tar.
    """
    name, shown = pathlib.PurePosixPath(member.name), brief(repr(member.name))
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        raise UsageError(f"{path} holds the name {shown}, which leads out of it; such a tar is not read.")
    if member.type == b"5":
        return False
    if member.type not in _PLAIN:
        raise UsageError(f"{path} holds {shown}, a link or device or sparse file; only plain files are read.")
    return True


def _split(name: str) -> tuple[str, str]:
    """`a/0001.jpg` as ("a/0001", ".jpg"); a key ends at the first dot of the file's name."""
    folder, _, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    return f"{folder}/{stem}" if folder else stem, (dot + extension).lower()


def _lines(data: bytes) -> list[str]:
    """The captions: lines that are not blank."""
    lines = re.split(r"[\r\n]+", data.decode("utf-8-sig", "replace"))
    return [text for line in lines if (text := " ".join(line.split()))]


def _joined(lines: list[str], description: bytes) -> list[str]:
    """The lines as one caption, if they make up the caption of img2dataset's KEY.json; else as they are."""
    try:
        content = parsed(description)
    except ValueError:
        return lines
    caption, whole = content.get("caption") if isinstance(content, dict) else None, " ".join(lines)
    return [whole] if isinstance(caption, str) and " ".join(caption.split()) == whole else lines


def _stamp(file: int | str) -> np.ndarray:
    status = os.stat(file)
    return np.array([status.st_size, status.st_mtime_ns], np.int64)


def sidecars(path: str) -> tuple[pathlib.Path, ...]:
    """Where the index of a tar may lie: beside the tar, or in the user's cache if there is a home folder."""
    whole = os.path.abspath(path)
    beside = pathlib.Path(f"{whole}.index.npz")
    try:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    except RuntimeError:
        return (beside,)
    name = hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()
    return beside, cache / "mmcl_theory" / "tars" / f"{name}.npz"


def store(path: str, index: Index) -> None:
    """Write the sidecar, whole or not at all; warns if it can be written nowhere."""
    arrays = {"version": np.array(_VERSION), "stamp": index.stamp, "offset": index.offset, "size": index.size,
              "first": index.first, "left_out": np.array(index.left_out)}  # fmt: skip
    for name in ("keys", "captions"):
        texts_of = getattr(index, name)
        arrays |= {name: np.frombuffer(texts_of.blob, np.uint8), f"{name}_ends": texts_of.ends}
    for sidecar in sidecars(path):
        beside = sidecar.with_name(f".{sidecar.name}.{os.uname().nodename}.{os.getpid()}")
        try:
            if sidecar.parent != pathlib.Path(path).absolute().parent:
                sidecar.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(beside, "wb") as file:
                    np.savez(file, **arrays)
                os.replace(beside, sidecar)
            finally:
                beside.unlink(missing_ok=True)
            return
        except OSError:
            continue
    print(f"warning: no index of {path} can be stored beside it or in the cache; it is made again each time.",
          file=sys.stderr)  # fmt: skip


def stored(path: str) -> Index | None:
    """The index in the tar's sidecar, if that is whole and matches the tar; else None."""
    for sidecar in sidecars(path):
        try:
            arrays = arrays_of(sidecar)
            if arrays["version"] != _VERSION or (arrays["stamp"] != _stamp(path)).any():
                continue
            keys, captions = (Texts(arrays[k].tobytes(), arrays[f"{k}_ends"]) for k in ("keys", "captions"))
            where = arrays["offset"], arrays["size"]
            index = Index(arrays["stamp"], *where, keys, captions, arrays["first"], int(arrays["left_out"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if index.sound:
            return index
    return None
