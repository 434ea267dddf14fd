"""A trained model in the form that evaluation takes."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A trained model in the form that evaluation takes.

    Attributes:
      encode_image: uint8 (n, image_size, image_size, 3), not normalised, of any n -> (n, r).
      encode_text: n sentences -> (n, r); None for a model without text.
      head: (class names, weights (c, r), bias (c,)) of a supervised model or a probe; used in place of text.
    """

    name: str
    image_size: int
    encode_image: Callable[[np.ndarray], np.ndarray]
    encode_text: Callable[[Sequence[str]], np.ndarray] | None = None
    head: tuple[Sequence[str], np.ndarray, np.ndarray] | None = None
