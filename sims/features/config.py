"""The config of the heads, with its checks. Imports neither JAX nor plotting, so that --help is quick."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from sims.engine.flags import UsageError, check_choice, check_positive, check_range

if TYPE_CHECKING:
    from sims.features.sets import Data

# Arms that learn from captions, and those that do not; of the former CLOSED are closed forms, of rank `width`.
READERS = ("clip", "clip_no_intra", "clip_labels", "siglip", "linear_mmcl", "whitened")
ALONE = ("supervised", "sup_con", "sim_clr")
ARMS = (*READERS, *ALONE)
CLOSED = ("linear_mmcl", "whitened")
PAPER_WIDTHS = (16, 32, 64, 128, 256, 512, 768, 1024, 2048, 4096, 8192)
PROMPTS = ("file", "means")
_LARGEST_WIDTH = 1 << 16


@dataclasses.dataclass(frozen=True)
class Config:
    """Arms, and the family of each: widths, shares of the data, and times of training.

    train: source of the training set.
    id: source of the ID set; None: `holdout` of the training images, the same share of every class.
    ood: (name, source) of each OOD set; () where the groups of the ID set, at equal weight, stand for them.
    holdout: share of the images.
    prompts: "file", those of the training set if it has any, or "means", the mean texts of the
      classes, in every set whose classes training has.
    width: of all layers, the embedding included; the rank of closed forms.
    percent: shares of the training images.
    attribute, detail: share of the captions that still name the attribute, and the other details.
    epochs: after which heads are measured.
    layers: of a head; 1: linear.
    temperature: at the start, in [.01, 1], where it stays; SigLIP starts at .1.
    theta, shrinkage: of `whitened`.
    dropout: of input features, for the two views of SupCon and SimCLR.
    """

    train: str = ""
    id: str | None = None
    ood: tuple[tuple[str, str], ...] = ()
    holdout: float = 0.3
    prompts: str = "file"
    arms: tuple[str, ...] = ("clip", "clip_no_intra", "clip_labels", "supervised")
    width: tuple[float, ...] = (16, 64, 256)
    percent: tuple[float, ...] = (100,)
    attribute: tuple[float, ...] = (1.0,)
    detail: tuple[float, ...] = (1.0,)
    epochs: tuple[float, ...] = (10, 30)
    layers: int = 3
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    temperature: float = 0.07
    theta: float = 1.0
    shrinkage: float = 0.01
    dropout: float = 0.2
    bf16: bool = False
    seeds: int = 3
    seed: int = 0

    @functools.cached_property
    def data(self) -> "Data":
        """The sets, read once. Raises: UsageError."""
        from sims.features import sets

        return sets.load(self)

    def check(self) -> None:
        """Raise UsageError naming the flag or the file, and what is allowed."""
        for arm in self.arms:
            check_choice("arms", arm, ARMS)
        check_choice("prompts", self.prompts, PROMPTS)
        for name, least, most in (("width", 1, _LARGEST_WIDTH), ("percent", 1, 100), ("epochs", 1, 10**6)):
            for value in getattr(self, name):
                if value != int(value):
                    raise UsageError(f"--{name} must be whole numbers, got {value:g}.")
                check_range(name, value, least, most)
        for name in ("attribute", "detail"):
            for value in getattr(self, name):
                check_range(name, value, 0, 1)
        for name in ("holdout", "dropout"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"--{name} must be above 0 and below 1, got {getattr(self, name):g}.")
        check_range("layers", self.layers, 1, 10)
        check_range("batch_size", self.batch_size, 2)
        check_positive("learning_rate", self.learning_rate)
        check_range("temperature", self.temperature, 0.01, 1)  # which training keeps it in, as CLIP does
        check_range("weight_decay", self.weight_decay, 0)
        check_range("theta", self.theta, 0, 1)
        check_range("shrinkage", self.shrinkage, 0)
        check_range("seeds", self.seeds, 1, 1000)
        check_range("seed", self.seed, 0, 2**32 - 1)
        if not self.train:
            raise UsageError("--train must name the training set, such as --train=features.npz.")
        self.data.check(self)

    def flat(self) -> dict[str, Any]:
        """All that decides the result, by flag name; of the files their content."""
        return {"command": "features", **dataclasses.asdict(self), "digest": self.data.digest}
