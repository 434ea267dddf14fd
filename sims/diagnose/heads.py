"""Heads trained on the folds of a diagnosis, by the losses of `sims.features`, beside its closed forms."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmcl_theory.features import Training
from sims.features import heads
from sims.features.config import Config
from sims.features.sets import training

_BLOCK = 256  # rows are filled up to a multiple with some that no image has: fewer shapes to compile
_BY_ROW = ("image", "text", "label", "group")
_STEPS = 8  # of an epoch at least, by smaller batches where there are few images


def fit(arm: str, config: Config, train: Training) -> Callable[[np.ndarray], np.ndarray]:
    """The scores that an arm, trained on these samples, gives to images: a learner for `mt.diagnose`.

    config: its first width and number of epochs count; a batch is at most an eighth of the images.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), train.fold)
    text = np.asarray(train.text, float)
    prepared, images, _ = training(train.image, text, train.label, train.label, train.unit, train.prompts)
    arrays = {k: _filled(x) if k in _BY_ROW else x for k, x in vars(prepared).items()}
    batch_size = max(2, min(config.batch_size, len(prepared.first) // _STEPS))
    config = dataclasses.replace(config, batch_size=batch_size)
    with jax.enable_x64(False):  # as `sims.features` trains
        state = _fitted(arm, config, key, arrays)

    def scores(image: np.ndarray) -> np.ndarray:
        with jax.enable_x64(False):
            values = _scored(arm, config, state, arrays["prompts"], _filled(images(image)))
        return np.asarray(values)[: len(image)]

    return scores


def _filled(rows: np.ndarray) -> np.ndarray:
    """The rows, and as many of them again as fill up a multiple of _BLOCK."""
    return np.resize(rows, (-(-len(rows) // _BLOCK) * _BLOCK, *rows.shape[1:]))


def _point(config: Config) -> dict[str, Any]:
    """The setting of a run: all images, and captions as they are."""
    return {"width": int(config.width[0]), "percent": 100, "attribute": 1.0, "detail": 1.0}


@functools.partial(jax.jit, static_argnames=("arm", "config"))
def _fitted(arm: str, config: Config, key: Any, train: dict[str, Any]) -> heads.State:
    point = {**_point(config), "train": train}
    return heads.fit(arm, config, key, point, jnp.asarray(0), heads.start(arm, config, key, point))


@functools.partial(jax.jit, static_argnames=("arm", "config"))
def _scored(arm: str, config: Config, state: heads.State, prompts: Any, image: Any) -> Any:
    one = {"image": image, "prompts": prompts, "known": jnp.arange(len(prompts))}
    return heads.scores(arm, config, _point(config), state, one)
