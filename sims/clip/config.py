"""The settings of a training run, and their checks.

Imports neither JAX nor grain, so that --help and refusals are quick.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from sims.engine.flags import UsageError, check_choice

SCENES = "runs/scenes"  # where the generated scenes are by default


_LATER = {"percent": 100.0, "validation": 0.0}
_RANGES: dict[str, tuple[float, float]] = {
    "vocabulary_size": (300, 1_000_000), "batch_size": (2, 2**20), "chunks": (1, 2**16), "warm_up": (0, 10**8),
    "held_out": (2, 2**20), "seed": (0, 2**32 - 1), "image_size": (16, 1024), "context_length": (4, 1024),
    "steps": (1, 10**9), "temperature": (0.01, 1), "percent": (1, 100), "pi": (0, 1), "same_class_weight": (0, 1),
    "weight_decay": (0, 1),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arm:
    """An arm of the comparison.

    Attributes:
      loss: info_nce, siglip, cross_entropy or sup_con.
      text: what a caption becomes: natural, labels or masked; None for arms that do not read.
      same_class_weight: the arm's own, whatever the config says; None: the config's.
    """

    label: str
    loss: str
    text: str | None = "natural"
    same_class_weight: float | None = None

    @property
    def reads(self) -> bool:
        """Whether the arm learns from captions."""
        return self.loss in ("info_nce", "siglip")


ARMS = {
    "clip": Arm("CLIP", "info_nce"),
    "clip_no_intra": Arm("CLIP, no same-class negatives", "info_nce", same_class_weight=0.0),
    "clip_labels": Arm("CLIP, captions name the class only", "info_nce", text="labels"),
    "clip_masked": Arm("CLIP, words of captions left out", "info_nce", text="masked"),
    "siglip": Arm("SigLIP", "siglip"),
    "supervised": Arm("SL, cross-entropy", "cross_entropy", text=None),
    "sup_con": Arm("SupCon + linear probe", "sup_con", text=None),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run. The usual recipe for RN50 on CC3M is --preset=cc3m_rn50.

    Attributes:
      data: as for `sources.open_source`, or `scenes`.
      captions: JSON in the place of COCO's own.
      classes: JSON list of class names, to find labels in the captions of tars.
      pi: chance that a word stays; None: .5.
      same_class_weight: total weight of an anchor's same-class negatives; None: the ordinary loss.
      same_captions: pairs with the same caption, word for word, are each other's negatives, as in the theory's loss.
      vocabulary: CLIP's BPE, or a run's; None: one of vocabulary_size is trained on the captions.
      image_size, context_length: None: the architecture's.
      chunks: parts in which a batch is embedded; the loss is the whole batch's.
      steps: None: `epochs` passes over the data.
      held_out: records kept from training, for the loss that selects the best checkpoint.
      percent: of the other records, in percent, those trained on; at one seed, those of 25 are among those of 50.
      validation: share of each class's records that no run trains on, at any seed; above 0, only labelled ones count.
    """

    data: str = "scenes"
    captions: str | None = None
    classes: str | None = None
    arm: str = "clip"
    pi: float | None = None
    same_class_weight: float | None = None
    same_captions: bool = True
    architecture: str = "RN-tiny"
    image_size: int | None = None
    context_length: int | None = None
    vocabulary: str | None = None
    vocabulary_size: int = 1024
    batch_size: int = 256
    chunks: int = 1
    epochs: float = 30.0
    steps: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    beta_2: float = 0.999
    epsilon: float = 1e-8
    warm_up: int = 100
    temperature: float = 0.07
    crop_scale: float = 0.9
    held_out: int = 256
    percent: float = 100.0
    validation: float = 0.0
    bf16: bool = False
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError naming the flag, the value and what is allowed."""
        check_choice("arm", self.arm, ARMS)
        for name, (least, most) in _RANGES.items():
            if (value := getattr(self, name)) is not None and not least <= value <= most:
                raise UsageError(f"--{name} must be in [{least}, {most}], got {value:g}.")
        for name in ("validation", "beta_2"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise UsageError(f"--{name} must be in [0, 1), got {value:g}.")
        for name in ("learning_rate", "epsilon", "crop_scale"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise UsageError(f"--{name} must be in (0, 1], got {value:g}.")
        if not (self.epochs > 0 and math.isfinite(self.epochs)):
            raise UsageError(f"--epochs must be > 0, got {self.epochs:g}.")
        if self.batch_size % self.chunks or self.batch_size // self.chunks < 2:
            raise UsageError(
                f"--chunks must divide --batch_size into parts of 2 or more, got {self.chunks} and {self.batch_size}."
            )
        weighable = self.method.loss == "info_nce" and self.method.same_class_weight is None
        if self.same_class_weight is not None and not weighable:
            raise UsageError(f"--same_class_weight has no meaning for --arm={self.arm}; leave it out.")
        if self.pi is not None and self.method.text != "masked":
            raise UsageError(f"--pi has no meaning for --arm={self.arm}; leave it out.")
        if not self.same_captions and self.weight is not None:
            raise UsageError("--nosame_captions cannot be combined with a same-class weight; leave one of them out.")

    @property
    def method(self) -> Arm:
        """The arm."""
        return ARMS[self.arm]

    @property
    def weight(self) -> float | None:
        """The weight of same-class negatives; None: the ordinary loss."""
        return self.same_class_weight if self.method.same_class_weight is None else self.method.same_class_weight

    @property
    def needs_labels(self) -> bool:
        """Whether only records with a label can be used."""
        return not self.method.reads or self.weight is not None or self.method.text == "labels" or self.validation > 0

    def flat(self) -> Mapping[str, Any]:
        """The settings that decide the result.

        Those of _LATER are left out at these values, so that runs from before they existed continue.
        """
        settings = {k: v for k, v in dataclasses.asdict(self).items() if _LATER.get(k) != v}
        return {"command": "clip.train", **settings}


_FULL = Config(architecture="RN50", image_size=224, context_length=77, vocabulary_size=49408, warm_up=2000, bf16=True)
_CC3M = dataclasses.replace(_FULL, batch_size=1024, epochs=30.0, learning_rate=1e-3, held_out=4096)
PRESETS = {
    "scenes": Config(),
    "coco_rn50": dataclasses.replace(_FULL, batch_size=512, epochs=100.0, learning_rate=5e-4, held_out=2048),
    "cc3m_rn50": _CC3M,
    "cc3m_vit": dataclasses.replace(
        _CC3M, architecture="ViT-B-16", learning_rate=5e-4, weight_decay=0.5, beta_2=0.98, epsilon=1e-6
    ),
}
