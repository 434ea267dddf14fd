"""One training run and its folder. A run that is stopped at any moment continues to the same bits.

OUT/config.json       the settings                OUT/metrics.jsonl     a line a step
OUT/tokenizer.json    words to ids                OUT/skipped.jsonl     records that could not be read
OUT/data.json         classes, and a digest       OUT/checkpoints/STEP  the last state and the best
OUT/result.json       written last                OUT/tensorboard
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sims.clip.config import Config
from sims.clip.fit import metrics, prepare, trained
from sims.clip.fit.prepare import DATA, TOKENIZER, Data
from sims.clip.fit.trained import HEAD
from sims.clip.model import learner as learning
from sims.clip.model import models
from sims.clip.model.learner import Learner, State
from sims.clip.model.probe import fit_probe
from sims.clip.records import captions, pipeline, sources
from sims.clip.records.reading import own_json
from sims.engine import files, store
from sims.engine.flags import Terminated, UsageError, WorkFailed

RESULT = "result.json"
# What --overwrite removes. The result goes first: a run without it counts as unfinished. The patterns match the files
# of every process.
_OWN = (RESULT, "metrics.jsonl", "skipped*.jsonl", TOKENIZER, DATA, HEAD, "not_finite*.json", "tensorboard")
_PROBED = 200_000  # records that a linear probe is fitted to, at most


@dataclasses.dataclass(frozen=True)
class How:
    """How a run is done, which does not change what it learns (fsdp: beyond rounding).

    Attributes:
      workers: processes that decode.
      log_every, save_every: steps.
      peak: FLOP/s of all devices, for MFU.
      stop_at: the step after which this call ends.
      max_bad: records that cannot be read before the run is given up.
      quiet: show no bar.
    """

    workers: int = 0
    fsdp: bool = False
    log_every: int = 20
    save_every: int = 500
    tensorboard: bool = True
    overwrite: bool = False
    peak: float | None = None
    stop_at: int | None = None
    max_bad: int = 100
    quiet: bool = False


def run(config: Config, out: pathlib.Path, how: How = How()) -> dict[str, Any]:
    """Train, or continue the run in `out`; returns the content of result.json.

    Raises: UsageError for settings that are not allowed; WorkFailed if the loss is not finite or too many records are
    bad.
    """
    config.check()
    flat = config.flat()
    store.check(out, flat, how.overwrite)
    first = jax.process_index() == 0
    with store.locked(out) if first else contextlib.nullcontext():
        if not how.overwrite and (out / RESULT).exists():
            return own_json(out / RESULT, "remove it, and the same command writes it again")
        data = prepare.open_data(config, None if how.overwrite else out)
        arch = prepare.architecture(config, data.tokenizer)
        per_epoch = len(data.trained) // config.batch_size
        steps = config.steps or max(1, int(config.epochs * per_epoch))
        classes = len(data.source.classes) if not config.method.reads else 0
        learner = Learner(config, arch, classes, steps)
        _check_devices(config, jax.device_count())
        if first:
            for pattern in _OWN if how.overwrite else ():
                for old in out.glob(pattern):
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            store.begin(out, flat, how.overwrite)
            if data.tokenizer is not None and not (out / TOKENIZER).exists():
                data.tokenizer.save(out / TOKENIZER)
            if not (out / DATA).exists():
                files.write_text(out / DATA, json.dumps(prepare.fingerprint(data.source), indent=1) + "\n")
        return _train(learner, data, out, how)


def batches(
    learner: Learner,
    data: Data,
    records: np.ndarray,
    size: int,
    how: How,
    start: int = 0,
    skipped: pathlib.Path | None = None,
) -> pipeline.Batches:
    """The pipeline over `records`, in batches of `size`.

    skipped: file of the bad records; those in it are known, and new ones are added.
    """
    c = learner.config
    loading = pipeline.Loading(
        batch_size=size, image_size=learner.arch.image_size,
        context_length=data.tokenizer.context_length if data.tokenizer is not None else 1, seed=c.seed,
        workers=how.workers, max_bad=how.max_bad, crop_scale=(c.crop_scale, 1.0),
        views=2 if c.method.loss == "sup_con" else 1,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
    write = captions.Writer(c.method.text or "natural", data.source.classes, 0.5 if c.pi is None else c.pi)
    encode = data.tokenizer.encode if data.tokenizer is not None else _no_tokens
    lines = metrics.read_lines(skipped, {"id": str, "why": str}) if skipped is not None else []
    known = {line["id"]: line["why"] for line in lines}
    if known:  # written again, without a last line that was cut
        files.write_text(skipped, "".join(json.dumps({"id": i, "why": why}) + "\n" for i, why in known.items()))

    def tell(id: str, why: str) -> None:
        if skipped is not None:
            with skipped.open("a") as file:
                file.write(json.dumps({"id": id, "why": why}) + "\n")

    return pipeline.Batches(data.source, records, write, encode, loading, start, bad=known, on_bad=tell)


def _no_tokens(text: str) -> np.ndarray:
    return np.zeros(1, np.int32)


@dataclasses.dataclass(frozen=True)
class _Program:
    """Compiled functions of a learner.  state: its shapes and shardings."""

    state: State
    start: Callable[..., State]
    step: Callable[..., Any]
    held_out_loss: Callable[..., Any]


@functools.lru_cache(maxsize=16)
def _program(learner: Learner, over: Mesh, fsdp: bool) -> _Program:
    """The functions of a learner, cached so that runs over seeds and captions are traced once."""
    state = trained.abstract(learner, over, fsdp)
    where = jax.tree.map(lambda x: x.sharding, state)
    donated = () if jax.default_backend() == "cpu" else (0,)  # on a CPU a checkpoint may still be reading the state
    return _Program(
        state,
        jax.jit(learner.start, out_shardings=where),
        jax.jit(learner.step, donate_argnums=donated, out_shardings=(where, None)),
        jax.jit(learner.held_out_loss),
    )


def _train(learner: Learner, data: Data, out: pathlib.Path, how: How) -> dict[str, Any]:
    config, steps = learner.config, learner.steps
    over = learning.mesh()
    program = _program(learner.anonymous, over, how.fsdp)
    first = jax.process_index() == 0
    with trained.manager(out) as manager, _stoppable() as stopped:
        done = manager.latest_step() or 0
        if done:
            state = trained.restore(manager, done, program.state, out)
        else:
            state = program.start(jax.random.key(config.seed))
        log = None
        if first:
            shown = {"peak": how.peak, "tensorboard": how.tensorboard, "quiet": how.quiet}
            log = metrics.Log(learner, out, done, len(data.trained), **shown)
        skipped = out / (f"skipped.{jax.process_index()}.jsonl" if jax.process_count() > 1 else "skipped.jsonl")
        with batches(learner, data, data.held_out, _held(config, over.size), how, 0, skipped) as feed:
            held_out = _put(next(feed), over)
        began, last = time.perf_counter(), min(steps, how.stop_at or steps)
        pending: list[tuple[int, np.ndarray, Any]] = []

        def save(number: int) -> None:
            _flush(pending, data.source, len(feed.bad), out, log)
            loss = float(program.held_out_loss(state, held_out))
            if not np.isfinite(loss):
                raise WorkFailed(f"the held-out loss after step {number} is not finite; nothing was saved.")
            if log:
                log.held_out(number, loss)
            trained.save(manager, number, state, loss)

        with batches(learner, data, data.trained, config.batch_size, how, done, skipped) as feed:
            for number in range(done + 1, last + 1):
                try:
                    batch = next(feed)
                except WorkFailed:
                    if number > done + 1 and manager.latest_step() != number - 1:
                        save(number - 1)
                    manager.wait_until_finished()
                    raise
                state, step_metrics = program.step(state, _put(batch, over))
                pending.append((number, batch["index"], step_metrics))
                looks = number % how.log_every == 0
                interrupted = _interrupted(stopped, looks)
                if interrupted or number % how.save_every == 0 or number == last:
                    save(number)
                elif looks:
                    _flush(pending, data.source, len(feed.bad), out, log)
                if interrupted:
                    manager.wait_until_finished()
                    raise Terminated
            bad = len(feed.bad)
        manager.wait_until_finished()
        if log:
            log.close()
        result = {
            "steps": max(last, done), "epochs": last * config.batch_size / len(data.trained),
            "records": len(data.trained), "unlabelled": data.unlabelled, "bad_records": bad,
            "held_out_loss": manager.metrics(max(last, done))["held_out_loss"], "best_step": manager.best_step(),
            "parameters": models.count_parameters(state.params), "seconds": time.perf_counter() - began,
        }  # fmt: skip
        if config.method.loss == "sup_con":
            _fit_head(learner, data, state, out, how, max(last, done))
        if last == steps and first:
            files.write_text(out / RESULT, json.dumps(result, indent=1) + "\n")
        return result


def _put(batch: Mapping[str, np.ndarray], over: Mesh) -> dict[str, Any]:
    return learning.put({name: value for name, value in batch.items() if name != "index"}, over)


def _interrupted(stopped: threading.Event, looks: bool) -> bool:
    """Whether to stop after this step. Several processes stop together, at a step whose metrics are read (`looks`)."""
    if jax.process_count() == 1:
        return stopped.is_set()
    return looks and bool(multihost_utils.process_allgather(np.asarray(stopped.is_set())).any())


def _held(config: Config, devices: int) -> int:
    """Number of held-out records used: the devices, and the pieces for embedding, must divide it evenly."""
    piece = config.batch_size // config.chunks
    unit = piece if config.held_out >= piece else devices
    return config.held_out // unit * unit


def _check_devices(config: Config, devices: int) -> None:
    if config.batch_size % (devices * config.chunks):
        raise UsageError(
            f"--batch_size must be a multiple of {devices} devices x {config.chunks} chunks, got {config.batch_size}."
        )
    if config.held_out < devices:
        raise UsageError(f"--held_out must be at least the number of devices, {devices}, got {config.held_out}.")
    if config.method.loss == "sup_con" and jax.process_count() > 1:
        raise UsageError("--arm=sup_con is trained by one process: its linear probe is fitted on one.")


@contextlib.contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set, so that the current step is saved; a second Ctrl-C ends at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, _: Any) -> None:
        # SIGTERM may come more than once: to the group, and from the parent.
        if stopped.is_set() and number == signal.SIGINT:
            raise Terminated
        stopped.set()

    heard = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _flush(
    pending: list[tuple[int, np.ndarray, Any]],
    source: sources.Source,
    bad: int,
    out: pathlib.Path,
    log: metrics.Log | None,
) -> None:
    """Read and write the metrics of the steps since the last call. Raises: WorkFailed if one is not finite."""
    finite, broken = [], None
    for number, index, step_metrics in pending:
        values = {name: float(value) for name, value in jax.device_get(step_metrics).items()}
        if not all(np.isfinite(value) for value in values.values()):
            broken = (number, index, values)
            break
        finite.append((number, values))
    if log and finite:
        log.steps(finite, bad)
    pending.clear()
    if broken is not None:
        number, index, values = broken
        report = {"step": number, "ids": [source.read(int(i)).id for i in index]}
        report |= {name: str(value) for name, value in values.items()}
        where = out / ("not_finite.json" if jax.process_count() == 1 else f"not_finite.{jax.process_index()}.json")
        files.write_text(where, json.dumps(report, indent=1) + "\n")
        raise WorkFailed(
            f"step {number} is not finite (loss {values['loss']}, gradient norm {values['gradient_norm']}); the ids of "
            f"its batch are in {where}. Look at those records, or start another run with a lower --learning_rate."
        )


def _fit_head(learner: Learner, data: Data, state: State, out: pathlib.Path, how: How, step: int) -> None:
    """Fit a linear probe of the labels on training records' features at this step, and write head.npz."""
    encode = trained.features(learner.anonymous)
    features, labels = [], []
    size = min(learner.config.batch_size, len(data.trained))
    with batches(learner, data, data.trained, size, how) as feed:
        for _ in range(min(len(data.trained), _PROBED) // size):
            batch = next(feed)
            features.append(np.asarray(encode(state.params, state.batch_stats, batch["image"][:, 0])))
            labels.append(batch["label"])
    weights, bias = fit_probe(np.concatenate(features), np.concatenate(labels), len(data.source.classes))
    with files.whole(out / HEAD) as new, new.open("wb") as file:
        np.savez(file, weights=weights, bias=bias, step=step)
