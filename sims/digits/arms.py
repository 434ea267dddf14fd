"""What is trained: CLIP and its ablations, SigLIP, supervised learning, SupCon, SimCLR, and the linear closed forms.

All contrastive losses are those of `mmcl_theory.losses`, on embeddings of unit length unless the setup says otherwise.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmcl_theory import losses
from sims.digits.config import PAPER_POLICIES, paper_arm

Point = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Arm:
    """A method, and how it is trained and judged.

    Attributes:
      loss: clip, siglip, cross_entropy, sup_con or sim_clr; None for a closed form.
      captions: (pi_core, pi_spu), in place of the axes' values.
      same_class_weight: a number, or "axis" for the value of that axis; None: the ordinary loss.
      linear: use linear encoders, whatever the config says.
      theta: of a closed form: 0 for the linear loss's rule, 1 for the whitened rule.
      prompt: the prompt that an arm which reads captions is judged by.
    """

    label: str
    loss: str | None
    captions: tuple[float, float] | None = None
    same_class_weight: float | str | None = None
    linear: bool = False
    theta: float | None = None
    prompt: str = "ensemble"

    @property
    def reads(self) -> bool:
        """Whether the arm learns from captions."""
        return self.loss in ("clip", "siglip", None)


ARMS = {
    "clip": Arm("CLIP", "clip"),
    "rich_captions": Arm("CLIP, captions name all", "clip", captions=(1.0, 1.0)),
    "core_captions": Arm("CLIP, captions name no colour", "clip", captions=(1.0, 0.0)),
    "label_only": Arm("CLIP, captions name the class only", "clip", captions=(0.0, 0.0)),
    "no_intra_class": Arm("CLIP, no same-class negatives", "clip", same_class_weight=0.0),
    "weighted": Arm("CLIP, same-class weight", "clip", same_class_weight="axis"),
    "siglip": Arm("SigLIP", "siglip"),
    "clip_linear": Arm("CLIP, linear encoders", "clip", linear=True),
    "cross_entropy": Arm("SL, cross-entropy", "cross_entropy"),
    "sup_con": Arm("SupCon + linear probe", "sup_con"),
    "sim_clr": Arm("SimCLR + linear probe", "sim_clr"),
    "linear_mmcl": Arm("linear loss, closed form on pixels", None, theta=0.0),
    "whitened": Arm("whitened rule, closed form on pixels", None, theta=1.0),
}
ARMS |= {
    paper_arm(*pi): Arm(f"CLIP, captions ({pi[0]:g}, {pi[1]:g})", "clip", pi, prompt="class") for pi in PAPER_POLICIES
}
IMAGE_TEMPERATURE = 0.1  # of SupCon and SimCLR
SIGLIP_BIAS = -10.0  # at the start
_SHIFT = 2  # pixels
_BRIGHTNESS = (0.6, 1.4)  # factors


def same_class_weight(arm: Arm, point: Point) -> Any:
    """The weight of same-class negatives; None for the ordinary loss."""
    return point["same_class_weight"] if arm.same_class_weight == "axis" else arm.same_class_weight


def contrast(
    arm: Arm,
    image: jax.Array,
    text: jax.Array,
    label: jax.Array,
    scalars: Any,
    point: Point,
    normalize: bool = True,
) -> jax.Array:
    """The arm's loss of a batch of pairs. scalars: log_scale, the log of 1 / temperature, and bias, SigLIP's."""
    scale = jnp.exp(scalars["log_scale"])
    if arm.loss == "siglip":
        return losses.siglip(image, text, scale=scale, bias=scalars["bias"], normalize=normalize)
    weight = same_class_weight(arm, point)
    weighted = {} if weight is None else {"labels": label, "same_class_weight": weight}
    return losses.info_nce(image, text, temperature=1 / scale, normalize=normalize, **weighted)


def alone(arm: Arm, one: jax.Array, two: jax.Array, label: jax.Array) -> jax.Array:
    """SupCon's loss of two views of each image, by label; or SimCLR's, where each image is a class of its own."""
    names = label if arm.loss == "sup_con" else jnp.arange(len(label))
    both, twice = jnp.concatenate([one, two]), jnp.concatenate([names, names])
    return losses.sup_con(both, twice, temperature=IMAGE_TEMPERATURE, normalize=True)


def augment(key: jax.Array, image: jax.Array) -> jax.Array:
    """A view of each image (n, h, w, 3): moved by up to 2 pixels each way, edges repeated, and brighter or darker.

    The hue stays: augmenting it would reveal to the method which feature is spurious.
    """
    move, light = jax.random.split(key)
    n, h, w, _ = image.shape
    padded = jnp.pad(image, ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0)), "edge")
    start = jax.random.randint(move, (n, 2), 0, 2 * _SHIFT + 1)
    moved = jax.vmap(lambda x, at: jax.lax.dynamic_slice(x, (at[0], at[1], 0), (h, w, 3)))(padded, start)
    return moved * jax.random.uniform(light, (n, 1, 1, 1), minval=_BRIGHTNESS[0], maxval=_BRIGHTNESS[1])
