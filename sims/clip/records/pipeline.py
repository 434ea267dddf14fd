"""Batches of augmented images and tokens: batch k is a pure function of the source, the records, the seed and k.

    epoch e, batch j of it:  (e, j) = divmod(k, n // batch_size)
    its records:             pi_e[j batch_size : (j + 1) batch_size], pi_e a permutation of the n from (seed, e)
    a record's draws:        from its own generator, of (seed, e, record)

So a run resumes by starting at batch k, without state and without reading earlier batches. The number of threads,
worker processes or hosts does not change a byte. Host p of P has rows p b to (p + 1) b of each batch, b =
batch_size / P.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import flags

from sims.clip.records.images import BadImage, random_resized_crop
from sims.clip.records.reading import brief
from sims.clip.records.sources import Record, Source
from sims.engine import processes
from sims.engine.flags import UsageError, WorkFailed

_PERMUTATION, _RECORD = 0, 1  # what a generator is for; their streams must differ
_BUFFER_BYTES = 1 << 30  # of finished batches, about
_MAX_BATCHES = 1 << 40


@dataclasses.dataclass(frozen=True)
class Loading:
    """How records become batches.

    Attributes:
      batch_size: over all hosts.
      image_size: pixels.
      context_length: tokens.
      seed: >= 0.
      workers: processes that decode; 0: threads of this process.
      max_bad: bad images that are replaced on each host; with more, the work is given up.
      crop_scale: range of the share of an image's area that a view shows.
      views: crops of each image.
      process_index, process_count: this host, among all.
    """

    batch_size: int
    image_size: int
    context_length: int
    seed: int
    workers: int = 0
    max_bad: int = 100
    crop_scale: tuple[float, float] = (0.9, 1.0)
    views: int = 1
    process_index: int = 0
    process_count: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """k -> batch k of this host, and the bad images met in making it, id -> why.

    It is pure, except for what the disk holds.
    """

    source: Source
    indices: np.ndarray
    write: Callable[[Record, np.random.Generator], str]
    encode: Callable[[str], np.ndarray]
    loading: Loading

    def __call__(self, k: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Raises: WorkFailed if more than max_bad images of one batch are bad, or no good one is left."""
        o = self.loading
        epoch, j = divmod(int(k), len(self.indices) // o.batch_size)
        order = permutation(o.seed, epoch, len(self.indices))
        b = o.batch_size // o.process_count
        views = np.empty((b, o.views, o.image_size, o.image_size, 3), np.uint8)
        tokens = np.empty((b, o.context_length), np.int32)
        label, index = np.empty(b, np.int32), np.empty(b, np.int64)
        bad: dict[int, BadImage] = {}
        for row in range(b):
            record, i = self._good(order, j, o.process_index * b + row, bad)
            rng = _generator(o.seed, _RECORD, epoch, i)
            for view in views[row]:
                view[:] = random_resized_crop(record.image, rng, o.image_size, o.crop_scale)
            # The caption is drawn last, so that arms with other captions see the same crops.
            tokens[row] = self.encode(self.write(record, rng))
            label[row], index[row] = record.label, i
        image = views if o.views > 1 else views[:, 0]
        batch = {"image": image, "tokens": tokens, "label": label, "index": index}
        return batch, {error.id: error.why for error in bad.values()}

    def _good(self, order: np.ndarray, j: int, slot: int, bad: dict[int, BadImage]) -> tuple[Record, int]:
        o = self.loading
        least = round(o.image_size / min(o.crop_scale[0], 1) ** 0.5)  # a crop of a 4:3 image keeps image_size pixels
        for at in _candidates(len(order), o.batch_size, j, slot):
            i = int(self.indices[order[at]])
            if i in bad:
                continue
            try:
                return self.source.read(i, least), i
            except BadImage as error:
                bad[i] = error
                if len(bad) > o.max_bad:
                    raise _given_up(o.max_bad, error.id, error.why) from None
        first = next(iter(bad.values()))
        raise WorkFailed(f"no image of the data can be read, the first {brief(first.id)} ({brief(first.why)}).")


def _candidates(n: int, batch_size: int, j: int, slot: int) -> Iterator[int]:
    """Positions in the epoch's order for a slot: its own, then replacements for a bad record.

    Replacements lie outside the batch and are no other slot's. So no image comes twice, and hosts need not communicate.
    If none is left (n < 2 batch_size, or they are bad too), any is taken, even one that comes twice.
    """
    first = j * batch_size
    yield first + slot
    yield from ((first + offset) % n for offset in range(batch_size + slot, n, batch_size))
    yield from ((first + slot + offset) % n for offset in range(1, n))


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """(n,) the order of an epoch."""
    order = _generator(seed, _PERMUTATION, epoch).permutation(n)
    order.flags.writeable = False
    return order


def _generator(seed: int, *parts: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=parts))


def _given_up(max_bad: int, id: str, why: str) -> WorkFailed:
    return WorkFailed(f"more than {max_bad} images cannot be read, the last {brief(id)} ({brief(why)}); mend the data,"
                      " or allow more bad ones.")  # fmt: skip


class Batches(Iterator[dict[str, np.ndarray]], contextlib.AbstractContextManager):
    """Iterates forever over batches `start`, `start` + 1, ... of this host, made ahead by threads or processes.

    A batch has image (b, h, w, 3) uint8, or (b, views, h, w, 3) if views > 1; and tokens (b, context_length) int32. It
    also has label (b,) int32, and index (b,) int64, the record in the source. Each epoch goes through the records once
    in a new order and drops the remainder. A bad image is replaced by another record and reported once, by `on_bad(id,
    why)`.

    With workers > 0, source, write and encode are pickled. Close it, or use it in a `with`.

    Attributes:
      bad: why by id, for the bad images in the batches handed out so far and those given as `bad`, from before a
        resume.
      position: the next batch's number.

    Raises: UsageError for records or sizes that give no batch; WorkFailed when more than max_bad images are bad, known
    ones included.
    """

    def __init__(
        self,
        source: Source,
        indices: np.ndarray,
        write: Callable[[Record, np.random.Generator], str],
        encode: Callable[[str], np.ndarray],
        loading: Loading,
        start: int = 0,
        *,
        bad: dict[str, str] | None = None,
        on_bad: Callable[[str, str], Any] | None = None,
    ):
        recipe = Recipe(source, np.asarray(indices), write, encode, loading)
        check(recipe, start)
        self.position, self.bad = start, dict(bad or {})
        self._max_bad, self._on_bad = loading.max_bad, on_bad
        if len(self.bad) > loading.max_bad:
            raise _given_up(loading.max_bad, *list(self.bad.items())[-1])
        self._iterator = _ahead(recipe, start)

    def __next__(self) -> dict[str, np.ndarray]:
        batch, bad = next(self._iterator)
        for id, why in bad.items():
            if id in self.bad:
                continue
            self.bad[id] = why
            if self._on_bad is not None:
                self._on_bad(id, why)
            if len(self.bad) > self._max_bad:
                raise _given_up(self._max_bad, id, why)
        self.position += 1
        return batch

    def close(self) -> None:
        """End threads and processes."""
        self._iterator.close()

    def __exit__(self, *_: Any) -> None:
        self.close()


def check(recipe: Recipe, start: int = 0) -> None:
    """Raise UsageError if no batches can be made from the recipe."""
    o, n = recipe.loading, len(recipe.indices)
    if recipe.indices.ndim != 1 or recipe.indices.dtype.kind not in "iu" or len(np.unique(recipe.indices)) != n:
        raise UsageError("the records used must be whole numbers, none twice.")
    if n and not 0 <= recipe.indices.min() <= recipe.indices.max() < len(recipe.source):
        raise UsageError(f"the records used must be of 0-{len(recipe.source) - 1}.")
    for name, least in (("batch_size", 1), ("image_size", 1), ("context_length", 1), ("views", 1), ("process_count", 1),
                        ("seed", 0), ("workers", 0), ("max_bad", 0)):  # fmt: skip
        if getattr(o, name) < least:
            raise UsageError(f"{name} must be {least} or more, got {getattr(o, name)}.")
    if start < 0:
        raise UsageError(f"the first batch must be 0 or later, got {start}.")
    if not 0 <= o.process_index < o.process_count or o.batch_size % o.process_count:
        raise UsageError(f"batch_size {o.batch_size} must divide evenly over {o.process_count} hosts 0, 1, ..., of"
                         f" which this is {o.process_index}.")  # fmt: skip
    if not 0 < o.crop_scale[0] <= o.crop_scale[1] <= 1:
        raise UsageError(f"crop_scale must rise within (0, 1], got {o.crop_scale}.")
    if n < o.batch_size:
        raise UsageError(f"batch_size {o.batch_size} needs as many records, there are {n}; take a smaller one.")


def _ahead(recipe: Recipe, start: int) -> Any:
    """grain's iterator over recipe(start), recipe(start + 1), ..."""
    import grain  # late: it takes a second, and imports JAX

    o = recipe.loading
    size = o.batch_size // o.process_count * o.views * o.image_size**2 * 3
    ahead = max(2, min(16, _BUFFER_BYTES // size))
    # grain's threads make whole batches, in order; a worker process needs none beside its own.
    threads = 0 if o.workers else min(ahead, processes.cores())
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead if threads else 0)
    batches = grain.MapDataset.range(start, _MAX_BATCHES).map(recipe).to_iter_dataset(read)
    if o.workers:
        buffer = max(1, min(4, ahead // o.workers))
        options = grain.multiprocessing.MultiprocessingOptions(num_workers=o.workers, per_worker_buffer_size=buffer)
        batches = batches.mp_prefetch(options, functools.partial(_enter_worker, os.getpid()))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its own flags, even if no command line was parsed
    return iter(batches)


def _enter_worker(parent: int, index: int, count: int) -> None:
    """Make a worker ignore the signals that ask the parent to save, and end when the parent does.

    Ctrl-C, `timeout` and schedulers signal the workers too. They must not die first: the parent still needs them to end
    well. A parent that is killed cannot stop its workers, so each watches its parent.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
