"""Classification by text weights or by a head: features of a set, ranks of the true classes, shares with intervals.

n images, c classes, r dimensions of the embedding.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import scipy.special
from tqdm import tqdm

from sims.clip.model.encoder import Encoder
from sims.clip.records.classes import check_names
from sims.clip.records.reading import arrays_of, brief, reason
from sims.clip.zero_shot.prompts import prompts
from sims.engine import processes
from sims.engine.flags import UsageError, WorkFailed

Scored = tuple[tuple[int, ...], ...]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Share:
    """`correct` of `images`. For no images the accuracy is NaN and the interval (0, 1)."""

    correct: int
    images: int

    @property
    def accuracy(self) -> float:
        """correct / images."""
        return self.correct / self.images if self.images else float("nan")

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Clopper and Pearson's interval."""
        low, high = clopper_pearson(self.correct, self.images, level)
        return float(low), float(high)


def clopper_pearson(correct: Any, images: Any, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The exact two-sided interval of a share: all p under which neither tail of Binomial(n, p) is below (1-level)/2.

    low = BetaInv((1-level)/2; k, n-k+1), at k = 0 it is 0; high = BetaInv((1+level)/2; k+1, n-k), at k = n it is 1.
    Raises: ValueError for counts that are not 0 <= correct <= images, or a level outside (0, 1).
    """
    k, n = np.asarray(correct, float), np.asarray(images, float)
    if not ((0 <= k) & (k <= n)).all() or not 0 < level < 1:
        raise ValueError(f"needs 0 <= correct <= images and 0 < level < 1, got {correct} of {images}, {level}.")
    tail = (1 - level) / 2
    # Where an end is fixed at 0 or 1, its arguments are replaced by any that the inverse accepts.
    low = scipy.special.betaincinv(np.maximum(k, 1), n - np.minimum(k, n) + 1, tail)
    high = scipy.special.betaincinv(k + 1, np.maximum(n - k, 1), 1 - tail)
    return np.where(k == 0, 0.0, low), np.where(k == n, 1.0, high)


def text_weights(
    encode_text: Callable[[Sequence[str]], np.ndarray],
    names: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 256,
    cache: pathlib.Path | None = None,
) -> np.ndarray:
    """w_y = u / |u|, u = mean over templates t of e(t, y) / |e(t, y)|: (c, r) float32, in the order of the names.

    Classes whose names are the same to the tokenizer have exactly the same row.
    cache: folder that keeps the weights, by a digest of names, templates and the tower's embeddings of the first class.
    They are taken again for any model with exactly those embeddings of that class.
    Raises: WorkFailed if an embedding is not finite, or is 0.
    """
    from sims.clip.records.tokenizer import clean

    first = _unit(np.asarray(encode_text(prompts(names[0], templates)), np.float32), "an embedding of a text")
    words = json.dumps([list(names), list(templates)]).encode()
    file = None if cache is None else cache / f"{hashlib.sha256(words + first.tobytes()).hexdigest()[:32]}.npz"
    if file is not None and (kept := _kept(file, (len(names), first.shape[1]))) is not None:
        return kept
    unlike: dict[str, str] = {}
    keys = [clean(name) for name in names]
    for key, name in zip(keys, names, strict=True):
        unlike.setdefault(key, name)
    sentences = [sentence for name in unlike.values() for sentence in prompts(name, templates)]
    embeddings = np.empty((len(sentences), first.shape[1]), np.float32)
    with tqdm(total=len(sentences), unit="text", disable=None) as bar:
        for at in range(0, len(sentences), batch_size):
            batch = sentences[at : at + batch_size]
            # All batches have one shape, so that the tower is compiled once.
            whole = batch + [batch[-1]] * (min(batch_size, len(sentences)) - len(batch))
            embeddings[at : at + len(batch)] = np.asarray(encode_text(whole), np.float32)[: len(batch)]
            bar.update(len(batch))
    each = _unit(embeddings, "an embedding of a text").reshape(len(unlike), len(templates), -1)
    row = {key: i for i, key in enumerate(unlike)}
    weights = _unit(each.mean(1), "a class's mean embedding")[[row[key] for key in keys]]
    if file is not None:
        _keep(file, weights)
    return weights


def class_weights(
    encoder: Encoder, names: Sequence[str], templates: Sequence[str], cache: pathlib.Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(weights (c, r), bias (c,)) of the classes: scores = features @ weights.T + bias.

    A head's rows are taken by class name. Text weights have no bias. Only the highest score counts, so the length of an
    image's features does not matter.
    Raises: UsageError if a head lacks a class or has it twice, or if the encoder has neither head nor text. Also for a
    text tower, if the names are wnids or numbered.
    """
    if encoder.head is None:
        if encoder.encode_text is None:
            raise UsageError(f"{encoder.name} has neither a text tower nor a head; fit a linear probe first.")
        check_names(names, "the class list")
        weights = text_weights(encoder.encode_text, names, templates, cache=cache)
        return weights, np.zeros(len(names), np.float32)
    own, weights, bias = encoder.head
    rows = np.arange(len(names)) if tuple(own) == tuple(names) else _rows(encoder.name, list(own), names)
    return np.asarray(weights, np.float32)[rows], np.asarray(bias, np.float32)[rows]


def _rows(encoder: str, own: list[str], names: Sequence[str]) -> np.ndarray:
    missing = [name for name in names if name not in own]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UsageError(
            f"the head of {encoder} has no class {brief(repr(missing[0]))}{more}: it can be scored only on classes it"
            f" was trained on, which are {brief(', '.join(map(str, own[:5])))}{', ...' if len(own) > 5 else ''}."
        )
    twice = [name for name in names if own.count(name) > 1]
    if twice:
        raise UsageError(
            f"the head of {encoder} has the class {brief(repr(twice[0]))} more than once; give its own list, --classes."
        )
    return np.array([own.index(name) for name in names])


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """The features of the images that could be read.

    Attributes:
      values: (m, r) float32.
      kept: (m,) their places in the set.
      bad: path -> why, for the other images.
    """

    values: np.ndarray
    kept: np.ndarray
    bad: dict[str, str]


def image_features(
    encoder: Encoder, paths: Sequence[Any], *, crop: int = 0, batch_size: int = 64, threads: int | None = None
) -> Features:
    """Embeddings of files (or `sets.Item`s), decoded, `crop` pixels cut off each side, resized and centre-cropped.

    threads: number that decode while the encoder works; None: one a core.  A file that cannot be read goes into `bad`.
    Raises: WorkFailed if an embedding is not finite.
    """
    values: list[np.ndarray] = []
    kept: list[int] = []
    bad: dict[str, str] = {}
    batch: list[np.ndarray] = []

    def encode() -> None:
        shown = batch + [batch[-1]] * (batch_size - len(batch))  # one shape, compiled once for all sets
        embeddings = np.asarray(encoder.encode_image(np.stack(shown)), np.float32)[: len(batch)]
        if not np.isfinite(embeddings).all():
            raise WorkFailed(f"{encoder.name} gives embeddings of images that are not finite; the set was not scored.")
        values.append(embeddings)
        batch.clear()

    workers = threads or processes.cores()
    with tqdm(total=len(paths), unit="image", disable=None, smoothing=0.1) as bar:
        for i, view in enumerate(_views(paths, crop, encoder.image_size, workers, 2 * batch_size)):
            if isinstance(view, str):
                bad[str(paths[i])] = view
            else:
                batch.append(view)
                kept.append(i)
            if len(batch) == batch_size:
                encode()
            bar.update()
        if batch:
            encode()
    return Features(np.concatenate(values) if values else np.empty((0, 1), np.float32), np.array(kept, int), bad)


def _views(paths: Sequence[Any], crop: int, size: int, threads: int, ahead: int) -> Iterator[np.ndarray | str]:
    """Each file's view in order, or why there is none, decoded at most `ahead` files before it is wanted."""
    from sims.clip.records import images

    def view(path: Any) -> np.ndarray | str:
        try:
            if isinstance(path, pathlib.Path):
                image = images.decode(images.read_file(path), str(path))
            else:
                image = path.source.read(path.i).image
            if min(image.shape[:2]) <= 2 * crop:
                return f"it has {image.shape[1]} x {image.shape[0]} pixels, and {crop} are cut off every side"
            return images.evaluation_view(image[crop : image.shape[0] - crop, crop : image.shape[1] - crop], size)
        except images.BadImage as error:
            return error.why
        except (OSError, ValueError) as error:
            return reason(error)
        except MemoryError:
            return "there is not enough memory to read it"

    return in_order(view, paths, threads, ahead)


def in_order(call: Callable[[Any], T], items: Iterable[Any], threads: int, ahead: int) -> Iterator[T]:
    """call(item) of each item in order, computed by threads, at most `ahead` items before it is wanted."""
    waiting: collections.deque[concurrent.futures.Future[T]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(call, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def twins(weights: np.ndarray, bias: np.ndarray, scored: Scored) -> np.ndarray:
    """(len(scored),): for each scored class, the first one that has exactly the same weights.

    Scores cannot distinguish the two. The first is the class itself, unless a class list has a name twice, as CLIP's
    has missile and sunglasses.
    """
    row: dict[bytes, int] = {}
    same = [row.setdefault(one.tobytes(), i) for i, one in enumerate(np.column_stack([weights, bias]))]
    first: dict[frozenset[int], int] = {}
    return np.array([first.setdefault(frozenset(same[c] for c in group), i) for i, group in enumerate(scored)])


def ranks(
    features: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray,
    scored: Scored,
    alike: np.ndarray | None = None,
) -> np.ndarray:
    """How many scored classes come before the true one: (n,), 0 where the prediction is right.

    A scored class is one or several of the c classes; its score is the highest of theirs. Of equal scores, the class
    listed first comes first.

    Args:
      features: (n, r), finite.
      labels: (n,) into `scored`.
      alike: `twins`, none of which comes before another: where the prediction is either of two, both are right.
    """
    place, rows = np.unique(twins(weights, bias, tuple((c,) for c in range(len(weights)))), return_inverse=True)
    members = [list(group) for group in scored]
    single = np.array([group[0] for group in scored]) if all(len(group) == 1 for group in scored) else None
    rank = np.empty(len(labels), int)
    for at in range(0, len(labels), 4096):
        # Equal rows are multiplied once: a product may round equal columns differently.
        scores = (features[at : at + 4096] @ weights[place].T + bias[place])[:, rows]
        scores = scores[:, single] if single is not None else np.stack([scores[:, g].max(1) for g in members], 1)
        truth = labels[at : at + 4096, None]
        own = np.take_along_axis(scores, truth, 1)
        earlier = np.arange(len(scored)) < truth
        before = (scores > own) | ((scores == own) & earlier)
        rank[at : at + 4096] = (before if alike is None else before & (alike != alike[truth])).sum(1)
    return rank


@dataclasses.dataclass(frozen=True)
class Result:
    """The counts of a set, over the images that could be read.

    Attributes:
      top5: None below five classes.
      worst: (place among the scored classes, its share), the first of equals, over the classes that have images.
      classes: the number of classes that have images.
      groups: shares by name, if the set has groups.
    """

    top1: Share
    top5: Share | None
    worst: tuple[int, Share]
    classes: int
    groups: dict[str, Share]


def result(
    rank: np.ndarray,
    labels: np.ndarray,
    num_scored: int,
    groups: np.ndarray | None = None,
    fair: np.ndarray | None = None,
) -> Result:
    """Counts from ranks.

    Args:
      rank, labels: (n,), n > 0.
      groups: (n,) names, "" for none.
      fair: ranks by which each class is judged, and so the worst one, with `twins` alike; None: `rank`.
    """
    right = rank == 0
    images = np.bincount(labels, minlength=num_scored)
    correct = np.bincount(labels[right if fair is None else fair == 0], minlength=num_scored)
    worst = int(np.argmin(np.where(images > 0, correct / np.maximum(images, 1), np.inf)))
    names = sorted(set(groups.tolist()) - {""}) if groups is not None else []
    return Result(
        top1=_share(right),
        top5=_share(rank < 5) if num_scored >= 5 else None,
        worst=(worst, Share(int(correct[worst]), int(images[worst]))),
        classes=int((images > 0).sum()),
        groups={name: _share(right[groups == name]) for name in names},
    )


def restricted(labels: np.ndarray, scored: Scored) -> tuple[np.ndarray, np.ndarray]:
    """(places, labels into `scored`) of the images whose class is in `scored`.  labels: (n,) classes."""
    of = {c: i for i, group in enumerate(scored) for c in group}
    mapped = np.array([of.get(int(c), -1) for c in labels], int)
    places = np.flatnonzero(mapped >= 0)
    return places, mapped[places]


def _share(right: np.ndarray) -> Share:
    return Share(int(right.sum()), len(right))


def _unit(x: np.ndarray, what: str) -> np.ndarray:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    if not (np.isfinite(norm) & (norm > 0)).all():
        raise WorkFailed(f"{what} is 0 or not finite, so it has no direction; nothing was scored.")
    return x / norm


def _kept(file: pathlib.Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        weights = arrays_of(file)["weights"]
    except (OSError, ValueError, KeyError):
        return None  # missing or damaged: it is written again
    return weights if weights.shape == shape and weights.dtype == np.float32 and np.isfinite(weights).all() else None


def _keep(file: pathlib.Path, weights: np.ndarray) -> None:
    """Write the cache if possible; one that cannot be written costs only time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, beside = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".npz")
        with open(descriptor, "wb") as out:
            np.savez(out, weights=weights)  # with a checksum
        os.replace(beside, file)
    except OSError:
        pass
