"""Captions of scenes in words: their grammar and their tokens.

    caption = a KIND NOUN [DIGIT] [slanted|upright] [thick|thin] [large|small]
              [on a SHADE HUE background] [with a tiny DIGIT beside] END

The class is always named. The digit and each of its three styles are core details, each mentioned w.p. pi_core. The
background is the spurious detail, mentioned w.p. pi_spu. The small digit of a scene that has one is mentioned w.p.
pi_companion. Mentions are independent. A detail that is not mentioned leaves no gap: the words after it move up. With
masking "mean" the background's HUE is always named, and its SHADE w.p. pi_spu.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from mmcl_theory._checks import Scalar
from mmcl_theory.data import Captions
from sims.digits.scenes import Scenes

PAD, END = 0, 1
STYLES = (("upright", "slanted"), ("thin", "thick"), ("small", "large"))
SHADE_NAMES = ("dark", "medium", "light")
HUE_NAMES = ("blue", "orange")  # attribute -1, +1
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_GARMENTS = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """The words for a source of items.

    Attributes:
      noun: what an item is.
      kinds: names of kind -1 and +1.
      items: names of 0..9.
    """

    noun: str
    kinds: tuple[str, str]
    items: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """Every word once; its place is its token."""
        styles = [word for pair in STYLES for word in pair]
        words = ["<pad>", "<end>", "a", *self.kinds, self.noun, *self.items, *styles, "on", *SHADE_NAMES]
        return tuple(dict.fromkeys([*words, *HUE_NAMES, "background", "with", "tiny", "beside"]))

    def encode(self, text: str, length: int) -> np.ndarray:
        """(length,) tokens of a caption, followed by END and padding.

        Raises: ValueError for an unknown word, or a caption of `length` words or more.
        """
        known = {word: i for i, word in enumerate(self.words)}
        words = text.lower().replace(",", " ").split()
        unknown = [word for word in words if word not in known]
        if unknown:
            raise ValueError(f"captions must be of the words {', '.join(self.words[2:])}, got {unknown[0]!r}.")
        if len(words) >= length:
            raise ValueError(f"captions must have at most {length - 1} words, got {len(words)}.")
        return np.array([*(known[w] for w in words), END] + [PAD] * (length - len(words) - 1), np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The caption of tokens."""
        return " ".join(self.words[int(t)] for t in tokens if int(t) not in (PAD, END))


def lexicon(source: str) -> Lexicon:
    """The words for a source of items; a kind is `low` or `high` for digits, `first` or `second` for garments."""
    if source == "fashion":
        return Lexicon("garment", ("first", "second"), _GARMENTS)
    return Lexicon("digit", ("low", "high"), _DIGITS)


def length(companion: bool) -> int:
    """Tokens of the longest caption."""
    return 3 + 4 + 5 + (5 if companion else 0) + 1


def write(
    key: Key[Array, ""], words: Lexicon, scenes: Scenes, caps: Captions, pi_companion: Scalar = 0.0
) -> Int[Array, "n length"]:
    """Tokens of a caption for each scene.

    caps: from `mmcl_theory.captions`, with masking "named" or "mean".
    pi_companion: in [0, 1]; unused if scenes have no companion.
    """
    n = len(scenes.label)
    token = {word: i for i, word in enumerate(words.words)}

    def of(names: tuple[str, ...], which: Array) -> Array:
        return jnp.asarray([token[name] for name in names])[which]

    def fixed(word: str) -> Array:
        return jnp.full((n,), token[word])

    core, background, other = jax.random.split(key, 3)
    details = jax.random.uniform(core, (n, 1 + len(STYLES))) < caps.pi_core
    named = jax.random.uniform(background, (n,)) < caps.pi_spu
    always = jnp.ones(n, bool)
    slots = [(fixed("a"), always), (of(words.kinds, (scenes.label + 1) // 2), always), (fixed(words.noun), always)]
    slots.append((of(words.items, scenes.named_item), details[:, 0]))
    slots += [(of(pair, scenes.style[:, i]), details[:, i + 1]) for i, pair in enumerate(STYLES)]
    hue = of(HUE_NAMES, (scenes.attribute + 1) // 2)
    coloured = always if caps.masking == "mean" else named
    slots += [(fixed("on"), coloured), (fixed("a"), coloured), (of(SHADE_NAMES, scenes.shade), named)]
    slots += [(hue, coloured), (fixed("background"), coloured)]
    if scenes.companion is not None:
        names_companion = (jax.random.uniform(other, (n,)) < pi_companion) & (scenes.companion >= 0)
        which = of(words.items, jnp.maximum(scenes.companion, 0))
        small = (fixed("with"), fixed("a"), fixed("tiny"), which, fixed("beside"))
        slots += [(word, names_companion) for word in small]
    slots.append((fixed("<end>"), always))
    return _together(jnp.stack([w for w, _ in slots], 1), jnp.stack([m for _, m in slots], 1))


def _together(tokens: Int[Array, "n length"], present: Bool[Array, "n length"]) -> Int[Array, "n length"]:
    """Move the tokens that are present to the front, in their order, and fill up with PAD."""
    order = jnp.argsort(~present, axis=1, stable=True)
    return jnp.take_along_axis(jnp.where(present, tokens, PAD), order, axis=1)
