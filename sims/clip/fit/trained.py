"""Read a trained run back: its checkpoints, and its model in the form that evaluation takes."""

import functools
import hashlib
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from sims.clip.config import Config
from sims.clip.fit.prepare import TOKENIZER, architecture, read_data
from sims.clip.model import learner as learning
from sims.clip.model.encoder import Encoder
from sims.clip.model.learner import Learner, State
from sims.clip.records import images, tokenizer
from sims.clip.records.reading import arrays_of, brief, own_json
from sims.engine import store
from sims.engine.flags import UsageError

HEAD = "head.npz"
_MEND = "without that step's folder and result.json, training goes on from an older step or the start"


def manager(out: pathlib.Path, read_only: bool = False) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints.

    It keeps the last state and the one with the smallest held-out loss, and writes while training continues.
    Raises: UsageError if the loss of a stored state is damaged.
    """
    for folder in (out / "checkpoints").glob("[0-9]*"):
        if not folder.name.isdigit():
            continue  # left by a save that was cut short; orbax removes it
        metrics = own_json(folder / "metrics" / "metrics", _MEND)
        if not isinstance(metrics.get("held_out_loss"), float) or metrics.get("seal") not in (None, _seal(metrics)):
            raise UsageError(f"{folder}/metrics/metrics is damaged (its digest differs); {_MEND}.")
    absl.logging.set_verbosity(absl.logging.ERROR)  # orbax logs every choice it makes
    kept = policies.AnyPreservationPolicy(
        [policies.LatestN(1), policies.BestN(get_metric_fn=lambda m: m["held_out_loss"], reverse=True, n=1)]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=kept, best_fn=lambda m: m["held_out_loss"], best_mode="min", create=not read_only,
        cleanup_tmp_directories=not read_only, read_only=read_only,
    )  # fmt: skip
    return ocp.CheckpointManager((out / "checkpoints").absolute(), options=options)


def save(kept: ocp.CheckpointManager, step: int, state: State, held_out_loss: float) -> None:
    """Begin to write a state with its digest; with several processes, each must call this."""
    metrics = {"held_out_loss": held_out_loss, "sha256": digest(state)}
    kept.save(step, args=ocp.args.StandardSave(state), metrics=metrics | {"seal": _seal(metrics)}, force=True)


def _seal(metrics: Mapping[str, Any]) -> str:
    """A digest of a checkpoint's other metrics, since a file system may damage these too."""
    return hashlib.sha256(f"{metrics['held_out_loss']!r} {metrics.get('sha256')}".encode()).hexdigest()


def digest(state: State) -> str:
    """SHA-256 of the names, shapes and bytes of a state's arrays, however they are split over devices."""
    sha256 = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        whole = x.is_fully_addressable or x.is_fully_replicated
        array = np.asarray(x if whole else multihost_utils.process_allgather(x, tiled=True))
        sha256.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()


def restore(kept: ocp.CheckpointManager, step: int, wanted: State, out: pathlib.Path) -> State:
    """The state of a step.

    A checkpoint of an earlier version has no digest; a warning on stderr reports it.
    Raises: UsageError if the state cannot be read, or its digest is not the one it was written with.
    """
    # Once orbax gives up on a damaged file, its other reads end in tracebacks on stderr; all that matters is raised.
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        state = kept.restore(step, args=ocp.args.StandardRestore(wanted))
    except Exception as error:  # orbax has no one class for a damaged checkpoint
        raise UsageError(
            f"{out}/checkpoints/{step} cannot be read ({type(error).__name__}: {brief(error)}); if it is damaged,"
            f" {_MEND}; if another version wrote it, --overwrite."
        ) from error
    sys.unraisablehook = hook
    expected = kept.metrics(step).get("sha256")
    if expected is None and jax.process_index() == 0:
        print(f"warning: {out}/checkpoints/{step} was written without a digest, by an earlier version: damage to it is"
              " not seen.", file=sys.stderr)  # fmt: skip
    if expected is not None and expected != digest(state):
        raise UsageError(f"{out}/checkpoints/{step} is damaged (its digest differs); {_MEND}.")
    return state


def abstract(learner: Learner, over: Mesh, fsdp: bool) -> State:
    """A state's shapes and shardings."""
    shapes = jax.eval_shape(learner.start, jax.random.key(0))
    where = learning.shardings(shapes, over, fsdp)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


@functools.lru_cache(maxsize=16)
def features(learner: Learner) -> Callable[..., Any]:
    """(params, batch_stats, uint8 images) -> image embeddings in float32, of unit length for SupCon."""
    method = "encode_image" if learner.config.method.reads else "features"

    def call(params: Any, batch_stats: Any, image: Any) -> Any:
        variables = {"params": params["model"], "batch_stats": batch_stats}
        x = learner.module.apply(variables, images.normalise(image), False, method=method).astype("float32")
        if learner.config.method.loss == "sup_con":
            x = x / (x**2).sum(1, keepdims=True) ** 0.5
        return x

    return jax.jit(call)


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
        raise UsageError(f"{run} was written by another version, whose settings differ; train it again.") from None
    words = tokenizer.load(run / TOKENIZER) if config.method.reads else None
    arch, names = architecture(config, words), tuple(read_data(run)["classes"])
    learner = Learner(config, arch, 0 if config.method.reads else len(names), 1)
    if not (run / "checkpoints").is_dir():
        raise UsageError(f"{run} has no checkpoint yet; python -m sims.clip.train makes one.")
    with manager(run, read_only=True) as kept_steps:
        step = kept_steps.best_step() if which == "best" else kept_steps.latest_step()
        if step is None:
            raise UsageError(f"{run} has no checkpoint yet; python -m sims.clip.train makes one.")
        state = restore(kept_steps, step, abstract(learner.anonymous, learning.mesh(), False), run)
    encode = features(learner.anonymous)
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
        saved = arrays_of(run / HEAD)
        if int(saved["step"]) == step:
            return saved["weights"], saved["bias"]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{run / HEAD} is damaged ({brief(error)}); remove it and {run}/result.json, and the training"
                         " command fits the probe again.") from None  # fmt: skip
    raise UsageError(
        f"{run} has no linear probe for step {step}: it is fitted to the last state when training ends; let the run "
        "end, and take --checkpoint=last."
    )
