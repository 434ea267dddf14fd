"""What a data model must offer, and whose law a model has.

The theory never takes a model for its base class. A class that changes the law, by a `sample` of its own for example,
is asked for everything that describes the law; what it merely inherits describes another one.
"""

from typing import Any, Protocol, TypeGuard, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Key

from mmcl_theory import _checks
from mmcl_theory.data.latents import Latents
from mmcl_theory.data.mixture import Mixture

T = TypeVar("T")

# Members that describe the distribution of (z, y). Whoever defines one of them answers for all.
LAW = (
    "sample",
    "class_means",
    "attribute_means",
    "latent_moments",
    "as_mixture",
    "class_moments",
    "prompts",
    "rule_accuracy",
    "shifted",
)


@runtime_checkable
class LatentModel(Protocol):
    """A data model of one's own: a frozen pytree with these members.

    With `as_mixture`, which returns the model as an `mt.mixture`, all theory of mixtures holds for it. A model that is
    no mixture of Gaussians has these three instead, and with them the population's rules of the linear and of whitening
    losses, and probes:

        class_moments(caps) -> ClassMoments             the moments of latents and captions in each class
        prompts(kind) -> (..., K, l)                    the latent code of every class's prompt, "core" or "train_mean"
        rule_accuracy(rules, gram, sd_image, offsets)   the accuracies by group of K rules (..., K, l), see
                                                        `Mixture.rule_accuracy`

    `sample` returns the label `class_labels(K)[y]` of class y and, as the attribute, the number of the group.

    Example:
        Core features of a heavy tail, as two Gaussians of unequal variance:

        >>> import dataclasses
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class HeavyTail:
        ...     sigma: float
        ...     num_latents, num_classes = 1, 2
        ...     def as_mixture(self):
        ...         spread = jnp.array([1.0, self.sigma**2, 1.0, self.sigma**2])[:, None, None]
        ...         return mt.mixture([0.4, 0.1, 0.4, 0.1], [[-1.0], [-1.0], [1.0], [1.0]], spread, [0, 0, 1, 1])
        ...     def sample(self, key, n):
        ...         return self.as_mixture().sample(key, n)
        >>> accuracy = mt.theory.mmcl_accuracy(HeavyTail(3.0))
        >>> print(f"{accuracy.train:.3f}")
        0.799
        >>> caps = mt.group_captions(HeavyTail(3.0))
        >>> draw = jax.jit(mt.sample_pairs, static_argnames="n")
        >>> pairs = draw(jax.random.key(0), HeavyTail(3.0), caps, mt.observation(8, 6), n=5)
        >>> print(pairs.image.shape)
        (5, 8)

    A class that inherits from another model and overrides one member of the law must define each that is needed: a
    function that needs another raises TypeError and names it.

    Source: docs/theory.md 1.6.
    """

    @property
    def num_latents(self) -> int:
        """The number of latent coordinates l."""
        ...

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        ...

    def sample(self, key: Key[Array, ""], n: int) -> Latents:
        """n independent draws of latents, labels and attributes from the training distribution."""
        ...


def law_class(model: Any) -> type:
    """The most derived class of the model that defines a part of the law."""
    return next((c for c in type(model).__mro__ if any(name in vars(c) for name in LAW)), type(model))


def law(model: Any, *names: str) -> Any:
    """What offers `names` for the model's own law: the model, or else its `as_mixture()`.

    Raises TypeError, which names what is missing.
    """
    owner = law_class(model)
    if all(name in vars(owner) for name in names):
        return model
    if "as_mixture" in vars(owner) and all(hasattr(Mixture, name) for name in names):
        return model.as_mixture()
    defined = ", ".join(name for name in LAW if name in vars(owner))
    missing = ", ".join(name for name in names if name not in vars(owner))
    raise TypeError(
        f"{owner.__name__} must define {missing}: it defines {defined or 'nothing'}, and what it inherits may describe"
        " another distribution."
    )


def has_law_of(model: Any, of: type[T]) -> TypeGuard[T]:
    """Whether the model's law is that of the class `of`."""
    return law_class(model) is of


def exactly(model: Any, of: type) -> None:
    """Raise TypeError unless the law of the model is that of the class `of`, by whose parameters a formula goes."""
    if not has_law_of(model, of):
        raise TypeError(f"model must have the law of {of.__name__}, got that of {law_class(model).__name__}.")


def prompts_of(model: Any, prompts: str | np.ndarray | Float[Array, "... c l"]) -> Float[Array, "... c l"]:
    """The prompts themselves, or those of this kind. Raises ValueError for another shape."""
    if isinstance(prompts, str):
        return law(model, "prompts").prompts(prompts)
    prompts = _checks.array("prompts", prompts)
    shape = (model.num_classes, model.num_latents)
    if prompts.shape[-2:] != shape:
        raise ValueError(f"prompts must have shape (..., {shape[0]}, {shape[1]}), got {prompts.shape}.")
    return prompts
