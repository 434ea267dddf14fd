"""Captions (docs/theory.md 1.3): which details of an image its text names, and what replaces those that it does not.

Symbols: z latents of the image, u caption code, b base value of an unmentioned detail, Pi = diag(pi_core, pi_spu).
"""

import dataclasses
from typing import TypeGuard

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mmcl_theory import _checks, _random
from mmcl_theory._checks import Scalar
from mmcl_theory.data.group_captions import GroupCaptions
from mmcl_theory.data.inter_class import InterClass
from mmcl_theory.data.intra_class import IntraClass
from mmcl_theory.data.latents import LatentMoments, Latents
from mmcl_theory.data.mixture import covariances
from mmcl_theory.data.protocol import LatentModel, exactly, has_law_of, law

PairModel = IntraClass | InterClass
Model = PairModel | LatentModel
MASKINGS = ("named", "mean", "zero")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Captions:
    """A caption policy: u = b + M (z - b), M diagonal with entry 1 where a coordinate is mentioned and 0 elsewhere.

    A core coordinate is mentioned with probability pi_core, a spurious one with probability pi_spu. Mentions are
    independent over samples and coordinates. `masking` sets the base value b of an unmentioned coordinate:

    * "named": b = E_{P*}[z | y]. The caption always names the class, but not the attribute. This is the paper's choice
      for the inter-class model (Definition 5.3), and the default here for both models.
    * "mean": b = E[z | y, a]. The caption always names the attribute too; only its exact value is mentioned by chance.
      This is the paper's choice for the intra-class model (Definition 5.1).
    * "zero": b = 0. The caption does not name the class either.

    Under the linear loss and core prompts, "named" and "mean" give the same rule (T5). Under whitening losses they do
    not. With "mean" and no text noise Cov(z, u) = Cov(u), so that what is mentioned does not matter (X10, X12).

    "Label-only captions" have pi_core = 0, "rich captions" pi_core = 1. Build a policy with `captions`, which checks
    the values.

    Attributes:
        pi_core: probability that a core coordinate is mentioned, (), in [0, 1].
        pi_spu: probability that a spurious coordinate is mentioned, (), in [0, 1].
        masking: "named", "mean" or "zero", static.

    Example:
        What is said of a conflicting image of class +1 without a mention, its base value:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> for masking in ("named", "mean", "zero"):
        ...     caps = mt.captions(pi_core=0.0, pi_spu=0.0, masking=masking)
        ...     print(masking, caps.base(model, jnp.array([1]), jnp.array([-1]))[0].tolist())
        named [1.0, 0.0]
        mean [1.0, -1.0]
        zero [0.0, 0.0]

    Source: docs/theory.md 1.3.
    """

    pi_core: Array  # ()
    pi_spu: Array  # ()
    masking: str = dataclasses.field(metadata={"static": True})

    def sample(self, key: Key[Array, ""], model: Model, latents: Latents) -> Float[Array, "n l"]:
        """The caption code u of each sample: rows are samples, columns latent coordinates."""
        n, l = latents.z.shape
        pi = jnp.repeat(jnp.stack([self.pi_core, self.pi_spu]), l // 2, total_repeat_length=l)
        (chance,) = _random.uniforms(key, latents.z.dtype, (n, l))
        base = self.base(model, latents.label, latents.attribute)
        return jnp.where(chance < pi[None, :], latents.z, base)

    def as_group_captions(self, model: IntraClass) -> GroupCaptions:
        """The policy by the groups of `model.as_mixture()`, which has the same order."""
        exactly(model, IntraClass)
        label, attribute = jnp.array([-1, -1, 1, 1]), jnp.array([-1, 1, -1, 1])
        leaves = (self.pi_core, self.pi_spu, *jax.tree.leaves(model))
        pi_core, pi_spu, *parameters = (x.ravel() for x in jnp.broadcast_arrays(*leaves))
        models = jax.tree.unflatten(jax.tree.structure(model), parameters)
        shape = (*jnp.broadcast_shapes(*(x.shape for x in leaves)), 4, 2)
        base = jax.vmap(lambda model: self.base(model, label, attribute))(models).reshape(shape)
        mention = jnp.stack([pi_core, pi_spu], -1).reshape(*shape[:-2], 1, 2)
        none = jnp.zeros(shape, base.dtype)
        return GroupCaptions(jnp.broadcast_to(mention, shape), base, none, none)

    def base(self, model: Model, label: Int[Array, " n"], attribute: Int[Array, " n"]) -> Float[Array, "n l"]:
        """b for samples with these labels and attributes: rows are samples, columns latent coordinates."""
        offers = law(model, "class_means", "attribute_means")
        if self.masking == "named":
            return offers.class_means(label)
        means = offers.attribute_means(label, attribute)
        return means if self.masking == "mean" else jnp.zeros_like(means)


def captions(pi_core: Scalar = 1.0, pi_spu: Scalar = 1.0, masking: str = "named") -> Captions:
    """A caption policy with checked parameters.

    Args:
        pi_core: probability that a core detail is mentioned, in [0, 1].
        pi_spu: probability that a spurious detail is mentioned, in [0, 1].
        masking: what replaces an unmentioned detail: "named", "mean" or "zero", see `Captions`. "mean" is the paper's
            choice for the intra-class model (Definition 5.1).

    Returns:
        The policy. Arrays of probabilities describe a grid of policies.

    Raises:
        ValueError: if a probability or the masking is not allowed; the message names argument, range and value.

    Example:
        The more core details captions mention, the better the accuracy on P* (T5):

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> accuracy = mt.theory.mmcl_accuracy(model, mt.captions(pi_core=jnp.array([0.0, 0.5, 1.0])))
        >>> print([f"{value:.3f}" for value in accuracy.shifted])
        ['0.755', '0.800', '0.817']

    Source: docs/theory.md 1.3.
    """
    return Captions(
        pi_core=_checks.real("pi_core", pi_core, "in [0, 1]"),
        pi_spu=_checks.real("pi_spu", pi_spu, "in [0, 1]"),
        masking=_checks.choice("masking", masking, MASKINGS),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Exact moments of latents z (rows) and caption code u (columns), coordinates (core, spurious); all means are 0.

    For the inter-class model these are the moments of one pair of coordinates; `all_pairs` gives the full matrix. The
    within-class parts are computed by themselves, not as differences, so that what vanishes is exactly 0.

    Attributes:
        zz: Cov(z).
        zu: Cov(z, u).
        uu: Cov(u).
        zu_between: the part of Cov(z, u) between classes, sum_y P(y) E[z | y] E[u | y]^T.
        uu_between: the part of Cov(u) between classes, sum_y P(y) E[u | y] E[u | y]^T.
        zu_within: the part of Cov(z, u) within classes, zu - zu_between.
        uu_within: the part of Cov(u) within classes, uu - uu_between.

    Example:
        The covariance of the core feature and its caption, between and within classes. Captions of the class alone have
        no part within:

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> for pi_core in (0.0, 1.0):
        ...     mom = mt.moments(model, mt.captions(pi_core))
        ...     print(f"{mom.zu_between[0, 0]:.1f} {mom.zu_within[0, 0]:.1f}")
        1.0 0.0
        1.0 1.0
    """

    zz: Array  # (..., 2, 2)  Cov(z)
    zu: Array  # (..., 2, 2)  Cov(z, u)
    uu: Array  # (..., 2, 2)  Cov(u)
    zu_between: Array  # (..., 2, 2)
    uu_between: Array  # (..., 2, 2)
    zu_within: Array  # (..., 2, 2)
    uu_within: Array  # (..., 2, 2)


def moments(model: Model, caps: Captions) -> Moments:
    """Exact Cov(z), Cov(z, u) and Cov(u), and their parts between and within classes.

    With u = b + M (z - b):

        Cov(z, u) = E[z b^T] (1 - Pi) + E[z z^T] Pi
        Cov(u) = (1-Pi) E[b b^T] (1-Pi) + (1-Pi) E[b z^T] Pi + Pi E[z b^T] (1-Pi) + Pi E[z z^T] Pi,  off the diagonal
        Cov(u) = (1-Pi) E[b^2] + Pi E[z^2],  on the diagonal, where M^2 = M

    The parts within classes follow the same formulas with covariances within classes. Their Cov(u) has Pi (1-Pi)
    E[b - z | y]^2 more on the diagonal.

    Args:
        model: data model; its leaves broadcast with those of `caps`.
        caps: caption policy.

    Returns:
        The moments, matrices of shape (..., 2, 2) with the leaves' broadcast shape in front.

    Example:
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> covariance = mt.moments(model, mt.captions(pi_core=0.5)).zu
        >>> print([[f"{entry:.2f}" for entry in row] for row in covariance])
        [['1.50', '0.90'], ['0.90', '1.01']]

    Source: docs/theory.md 1.5.  Check: proofs_checks/t2.py.
    """
    caps, lat = pair_captions(caps), law(model, "latent_moments").latent_moments()
    zb, bb, zb_within, bb_within, b_mean = _base_moments(lat, caps.masking)
    pi = jnp.stack(jnp.broadcast_arrays(caps.pi_core, caps.pi_spu), -1)
    zz, zb, bb, zz_within, zb_within, bb_within, col, row = _broadcast(
        lat.zz, zb, bb, lat.zz_within, zb_within, bb_within, pi[..., None, :], pi[..., :, None]
    )
    z_mean, b_mean, pi = _broadcast(lat.class_mean, b_mean, pi)
    u_mean = b_mean * (1 - pi) + z_mean * pi
    mixed_mean = lat.weight * (pi * (1 - pi) * (b_mean - z_mean) ** 2)[..., None, :]

    def caption_covariance(zz: Array, zb: Array, bb: Array, more: Array) -> Array:
        mixed = (1 - row) * bb * (1 - col) + (1 - row) * zb.mT * col + row * zb * (1 - col) + row * zz * col
        diagonal = jnp.broadcast_to(jnp.eye(2, dtype=bool), zz.shape)
        return jnp.where(diagonal, (1 - row) * bb + row * zz + more, mixed)

    return Moments(
        zz=zz,
        zu=zb * (1 - col) + zz * col,
        uu=caption_covariance(zz, zb, bb, jnp.zeros_like(zz)),
        zu_between=lat.weight * z_mean[..., :, None] * u_mean[..., None, :],
        uu_between=lat.weight * u_mean[..., :, None] * u_mean[..., None, :],
        zu_within=zb_within * (1 - col) + zz_within * col,
        uu_within=caption_covariance(zz_within, zb_within, bb_within, jnp.broadcast_to(mixed_mean, zz.shape)),
    )


def draw_captions(
    key: Key[Array, ""], model: Model, caps: Captions | GroupCaptions, latents: Latents
) -> Float[Array, "n l"]:
    """The caption code of each sample. Raises TypeError for captions of another kind of model."""
    if is_pair_model(model):
        return pair_captions(caps).sample(key, model, latents)
    return caps.sample(key, model, latents)


def pair_captions(caps: Captions | GroupCaptions | None) -> Captions:
    """The captions of a pair model; None is rich captions. Raises TypeError for others, whose law may differ."""
    if caps is None:
        return captions()
    if type(caps) is not Captions:
        raise TypeError(
            f"caps must be mt.captions for a pair model, got {type(caps).__name__} (group_captions go with as_mixture)."
        )
    return caps


def is_pair_model(model: Model) -> TypeGuard[PairModel]:
    """Whether the model's law is one of the paper's two, on pairs of a core and a spurious coordinate."""
    return has_law_of(model, IntraClass) or has_law_of(model, InterClass)


def second_moments(model: Model, caps: Captions | GroupCaptions | None) -> tuple[Array, Array, Array]:
    """Cov(z), Cov(z, u), Cov(u): of one pair (..., 2, 2) for a pair model, else (..., l, l). None is rich captions."""
    if is_pair_model(model):
        mom = moments(model, pair_captions(caps))
        return mom.zz, mom.zu, mom.uu
    return covariances(law(model, "class_moments").class_moments(caps))


def _base_moments(lat: LatentMoments, masking: str) -> tuple[Array, Array, Array, Array, Array]:
    """E[z b^T] and E[b b^T], both again within classes, and the class mean of b."""
    none = 0 * lat.zz
    if masking == "named":
        return lat.z_class, lat.class_class, none, none, lat.class_core
    if masking == "mean":
        total, within = lat.attribute_attribute, lat.attribute_within
        return total, total, within, within, lat.class_mean
    return none, none, none, none, 0 * lat.class_mean


def _broadcast(*arrays: Array) -> list[Array]:
    """The arrays broadcast against each other, ranks included; rank checks would refuse arithmetic between ranks."""
    shape = jnp.broadcast_shapes(*(x.shape for x in arrays))
    return [jnp.broadcast_to(x, shape) for x in arrays]
