"""Images from bytes: decoding files that others wrote, crops for training, the evaluation view, the towers' scale."""

import io
import math
import os
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sims.clip.records.reading import brief, foreign

if TYPE_CHECKING:
    from jax import Array

warnings.filterwarnings("ignore", module=r"PIL\.")  # about files that others wrote; what matters is raised

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # of red, green, blue in [0, 1], over CLIP's data
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
MAX_PIXELS = 1 << 26  # 67 million: a file of a few kB can claim more and fill the memory
MAX_SIDE = 65_535  # a JPEG's own limit
MAX_BYTES = 1 << 28
_MAX_SCANNED = 1 << 31  # pixels times scans of a JPEG: these take seconds to decode, and 1 MB can hold 20,000 scans
_MAX_EXIF = 64  # segments; Pillow joins them in quadratic time
_MAX_ASPECT = 16  # of an image that an evaluation view resizes whole

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # others call programs (PostScript) or are rarely read and tested
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRIES = 10  # draws of a crop; if none fits, the middle is taken


class BadImage(Exception):
    """An image that cannot be used: missing, cut short, corrupt, of no known format, too large.

    id: its record's.  why: a few words.
    """

    def __init__(self, id: str, why: str):
        super().__init__(id, why)
        self.id, self.why = id, why

    def __str__(self) -> str:
        return f"{self.id}: {self.why}"


def read_file(path: str | os.PathLike[str]) -> bytes:
    """A file's bytes. Raises: OSError, also for one larger than MAX_BYTES."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(f"larger than {MAX_BYTES >> 20} MiB")
    return data


def decode(data: bytes, id: str, least: int | None = None) -> np.ndarray:
    """(h, w, 3) uint8 red, green, blue of a JPEG, PNG, WebP, GIF (first frame) or BMP file.

    Grey, palette and CMYK become RGB, and 16 bits become 8. Transparent parts are laid over white. The EXIF orientation
    is applied.
    least: a JPEG may come at 1/2, 1/4 or 1/8 of its size, averaged, as long as both sides keep that many pixels.
    Raises: BadImage, with `id` as its name, for whatever goes wrong, and for images beyond MAX_PIXELS or MAX_SIDE.
    """
    try:
        if (segments := data.count(b"Exif\0\0")) > _MAX_EXIF:
            raise BadImage(id, f"{segments} EXIF segments take too long")
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            pixels, shape = image.width * image.height, f"{image.width} x {image.height} pixels"
            if pixels > MAX_PIXELS:  # as the header says; nothing is decoded yet
                raise BadImage(id, f"{shape} are more than {MAX_PIXELS}")
            if max(image.size) > MAX_SIDE:
                raise BadImage(id, f"{shape} are more than {MAX_SIDE} on a side")
            if image.format in ("JPEG", "MPO") and (scans := data.count(b"\xff\xda")) * pixels > _MAX_SCANNED:
                raise BadImage(id, f"{scans} scans of {shape} take too long")
            if least:
                image.draft(None, (least, least))
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
            image = _rgb(image)
            return np.asarray(image if turn is None else image.transpose(turn))
    except BadImage:
        raise
    except MemoryError:
        raise BadImage(id, "there is not enough memory to decode it") from None
    except Exception as error:  # Pillow raises anything on foreign bytes: OSError, SyntaxError, struct.error, ...
        why = brief(str(error).split(" <_io")[0]) or type(error).__name__
        known = foreign(data)
        raise BadImage(id, f"{why}{f': {known}' if known else ''}" if data else "the file is empty") from None


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken tag says nothing about the pixels
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """(size, size, 3) uint8: a random part of (h, w, 3), resized by bicubic interpolation that averages.

    The part has area s h w and width / height r, with s ~ U(scale) and ln r ~ U(ln ratio). It lies anywhere it fits. A
    part that does not fit is drawn again; after ten draws the largest middle part with r in `ratio` is taken.
    """
    top, left, high, wide = _part(image.shape[0], image.shape[1], rng, scale, ratio)
    return _resized(image[top : top + high, left : left + wide], size, size)


def _part(
    h: int, w: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    for _ in range(_TRIES):
        area = h * w * rng.uniform(*scale)
        r = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        wide, high = round(math.sqrt(area * r)), round(math.sqrt(area / r))
        if 0 < wide <= w and 0 < high <= h:
            return int(rng.integers(h - high + 1)), int(rng.integers(w - wide + 1)), high, wide
    wide, high = min(w, max(1, round(h * ratio[1]))), min(h, max(1, round(w / ratio[0])))
    return (h - high) // 2, (w - wide) // 2, high, wide


def evaluation_view(image: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the middle of (h, w, 3) after its short side is resized to `size`, bicubic.

    The long side becomes floor(size long / short); the crop starts at half of what is left, rounded to even. An image
    longer than 16 to 1 would fill the memory, so its middle is cut out first. This moves the view by a pixel at most.
    """
    image = _middle(_middle(image, 0, image.shape[1]), 1, image.shape[0])
    h, w = image.shape[:2]
    high, wide = (size, size * w // h) if h <= w else (size * h // w, size)
    top, left = round((high - size) / 2), round((wide - size) / 2)
    return _resized(image, high, wide)[top : top + size, left : left + size]


def _middle(image: np.ndarray, axis: int, other: int) -> np.ndarray:
    """The middle of an image along an axis, if that side is far longer than the other; else the whole image."""
    cut = max(0, image.shape[axis] - _MAX_ASPECT * other) // 2
    return np.moveaxis(np.moveaxis(image, axis, 0)[cut : image.shape[axis] - cut], 0, axis)


def _resized(image: np.ndarray, high: int, wide: int) -> np.ndarray:
    if image.shape[:2] == (high, wide):
        return image
    return np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC))


def normalise(images: "Array | np.ndarray") -> "Array":
    """(x / 255 - MEAN) / STD of (..., 3) uint8 as float32; for the device, inside the compiled step."""
    import jax.numpy as jnp  # late: processes that decode do not need it

    channels = (1,) * (images.ndim - 1) + (3,)
    scale, shift = (1 / (255 * STD)).reshape(channels), (MEAN / STD).reshape(channels)
    return images.astype(jnp.float32) * jnp.asarray(scale) - jnp.asarray(shift)
