"""One training run and its folder. Stopped at any moment, it goes on to the same bits.

OUT/config.json       what was asked for          OUT/metrics.jsonl     a line a step
OUT/tokenizer.json    words to ids                OUT/skipped.jsonl     records that could not be read
OUT/data.json         classes, and a digest      OUT/checkpoints/STEP  the last state and the best
OUT/result.json       written last                OUT/tensorboard
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from sims import store
from sims.clip import captions, images, metrics, models, pipeline, sources, tokenizer
from sims.clip import learner as learning
from sims.clip.config import SCENES, Config
from sims.clip.learner import Learner, State
from sims.clip.probe import fit_probe
from sims.clip.zero_shot import Encoder
from sims.flags import Terminated, UsageError, WorkFailed

RESULT, TOKENIZER, DATA, HEAD = "result.json", "tokenizer.json", "data.json", "head.npz"
_OWN = (RESULT, "metrics.jsonl", "skipped.jsonl", TOKENIZER, DATA, HEAD, "not_finite.json", "tensorboard")
_LOOKED = 1000  # records whose captions tell data apart
_PROBED = 200_000  # records that a linear probe is fitted to, at most
_TEXTS = 200_000  # records whose captions a tokenizer is trained on, at most
_SPLIT_KEY = 1  # of what is held out


@dataclasses.dataclass(frozen=True)
class How:
    """How a run is done, which does not change what it learns (fsdp: beyond rounding).

    workers: processes that decode.  log_every, save_every: steps.  peak: FLOP/s of all devices, for MFU.
    stop_at: the step after which this call ends.  max_bad: records that cannot be read before the run is given up.
    quiet: no bar.
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


@dataclasses.dataclass(frozen=True)
class Data:
    """The records that can be used, and the tokenizer of their captions."""

    source: sources.Source
    trained: np.ndarray
    held_out: np.ndarray
    unlabelled: int
    tokenizer: tokenizer.Tokenizer | None


def run(config: Config, out: pathlib.Path, how: How = How()) -> dict[str, Any]:
    """Train, or go on with what is in `out`; the result, as result.json has it.

    Raises: UsageError for what cannot be asked, WorkFailed if the loss is not finite or too many records are bad.
    """
    config.check()
    flat = config.flat()
    store.check(out, flat, how.overwrite)
    first = jax.process_index() == 0
    with store.locked(out) if first else contextlib.nullcontext():
        if not how.overwrite and (out / RESULT).exists():
            return json.loads((out / RESULT).read_text())
        data = open_data(config, None if how.overwrite else out)
        arch = architecture(config, data.tokenizer)
        per_epoch = len(data.trained) // config.batch_size
        steps = config.steps or max(1, int(config.epochs * per_epoch))
        classes = len(data.source.classes) if not config.method.reads else 0
        learner = Learner(config, arch, classes, steps)
        _check_devices(config, jax.device_count())
        if first:
            for name in _OWN if how.overwrite else ():  # the result first: without it the run is not finished
                shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
            store.begin(out, flat, how.overwrite)
            if data.tokenizer is not None and not (out / TOKENIZER).exists():
                data.tokenizer.save(out / TOKENIZER)
            if not (out / DATA).exists():
                store.write_text(out / DATA, json.dumps(_told(data.source), indent=1) + "\n")
        return _train(learner, data, out, how)


def _told(source: sources.Source) -> dict[str, Any]:
    """The classes, and what tells this data from other data under the same name."""
    digest = hashlib.sha256(np.ascontiguousarray(source.labels).tobytes())
    for i in np.linspace(0, len(source) - 1, _LOOKED, dtype=int):
        digest.update("\n".join(source.captions(int(i))).encode())
    return {"classes": list(source.classes), "records": len(source), "digest": digest.hexdigest()}


def open_data(config: Config, out: pathlib.Path | None = None) -> Data:
    """The training and the held-out records.  out: folder of a run that may have been begun with them.

    Raises: UsageError if they are too few, have no labels where needed, or are not what the run was begun with.
    """
    if config.architecture not in models.ARCHITECTURES:
        raise UsageError(f"--architecture must be of {', '.join(models.ARCHITECTURES)}, got {config.architecture!r}.")
    spec = f"coco:{SCENES}/coco" if config.data == "scenes" else config.data
    classes = _class_names(config.classes)
    source = sources.open_source(spec, captions_file=config.captions, classes=classes)
    if out is not None and (out / DATA).exists() and json.loads((out / DATA).read_text()) != _told(source):
        raise UsageError(
            f"--data={config.data} is not what {out} was begun with: its records, labels or captions differ; "
            "give another --out, or --overwrite."
        )
    usable = np.arange(len(source))
    if config.needs_labels:
        usable = usable[source.labels >= 0]
        if not len(usable):
            raise UsageError(f"--data={config.data} has no labels, which --arm={config.arm} needs; see --classes.")
    order = np.random.default_rng([_SPLIT_KEY, config.seed]).permutation(usable)
    needed = config.held_out + config.batch_size
    if len(order) < needed:
        raise UsageError(
            f"--data={config.data} has {len(order)} usable records; --batch_size and --held_out need {needed}."
        )
    trained = np.sort(order[config.held_out :])
    encode = _tokenizer(config, source, trained, out) if config.method.reads else None
    return Data(source, trained, np.sort(order[: config.held_out]), len(source) - len(usable), encode)


def _class_names(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        found = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--classes={path} cannot be read as JSON ({error}).") from None
    if not isinstance(found, list) or not found or not all(isinstance(name, str) and name.strip() for name in found):
        raise UsageError(f"--classes={path} must be a JSON list of class names.")
    return tuple(found)


def _tokenizer(
    config: Config, source: sources.Source, trained: np.ndarray, out: pathlib.Path | None
) -> tokenizer.Tokenizer:
    length = config.context_length or models.ARCHITECTURES[config.architecture].text.context_length
    if out is not None and (out / TOKENIZER).exists():
        return tokenizer.load(out / TOKENIZER)
    if config.vocabulary is not None:
        if config.vocabulary.endswith(".json"):
            found = tokenizer.load(config.vocabulary)
            if config.context_length not in (None, found.context_length):
                raise UsageError(
                    f"--context_length must be that of {config.vocabulary}, {found.context_length}, or left out, got "
                    f"{config.context_length}."
                )
            return found
        return tokenizer.clip_tokenizer(config.vocabulary, length)
    few = trained[:: -(-len(trained) // _TEXTS)]
    texts = [text for i in few for text in source.captions(int(i))]
    texts += [captions.TEMPLATE.format(name) for name in source.classes]
    return tokenizer.train_tokenizer(texts, config.vocabulary_size, length)


def architecture(config: Config, encode: tokenizer.Tokenizer | None) -> models.Architecture:
    """The config's architecture at its image size, with the tokenizer's ids. Raises: UsageError if they do not fit."""
    arch = models.ARCHITECTURES[config.architecture]
    changed: dict[str, Any] = {"image_size": config.image_size or arch.image_size}
    if encode is not None:
        changed["text"] = dataclasses.replace(
            arch.text, context_length=encode.context_length, vocabulary_size=encode.vocabulary_size
        )
    return dataclasses.replace(arch, **changed)


def batches(
    learner: Learner,
    data: Data,
    records: np.ndarray,
    size: int,
    how: How,
    start: int = 0,
    skipped: pathlib.Path | None = None,
) -> pipeline.Batches:
    """The pipeline over `records`, in batches of `size`.  skipped: file of the bad ones, known and to be told."""
    c = learner.config
    loading = pipeline.Loading(
        batch_size=size, image_size=learner.arch.image_size,
        context_length=data.tokenizer.context_length if data.tokenizer is not None else 1, seed=c.seed,
        workers=how.workers, max_bad=how.max_bad, crop_scale=(c.crop_scale, 1.0),
        views=2 if c.method.loss == "sup_con" else 1,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
    write = captions.Writer(c.method.text or "natural", data.source.classes, c.pi)
    encode = data.tokenizer.encode if data.tokenizer is not None else _no_tokens
    known = {line["id"]: line["why"] for line in metrics.read_lines(skipped)} if skipped is not None else {}
    if known:  # without the last line, should it have been cut
        store.write_text(skipped, "".join(json.dumps({"id": i, "why": why}) + "\n" for i, why in known.items()))

    def tell(id: str, why: str) -> None:
        if skipped is not None:
            with skipped.open("a") as file:
                file.write(json.dumps({"id": id, "why": why}) + "\n")

    return pipeline.Batches(data.source, records, write, encode, loading, start, bad=known, on_bad=tell)


def _no_tokens(text: str) -> np.ndarray:
    return np.zeros(1, np.int32)


@dataclasses.dataclass(frozen=True)
class _Program:
    """Compiled functions of a learner.  state: its shapes, and where they live."""

    state: State
    start: Callable[..., State]
    step: Callable[..., Any]
    held_out_loss: Callable[..., Any]


@functools.lru_cache(maxsize=16)
def _program(learner: Learner, over: Mesh, fsdp: bool) -> _Program:
    """Kept, so that runs over seeds and captions are traced once."""
    shapes = jax.eval_shape(learner.start, jax.random.key(0))
    where = learning.shardings(shapes, over, fsdp)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)
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
    _check_devices(config, over.size)
    program = _program(learner.anonymous, over, how.fsdp)
    first = jax.process_index() == 0
    with _manager(out) as manager, _stoppable() as stopped:
        done = manager.latest_step() or 0
        if done:
            state = _restore(manager, done, program.state, out)
        else:
            state = program.start(jax.random.key(config.seed))
        log = None
        if first:
            shown = {"peak": how.peak, "tensorboard": how.tensorboard, "quiet": how.quiet}
            log = metrics.Log(learner, out, done, len(data.trained), **shown)
        with batches(learner, data, data.held_out, _held(config, over.size), how) as feed:
            held = _put(next(feed), over)
        skipped = out / (f"skipped.{jax.process_index()}.jsonl" if jax.process_count() > 1 else "skipped.jsonl")
        began, last = time.perf_counter(), min(steps, how.stop_at or steps)
        pending: list[tuple[int, np.ndarray, Any]] = []

        def save(number: int) -> None:
            _flush(pending, data.source, len(feed.bad), out, log)
            loss = float(program.held_out_loss(state, held))
            if not np.isfinite(loss):
                raise WorkFailed(f"the held-out loss after step {number} is not finite; nothing was saved.")
            if log:
                log.held_out(number, loss)
            manager.save(number, args=ocp.args.StandardSave(state), metrics={"held_out_loss": loss}, force=True)

        with batches(learner, data, data.trained, config.batch_size, how, done, skipped) as feed:
            for number in range(done + 1, last + 1):
                try:
                    batch = next(feed)
                except WorkFailed:
                    if number > done + 1 and manager.latest_step() != number - 1:
                        save(number - 1)
                    manager.wait_until_finished()
                    raise
                state, found = program.step(state, _put(batch, over))
                pending.append((number, batch["index"], found))
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
            store.write_text(out / RESULT, json.dumps(result, indent=1) + "\n")
        return result


def _put(batch: Mapping[str, np.ndarray], over: Mesh) -> dict[str, Any]:
    return learning.put({name: value for name, value in batch.items() if name != "index"}, over)


def _interrupted(stopped: threading.Event, looks: bool) -> bool:
    """Whether to stop after this step; of several processes all or none, at a step whose metrics are looked at."""
    if jax.process_count() == 1:
        return stopped.is_set()
    return looks and bool(multihost_utils.process_allgather(np.asarray(stopped.is_set())).any())


def _held(config: Config, devices: int) -> int:
    """Held-out records that are used: as many as the devices, and the pieces they are embedded in, share evenly."""
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


def _manager(out: pathlib.Path, read_only: bool = False) -> ocp.CheckpointManager:
    """Keeps the last state and the one with the smallest held-out loss; writes while training goes on."""
    absl.logging.set_verbosity(absl.logging.ERROR)  # orbax tells of every choice it makes
    kept = policies.AnyPreservationPolicy(
        [policies.LatestN(1), policies.BestN(get_metric_fn=lambda m: m["held_out_loss"], reverse=True, n=1)]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=kept, best_fn=lambda m: m["held_out_loss"], best_mode="min", create=not read_only,
        cleanup_tmp_directories=not read_only, read_only=read_only,
    )  # fmt: skip
    return ocp.CheckpointManager((out / "checkpoints").absolute(), options=options)


def _restore(manager: ocp.CheckpointManager, step: int, abstract: State, out: pathlib.Path) -> State:
    try:
        return manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except Exception as error:  # orbax has no one class for a damaged checkpoint
        raise UsageError(
            f"{out}/checkpoints/{step} cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:200]}); "
            "remove that folder to go on from an older one, or --overwrite."
        ) from error


@contextlib.contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set, so that the step under way is saved; a second Ctrl-C ends at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, _: Any) -> None:
        # Of SIGTERM several may come: to the group, and from the parent.
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
    """Read and write the metrics of the steps since the last time. Raises: WorkFailed if one is not finite."""
    found, broken = [], None
    for number, index, told in pending:
        values = {name: float(value) for name, value in jax.device_get(told).items()}
        if not all(np.isfinite(value) for value in values.values()):
            broken = (number, index, values)
            break
        found.append((number, values))
    if log and found:
        log.steps(found, bad)
    pending.clear()
    if broken is not None:
        number, index, values = broken
        told = {
            "step": number,
            "ids": [source.read(int(i)).id for i in index],
            **{k: str(v) for k, v in values.items()},
        }
        where = out / ("not_finite.json" if jax.process_count() == 1 else f"not_finite.{jax.process_index()}.json")
        store.write_text(where, json.dumps(told, indent=1) + "\n")
        raise WorkFailed(
            f"step {number} is not finite (loss {values['loss']}, gradient norm {values['gradient_norm']}); the ids of "
            f"its batch are in {where}. Look at those records, or start another run with a lower --learning_rate."
        )


def _fit_head(learner: Learner, data: Data, state: State, out: pathlib.Path, how: How, step: int) -> None:
    """A linear probe on training records' features at this step, by their labels: head.npz."""
    encode = _features(learner.anonymous)
    features, labels = [], []
    size = min(learner.config.batch_size, len(data.trained))
    with batches(learner, data, data.trained, size, how) as feed:
        for _ in range(min(len(data.trained), _PROBED) // size):
            batch = next(feed)
            features.append(np.asarray(encode(state.params, state.batch_stats, batch["image"][:, 0])))
            labels.append(batch["label"])
    weights, bias = fit_probe(np.concatenate(features), np.concatenate(labels), len(data.source.classes))
    beside = out / f".{HEAD}"
    with beside.open("wb") as file:
        np.savez(file, weights=weights, bias=bias, step=step)
    beside.replace(out / HEAD)


@functools.lru_cache(maxsize=16)
def _features(learner: Learner) -> Callable[..., Any]:
    """(params, batch_stats, uint8 images) -> image embeddings in float32, of unit length for SupCon."""
    method = "encode_image" if learner.config.method.reads else "features"

    def features(params: Any, batch_stats: Any, image: Any) -> Any:
        variables = {"params": params["model"], "batch_stats": batch_stats}
        x = learner.module.apply(variables, images.normalise(image), False, method=method).astype("float32")
        if learner.config.method.loss == "sup_con":
            x = x / (x**2).sum(1, keepdims=True) ** 0.5
        return x

    return jax.jit(features)


@functools.lru_cache(maxsize=16)
def _text_features(learner: Learner) -> Callable[..., Any]:
    """(params, tokens) -> text embeddings."""
    return jax.jit(lambda p, tokens: learner.module.apply({"params": p["model"]}, tokens, method="encode_text"))


def load(run: pathlib.Path, which: str = "last") -> Encoder:
    """The trained model of a run's folder.

    which: last or best, by held-out loss.  Raises: UsageError if there is none, or it cannot be read.
    """
    run = pathlib.Path(run)
    flat = store.read_config(run)
    if flat.get("command") != "clip.train":
        raise UsageError(f"{run} is not the folder of a clip.train run but of {flat.get('command')}.")
    try:
        config = Config(**{k: v for k, v in flat.items() if k != "command"})
    except TypeError:
        raise UsageError(f"{run} was written by another version, whose settings differ; train it anew.") from None
    words = tokenizer.load(run / TOKENIZER) if config.method.reads else None
    arch, names = architecture(config, words), tuple(json.loads((run / DATA).read_text())["classes"])
    learner = Learner(config, arch, 0 if config.method.reads else len(names), 1)
    if not (run / "checkpoints").is_dir():
        raise UsageError(f"{run} has no checkpoint yet; python -m sims.clip.train makes one.")
    with _manager(run, read_only=True) as manager:
        step = manager.best_step() if which == "best" else manager.latest_step()
        if step is None:
            raise UsageError(f"{run} has no checkpoint yet; python -m sims.clip.train makes one.")
        state = _restore(manager, step, _program(learner.anonymous, learning.mesh(), False).state, run)
    encode = _features(learner.anonymous)
    kept = (state.params, state.batch_stats)
    head = None
    if config.method.loss == "cross_entropy":
        layer = state.params["model"]["head"]
        head = (names, np.asarray(layer["kernel"]).T, np.asarray(layer["bias"]))
    elif config.method.loss == "sup_con":
        head = (names, *_head(run, step))
    encode_text = None
    if words is not None:
        text = _text_features(learner.anonymous)

        def encode_text(texts: Sequence[str]) -> np.ndarray:
            return np.asarray(text(kept[0], words.encode_all(texts)), np.float32)

    return Encoder(run.name, arch.image_size, lambda image: np.asarray(encode(*kept, image)), encode_text, head)


def _head(run: pathlib.Path, step: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(run / HEAD, allow_pickle=False) as saved:
            if int(saved["step"]) == step:
                return saved["weights"], saved["bias"]
    except (OSError, ValueError, KeyError):
        pass
    raise UsageError(
        f"{run} has no linear probe for step {step}: it is fitted to the last state when training ends; let the run "
        "end, and take --checkpoint=last."
    )
