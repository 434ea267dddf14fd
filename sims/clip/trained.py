"""A trained run read back: its checkpoints, and its model as evaluation sees it."""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from sims import store
from sims.clip import images, tokenizer
from sims.clip import learner as learning
from sims.clip.config import Config
from sims.clip.learner import Learner, State
from sims.clip.prepare import DATA, TOKENIZER, architecture
from sims.clip.zero_shot import Encoder
from sims.flags import UsageError

HEAD = "head.npz"


def manager(out: pathlib.Path, read_only: bool = False) -> ocp.CheckpointManager:
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


def restore(kept: ocp.CheckpointManager, step: int, wanted: State, out: pathlib.Path) -> State:
    """The state of a step. Raises: UsageError if it cannot be read."""
    try:
        return kept.restore(step, args=ocp.args.StandardRestore(wanted))
    except Exception as error:  # orbax has no one class for a damaged checkpoint
        raise UsageError(
            f"{out}/checkpoints/{step} cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:200]}); "
            "if it is damaged, remove that folder to go on from an older one; if another version wrote it, --overwrite."
        ) from error


def abstract(learner: Learner, over: Mesh, fsdp: bool) -> State:
    """A state's shapes, and where they live."""
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
        raise UsageError(f"{run} was written by another version, whose settings differ; train it anew.") from None
    words = tokenizer.load(run / TOKENIZER) if config.method.reads else None
    arch, names = architecture(config, words), tuple(json.loads((run / DATA).read_text())["classes"])
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
        with np.load(run / HEAD, allow_pickle=False) as saved:
            if int(saved["step"]) == step:
                return saved["weights"], saved["bias"]
    except (OSError, ValueError, KeyError):
        pass
    raise UsageError(
        f"{run} has no linear probe for step {step}: it is fitted to the last state when training ends; let the run "
        "end, and take --checkpoint=last."
    )
