"""Batches: the same bytes wherever they start and whoever makes them; bad images counted, replaced, then refused."""

import dataclasses
import hashlib
import itertools
import os
import pathlib
import signal
import time

import numpy as np
import pytest

from sims.clip.records import pipeline
from sims.clip.records.images import BadImage
from sims.clip.records.pipeline import Batches, Loading, Recipe
from sims.clip.records.sources import Record
from sims.engine.flags import WorkFailed
from tests.helpers import ROOT, assert_refuses, python

N, BATCH = 43, 8
LOADING = Loading(batch_size=BATCH, image_size=6, context_length=5, seed=3)


@dataclasses.dataclass(frozen=True)
class Fake:
    """A source whose images differ, and some of which are bad."""

    n: int = N
    bad: frozenset = frozenset()
    name: str = "fake"
    classes: tuple = ("even", "odd")

    @property
    def labels(self):
        return np.arange(self.n, dtype=np.int32) % 2

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.read(i)

    def read(self, i, least=None):
        if i in self.bad:
            raise BadImage(f"r{i}", "broken")
        image = np.random.default_rng(i).integers(0, 256, (30, 40, 3), np.uint8)
        return Record(image, self.captions(i), i % 2, f"r{i}")

    def captions(self, i):
        return tuple(f"{i} {j}" for j in range(5))


def write(record, rng):
    return record.captions[rng.integers(len(record.captions))]


def encode(text):
    return np.array([1, *map(int, text.split()), 99, 0], np.int32)


def batches(source=None, loading=LOADING, start=0, indices=None, **options):
    source = source or Fake()
    indices = np.arange(len(source)) if indices is None else indices
    return Batches(source, indices, write, encode, loading, start, **options)


def take(n, *args, **options):
    with batches(*args, **options) as made:
        return list(itertools.islice(made, n))


def digest(batch):
    parts = [f"{k} {v.dtype} {v.shape}".encode() + v.tobytes() for k, v in sorted(batch.items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def host(p, count):
    return dataclasses.replace(LOADING, process_index=p, process_count=count)


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


PER_EPOCH = N // BATCH
FIRST = 2 * PER_EPOCH + 2


@pytest.fixture(scope="module")
def straight():
    """Batches 0..11 of a straight run, over two epochs."""
    return take(FIRST)


def test_batches_hold_what_they_say(straight):
    for batch in straight:
        assert batch["image"].shape == (BATCH, 6, 6, 3) and batch["image"].dtype == np.uint8
        assert batch["tokens"].shape == (BATCH, 5) and batch["tokens"].dtype == np.int32
        assert batch["index"].dtype == np.int64 and batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["label"], batch["index"] % 2)
        np.testing.assert_array_equal(batch["tokens"][:, 1], batch["index"])
        assert set(batch["tokens"][:, 2]) <= set(range(5)) and len(set(batch["tokens"][:, 2])) > 1


def test_an_epoch_is_each_record_at_most_once_in_a_new_order(straight):
    epochs = [np.concatenate([b["index"] for b in straight[e : e + PER_EPOCH]]) for e in (0, PER_EPOCH)]
    for epoch in epochs:
        assert len(set(epoch)) == PER_EPOCH * BATCH
    assert (epochs[0] != epochs[1]).any()
    # A seed's second epoch must not be the next seed's first.
    assert (pipeline.permutation(3, 1, N) != pipeline.permutation(4, 0, N)).any()
    assert set(pipeline.permutation(3, 1, N)) == set(range(N))


def test_a_record_is_drawn_anew_each_epoch(straight):
    seen = {}
    for k, batch in enumerate(straight):
        for i, image, tokens in zip(batch["index"], batch["image"], batch["tokens"], strict=True):
            seen.setdefault(int(i), {})[k // PER_EPOCH] = image.tobytes(), tokens.tobytes()
    both = [v for v in seen.values() if len(v) >= 2]
    assert len(both) > N / 2
    assert sum(v[0][0] != v[1][0] for v in both if 0 in v and 1 in v) > len(both) / 2
    assert any(v[0][1] != v[1][1] for v in both if 0 in v and 1 in v)


@pytest.mark.parametrize("start", [1, PER_EPOCH - 1, PER_EPOCH, PER_EPOCH + 2])
def test_a_run_resumed_anywhere_gives_the_same_bytes(straight, start):
    with batches(start=start) as resumed:
        for k in range(start, FIRST):
            assert resumed.position == k
            assert digest(next(resumed)) == digest(straight[k])


def test_another_seed_start_or_set_gives_other_bytes(straight):
    other = dataclasses.replace(LOADING, seed=4)
    assert digest(take(1, loading=other)[0]) != digest(straight[0])
    assert digest(take(1, start=1)[0]) != digest(straight[0])
    assert digest(take(1, indices=np.arange(N)[::-1].copy())[0]) != digest(straight[0])


@pytest.mark.parametrize("count", [2, 4])
def test_hosts_share_each_batch(straight, count):
    hosts = [take(FIRST, loading=host(p, count)) for p in range(count)]
    for whole, *parts in zip(straight, *hosts, strict=True):
        assert digest(joined(parts)) == digest(whole) != digest(joined(parts[::-1]))


@pytest.mark.slow
def test_worker_processes_change_no_byte(straight):
    """From the first batch, and from the middle of an epoch, bad images and all."""
    for start, source in ((0, Fake()), (PER_EPOCH - 1, Fake(bad=frozenset({2, 11, 30})))):
        with batches(source, start=start) as alone:
            whole, known = [digest(next(alone)) for _ in range(start, FIRST)], alone.bad
        with batches(source, dataclasses.replace(LOADING, workers=2), start) as made:
            assert [digest(next(made)) for _ in range(start, FIRST)] == whole
            assert made.bad == known and set(known) <= {f"r{i}" for i in source.bad} and bool(known) == bool(source.bad)
        assert (whole == [digest(batch) for batch in straight[start:]]) == (not source.bad)


@pytest.mark.slow
def test_a_worker_that_gives_up_is_heard():
    loading = dataclasses.replace(LOADING, workers=2, max_bad=2)
    with batches(Fake(bad=frozenset(range(N))), loading) as made, pytest.raises(WorkFailed, match="more than 2 images"):
        next(made)


PARENT = """
import dataclasses, multiprocessing, os, signal, sys
from tests.clip.test_pipeline import LOADING, batches
if __name__ == "__main__":
    made = batches(loading=dataclasses.replace(LOADING, workers=1))
    next(made)
    workers = [p.pid for p in multiprocessing.active_children()]
    for worker in workers:
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
    for _ in range(20):
        next(made)
    print(*workers, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_outlive_signals_and_not_their_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    done = python(script, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 1
    end = time.monotonic() + 20
    while running(workers[0]):
        assert time.monotonic() < end, "the worker is still there"
        time.sleep(0.1)


def running(pid):
    """Whether there is such a process, one that has ended and waits to be collected aside."""
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_views_are_crops_of_the_same_image():
    one, two = take(1)[0], take(1, loading=dataclasses.replace(LOADING, views=2))[0]
    assert two["image"].shape == (BATCH, 2, 6, 6, 3)
    np.testing.assert_array_equal(two["image"][:, 0], one["image"])
    assert (two["image"][:, 0] != two["image"][:, 1]).any((1, 2, 3)).sum() > BATCH / 2


def test_captions_worded_otherwise_leave_the_crops(straight):
    def other(record, rng):
        rng.random(100)
        return record.captions[0]

    with Batches(Fake(), np.arange(N), other, encode, LOADING) as made:
        batch = next(made)
    np.testing.assert_array_equal(batch["image"], straight[0]["image"])
    assert (batch["tokens"] != straight[0]["tokens"]).any()


def test_indices_choose_the_records():
    chosen = np.arange(1, N, 2)
    found = np.concatenate([b["index"] for b in take(2, indices=chosen)])
    assert set(found) <= set(chosen.tolist()) and len(set(found)) == 2 * BATCH


def test_bad_images_are_replaced_counted_and_told(straight):
    bad = frozenset(int(i) for i in straight[0]["index"][[1, 4]]) | {int(straight[2]["index"][0])}
    told = []
    with batches(Fake(bad=bad), on_bad=lambda id, why: told.append((id, why))) as made:
        first = next(made)
        for batch in [first, *itertools.islice(made, 2 * PER_EPOCH)]:
            assert not bad & set(batch["index"].tolist()) and len(set(batch["index"])) == BATCH
        assert made.bad == {f"r{i}": "broken" for i in bad} and sorted(told) == sorted(made.bad.items())
    kept = [0, 2, 3, 5, 6, 7]
    np.testing.assert_array_equal(first["image"][kept], straight[0]["image"][kept])
    # The replacements are the same for every host, and after a resume.
    assert digest(joined([take(1, Fake(bad=bad), host(p, 2))[0] for p in (0, 1)])) == digest(first)
    assert digest(take(3, Fake(bad=bad))[2]) == digest(take(1, Fake(bad=bad), start=2)[0])


def test_many_bad_images_never_repeat_one_while_there_are_others():
    bad = frozenset(range(0, N, 3))
    for batch in take(3 * PER_EPOCH, Fake(bad=bad)):
        assert len(set(batch["index"])) == BATCH and not bad & set(batch["index"].tolist())


@pytest.mark.parametrize("count, passes", [(3, True), (4, False)])
def test_more_than_max_bad_are_refused(count, passes):
    loading = dataclasses.replace(LOADING, max_bad=3)
    source = Fake(bad=frozenset(range(count)))
    if passes:
        assert len(take(3 * PER_EPOCH, source, loading)) == 3 * PER_EPOCH
    known = {"other": "broken"} if passes else {}  # bad images from before a resume count too
    with pytest.raises(WorkFailed, match=r"more than 3 images cannot be read, the last r\d \(broken\)"):
        take(3 * PER_EPOCH, source, loading, bad=known)


def test_one_batch_of_bad_images_ends_before_all_are_tried():
    loading = dataclasses.replace(LOADING, max_bad=3)
    with pytest.raises(WorkFailed, match="more than 3 images"):
        Recipe(Fake(bad=frozenset(range(N))), np.arange(N), write, encode, loading)(0)


def test_no_good_image_ends_the_work():
    with pytest.raises(WorkFailed, match=r"no image of the data can be read, the first r\d \(broken\)"):
        take(1, Fake(n=BATCH, bad=frozenset(range(BATCH))))
    # Where all others are in the batch, one comes twice rather than none.
    batch = take(1, Fake(n=BATCH, bad=frozenset({5})))[0]
    assert len(set(batch["index"])) == BATCH - 1


@pytest.mark.parametrize(
    "change, told",
    [
        ({"batch_size": N + 1}, "needs as many records, there are 43"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"views": 0}, "views must be 1"),
        ({"workers": -1}, "workers must be 0"),
        ({"process_count": 3}, "must divide evenly over 3 hosts"),
        ({"process_index": 1}, "of which this is 1"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.9, 0.8)}, "crop_scale"),
        ({"crop_scale": (0.9, 1.1)}, "crop_scale"),
    ],
)
def test_settings_without_batches_are_refused(change, told):
    assert_refuses(told, batches, loading=dataclasses.replace(LOADING, **change))


@pytest.mark.parametrize("indices", [[0, 0, *range(2, 12)], np.arange(10.0), [*range(10), N], [*range(10), -1]])
def test_records_that_are_not_there_or_twice_are_refused(indices):
    assert_refuses("the records used must", batches, indices=np.asarray(indices))
    assert_refuses("0 or later", batches, start=-1)


def test_wrong_tokens_are_an_error_and_not_padded():
    recipe = Recipe(Fake(), np.arange(N), write, lambda text: encode(text)[:-1], LOADING)
    with pytest.raises(ValueError, match="broadcast"):
        recipe(0)
