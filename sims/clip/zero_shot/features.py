"""Features of a source's pairs of image and caption, in shards: a killed run resumes to the same bytes.

Shard k holds images k B to (k + 1) B - 1 of those used and all their captions. An encoder gets the same batches whether
or not a run was stopped, since batches do not cross shards.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from sims.clip.records.images import BadImage
from sims.clip.records.reading import arrays_of, brief, reason
from sims.clip.records.sources import FileBytes, Source
from sims.clip.zero_shot.prompts import prompts
from sims.clip.zero_shot.scoring import in_order
from sims.clip.zero_shot.towers import Towers, raised
from sims.engine import files, processes, store
from sims.engine.flags import UsageError

SUMMARY = "features.json"  # written last: a folder that has it is complete
_SHARDS = "checkpoints"  # a name that store.begin removes when it overwrites
_SHARD = 1024  # images
_MOST_LOST = {"float16": 2.0**-10, "float32": 2.0**-23}  # of a row's length; twice what rounding moves a normal number


def used(source: Source) -> np.ndarray:
    """The records used: those that have a label and an attribute, where the source has any.

    Raises: UsageError if there is none, or the file of an image is missing.
    """
    good = source.labels >= 0 if source.classes else np.ones(len(source), bool)
    if (attributes := getattr(source, "attributes", None)) is not None:
        good = good & np.array([word != "" for word in attributes])
    indices = np.flatnonzero(good)
    if not len(indices):
        raise UsageError(f"{source.name} has no captioned image with a label and an attribute.")
    fetch = getattr(source, "fetch", None)
    if isinstance(fetch, FileBytes):
        paths = (os.path.join(fetch.root, fetch.paths[i]) for i in indices)
        if absent := next((path for path in paths if not os.path.isfile(path)), None):
            raise UsageError(f"{source.name} lists the image {brief(absent)}, which is not there.")
    return indices


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """What is to be embedded, and how.

    Attributes:
      indices: records of the source.
      precision: float16 or float32.
      batch_size: images, or captions, that the encoder gets at once.
      shard: B, images.
      threads: that decode images.
    """

    towers: Towers
    source: Source
    indices: np.ndarray
    templates: Sequence[str]
    precision: str = "float16"
    batch_size: int = 64
    shard: int = _SHARD
    threads: int | None = None

    def identity(self) -> dict[str, Any]:
        """What decides the features, apart from the encoder's inside."""
        digest = hashlib.sha256()
        attributes = getattr(self.source, "attributes", None)
        for i in map(int, self.indices):
            attribute = None if attributes is None else attributes[i]
            digest.update(json.dumps([int(self.source.labels[i]), attribute, *self.source.captions(i)]).encode())
        words = [list(self.source.classes), list(self.templates)]
        fetch = getattr(self.source, "fetch", None)
        paths = [os.path.join(fetch.root, fetch.paths[i]) for i in self.indices] if isinstance(fetch, FileBytes) else []
        sizes = [os.stat(path).st_size for path in paths]  # what most changes of an image change, and quick to read
        return {
            "command": "clip.embed", "encoder": self.towers.name, "images": len(self.indices),
            "precision": self.precision, "batch_size": self.batch_size, "shard": self.shard,
            "pairs": digest.hexdigest(), "image_sizes": hashlib.sha256(json.dumps(sizes).encode()).hexdigest(),
            "classes_and_templates": hashlib.sha256(json.dumps(words).encode()).hexdigest(),
        }  # fmt: skip

    def encoded(self, which: str, items: Iterable[Any], width: int | None = None) -> np.ndarray:
        """Features of images or captions, (n, d).

        width: d; None: any.
        Raises: UsageError if the encoder fails, or gives no finite floats, another number of rows, or another width.
        """
        what, encode = f"{which} of {self.towers.name}", getattr(self.towers, which)
        parts, rest = [], iter(items)
        while batch := list(itertools.islice(rest, self.batch_size)):
            try:
                given = encode(batch)
            except Exception as error:  # the user's own code may raise anything
                raise UsageError(f"{what} {raised(error)}.") from error
            parts.append(_checked(what, given, len(batch), width))
            width = parts[-1].shape[1]
        return np.concatenate(parts) if parts else np.empty((0, width or 1), self.precision)

    def part(self, records: np.ndarray, widths: Sequence[int | None] = (None, None)) -> dict[str, np.ndarray]:
        """The arrays of a shard: features, the records that could be read with the number of their captions, others."""
        kept: list[int] = []
        bad: dict[str, str] = {}

        def read(i: int) -> np.ndarray | BadImage:
            try:
                return self.towers.view(self.source.read(i).image)
            except BadImage as error:
                return error

        def good() -> Iterator[np.ndarray]:
            threads = self.threads or processes.cores()
            views = in_order(read, map(int, records), threads, 2 * self.batch_size)
            for i, view in zip(map(int, records), views, strict=True):
                if isinstance(view, BadImage):
                    bad[view.id] = view.why
                else:
                    kept.append(i)
                    yield view

        image = self.encoded("image", good(), widths[0])
        captions = [self.source.captions(i) for i in kept]
        text = self.encoded("text", [caption for group in captions for caption in group], widths[1])
        (image, lost_image), (text, lost_text) = (self.rounded(x) for x in (image, text))
        return {
            "image": image, "text": text, "kept": np.array(kept, np.int64),
            "captions": np.array([len(group) for group in captions], np.int64),
            "lost": np.array([lost_image, lost_text]),
            "bad": np.array(list(bad), str), "why": np.array(list(bad.values()), str),
        }  # fmt: skip

    def rounded(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """(x in the precision, max over rows of |x_rounded - x| / |x| in Euclidean length).

        Raises: UsageError if that loses more than rounding does: the numbers are too large or too small.
        """
        exact = x.astype(float)
        with np.errstate(over="ignore"):
            y = x.astype(self.precision)
        length = np.linalg.norm(exact, axis=1)
        with np.errstate(invalid="ignore"):
            lost = np.linalg.norm(y.astype(float) - exact, axis=1) / np.where(length > 0, length, 1)
        most = float(lost.max(initial=0))
        if not most <= _MOST_LOST[self.precision]:
            row = int(np.nan_to_num(lost, nan=np.inf).argmax())
            mend = "; give --precision=float32" if self.precision == "float16" else ""
            raise UsageError(
                f"{self.towers.name} gives features of up to {np.abs(exact[row]).max():.3g} in a row, which"
                f" {self.precision} does not hold{mend}."
            )
        return y, most


def _checked(what: str, given: Any, rows: int, width: int | None) -> np.ndarray:
    try:
        x = np.asarray(given)
    except Exception as error:  # what other libraries' arrays raise
        raise UsageError(f"{what} gives no array ({brief(error)}).") from None
    if x.dtype.name == "bfloat16":
        x = x.astype(np.float32)
    if x.dtype.kind != "f" or x.ndim != 2 or len(x) != rows or not x.shape[1]:
        raise UsageError(f"{what} must give floats, a row for each of {rows}, got {x.dtype} of shape {x.shape}.")
    if width is not None and x.shape[1] != width:
        raise UsageError(f"{what} gives rows of {x.shape[1]} numbers, and gave rows of {width} before.")
    if not np.isfinite(x).all():
        raise UsageError(f"{what} gives a number that is not finite.")
    return x


def embed(work: Work, out: pathlib.Path, overwrite: bool = False) -> dict[str, Any]:
    """Write the features of all pairs into the folder `out`; returns the content of features.json.

    Written are image.npy and text.npy, a row for each caption; units.npy, the number of each row's image in the source;
    captions.csv; labels.npy, prompts.npy, classes.npy and classes.json if the source has classes; attributes.npy if it
    has any. Images that cannot be read are left out and counted.
    Raises: UsageError if the encoder gives no features, or other ones than the folder has; or if the folder holds
    another run. What the first batch shows is refused before anything is written.
    """
    config = work.identity()
    store.check(out, config, overwrite)
    finished = not overwrite and (out / SUMMARY).exists()
    first = work.part(work.indices[: min(work.batch_size, work.shard)])
    if finished:
        try:
            before = {name: np.load(out / f"{name}.npy", mmap_mode="r") for name in ("image", "text")}
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{out} is finished, but cannot be read ({reason(error)}); --overwrite starts again."
            ) from None
        _check_same(work, first, before)
        print(f"{out} already holds these features; nothing was computed again.", file=sys.stderr)
        return json.loads((out / SUMMARY).read_text())
    if not len(first["kept"]):
        raise UsageError(
            f"none of the first {len(first['bad'])} images can be read, such as {first['bad'][0]} ({first['why'][0]})."
        )
    widths = first["image"].shape[1], first["text"].shape[1]
    with store.locked(out):
        store.check(out, config, overwrite)  # again, now under the lock
        if overwrite:
            for old in (*out.glob("*.npy"), *out.glob("*.json")):
                if old.name != "config.json":
                    old.unlink()
        store.begin(out, config, overwrite)
        (out / _SHARDS).mkdir(exist_ok=True)
        starts = range(0, len(work.indices), work.shard)
        at = {out / _SHARDS / f"{start:09d}.npz": work.indices[start : start + work.shard] for start in starts}
        done = {file for file in at if _kept(file) is not None}
        if done:
            if (stored := _kept(next(iter(at)))) is not None:
                _check_same(work, first, {which: _by_caption(stored, which) for which in ("image", "text")})
            print(f"resuming: {len(done)} of {len(at)} shards are there.", file=sys.stderr)
        with tqdm(total=len(work.indices), unit="image", disable=None, smoothing=0.1) as bar:
            for file, records in at.items():
                if file not in done:
                    _write(file, work.part(records, widths))
                bar.update(len(records))
        summary = _join(work, out, list(at), widths)
        store.remove_checkpoints(out)
    return summary


def _kept(file: pathlib.Path) -> dict[str, np.ndarray] | None:
    """A shard, by its checksums; None if it is not there or damaged."""
    try:
        return arrays_of(file)
    except (OSError, ValueError):
        return None


def _write(file: pathlib.Path, part: Mapping[str, np.ndarray]) -> None:
    with files.whole(file) as new, new.open("wb") as opened:
        np.savez(opened, **part)  # type: ignore[arg-type]  # NumPy's types: any name may be `allow_pickle`


def _check_same(work: Work, first: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]) -> None:
    """Raise UsageError unless the encoder gives what it gave before, to 1% of a row's length.

    first: the shard of the first images.  before: image and text features of these and more, a row for each caption.
    """
    for which in ("image", "text"):
        now = _by_caption(first, which).astype(float)
        then = before[which][: len(now)].astype(float)
        same = now.shape == then.shape
        if not same or (np.linalg.norm(now - then, axis=1) > 0.01 * np.linalg.norm(now, axis=1)).any():
            raise UsageError(
                f"the first {'images' if which == 'image' else 'captions'} have other features than those in the"
                f" folder, from other files or another {work.towers.name}; --overwrite starts again."
            )


def _by_caption(part: Mapping[str, np.ndarray], which: str) -> np.ndarray:
    """The features of a shard, a row for each caption."""
    return np.repeat(part["image"], part["captions"], axis=0) if which == "image" else part["text"]


def _join(work: Work, out: pathlib.Path, shards: Sequence[pathlib.Path], widths: tuple[int, int]) -> dict[str, Any]:
    """Write the arrays of all shards as whole files, then the summary; returns its content."""
    parts = [{k: x for k, x in arrays_of(file).items() if k not in ("image", "text")} for file in shards]
    kept, counts = (np.concatenate([part[name] for part in parts]) for name in ("kept", "captions"))
    pairs = int(counts.sum())
    for which, width in zip(("image", "text"), widths, strict=True):
        with files.whole(out / f"{which}.npy") as new:
            rows, start = np.lib.format.open_memmap(new, "w+", work.precision, (pairs, width)), 0
            for file in shards:
                x = _by_caption(arrays_of(file), which)
                rows[start : start + len(x)] = x
                start += len(x)
            rows.flush()
    _save(out, "units", np.repeat(kept, counts))
    ids = getattr(work.source, "ids", None)
    captions = [(ids[int(i)] if ids else int(i), text) for i in kept for text in work.source.captions(int(i))]
    store.write_csv(out / "captions.csv", {"image": [x for x, _ in captions], "captions": [x for _, x in captions]})
    lost = np.max([part["lost"] for part in parts], axis=0).tolist()
    summary = {
        "images": len(kept), "pairs": pairs, "image_width": widths[0], "text_width": widths[1],
        "precision": work.precision, "largest_relative_rounding": dict(zip(("image", "text"), lost, strict=True)),
        "unlabelled": len(work.source) - len(work.indices),
        "unreadable": {str(i): str(w) for part in parts for i, w in zip(part["bad"], part["why"], strict=True)},
    }  # fmt: skip
    if work.source.classes:
        labels = np.array(work.source.classes)[work.source.labels[kept]]
        _save(out, "labels", np.repeat(labels, counts))
        summary["classes"] = sorted(set(labels.tolist()))
        features, lost = work.rounded(_prompts(work, summary["classes"], widths[1]))
        summary["largest_relative_rounding"]["prompts"] = lost
        _save(out, "prompts", features)
        _save(out, "classes", np.array(summary["classes"]))
        files.write_text(out / "classes.json", json.dumps(summary["classes"]) + "\n")
    if (attributes := getattr(work.source, "attributes", None)) is not None:
        words = np.array([attributes[int(i)] for i in kept])
        _save(out, "attributes", np.repeat(words, counts))
        summary["attributes"] = sorted(set(words.tolist()))
    files.write_text(out / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def _save(out: pathlib.Path, name: str, x: np.ndarray) -> None:
    with files.whole(out / f"{name}.npy") as new, new.open("wb") as opened:
        np.save(opened, x)


def _prompts(work: Work, classes: Sequence[str], width: int) -> np.ndarray:
    """The mean over templates of the features of a class's prompts, (c, d_t); of length 1 if the features are."""
    sentences = [sentence for name in classes for sentence in prompts(name, work.templates)]
    x = work.encoded("text", sentences, width).reshape(len(classes), len(work.templates), width).mean(1)
    return x / np.linalg.norm(x, axis=1, keepdims=True) if work.towers.unit else x


def text(summary: Mapping[str, Any], out: pathlib.Path) -> str:
    """The summary in lines."""
    lost = ", ".join(f"{value:.1e} ({name})" for name, value in summary["largest_relative_rounding"].items())
    kinds = {name: len(summary[name]) for name in ("classes", "attributes") if name in summary}
    has = " and ".join(f"{count} {name}" for name, count in kinds.items()) or "no classes"
    lines = [
        f"{summary['images']:,} images, {summary['pairs']:,} pairs, {has}; features of {summary['image_width']:,} and"
        f" {summary['text_width']:,} numbers",
        f"{summary['precision']}: rounding moves a row by at most this share of its length: {lost}",
    ]
    if summary["unlabelled"]:
        lines.append(f"{summary['unlabelled']:,} images without a label or an attribute are left out")
    if summary["unreadable"]:
        lines.append(f"{len(summary['unreadable'])} images could not be read and are left out; {SUMMARY} names them")
    missing = [flag for flag, name in (("labels", "classes"), ("attributes", "attributes")) if name not in kinds]
    more = "".join(f" --{flag}=TABLE:COLUMN" for flag in missing)
    return "\n".join([*lines, "", f"python -m sims.diagnose --data={out}{more}"])
