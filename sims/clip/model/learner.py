"""One step of training, on any number of devices: the arm's loss of a whole batch, its gradient in chunks, AdamW.

The batch is split over the mesh's one axis, `data`. XLA gathers the embeddings, so the loss is the global batch's, and
batch normalisation sees all of it. With `fsdp`, parameters and optimizer state are split over `data` too.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from mmcl_theory import losses
from sims.clip.config import Config
from sims.clip.model import models
from sims.clip.records.images import normalise

SUP_CON_TEMPERATURE = 0.1
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0  # at the start
_LARGEST_LOG_SCALE = math.log(100.0)
_SMALLEST_SPLIT = 2**12  # entries; smaller arrays are kept whole on every device

Batch = Mapping[str, Any]
Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """Everything that a step changes. step: () int32, steps done."""

    step: Array
    params: Tree
    batch_stats: Tree
    optimizer: Tree


class Classifier(nn.Module):
    """An image tower and a linear layer on it: (n, classes) logits."""

    arch: models.Architecture
    classes: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.visual = models.image_tower(self.arch, self.dtype)
        self.head = nn.Dense(self.classes)

    def __call__(self, image: Float[Array, "n h w 3"], train: bool = False) -> Float[Array, "n c"]:
        return self.head(self.features(image, train).astype(jnp.float32))

    def features(self, image: Float[Array, "n h w 3"], train: bool = False) -> Float[Array, "n r"]:
        return self.visual(image, train)


@dataclasses.dataclass(frozen=True)
class Learner:
    """An arm on an architecture. classes: of the labels; 0 for arms that need none.  steps: of the whole training."""

    config: Config
    arch: models.Architecture
    classes: int
    steps: int

    @property
    def module(self) -> nn.Module:
        """CLIP, or a classifier if the arm does not read captions."""
        dtype = jnp.bfloat16 if self.config.bf16 else jnp.float32
        if self.config.method.reads:
            return models.CLIP(self.arch, dtype)
        return Classifier(self.arch, self.classes, dtype)

    @property
    def anonymous(self) -> "Learner":
        """A copy with every field reset that does not affect the computation, so that equal runs share one program."""
        names = ("data", "captions", "classes", "vocabulary", "seed", "pi", "epochs", "steps", "held_out")
        blank = {name: getattr(Config, name) for name in names}
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **blank))

    def start(self, key: Key[Array, ""]) -> State:
        """Parameters before training."""
        side = self.arch.image_size
        inputs = [jnp.zeros((1, side, side, 3), jnp.float32)]
        if self.config.method.reads:
            inputs.append(jnp.zeros((1, self.arch.text.context_length), jnp.int32))
        variables = self.module.init(key, *inputs)
        params = {"model": variables["params"]}
        if self.config.method.reads:
            scale = SIGLIP_SCALE if self.config.method.loss == "siglip" else 1 / self.config.temperature
            params["model"] = {**params["model"], "logit_scale": jnp.asarray(math.log(scale), jnp.float32)}
        if self.config.method.loss == "siglip":
            params["bias"] = jnp.asarray(SIGLIP_BIAS, jnp.float32)
        return State(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), self.optimizer().init(params))

    def schedule(self, step: Any) -> Any:
        """Learning rate of the update after `step` others: linear warm-up from 0, then a cosine towards 0."""
        warm_up = min(self.config.warm_up, max(self.steps - 1, 0))
        return optax.warmup_cosine_decay_schedule(0.0, self.config.learning_rate, warm_up, max(self.steps, 1))(step)

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW, without decay of the logit scale and of parameters of one dimension."""
        c = self.config

        def decayed(params: Tree) -> Tree:
            return jax.tree.map(lambda x: x.ndim > 1, params)

        return optax.adamw(self.schedule, 0.9, c.beta_2, c.epsilon, weight_decay=c.weight_decay, mask=decayed)

    def embed(self, params: Tree, batch_stats: Tree, batch: Batch, train: bool) -> tuple[tuple[Array, ...], Tree]:
        """((image, text) or (logits,) or (one view, other view), batch statistics after it), outputs in float32."""
        variables = {"params": params["model"], "batch_stats": batch_stats}
        stats: list[Tree] = []

        def apply(x: Array, method: str) -> Array:
            if not train or method == "encode_text":
                return self.module.apply(variables, x, method=method).astype(jnp.float32)
            out, changed = self.module.apply(variables, x, True, method=method, mutable=["batch_stats"])
            stats.append(changed.get("batch_stats", {}))
            return out.astype(jnp.float32)

        loss, image = self.config.method.loss, normalise(batch["image"])
        if loss == "sup_con":  # both views in one pass, so that they share the batch's statistics
            n = len(image)
            both = apply(jnp.concatenate([image[:, 0], image[:, 1]]), method="features")
            outputs: tuple[Array, ...] = (both[:n], both[n:])
        elif loss == "cross_entropy":
            outputs = (apply(image, method="__call__"),)
        else:
            outputs = (apply(image, method="encode_image"), apply(batch["tokens"], method="encode_text"))
        return outputs, stats[0] if stats else batch_stats

    @jax.default_matmul_precision("highest")
    def loss(self, params: Tree, outputs: tuple[Array, ...], batch: Batch) -> Float[Array, ""]:
        """The arm's loss of a whole batch, from `embed`'s outputs: of `mmcl_theory.losses`, on normalised embeddings.

        Its matrix products keep all of float32. A GPU's default rounds scores to 1e-3, which a logit scale of 100
        multiplies.
        """
        method, label = self.config.method, batch["label"]
        if method.loss == "cross_entropy":
            return losses.cross_entropy(outputs[0], label)
        if method.loss == "sup_con":
            both, twice = jnp.concatenate(outputs), jnp.concatenate([label, label])
            return losses.sup_con(both, twice, temperature=SUP_CON_TEMPERATURE, normalize=True)
        scale = jnp.exp(params["model"]["logit_scale"])
        weighted: dict[str, Any] = {}
        if self.config.weight is not None:
            weighted = {"labels": label, "same_class_weight": self.config.weight}
        elif not self.config.same_captions:
            weighted = {"labels": _first_equal(batch["tokens"]), "same_class_weight": 0.0}
        if method.loss == "siglip":
            return losses.siglip(*outputs, scale=scale, bias=params["bias"], normalize=True, **weighted)
        return losses.info_nce(*outputs, temperature=1 / scale, normalize=True, **weighted)

    def gradient(self, params: Tree, batch_stats: Tree, batch: Batch) -> tuple[Array, Tree, Tree]:
        """(loss, gradient, batch statistics) of a whole batch.

        With chunks > 1, the batch is embedded chunk by chunk without keeping activations. The loss of all embeddings
        has a gradient in each embedding. A second pass through each chunk carries it back (Gao et al. 2021, arXiv
        2101.06983). The result is that of one piece, except that batch normalisation takes each chunk's statistics.
        """
        chunks = self.config.chunks
        if chunks == 1:

            def whole(params: Tree) -> tuple[Array, Tree]:
                outputs, stats = self.embed(params, batch_stats, batch, True)
                return self.loss(params, outputs, batch), stats

            (loss, stats), gradient = jax.value_and_grad(whole, has_aux=True)(params)
            return loss, gradient, stats
        parts = jax.tree.map(lambda x: _split(x, chunks), dict(batch))

        def embed(stats: Tree, part: Batch) -> tuple[Tree, tuple[Array, ...]]:
            outputs, stats = self.embed(params, stats, part, True)
            return stats, outputs

        stats, outputs = jax.lax.scan(embed, batch_stats, parts)
        joined = jax.tree.map(_join, outputs)
        loss, (direct, back) = jax.value_and_grad(self.loss, (0, 1))(params, joined, batch)
        back = jax.tree.map(lambda x: _split(x, chunks), back)

        def carry(total: Tree, part: tuple[Batch, tuple[Array, ...]]) -> tuple[Tree, None]:
            _, pull = jax.vjp(lambda params: self.embed(params, batch_stats, part[0], True)[0], params)
            return jax.tree.map(jnp.add, total, pull(part[1])[0]), None

        gradient, _ = jax.lax.scan(carry, direct, (parts, back))
        return loss, gradient, stats

    def step(self, state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        """One update; metrics: loss, gradient norm, logit scale, all () float32."""
        loss, gradient, stats = self.gradient(state.params, state.batch_stats, batch)
        updates, optimizer = self.optimizer().update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        if self.config.method.reads:
            clipped = jnp.clip(params["model"]["logit_scale"], 0.0, _LARGEST_LOG_SCALE)
            params = {**params, "model": {**params["model"], "logit_scale": clipped}}
            metrics["logit_scale"] = clipped
        return State(state.step + 1, params, stats, optimizer), metrics

    def held_out_loss(self, state: State, batch: Batch) -> Array:
        """The loss of a batch that is not trained on, with the running statistics.

        The batch is embedded in pieces of a chunk's size.
        """
        n, piece = len(batch["label"]), self.config.batch_size // self.config.chunks
        pieces = n // piece if n >= piece and n % piece == 0 else 1
        parts = jax.tree.map(lambda x: _split(x, pieces), dict(batch))
        outputs = jax.lax.map(lambda part: self.embed(state.params, state.batch_stats, part, False)[0], parts)
        return self.loss(state.params, jax.tree.map(_join, outputs), batch)

    def flops(self) -> float:
        """Floating point operations of a step: three times XLA's count for the forward pass of one example."""
        side, views = self.arch.image_size, (2,) if self.config.method.loss == "sup_con" else ()
        one = {
            "image": jax.ShapeDtypeStruct((1, *views, side, side, 3), jnp.uint8),
            "tokens": jax.ShapeDtypeStruct((1, self.arch.text.context_length), jnp.int32),
        }
        state = jax.eval_shape(self.start, jax.random.key(0))
        forward = functools.partial(self.embed, train=False)
        count = jax.jit(forward).lower(state.params, state.batch_stats, one).cost_analysis()
        return 3.0 * self.config.batch_size * float((count or {}).get("flops", math.nan))


def mesh() -> Mesh:
    """All devices along `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def shardings(tree: Tree, over: Mesh, fsdp: bool) -> Tree:
    """How each array of a state is placed: whole on every device, or with fsdp split along an axis.

    The axis is the longest that the number of devices divides.
    """

    def of(x: Any) -> NamedSharding:
        devices = over.size
        axes = [i for i, size in enumerate(x.shape) if size % devices == 0]
        if not fsdp or devices == 1 or math.prod(x.shape) < _SMALLEST_SPLIT or not axes:
            return NamedSharding(over, PartitionSpec())
        longest = max(axes, key=lambda i: x.shape[i])
        return NamedSharding(over, PartitionSpec(*[None] * longest, "data"))

    return jax.tree.map(of, tree)


def put(batch: Batch, over: Mesh) -> dict[str, Array]:
    """The global batch on the devices, from this process's part of it."""
    split = NamedSharding(over, PartitionSpec("data"))
    return {name: jax.make_array_from_process_local_data(split, value) for name, value in batch.items()}


def _split(x: Array, chunks: int) -> Array:
    """(n, ...) to (chunks, n / chunks, ...). Rows are dealt out, so that every chunk has some of each device's rows."""
    return x.reshape(len(x) // chunks, chunks, *x.shape[1:]).swapaxes(0, 1)


def _join(x: Array) -> Array:
    """The inverse of `_split`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _first_equal(tokens: Int[Array, "n t"]) -> Int[Array, " n"]:
    """For each row, the number of the first row that equals it."""
    return (tokens[:, None] == tokens[None]).all(-1).argmax(1)
