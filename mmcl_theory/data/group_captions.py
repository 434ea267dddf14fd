"""Captions by group and coordinate (docs/theory.md 1.6): details left out, blurred and mistaken.

Symbols: g group of weight P_g, mean m_g and covariance S_g, u caption code, b_g base value, pi_g mention probability,
eps_g probability of an error; G groups, l latents.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mmcl_theory import _checks, _small
from mmcl_theory.data.latents import Latents

BASES = ("named", "mean", "zero")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class GroupCaptions:
    """Captions by group and coordinate, with errors. A coordinate j of the code of an image of group g is

        b_gj                 with probability 1 - pi_gj, where it is not mentioned
        z_j + blur_gj N      where it is mentioned rightly, N standard normal
        z'_j + blur_gj N     where it is mentioned wrongly, with probability eps_gj of the mentions

    z' is drawn from another group, h != g with probability P_h / (1 - P_g), for each coordinate by itself. Mentions and
    errors are independent over samples and coordinates. Build it with `group_captions`, which checks the values.

    Attributes:
        mention: pi_gj, (..., G, l).
        base: b_gj, (..., G, l).
        wrong: eps_gj, (..., G, l).
        blur: standard deviation of the noise of a mentioned value, (..., G, l).

    Example:
        The blur of a mention adds its square to the variance of the captions, and nothing to their covariance with the
        images:

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1).as_mixture()
        >>> mom = model.class_moments(mt.group_captions(model, blur=[0.5, 0.0]))
        >>> print(f"{mom.zu[1, 0, 0]:.2f} {mom.uu[1, 0, 0]:.2f}")
        1.00 1.25

    Source: docs/theory.md 1.6.
    """

    mention: Array  # (..., G, l)
    base: Array  # (..., G, l)
    wrong: Array  # (..., G, l)
    blur: Array  # (..., G, l)

    ranks: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)

    def with_mentions(self, pi: _checks.Scalar, where: Any) -> "GroupCaptions":
        """The same captions, whose mention probabilities are entries of pi.

        Args:
            pi: k probabilities, (k,), or one, ().
            where: which entry of pi each mention takes, one a coordinate (l,) or one a group and coordinate (G, l);
                -1 keeps the mention.

        Returns:
            The captions. Values of pi are not checked, so that a root or an ascent may pass them.

        Raises:
            ValueError: for an entry of `where` that is not an integer in -1..k-1, or another shape.

        Example:
            One rate for the second coordinate of all groups:

            >>> import jax.numpy as jnp
            >>> import mmcl_theory as mt
            >>> caps = mt.group_captions(mt.intra_class(0.95, 1.0, 0.1))
            >>> print(caps.with_mentions(jnp.array(0.3), where=[-1, 0]).mention[0])
            [1.  0.3]
        """
        pi = jnp.atleast_1d(jnp.asarray(pi, self.mention.dtype))
        at, shape = np.asarray(where), self.mention.shape[-2:]
        if at.dtype.kind not in "iu" or at.shape not in (shape, shape[1:]) or at.min() < -1 or at.max() >= len(pi):
            raise ValueError(f"where must be integers in -1..{len(pi) - 1}, {shape[1:]} or {shape}, got {where!r}.")
        at = np.broadcast_to(at, self.mention.shape)
        return dataclasses.replace(self, mention=jnp.where(at < 0, self.mention, pi[np.maximum(at, 0)]))

    def sample(self, key: Key[Array, ""], model: Any, latents: Latents) -> Float[Array, "n l"]:
        """The caption code u of each sample, whose group is its attribute: rows are samples, columns coordinates."""
        shape, model = latents.z.shape, model.as_mixture()
        check_captions(model, self)
        key_mention, key_wrong, key_group, key_value, key_blur = jax.random.split(key, 5)
        group = latents.attribute
        mention, base, wrong, blur = (x[group] for x in (self.mention, self.base, self.wrong, self.blur))
        others = others_of(model.weight)  # (G, G)
        donor = jax.random.categorical(key_group, jnp.log(others)[group][:, None, :], shape=shape)
        column = jnp.arange(shape[1])[None, :]
        spread = jnp.sqrt(jnp.diagonal(model.covariance, axis1=-2, axis2=-1))
        foreign = model.mean[donor, column] + spread[donor, column] * jax.random.normal(key_value, shape, base.dtype)
        value = jnp.where(jax.random.uniform(key_wrong, shape, base.dtype) < wrong, foreign, latents.z)
        value = value + blur * jax.random.normal(key_blur, shape, base.dtype)
        return jnp.where(jax.random.uniform(key_mention, shape, base.dtype) < mention, value, base)

    def group_moments(self, model: Any) -> tuple[Float[Array, "g l"], Float[Array, "g l"], Float[Array, "g l l"]]:
        """E[u | g]; a_g with Cov(z, u | g) = S_g diag(a_g); Cov(u | g), of a single model and policy."""
        mean, pi = model.mean, self.mention
        variance = jnp.diagonal(model.covariance, axis1=-2, axis2=-1)
        others = others_of(model.weight)  # (G, G)
        foreign = _small.product(others, mean)
        apart = mean[None, :, :] - foreign[:, None, :]  # (G, H, l)
        foreign_variance = _small.product(others, variance) + _small.einsum("gh,ghi->gi", others, apart**2)
        right, mistaken = pi * (1 - self.wrong), pi * self.wrong
        u_mean = (1 - pi) * self.base + right * mean + mistaken * foreign
        spread = (
            (1 - pi) * (self.base - u_mean) ** 2 + right * (mean - u_mean) ** 2 + mistaken * (foreign - u_mean) ** 2
        )
        diagonal = right * variance + mistaken * foreign_variance + pi * self.blur**2 + spread
        both = right[:, :, None] * model.covariance * right[:, None, :]
        eye = jnp.broadcast_to(jnp.eye(pi.shape[1], dtype=bool), both.shape)
        return u_mean, right, jnp.where(eye, jnp.broadcast_to(diagonal[:, None, :], both.shape), both)

    def states(self, model: Any) -> tuple[Float[Array, "g s l"], Float[Array, "g s l"], Float[Array, "g s l"]]:
        """Probability, mean and variance of each state of a coordinate, of a single model and policy.

        A coordinate is left out (state 0), names the image's own value (state 1), or names that of the k-th group after
        its own, in cyclic order (state 1 + k, k = 1..G-1). The variance of state 1 is that of the blur, beside z's own.
        States are independent over coordinates. If `wrong` is known to be 0 everywhere, there are two states.
        """
        check_captions(model, self)
        groups, mean = len(model.weight), model.mean
        known = not isinstance(self.wrong, jax.core.Tracer) and not np.asarray(self.wrong).any()
        donors = 0 if known else groups - 1
        donor = (np.arange(groups)[:, None] + 1 + np.arange(donors)[None, :]) % groups  # (G, donors)
        share = others_of(model.weight)[np.arange(groups)[:, None], donor]
        own = jnp.stack([1 - self.mention, self.mention * (1 - self.wrong)], 1)
        foreign = (self.mention * self.wrong)[:, None, :] * share[:, :, None]
        blur = self.blur[:, None, :] ** 2
        variance = jnp.diagonal(model.covariance, axis1=-2, axis2=-1)[donor] + blur
        return (
            jnp.concatenate([own, foreign], 1),
            jnp.concatenate([jnp.stack([self.base, mean], 1), mean[donor]], 1),
            jnp.concatenate([jnp.zeros_like(blur), blur, variance], 1),
        )


def rich_captions(model: Any) -> GroupCaptions:
    """Captions that name every detail: u = z."""
    zero = jnp.zeros_like(model.mean)
    return GroupCaptions(zero + 1, zero, zero, zero)


def group_captions(
    model: Any,
    mention: _checks.Scalar | Sequence = 1.0,
    base: str | _checks.Scalar | Sequence = "named",
    wrong: _checks.Scalar | Sequence = 0.0,
    blur: _checks.Scalar | Sequence = 0.0,
) -> GroupCaptions:
    """Captions of a mixture by group and coordinate, with checked parameters.

    Every number may be one for all, one a coordinate (l,), or one a group and coordinate (..., G, l).

    Args:
        model: the mixture, or a model with `as_mixture`.
        mention: probability that a coordinate is mentioned, in [0, 1].
        base: what stands for an unmentioned coordinate: "named" for E_{P*}[z | y], so that the caption names the class;
            "mean" for m_g, so that it names the group; "zero"; or the numbers themselves.
        wrong: probability that a mentioned value is another group's, in [0, 1]; it needs two groups with weight.
        blur: standard deviation of the noise of a mentioned value, finite and >= 0.

    Returns:
        The captions.

    Raises:
        ValueError: for a value out of range or shapes that disagree; the message names the argument.

    Example:
        Captions that take one in ten backgrounds for another group's:

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1).as_mixture()
        >>> caps = mt.group_captions(model, mention=[1.0, 0.8], wrong=[0.0, 0.1])
        >>> print(f"{mt.theory.mmcl_accuracy(model, caps).shifted:.3f}")
        0.817

    Source: docs/theory.md 1.6.
    """
    model = model.as_mixture()
    shape = model.mean.shape
    if isinstance(base, str):
        _checks.choice("base", base, BASES)
        named = {"named": lambda: model.prompts("core")[..., list(model.classes), :], "mean": lambda: model.mean}
        values = named.get(base, lambda: jnp.zeros(shape))()
    else:
        values = base

    def spread(name: str, value: Any, allowed: str) -> Array:
        try:
            x = value if isinstance(value, jax.Array) else np.asarray(value)
        except ValueError:
            raise ValueError(f"{name} must be an array of numbers, got {value!r}.") from None
        x = _checks.real(name, x, allowed) if allowed else _checks.array(name, x)
        try:
            return jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, shape))
        except ValueError:
            raise ValueError(
                f"{name} must be a number, or have shape {shape[-1:]} or {shape[-2:]}, got {x.shape}."
            ) from None

    errors = spread("wrong", wrong, "in [0, 1]")
    weight = model.weight
    if not isinstance(errors, jax.core.Tracer) and not isinstance(weight, jax.core.Tracer):
        alone = np.asarray(weight.sum(-1, keepdims=True) - weight <= 0)
        if (np.asarray(errors) > 0)[np.broadcast_to(alone[..., None], errors.shape)].any():
            raise ValueError("wrong must be 0 where no other group has weight, of which a value could be taken.")
    return GroupCaptions(
        mention=spread("mention", mention, "in [0, 1]"),
        base=spread("base", values, ""),
        wrong=errors,
        blur=spread("blur", blur, "finite and >= 0"),
    )


def check_captions(model: Any, caps: GroupCaptions) -> None:
    """Raise ValueError unless the captions are of as many groups and latents as the mixture."""
    if caps.mention.shape[-2:] != model.mean.shape[-2:]:
        raise ValueError(
            f"caps must be of the model's {model.mean.shape[-2:]} groups and latents, got {caps.mention.shape[-2:]}."
        )


def others_of(weight: Float[Array, " g"]) -> Float[Array, "g g"]:
    """P_h / (1 - P_g) for h != g, 0 for h = g, of groups or classes; 0 where no other has weight."""
    others = weight[None, :] * (1 - jnp.eye(len(weight), dtype=weight.dtype))
    total = _small.einsum("gh->g", others)[:, None]
    return others / jnp.where(total > 0, total, 1.0)
