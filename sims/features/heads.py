"""One run: train an arm's heads in stages on frozen features, and measure them on every set after each stage.

An epoch shows every training image once, with one of its captions, so that two captions of an image are never each
other's negatives. Images left over at the end of an epoch wait for another epoch's order. Images and prompts are
embedded with the running means of batch norm, and an image is given to the class whose prompt has the larger cosine.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from mmcl_theory import learners, losses
from mmcl_theory.features.closed_form import regular, shrunk
from sims.engine.grid import Task
from sims.features.config import CLOSED, READERS, Config
from sims.features.sets import Data

Point = Mapping[str, Any]
State = dict[str, Any]
LABELS = {
    "clip": "CLIP loss",
    "clip_no_intra": "CLIP loss, no same-class negatives",
    "clip_labels": "CLIP loss, labels as captions",
    "siglip": "SigLIP",
    "linear_mmcl": "linear loss, closed form",
    "whitened": "whitened rule, closed form",
    "supervised": "SL, cross-entropy",
    "sup_con": "SupCon + linear head",
    "sim_clr": "SimCLR + linear head",
}
IN_SET = ("all", "groups", "aligned", "conflicting", "worst")  # accuracies on a set; `groups`: all at equal weight
IMAGE_TEMPERATURE = 0.1  # of SupCon and SimCLR
_SIGLIP_SCALE, _SIGLIP_BIAS = 10.0, -10.0  # at the start
_MOST_SCALE = 100.0  # of 1 / temperature, as in CLIP
_ROWS = 4096  # embedded at once
# Folded into a run's key for draws outside the steps; no step has such a number.
_START, _SUBSET, _POLICY, _ORDER = (2**32 - i for i in (1, 2, 3, 4))


class Head(nn.Module):
    """Dense layers of one width, batch norm and ReLU between them; with one layer, a linear map with offset."""

    width: int
    layers: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n d"], train: bool) -> Float[Array, "n width"]:
        for _ in range(self.layers - 1):
            x = nn.Dense(self.width, use_bias=False, dtype=self.dtype)(x)  # batch norm has the offset
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x))
        return nn.Dense(self.width, dtype=self.dtype)(x)


def measures(config: Config) -> tuple[str, ...]:
    """Names of what is measured after each stage; an accuracy that a set does not have is NaN."""
    return (*(f"{s.name} {place}" for s in config.data.sets for place in IN_SET), "loss", "temperature")


def task(arm: str, config: Config) -> Task:
    """The arm's task for the engine: a run's outcomes are (epochs, measures).

    Closed forms have outcomes at the last number of epochs alone; the others are NaN.
    """
    shared = on_device(config.data)
    epochs = tuple(map(int, config.epochs))

    def closed(key: Key[Array, ""], point: Point) -> Array:
        measures = _measured(config, point, *closed_form(arm, config, key, point))
        return jnp.full((len(epochs), len(measures)), jnp.nan).at[-1].set(measures)

    def begin(key: Key[Array, ""], point: Point) -> State:
        return start(arm, config, key, point)

    def stage(key: Key[Array, ""], point: Point, number: Int[Array, ""], state: State) -> tuple[State, Array]:
        state = fit(arm, config, key, point, number, state)
        return state, measure(arm, config, point, state)

    if arm in CLOSED:
        return Task(closed, may_lack=True, shared=shared)
    return Task(stage, may_lack=True, start=begin, stages=tuple(np.diff([0, *epochs]).tolist()), shared=shared)


@functools.lru_cache(maxsize=1)
def on_device(data: Data) -> dict[str, Any]:
    """The arrays of all sets, which the programs of all arms share."""
    parts = ("image", "label", "prompts", "known", "group")
    return {
        "train": {name: jnp.asarray(x) for name, x in vars(data.train).items()},
        "sets": [{name: jnp.asarray(getattr(s, name)) for name in parts} for s in data.sets],
    }


def _head(config: Config, point: Point) -> Head:
    return Head(point["width"], config.layers, jnp.bfloat16 if config.bf16 else None)


def start(arm: str, config: Config, key: Key[Array, ""], point: Point) -> State:
    """Parameters, running means and optimizer state before training."""
    train, head = point["train"], _head(config, point)
    key_image, key_text, key_class = jax.random.split(jax.random.fold_in(key, _START), 3)
    towers = {"image": head.init(key_image, train["image"][:2], True)}
    scale = _SIGLIP_SCALE if arm == "siglip" else 1 / config.temperature
    params: State = {}
    if arm in READERS:
        towers["text"] = head.init(key_text, train["text"][:2], True)
        params["scalars"] = {"log_scale": jnp.log(jnp.asarray(scale)), "bias": jnp.asarray(_SIGLIP_BIAS)}
    else:
        width, classes = point["width"], len(train["prompts"])
        kernel = jax.random.normal(key_class, (width, classes)) / width**0.5
        params["class"] = {"kernel": kernel, "bias": jnp.zeros(classes)}
    params |= {name: tower["params"] for name, tower in towers.items()}
    means = {name: tower.get("batch_stats", {}) for name, tower in towers.items()}
    return {"params": params, "means": means, "optimizer": _optimizer(config).init(params), "loss": jnp.zeros(())}


def _optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW at a constant rate. Its decay spares the temperature, offsets, and batch norm."""

    def matrices(params: State) -> State:
        return jax.tree.map(lambda x: jnp.ndim(x) == 2, params)

    return optax.adamw(config.learning_rate, weight_decay=config.weight_decay, mask=matrices)


def fit(arm: str, config: Config, key: Key[Array, ""], point: Point, number: Int[Array, ""], state: State) -> State:
    """The state after the epochs of stage `number`; `loss` is the mean over the steps of the last one."""
    units = subset(key, point)
    steps = len(units) // config.batch_size
    bounds = jnp.asarray([0, *map(int, config.epochs)])
    optimizer, named = _optimizer(config), mentions(key, point)

    def epoch(i: Array, state: State) -> State:
        order = order_of(key, units, i)

        def step(j: Array, state: State) -> State:
            at = jax.lax.dynamic_slice(order, (j * config.batch_size,), (config.batch_size,))
            batch = jax.random.fold_in(key, i * steps + j), point, named, state["means"], at
            both = jax.value_and_grad(lambda params: loss(arm, config, params, *batch), has_aux=True)
            (value, means), gradient = both(state["params"])
            updates, inner = optimizer.update(gradient, state["optimizer"], state["params"])
            params = optax.apply_updates(state["params"], updates)
            if "scalars" in params:
                params["scalars"]["log_scale"] = jnp.clip(params["scalars"]["log_scale"], 0, np.log(_MOST_SCALE))
            return {"params": params, "means": means, "optimizer": inner, "loss": state["loss"] + value / steps}

        return jax.lax.fori_loop(0, steps, step, {**state, "loss": jnp.zeros(())})

    return jax.lax.fori_loop(bounds[number], bounds[number + 1], epoch, state)


def order_of(key: Key[Array, ""], units: Int[Array, " u"], epoch: Int[Array, ""]) -> Int[Array, " u"]:
    """The images in the order of an epoch."""
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch), units)


def subset(key: Key[Array, ""], point: Point) -> Int[Array, " u"]:
    """The training images of a run: `percent` of them, the same in all stages."""
    units = len(point["train"]["first"])
    chosen = jax.random.permutation(jax.random.fold_in(key, _SUBSET), units)
    return chosen[: units * point["percent"] // 100]


def mentions(key: Key[Array, ""], point: Point) -> tuple[Bool[Array, " n"], Bool[Array, " n"]]:
    """Whether each caption of a run names the attribute, and other details: of rates `attribute` and `detail`."""
    keys = jax.random.split(jax.random.fold_in(key, _POLICY))
    n = len(point["train"]["label"])
    return tuple(jax.random.bernoulli(k, point[x], (n,)) for k, x in zip(keys, ("attribute", "detail"), strict=True))


def captions(named: tuple[Array, Array], point: Point, rows: Int[Array, " n"]) -> Float[Array, "n d"]:
    """The texts of these rows: t_y + b (t_g - t_y) + h (t - t_g), as `mt.features.Policy` has them. named: b and h."""
    train = point["train"]
    of_class, of_group = train["class_text"][train["label"][rows]], train["group_text"][train["group"][rows]]
    text = train["text"][rows]
    b, h = (x[rows, None] for x in named)
    return jnp.where(b, of_group, of_class) + jnp.where(h, text - of_group, 0.0)


def loss(
    arm: str, config: Config, params: State, key: Key[Array, ""], point: Point, named: tuple[Array, Array],
    means: State, units: Int[Array, " b"],
) -> tuple[Float[Array, ""], State]:  # fmt: skip
    """The arm's loss on a batch of images, and the running means after it. named: of `mentions`."""
    train, head = point["train"], _head(config, point)
    key_row, key_view = jax.random.split(key)
    pick = jax.random.uniform(key_row, units.shape)
    first, count = train["first"][units], train["count"][units]
    rows = first + jnp.minimum((pick * count).astype(first.dtype), count - 1)
    image, label = train["image"][rows], train["label"][rows]

    def embed(name: str, x: Array) -> tuple[Array, State]:
        variables = {"params": params[name], "batch_stats": means[name]}
        z, after = head.apply(variables, x, True, mutable=["batch_stats"])
        return _wide(z), after.get("batch_stats", {})

    if arm in READERS:
        z, image_means = embed("image", image)
        text = train["prompts"][label] if arm == "clip_labels" else captions(named, point, rows)
        t, text_means = embed("text", text)
        scale = jnp.exp(params["scalars"]["log_scale"])
        after = {"image": image_means, "text": text_means}
        if arm == "siglip":
            return losses.siglip(z, t, scale=scale, bias=params["scalars"]["bias"], normalize=True), after
        weights = {"labels": label, "same_class_weight": 0.0} if arm == "clip_no_intra" else {}
        return losses.info_nce(z, t, temperature=1 / scale, normalize=True, **weights), after
    if arm == "supervised":
        z, image_means = embed("image", image)
        return losses.cross_entropy(_logits(params, z), label), {"image": image_means}
    views = jnp.concatenate([image, image])
    kept = jax.random.bernoulli(key_view, 1 - config.dropout, views.shape)
    z, image_means = embed("image", jnp.where(kept, views / (1 - config.dropout), 0.0))
    label = jnp.concatenate([label, label])
    same = label if arm == "sup_con" else jnp.tile(jnp.arange(len(units)), 2)
    contrast = losses.sup_con(z, same, temperature=IMAGE_TEMPERATURE, normalize=True)
    head_loss = losses.cross_entropy(_logits(params, jax.lax.stop_gradient(_unit(z))), label)
    return contrast + head_loss, {"image": image_means}


def _logits(params: State, z: Float[Array, "n r"]) -> Float[Array, "n c"]:
    return z @ params["class"]["kernel"] + params["class"]["bias"][None, :]


def _wide(z: Float[Array, "n r"]) -> Float[Array, "n r"]:
    """Not narrower than float32."""
    return z.astype(jnp.promote_types(z.dtype, jnp.float32))


def _unit(z: Float[Array, "n r"]) -> Float[Array, "n r"]:
    return z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)


def scores(arm: str, config: Config, point: Point, state: State, one: Mapping[str, Array]) -> Float[Array, "n c"]:
    """The scores that a trained arm gives the images of a set for each of its classes."""
    params, head = state["params"], _head(config, point)

    def embed(name: str, x: Array) -> Array:
        variables = {"params": params[name], "batch_stats": state["means"][name]}
        return _wide(jax.lax.map(lambda row: head.apply(variables, row[None], False)[0], x, batch_size=_ROWS))

    z = embed("image", one["image"])
    if arm in READERS:
        return _unit(z) @ _unit(embed("text", one["prompts"])).T
    return _logits(params, z if arm == "supervised" else _unit(z))[:, one["known"]]


def measure(arm: str, config: Config, point: Point, state: State) -> Float[Array, " m"]:
    """The measures of a trained arm."""
    scale = state["params"]["scalars"]["log_scale"] if arm in READERS else jnp.nan
    scores_by_set = [scores(arm, config, point, state, one) for one in point["sets"]]
    return _measured(config, point, scores_by_set, state["loss"], jnp.exp(-scale))


def closed_form(arm: str, config: Config, key: Key[Array, ""], point: Point) -> tuple[list[Array], Array, Array]:
    """The scores that a closed form of rank `width` gives to each set; it has no loss and no temperature.

    It reads all captions of its training images. NaN where a covariance that it inverts is singular.
    """
    train = point["train"]
    chosen = jnp.zeros(len(train["first"]), bool).at[subset(key, point)].set(True)
    unit = jnp.repeat(jnp.arange(len(train["first"])), train["count"], total_repeat_length=len(train["label"]))
    weight = chosen[unit].astype(float)
    text = captions(mentions(key, point), point, jnp.arange(len(train["label"])))
    image_mean, text_mean = (weight @ x / weight.sum() for x in (train["image"], text))
    x, t = train["image"] - image_mean[None], text - text_mean[None]

    def covariance(left: Array, right: Array) -> Array:
        return (left * weight[:, None]).T @ right / (weight.sum() - 1)

    rank = min(point["width"], x.shape[1], t.shape[1])
    if arm == "linear_mmcl":
        score = learners.linear_optimum(covariance(x, t), rank=rank)
    else:
        inverted = [shrunk(covariance(z, z), jnp.asarray(config.shrinkage)) for z in (x, t)]
        if config.theta > 0:
            inverted = [regular(s) for s in inverted]
        score = learners.whitened_optimum(covariance(x, t), *inverted, config.theta, rank)
    rules = [(one["prompts"] @ score.T, one["image"] - image_mean[None]) for one in point["sets"]]
    return [images @ rule.T for rule, images in rules], jnp.asarray(jnp.nan), jnp.asarray(jnp.nan)


def _measured(
    config: Config, point: Point, scores: list[Array], last_loss: Array, temperature: Array
) -> Float[Array, " m"]:
    """Accuracies of the scores of each set, then loss and temperature."""
    accuracies = []
    for one, each, s in zip(point["sets"], scores, config.data.sets, strict=True):
        right = (each.argmax(1) == one["label"]).astype(float)
        right = jnp.where(jnp.isfinite(each).all(), right, jnp.inf)  # a run that diverged
        by_group = jax.ops.segment_sum(right, one["group"], len(s.sizes)) / jnp.asarray(s.sizes)
        accuracies.append(right.mean())
        kinds = [by_group[s.aligned == kind].mean() if (s.aligned == kind).any() else jnp.nan for kind in (1, 0)]
        accuracies += [by_group.mean(), *kinds, by_group.min()] if s.groups else [jnp.nan] * 4
    return jnp.stack([jnp.asarray(x, float) for x in (*accuracies, last_loss, temperature)])
