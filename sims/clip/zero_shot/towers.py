"""What makes features of images and captions: a CLIP, or a function of the user's."""

import dataclasses
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from sims.clip.model.encoder import Encoder
from sims.clip.records import images
from sims.clip.records.reading import brief
from sims.engine.flags import UsageError


@dataclasses.dataclass(frozen=True, eq=False)
class Towers:
    """What makes features of a batch.

    Attributes:
      name: what error messages call it.
      image: n arrays (h, w, 3) uint8 -> (n, d_i) floats.
      text: n captions -> (n, d_t) floats.
      view: an image as `image` takes it, made in a thread.
      unit: the features have length 1, so the mean of a class's prompts is scaled to it too.
    """

    name: str
    image: Callable[[list[np.ndarray]], Any]
    text: Callable[[list[str]], Any]
    view: Callable[[np.ndarray], np.ndarray] = lambda image: image
    unit: bool = False


def of_clip(name: str, encoder: Encoder, batch_size: int) -> Towers:
    """The two towers of a CLIP of this name. Features have length 1, since its loss compares directions.

    Raises: UsageError for a model without text.
    """
    if encoder.encode_text is None:
        raise UsageError(f"{encoder.name} has no text tower; features of pairs need one.")

    def unit(encode: Callable[[Any], np.ndarray], batch: list[Any]) -> np.ndarray:
        whole = batch + [batch[-1]] * (batch_size - len(batch))  # one shape, compiled once
        x = np.asarray(encode(whole), np.float32)[: len(batch)]
        length = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(length > 0, length, 1)

    image = functools.partial(unit, lambda views: encoder.encode_image(np.stack(views)))
    view = functools.partial(images.evaluation_view, size=encoder.image_size)
    return Towers(name, image, functools.partial(unit, encoder.encode_text), view, unit=True)


def raised(error: Exception) -> str:
    """What an error of someone else's code was, and where."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"raised {type(error).__name__} in {os.path.basename(last.filename)}, line {last.lineno}: {brief(error)}"


def of_function(spec: str) -> Towers:
    """What MODULE:FUNCTION() returns: an object with the functions image and text, or a pair of them.

    Raises: UsageError if there is no such module or function, or it returns something else.
    """
    module, _, name = spec.partition(":")
    if not module or not name:
        raise UsageError(f"--encoder must be MODULE:FUNCTION, got {spec!r}.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"--encoder={spec} cannot be imported ({brief(error)}).") from None
    if not callable(function):
        raise UsageError(f"--encoder={spec} is no function.")
    try:
        returned = function()
    except Exception as error:  # the user's own code may raise anything
        raise UsageError(f"--encoder={spec} {raised(error)}.") from error
    image, text = returned if isinstance(returned, tuple) and len(returned) == 2 else (
        getattr(returned, part, None) for part in ("image", "text")
    )  # fmt: skip
    if not callable(image) or not callable(text):
        raise UsageError(
            f"--encoder={spec} must return an object with the functions image and text, or a pair of them, got"
            f" {brief(type(returned).__name__)}."
        )
    return Towers(spec, image, text)
