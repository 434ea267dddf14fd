"""The settings of the digits' experiment, and their checks.

Imports neither JAX nor plotting, so that --help and refusals are quick.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from sims.engine.flags import MOST_CELLS, UsageError

ITEMS = 10  # different items in every source: digits or garments
IMAGE_ENCODERS = ("cnn", "vit", "linear", "lenet")
TEXT_ENCODERS = ("transformer", "bag", "linear")
STUDIES = ("arms", "captions", "strength", "contrasting", "correlation", "sharing", "temperature")
PAPER = "paper"  # the study of the paper's Figures 2 and 5
BALANCED = "balanced"  # the study of the captions and the ridge that the theory predicts to be best (X10, X11)
# (pi_core, pi_spu) of the captions in those figures.
PAPER_POLICIES = ((0.0, 1.0), (0.25, 1.0), (0.5, 1.0), (0.75, 1.0), (1.0, 1.0), (1.0, 0.5), (1.0, 0.0))
COLOURS = 6
# Every study has these axes, those of scenes first. In the studies that sweep an axis, its values come from this flag.
GRIDS = {
    "p_spu": "p_spu_grid",
    "hue_contrast": "contrast_grid",
    "p_companion": "companion_grid",
    "pi_core": "pi_grid",
    "pi_spu": "pi_grid",
    "pi_companion": "companion_grid",
    "same_class_weight": "weight_grid",
    "temperature": "temperature_grid",
}
AXES = tuple(GRIDS)
_SWEPT = {
    "arms": (),
    "captions": ("pi_core", "pi_spu"),
    "strength": ("hue_contrast",),
    "correlation": ("p_spu",),
    "contrasting": ("same_class_weight",),
    "temperature": ("temperature",),
    "sharing": ("p_companion", "pi_companion"),
    PAPER: (),
    BALANCED: ("temperature",),
}
ARMS_OF = {
    "arms": (
        "clip",
        "rich_captions",
        "core_captions",
        "label_only",
        "no_intra_class",
        "siglip",
        "clip_linear",
        "cross_entropy",
        "sup_con",
        "sim_clr",
        "linear_mmcl",
        "whitened",
    ),
    "captions": ("clip", "clip_linear", "linear_mmcl", "whitened"),
    "strength": ("clip", "clip_linear", "linear_mmcl", "whitened", "cross_entropy"),
    "correlation": ("clip", "label_only", "no_intra_class", "cross_entropy"),
    "contrasting": ("weighted",),
    "temperature": ("clip",),
    "sharing": ("clip", "cross_entropy"),
}


def paper_arm(pi_core: float, pi_spu: float) -> str:
    """The name of the arm with these captions."""
    return f"clip_{pi_core:g}_{pi_spu:g}"


# The run takes hours, so the ends of both figures come first.
ARMS_OF[PAPER] = (
    *(paper_arm(*PAPER_POLICIES[i]) for i in (4, 0, 6)),
    "cross_entropy",
    *(paper_arm(*PAPER_POLICIES[i]) for i in (2, 1, 3, 5)),
)
# All digits named, the colour always, half the time, never: with masking "named" the last is the balanced policy.
ARMS_OF[BALANCED] = tuple(paper_arm(1.0, pi_spu) for pi_spu in (1.0, 0.5, 0.0))
# The paper gives no values: these are read off its Figure 4, in its order.
_PAPER_COLOURS = [(31, 56, 100), (0, 112, 192), (180, 199, 231), (248, 186, 186), (255, 0, 0), (192, 0, 0)]
_ALL_ARMS = tuple(dict.fromkeys(arm for arms in ARMS_OF.values() for arm in arms))
_MOST_SEEDS = 10_000


def parse_colours(text: str) -> tuple[tuple[tuple[float, ...], ...], ...] | None:
    """Both attributes' colours, (attribute, shade, channel) in 0..255, shades from dark to light; None for `hues`.

    Args:
      text: `hues`, `paper`, or the path of a file. The file has six lines `red, green, blue`: dark, medium, light of
        attribute -1, then light, medium, dark of +1.

    Raises: UsageError for a file that cannot be read or does not hold six such lines.
    """
    if text == "hues":
        return None
    rows = _PAPER_COLOURS
    if text != PAPER:
        where = f"--colours={text} must be hues, paper or a file of six lines red, green, blue in [0, 255]"
        try:
            lines = pathlib.Path(text).expanduser().read_text().splitlines()
            rows = [tuple(float(value) for value in line.split(",")) for line in lines if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{where}; cannot be read ({getattr(error, 'strerror', None) or error}).") from None
        except ValueError as error:
            raise UsageError(f"{where}; {error}.") from None
        if len(rows) != COLOURS:
            raise UsageError(f"{where}, got {len(rows)}.")
        for row in rows:
            if len(row) != 3 or not all(0 <= value <= 255 for value in row):
                raise UsageError(f"{where}, got {', '.join(f'{value:g}' for value in row)}.")
    return tuple(rows[: COLOURS // 2]), tuple(rows[: COLOURS // 2 - 1 : -1])


def parse_groups(text: str) -> tuple[int, ...]:
    """The kind of each digit: -1 if it stands left of the colon, +1 if right, as in `01234:56789`.

    Raises: ValueError unless each of 0-9 appears once and both sides hold a digit.
    """
    low, _, high = text.partition(":")
    if sorted(low + high) != [str(i) for i in range(ITEMS)] or not low or not high:
        raise ValueError("needs all of 0-9, each once, on the two sides of a colon, such as 01234:56789")
    return tuple(1 if str(i) in high else -1 for i in range(ITEMS))


@dataclasses.dataclass(frozen=True)
class Config:
    """One source of digits, and the studies to run on it.

    A study sweeps its own axes; every other axis has one value.

    Attributes:
      arms: which of each study's arms to run.
      groups: digits of class -1 and of class +1.
      pool: squares of pool x pool pixels are averaged into one; None: the largest pool that leaves 12 or more pixels a
        side.
      core_accuracy: P(label = the digit's kind), by label noise; the accuracy of the best classifier by digits alone.
      train_size: scenes of a training set that is drawn once, captions included; None: fresh scenes in every step.
      steps: steps after which to measure; the last one ends training.
      epochs: passes over the training set after which to measure; if given, they replace `steps`.
      test: test scenes of each group.
    """

    study: tuple[str, ...] = STUDIES
    arms: tuple[str, ...] = _ALL_ARMS
    data: str = "builtin"
    groups: str = "01234:56789"
    pool: int | None = None
    p_spu: float = 0.95
    hue_contrast: float = 1.0
    pi_core: float = 0.5
    pi_spu: float = 0.5
    p_companion: float = 1.0
    pi_companion: float = 0.5
    same_class_weight: float = 0.5
    temperature: float = 0.07
    p_spu_grid: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
    contrast_grid: tuple[float, ...] = (0.03, 0.1, 0.2, 0.4, 1.0)
    pi_grid: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0)
    companion_grid: tuple[float, ...] = (0.0, 1.0)
    weight_grid: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    temperature_grid: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    core_accuracy: float = 1.0
    colours: str = "hues"
    train_size: int | None = None
    captions: str = "words"
    masking: str = "named"
    image_encoder: str = "cnn"
    text_encoder: str = "transformer"
    embed_dim: int = 32
    pixels: str = "0:1"
    init_scale: float = 1.0
    normalize: bool = True
    learn_temperature: bool = True
    steps: tuple[float, ...] = (100, 300, 1000)
    epochs: tuple[float, ...] | None = None
    batch_size: int = 256
    optimizer: str = "adam"
    learning_rate: float = 3e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    test: int = 1024
    bf16: bool = False
    seeds: int = 6
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError naming the flag, the value and what is allowed."""
        for name, allowed in (
            ("study", (*STUDIES, PAPER, BALANCED)),
            ("arms", _ALL_ARMS),
            ("image_encoder", IMAGE_ENCODERS),
            ("text_encoder", TEXT_ENCODERS),
            ("captions", ("words", "vectors")),
            ("masking", ("named", "mean")),
            ("pixels", ("0:1", "-1:1")),
            ("optimizer", ("adam", "sgd")),
        ):
            given = getattr(self, name)
            for value in (given,) if isinstance(given, str) else given:
                if value not in allowed:
                    raise UsageError(f"--{name} must be of {', '.join(allowed)}, got {value!r}.")
        for study in self.study:
            if not self.arms_of(study):
                raise UsageError(f"--arms has none of the study {study}: {', '.join(ARMS_OF[study])}.")
        for axis, grid in GRIDS.items():
            for name, values in ((axis, (getattr(self, axis),)), (grid, getattr(self, grid))):
                for value in values:
                    _check_axis(axis, name, value)
        for study in self.study:
            cells = math.prod(len(values) for values in self.axes(study).values())
            if cells > MOST_CELLS:
                grids = " and ".join(f"--{grid}" for grid in dict.fromkeys(GRIDS[axis] for axis in _SWEPT[study]))
                raise UsageError(f"{grids} must make at most {MOST_CELLS} cells in the study {study}, got {cells}.")
        for name, least, most in (
            ("embed_dim", 2, 4096),
            ("batch_size", 2, 65536),
            ("test", 2, 2**20),
            ("seeds", 2, _MOST_SEEDS),
            ("seed", 0, 2**32 - 1),
        ):
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"--{name} must be in [{least}, {most}], got {getattr(self, name)}.")
        if self.pool is not None and not 1 <= self.pool <= 64:
            raise UsageError(f"--pool must be in [1, 64] or none, got {self.pool}.")
        try:
            parse_groups(self.groups)
        except ValueError as error:
            raise UsageError(f"--groups {error}, got {self.groups}.") from None
        if not 0 < self.learning_rate <= 1:
            raise UsageError(f"--learning_rate must be in (0, 1], got {self.learning_rate:g}.")
        for name, most in (("steps", 1e7), ("epochs", 1e5)):
            for value in getattr(self, name) or ():
                if value != int(value) or not 1 <= value <= most:
                    raise UsageError(f"--{name} must be whole numbers in [1, {most:g}], got {value:g}.")
        parse_colours(self.colours)
        self._check_training()

    def _check_training(self) -> None:
        """Raise UsageError for training settings that are out of range or do not fit each other."""
        if (self.captions == "vectors") != (self.text_encoder == "linear"):
            wanted = "linear" if self.captions == "vectors" else "transformer or bag"
            raise UsageError(f"--captions={self.captions} needs --text_encoder of {wanted}, got {self.text_encoder}.")
        if self.captions == "vectors" and "sharing" in self.study:
            raise UsageError("--study=sharing needs --captions=words: vectors have no place for the small digit.")
        if self.train_size is not None and not self.batch_size <= self.train_size <= 2**24:
            raise UsageError(f"--train_size must be none or in [batch_size, 2^24] = [{self.batch_size}, {2**24}],"
                             f" got {self.train_size}.")  # fmt: skip
        for study in {PAPER, BALANCED} & {*self.study}:
            for name, unfit in (("colours", "hues"), ("captions", "words"), ("train_size", None)):
                if getattr(self, name) == unfit:
                    raise UsageError(f"--study={study} needs another --{name} than {str(unfit).lower()}.")
            if self.core_accuracy < 1:
                raise UsageError(f"--study={study} needs --core_accuracy=1, the paper's, got {self.core_accuracy:g}.")
        if "strength" in self.study and self.colours != "hues":
            raise UsageError(f"--study=strength needs --colours=hues, whose contrast it sweeps, got {self.colours}.")
        if self.epochs is not None and self.train_size is None:
            raise UsageError("--epochs needs --train_size: fresh scenes make no epoch.")
        if not 0 < self.init_scale <= 100:
            raise UsageError(f"--init_scale must be in (0, 100], got {self.init_scale:g}.")
        if not 0.5 < self.core_accuracy <= 1:
            raise UsageError(f"--core_accuracy must be in (1/2, 1], got {self.core_accuracy:g}.")
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name} must be in [0, 1), got {getattr(self, name):g}.")

    def arms_of(self, study: str) -> tuple[str, ...]:
        """The arms of a study that are to be run."""
        return tuple(arm for arm in ARMS_OF[study] if arm in self.arms)

    def axes(self, study: str) -> dict[str, tuple[float, ...]]:
        """The values of every axis in a study."""
        swept = _SWEPT[study]
        return {axis: getattr(self, GRIDS[axis]) if axis in swept else (getattr(self, axis),) for axis in AXES}

    def flat(self, study: str, digest: str) -> Mapping[str, Any]:
        """The settings that decide a study's results, with the digest of the data."""
        grids = {*GRIDS.values(), *AXES, "study", "arms", "data"}
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in grids}
        if self.core_accuracy == 1:
            del fields["core_accuracy"]  # as in the folders that are older than this setting
        fields["colours"] = parse_colours(self.colours)
        own = {"arms": self.arms_of(study), **self.axes(study)}
        return {"command": "digits", "study": study, "digest": digest, **fields, **own}


def _check_axis(axis: str, name: str, value: float) -> None:
    if axis == "temperature":
        if not value > 0:
            raise UsageError(f"--{name} must be > 0, got {value:g}.")
        return
    if not 0 <= value <= 1:
        raise UsageError(f"--{name} must be in [0, 1], got {value:g}.")


PRESETS = {
    "smoke": Config(
        study=("captions",),
        arms=("clip", "whitened"),
        pi_grid=(0.0, 1.0),
        steps=(50, 150),
        batch_size=64,
        test=256,
        seeds=2,
    ),
    "small": Config(),
    PAPER: Config(
        study=(PAPER,),
        pool=1,
        p_spu=0.995,
        colours=PAPER,
        train_size=60_000,
        captions="vectors",
        masking="mean",
        image_encoder="lenet",
        text_encoder="linear",
        embed_dim=128,
        pixels="-1:1",
        normalize=False,
        temperature=1.0,
        learn_temperature=False,
        epochs=(1, 2, 4, 8, 12, 20, 30, 40, 50, 60, 80, 100),
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.01,
        weight_decay=0.001,
        test=10_000,
        seeds=4,
    ),
    "full": Config(pool=1, steps=(100, 300, 1000, 3000, 10000), batch_size=1024, embed_dim=128, test=4096, seeds=10),
}
