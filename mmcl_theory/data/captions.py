"""Captions (docs/theory.md 1.3): which details of an image its text names, and what stands for those it does not.

Symbols: z latents of the image, u caption code, b what stands for an unmentioned detail, Pi = diag(pi_core, pi_spu).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory.data.inter_class import InterClass
from mmcl_theory.data.intra_class import IntraClass
from mmcl_theory.data.latents import LatentMoments, Latents

Model = IntraClass | InterClass
MASKINGS = ("named", "mean", "zero")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Captions:
    """u = b + M (z - b), M diagonal: a core (spurious) coordinate is mentioned, M = 1, w.p. pi_core (pi_spu).

    Mentions are independent over samples and coordinates. What stands for an unmentioned detail, by `masking`:
    "named" b = E_{P*}[z | y]: the class is always named, the attribute is not. The paper's for the inter-class model
        (Definition 5.3), and the default here for both.
    "mean" b = E[z | y, a]: the attribute too is always named, and only its exact value is mentioned by chance. The
        paper's for the intra-class model (Definition 5.1).
    "zero" b = 0: the class too goes unnamed.
    Under the linear loss and core prompts "named" and "mean" give one rule (T5). Under whitening losses they do not:
    with "mean" and no text noise Cov(z, u) = Cov(u), so that what is mentioned does not matter (X10, X12).
    pi_core = 0 is "label-only captions", pi_core = 1 "rich captions". Build it with `captions`, which checks.
    Source: docs/theory.md 1.3.
    """

    pi_core: Array  # ()
    pi_spu: Array  # ()
    masking: str = dataclasses.field(metadata={"static": True})

    def sample(self, key: Key[Array, ""], model: Model, latents: Latents) -> Float[Array, "n l"]:
        """The caption code u of each sample."""
        n, l = latents.z.shape
        pi = jnp.repeat(jnp.stack([self.pi_core, self.pi_spu]), l // 2, total_repeat_length=l)
        mentioned = jax.random.uniform(key, (n, l), latents.z.dtype) < pi[None, :]
        base = self.base(model, latents.label, latents.attribute)
        return jnp.where(mentioned, latents.z, base)

    def base(self, model: Model, label: Int[Array, " n"], attribute: Int[Array, " n"]) -> Float[Array, "n l"]:
        """b, what stands for an unmentioned detail, for samples with these labels and attributes."""
        if self.masking == "named":
            return model.class_means(label)
        means = model.attribute_means(label, attribute)
        return means if self.masking == "mean" else jnp.zeros_like(means)


def captions(pi_core: Scalar = 1.0, pi_spu: Scalar = 1.0, masking: str = "named") -> Captions:
    """A caption policy with checked parameters.

    pi_core, pi_spu: probability, in [0, 1], that a core / spurious detail is mentioned.
    masking: "named", the default; "mean", the paper's for the intra-class model (Definition 5.1); "zero": see
    `Captions`.
    Raises: ValueError naming the argument, its range and the value.  Source: docs/theory.md 1.3.
    """
    return Captions(
        pi_core=_checks.real("pi_core", pi_core, "in [0, 1]"),
        pi_spu=_checks.real("pi_spu", pi_spu, "in [0, 1]"),
        masking=_checks.choice("masking", masking, MASKINGS),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Exact moments of latents z (rows) and caption code u (columns), coordinates (core, spu); all means are 0.

    between: the part between classes, sum_y P(y) E[z | y] E[u | y]^T, and that of Cov(u); within: the rest, each
    computed by itself, so that what vanishes is exactly 0. Inter-class: the moments of one pair of coordinates;
    `all_pairs` gives the full matrix.
    """

    zz: Array  # (..., 2, 2)  Cov(z)
    zu: Array  # (..., 2, 2)  Cov(z, u)
    uu: Array  # (..., 2, 2)  Cov(u)
    zu_between: Array  # (..., 2, 2)
    uu_between: Array  # (..., 2, 2)
    zu_within: Array  # (..., 2, 2)
    uu_within: Array  # (..., 2, 2)


def moments(model: Model, caps: Captions) -> Moments:
    """Exact Cov(z), Cov(z, u), Cov(u) and their parts between and within classes; leaves of model and caps broadcast.

    With u = b + M (z - b):  Cov(z, u) = E[z b^T] (1 - Pi) + E[z z^T] Pi,  and off the diagonal
    Cov(u) = (1-Pi) E[b b^T] (1-Pi) + (1-Pi) E[b z^T] Pi + Pi E[z b^T] (1-Pi) + Pi E[z z^T] Pi; on it M^2 = M leaves
    (1-Pi) E[b^2] + Pi E[z^2]. Within classes the same with covariances, and Pi (1-Pi) E[b - z | y]^2 more on the
    diagonal of Cov(u).
    Source: docs/theory.md 1.5.  Check: proofs_checks/t2.py.
    """
    lat = model.latent_moments()
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


def _base_moments(lat: LatentMoments, masking: str) -> tuple[Array, Array, Array, Array, Array]:
    """E[z b^T], E[b b^T], both within classes, and the class mean of b."""
    none = 0 * lat.zz
    if masking == "named":
        return lat.z_class, lat.class_class, none, none, lat.class_core
    if masking == "mean":
        total, within = lat.attribute_attribute, lat.attribute_within
        return total, total, within, within, lat.class_mean
    return none, none, none, none, 0 * lat.class_mean


def _broadcast(*arrays: Array) -> list[Array]:
    """Broadcast against each other, ranks included (arithmetic between ranks would be refused under rank checks)."""
    shape = jnp.broadcast_shapes(*(x.shape for x in arrays))
    return [jnp.broadcast_to(x, shape) for x in arrays]
