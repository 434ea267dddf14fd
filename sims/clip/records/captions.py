"""A record's text in each arm: one of its captions, its class's name, or a caption with words left out."""

import dataclasses
import re

import numpy as np

from sims.clip.records.sources import Record

TEMPLATE = "a photo of a {}."
# Words that name nothing; they only hold a sentence together.
_FUNCTION_WORDS = frozenset(
    "a an the this that these those some and or but of in on at by to from with without for as is are was were be been "
    "being it its there his her their photo picture image over under near into onto up down out off".split()
)


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes a record's text.

    Attributes:
      text: natural, labels or masked.
      classes: names by label.
      pi: chance that a word of a masked caption stays.
    """

    text: str
    classes: tuple[str, ...] = ()
    pi: float = 1.0

    def __call__(self, record: Record, rng: np.random.Generator) -> str:
        """The text of a record in one step.

        natural: one of the captions, all equally likely.
        labels: "a photo of a CLASS."
        masked: one of the captions, each word of which stays with probability pi, independently. The words of the
        class's name always stay, and so do those that name nothing (articles, prepositions, ...).
        """
        if self.text == "labels":
            return TEMPLATE.format(self.classes[record.label])
        caption = record.captions[int(rng.integers(len(record.captions)))]
        if self.text == "natural":
            return caption
        kept = {_bare(word) for word in self.classes[record.label].split()} if record.label >= 0 else set()
        words = caption.split()
        stays = rng.random(len(words)) < self.pi
        return " ".join(w for w, s in zip(words, stays, strict=True) if s or _bare(w) in kept | _FUNCTION_WORDS)


def _bare(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word).lower()
