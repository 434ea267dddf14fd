"""Tars of captioned images as img2dataset writes them: indexed once, read by offset, never extracted.

A tar holds KEY.jpg (or png, webp, ...) and KEY.txt. Its index goes to a sidecar `TAR.index.npz` beside it, or into the
user's cache where its folder cannot be written, and counts as long as the tar's size and time of change stay the same.
"""

import concurrent.futures
import dataclasses
import glob
import hashlib
import os
import pathlib
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from sims.clip import processes
from sims.clip.images import MAX_BYTES
from sims.flags import UsageError, WorkFailed

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_VERSION = 2
_BLOCK = 512  # bytes; a tar ends with blocks of zeros
_MAX_CAPTION = _MAX_HEADER = 1 << 20  # bytes
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_SHARDS = 100_000


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """Many strings in two buffers, which millions of str objects would burst and a worker process would copy slowly.

    blob: UTF-8, one after the other.  ends: (n + 1,) int64, where each begins and the last ends.
    """

    blob: bytes
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> str:
        return self.blob[self.ends[i] : self.ends[i + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


def texts(strings: Iterable[str]) -> Texts:
    """The strings as Texts."""
    parts = [s.encode(errors="replace") for s in strings]
    return Texts(b"".join(parts), np.cumsum([0, *map(len, parts)], dtype=np.int64))


def concatenate(parts: list[Texts]) -> Texts:
    """One after the other."""
    starts = np.cumsum([0, *(len(p.blob) for p in parts)], dtype=np.int64)
    ends = [p.ends[1:] + start for p, start in zip(parts, starts, strict=False)]
    return Texts(b"".join(p.blob for p in parts), np.concatenate([np.zeros(1, np.int64), *ends]))


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Where the images of a tar lie.

    stamp: (2,) int64, the tar's size in bytes and time of change in ns.  offset, size: (n,) int64, bytes.  keys,
    captions: n.  left_out: images without a caption, captions without an image, and both with a dot in their key.
    """

    stamp: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    keys: Texts
    captions: Texts
    left_out: int


@dataclasses.dataclass(frozen=True, eq=False)
class TarBytes:
    """Reads image i: bytes offset[i] to offset[i] + size[i] of paths[tar[i]], whose stamp must be stamps[tar[i]]."""

    paths: tuple[str, ...]
    stamps: np.ndarray
    tar: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def __call__(self, i: int) -> bytes:
        """Raises: OSError; WorkFailed where the tar is no longer the one that was indexed."""
        if self.size[i] > MAX_BYTES:
            raise OSError(f"larger than {MAX_BYTES >> 20} MiB")
        t = self.tar[i]
        # Opened each time: thousands of tars are more than a process may hold open, and decoding takes a hundred times
        # as long.
        with open(self.paths[t], "rb") as file:
            if (_stamp(file.fileno()) != self.stamps[t]).any():
                raise WorkFailed(f"{self.paths[t]} changed while it was in use; start again, and it is indexed anew.")
            return os.pread(file.fileno(), int(self.size[i]), int(self.offset[i]))


def expand(spec: str) -> tuple[str, ...]:
    """The files of comma-separated globs with ranges: `cc3m/{00000..00331}.tar,more/*.tar`.

    A range keeps its leading zeros; what a glob finds is sorted; a file is taken once.
    Raises: UsageError for a glob that finds nothing, naming it.
    """
    found: list[str] = []
    for pattern in filter(None, (p.strip() for p in spec.split(","))):
        for each in _ranges(pattern):
            files = sorted(glob.glob(each, recursive=True)) if glob.has_magic(each) else [each]
            files = [f for f in files if os.path.isfile(f)]
            if not files:
                raise UsageError(f"tars:{spec} finds no file for {each}; give globs or ranges such as"
                                 " cc3m/{00000..00331}.tar.")  # fmt: skip
            found += files
    if not found:
        raise UsageError("tars: needs globs or ranges of tar files, such as tars:cc3m/{00000..00331}.tar.")
    return tuple(dict.fromkeys(found))


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
    """The index of each tar, from its sidecar or made now and stored there. Raises: UsageError as `scan` does."""
    found = {path: stored(path) for path in paths}
    missing = [path for path, index in found.items() if index is None]

    def made(path: str) -> Index:
        index = scan(path)
        store(path, index)
        return index

    pool = concurrent.futures.ThreadPoolExecutor(2 * processes.cores())  # they wait for the disk
    try:
        pairs, quiet = zip(missing, pool.map(made, missing), strict=True), None if len(missing) > 1 else True
        found |= tqdm(pairs, "indexing tars", len(missing), unit="tar", disable=quiet)
    finally:
        pool.shutdown(cancel_futures=True)
    return [found[path] for path in paths]


class _Bounded:
    """A tar as tarfile reads it, at most _MAX_HEADER bytes at once: a header may claim that it goes on without end."""

    def __init__(self, file: BinaryIO):
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def scan(path: str) -> Index:
    """The index of a tar from its headers and captions; images are passed over.

    Raises: UsageError for what is no plain tar, cut short, or holds what may not be in it: names that are absolute or
    climb out by `..`, links, devices, a key twice.
    """
    images: dict[str, tuple[int, int]] = {}
    captions: dict[str, str] = {}
    end = dotted = 0
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=_Bounded(file), mode="r:") as tar:
            stamp = _stamp(file.fileno())
            while (member := tar.next()) is not None:
                tar.members.clear()  # it keeps them all otherwise
                end = member.offset_data + (-(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0)
                if not _allowed(path, member):
                    continue
                key, extension = _split(member.name)
                held = images if extension in IMAGES else captions if extension == ".txt" else None
                if held is None:
                    dotted += extension.endswith((*IMAGES, ".txt"))
                    continue
                if key in held:
                    raise UsageError(f"{path} holds {key}{extension} twice; make it anew.")
                if held is images:
                    images[key] = member.offset_data, member.size
                else:
                    captions[key] = _caption(
                        os.pread(file.fileno(), min(member.size, _MAX_CAPTION), member.offset_data)
                    )
            # The reader takes an unreadable header for the end; the true end is a block of zeros.
            if os.pread(file.fileno(), _BLOCK, end) != bytes(_BLOCK):
                raise UsageError(f"{path} is cut short or damaged at byte {end}; fetch it anew or leave it out.")
    except (OSError, ValueError, OverflowError, tarfile.TarError) as error:  # tarfile takes numbers for what they say
        told = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(f"{path} cannot be read as an uncompressed tar ({told}).") from None
    keys = [key for key in images if captions.get(key)]
    where = np.array([images[key] for key in keys], np.int64).reshape(-1, 2)
    left_out = len(set(images) | set(captions)) - len(keys) + dotted
    return Index(stamp, where[:, 0], where[:, 1], texts(keys), texts(captions[key] for key in keys), left_out)


def _allowed(path: str, member: tarfile.TarInfo) -> bool:
    """Whether it is a file; False for a folder."""
    name = pathlib.PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        raise UsageError(f"{path} holds the name {member.name!r}, which leads out of it; such a tar is not read.")
    if member.isdir():
        return False
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise UsageError(f"{path} holds {member.name!r}, a link or device; only plain files are read.")
    return True


def _split(name: str) -> tuple[str, str]:
    """`a/0001.jpg` as ("a/0001", ".jpg"); a key ends at the first dot of the file's name."""
    folder, _, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    return f"{folder}/{stem}" if folder else stem, (dot + extension).lower()


def _caption(data: bytes) -> str:
    return " ".join(data.decode(errors="replace").split())


def _stamp(file: int | str) -> np.ndarray:
    status = os.stat(file)
    return np.array([status.st_size, status.st_mtime_ns], np.int64)


def sidecars(path: str) -> tuple[pathlib.Path, ...]:
    """Where the index of a tar may lie: beside it, or in the user's cache, if there is a home for it."""
    whole = os.path.abspath(path)
    beside = pathlib.Path(f"{whole}.index.npz")
    try:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    except RuntimeError:
        return (beside,)
    name = hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()
    return beside, cache / "mmcl_theory" / "tars" / f"{name}.npz"


def store(path: str, index: Index) -> None:
    """Write the sidecar, whole or not at all; a warning where it can be written nowhere."""
    arrays = {"version": np.array(_VERSION), "stamp": index.stamp, "offset": index.offset, "size": index.size,
              "left_out": np.array(index.left_out)}  # fmt: skip
    for name in ("keys", "captions"):
        held = getattr(index, name)
        arrays |= {name: np.frombuffer(held.blob, np.uint8), f"{name}_ends": held.ends}
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
    print(f"warning: no index of {path} can be stored beside it or in the cache; it is made anew each time.",
          file=sys.stderr)  # fmt: skip


def stored(path: str) -> Index | None:
    """The sidecar's index, where there is one that is whole and the tar's."""
    for sidecar in sidecars(path):
        try:
            with open(sidecar, "rb") as file, np.load(file, allow_pickle=False) as held:
                if held["version"] != _VERSION or (held["stamp"] != _stamp(path)).any():
                    continue
                keys, captions = (Texts(held[k].tobytes(), held[f"{k}_ends"]) for k in ("keys", "captions"))
                index = Index(held["stamp"], held["offset"], held["size"], keys, captions, int(held["left_out"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
        if len(index.offset) == len(index.size) == len(keys) == len(captions):
            return index
    return None
