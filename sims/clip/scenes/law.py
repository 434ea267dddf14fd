"""Captioned scenes, an object of one of ten classes in a context: their distribution, captions and drawing.

Ten ImageNet classes come in five pairs. CONTEXTS[k] is the home of class k; the two classes of a pair share their two
homes. With attribute a = +1 for the first one's home, each pair is the intra-class model of the theory. A scene is
aligned where its context is its class's own home, conflicting where it is the partner's. Contexts vary little (a
shade). The object's core details vary much: colour, fill, size, pose. A small object of another pair, the companion, is
a detail that classes share.

Symbols: p_spu = P(context is the class's home); pi_core, pi_spu, pi_companion: chances that a caption names a detail.
"""

import dataclasses
import functools

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from sims.clip.records.words import with_article
from sims.clip.scenes import backgrounds, shapes


@dataclasses.dataclass(frozen=True)
class Kind:
    """A class. synonyms: as ImageNet lists them, the name first.  partner: the other class of its pair."""

    wnid: str
    synonyms: str
    partner: int

    @property
    def name(self) -> str:
        return self.synonyms.split(",")[0]


# Sorted by wnid; the pairs are (guitar, broom), (balloon, daisy), (candle, traffic light), (teapot, yawl) and
# (umbrella, mushroom): the two of each look somewhat alike, so that the context is worth learning.
CLASSES = (
    Kind("n02676566", "acoustic guitar", 2),
    Kind("n02782093", "balloon", 9),
    Kind("n02906734", "broom", 0),
    Kind("n02948072", "candle, taper, wax light", 7),
    Kind("n04398044", "teapot", 6),
    Kind("n04507155", "umbrella", 8),
    Kind("n04612504", "yawl", 4),
    Kind("n06874185", "traffic light, traffic signal, stoplight", 3),
    Kind("n07734744", "mushroom", 5),
    Kind("n11939491", "daisy", 1),
)
CONTEXTS = ("brick wall", "desert", "kitchen", "room", "snow", "beach", "sea", "city", "forest", "meadow")
COLOURS = {
    "red": (205, 45, 45), "yellow": (245, 215, 60), "green": (60, 165, 75), "blue": (50, 95, 205),
    "purple": (140, 70, 170), "white": (246, 246, 243),
}  # fmt: skip
FILLS, SIZES = ("plain", "striped", "dotted"), ("small", "large")
POSES, SHADES = ("upright", "tilted"), ("dark", "bright")
STYLES = ("photo", "sketch", "cartoon", "poster", "painting")

_SECOND = {"yellow": (150, 85, 25), "white": (75, 80, 100)}  # of stripes and dots; white on the other colours
_LIGHT = {"dark": 0.5, "bright": 1.08}  # factors of the background
_SCALES = {"small": (0.2, 0.26), "large": (0.36, 0.43)}  # half the object's extent, share of the side
_COMPANION_SCALE = 0.13
_PLAIN = ((250, 236, 205), (205, 232, 250), (250, 214, 214), (214, 245, 214), (233, 219, 250), (245, 245, 245))
_GROUNDS = ((250, 190, 20), (20, 130, 140), (230, 110, 100), (250, 250, 250), (110, 110, 110))  # of posters


@dataclasses.dataclass(frozen=True)
class Scene:
    """The content of a scene.

    Attributes:
      label: index of CLASSES.
      context: index of CONTEXTS; -1: none.
      companion: index of CLASSES; -1: none.
      x, y: the object's centre, from the left and the top, as shares of the side.
      scale: half the object's extent, as a share of the side.
      angle: degrees clockwise.
      cover: share of the object's width that a post and a rail hide.
      noise: sd of a pixel, of 255.
      seed: of what no field fixes (proportions, textures, noise).
    """

    label: int
    context: int
    shade: str
    colour: str
    fill: str
    size: str
    pose: str
    companion: int
    style: str
    x: float
    y: float
    scale: float
    angle: float
    cover: float
    noise: float
    seed: int

    @property
    def group(self) -> str:
        """aligned, conflicting, or empty for a scene without a context."""
        return "" if self.context < 0 else "aligned" if self.context == self.label else "conflicting"


@dataclasses.dataclass(frozen=True)
class Law:
    """The distribution that scenes are drawn from.

    Attributes:
      p_spu: P(context = home); None: no context.
      p_companion: P(a companion).
      sizes, styles: those that occur, equally likely.
      zoom: factor of the scale.
      wander: largest distance of the object from the centre, as a share of the side.
      turned: whether the object is turned by any angle.
      cover, noise: see Scene.
    """

    p_spu: float | None
    p_companion: float = 0.0
    styles: tuple[str, ...] = ("photo",)
    sizes: tuple[str, ...] = SIZES
    zoom: float = 1.0
    wander: float = 0.14
    turned: bool = False
    cover: float = 0.0
    noise: float = 5.0


def sample(rng: np.random.Generator, n: int, law: Law, label: int | None = None) -> list[Scene]:
    """n scenes of the law, with all classes equally likely, or of one class.

    Every law takes the same random numbers, so scenes of two laws at one seed differ only where they must.
    """
    return [_scene(rng.random(18), int(rng.integers(2**62)), law, label) for _ in range(n)]


def _one(options, v: float):
    """The option of a random number in [0, 1)."""
    return options[int(v * len(options))]


def _scene(u: np.ndarray, seed: int, law: Law, label: int | None) -> Scene:
    own = int(u[0] * len(CLASSES)) if label is None else label
    partner = CLASSES[own].partner
    context = -1 if law.p_spu is None else own if u[1] < law.p_spu else partner
    others = [k for k in range(len(CLASSES)) if k not in (own, partner)]
    companion = _one(others, u[3]) if u[2] < law.p_companion else -1
    size, pose = _one(law.sizes, u[7]), _one(POSES, u[8])
    low, high = _SCALES[size]
    scale = law.zoom * (low + (high - low) * u[9])
    swing, side = 2 * u[10] - 1, 1 if u[11] < 0.5 else -1
    angle = 360 * u[10] if law.turned else 6 * swing if pose == "upright" else side * (32 + 8 * swing)
    reach = law.wander if law.turned else min(law.wander, max(0.48 - scale, 0.0))
    x, y = 0.5 + reach * (2 * u[12] - 1), 0.5 + reach * (2 * u[13] - 1)
    return Scene(
        own, context, _one(SHADES, u[4]), _one(tuple(COLOURS), u[5]), _one(FILLS, u[6]), size, pose, companion,
        _one(law.styles, u[14]), x, y, scale, angle, law.cover, law.noise, seed,
    )  # fmt: skip


_PLACES = {
    "brick wall": ("against a {} brick wall", "in front of a {} brick wall"),
    "desert": ("in a {} desert", "on the dunes of a {} desert"),
    "kitchen": ("in a {} kitchen", "against the tiles of a {} kitchen"),
    "room": ("in a {} room", "on the floor of a {} room"),
    "snow": ("in {} snow", "in {} snow below the mountains"),
    "beach": ("on a {} beach", "on the sand of a {} beach"),
    "sea": ("on a {} sea", "on the waves of a {} sea"),
    "city": ("in a {} city at night", "on a street of a {} city"),
    "forest": ("in a {} forest", "among the trees of a {} forest"),
    "meadow": ("in a {} meadow", "on the grass of a {} meadow"),
}
_NOUNS = {
    "photo": ("photo", "picture", "image"), "sketch": ("sketch", "drawing"), "cartoon": ("cartoon",),
    "poster": ("poster",), "painting": ("painting",),
}  # fmt: skip
_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}


def caption(scene: Scene, rng: np.random.Generator, pi_core: float, pi_spu: float, pi_companion: float) -> str:
    """An English caption of a scene.

    It always names the class. It names each of colour, fill, size and pose w.p. pi_core, the context with its shade
    w.p. pi_spu, and a companion w.p. pi_companion, independently.

    The same random numbers are drawn whatever the chances and the scene, and phrasings depend on nothing else. So words
    reveal nothing beyond what is named.
    """
    u, v = rng.random(6), rng.random(8)

    name = CLASSES[scene.label].name
    size = _one(_SIZE_WORDS[scene.size], v[0]) if u[0] < pi_core else ""
    colour, fill = (word if u[k] < pi_core else "" for k, word in ((1, scene.colour), (2, scene.fill)))
    pose, behind = (scene.pose if u[3] < pi_core else ""), v[1] < 0.3
    thing = " ".join(filter(None, [size, "" if behind else pose, fill, colour, name]))
    thing = with_article(thing) + (f" that is {pose}" if pose and behind else "")
    place = ""
    if scene.context >= 0 and u[4] < pi_spu:
        place = _one(_PLACES[CONTEXTS[scene.context]], v[2]).format(scene.shade)
    companion = ""
    if scene.companion >= 0 and u[5] < pi_companion:
        other = with_article("tiny " + CLASSES[scene.companion].name)
        companion = _one((f"with {other} in the background", f"and {other} behind it"), v[3])
    lead = _one((f"{with_article(_one(_NOUNS[scene.style], v[5]))} of", "there is", "here is", ""), v[4])
    if place and v[6] < 0.25:
        return " ".join(filter(None, [place + ",", thing, companion]))
    return " ".join(filter(None, [lead, thing, place, companion]))


@dataclasses.dataclass(frozen=True)
class _Thing:
    """An object placed in the picture; parts in its own square."""

    label: int
    parts: list[shapes.Part]
    colour: str
    fill: str
    x: float
    y: float
    scale: float
    angle: float

    def at(self, size: int) -> list[shapes.Part]:
        return shapes.place(self.parts, self.x, self.y, self.scale, self.angle, size)


def _things(scene: Scene) -> list[_Thing]:
    """The object, then its companion."""
    rng = np.random.default_rng([scene.seed, 0])
    u = rng.uniform(-1, 1, (2, 3))
    parts = shapes.SHAPES[CLASSES[scene.label].name](u[0])
    things = [_Thing(scene.label, parts, scene.colour, scene.fill, scene.x, scene.y, scene.scale, scene.angle)]
    if scene.companion >= 0:
        areas = _areas()
        # At most half the object's area, so that the largest object of an image is the one its label names.
        scale = min(_COMPANION_SCALE, scene.scale * (0.5 * areas[scene.label] / areas[scene.companion]) ** 0.5)
        x = 0.86 if scene.x < 0.5 else 0.14
        y = 0.84 if scene.y < 0.5 or rng.random() < 0.5 else 0.16
        colour = list(COLOURS)[rng.integers(len(COLOURS))]
        parts = shapes.SHAPES[CLASSES[scene.companion].name](u[1])
        things.append(_Thing(scene.companion, parts, colour, "plain", x, y, scale, float(rng.uniform(-10, 10))))
    return things


@functools.cache
def _areas() -> tuple[float, ...]:
    """Each class's area at mean proportions and scale 1, as a share of the picture's."""
    size, areas = 128, []
    for kind in CLASSES:
        parts = shapes.SHAPES[kind.name](np.zeros(3))
        mask = shapes.silhouette(shapes.place(parts, 0.5, 0.5, 0.4, 0.0, size), size)
        areas.append(float((np.asarray(mask) > 0).mean() / 0.4**2))
    return tuple(areas)


def masks(scene: Scene, side: int) -> list[tuple[int, np.ndarray]]:
    """(label, (side, side) bool) of the object and of its companion's visible part: pixels at least half covered."""
    factor = _supersampling(side)
    things = [(t.label, shapes.silhouette(t.at(side * factor), side * factor)) for t in _things(scene)]
    front = things[0][1]
    seen = [things[0], *((k, ImageChops.subtract(mask, front)) for k, mask in things[1:])]
    return [(k, np.asarray(mask.reduce(factor)) >= 128) for k, mask in seen]


def _supersampling(side: int) -> int:
    return 3 if side <= 128 else 2


def draw(scene: Scene, side: int = 64) -> np.ndarray:
    """(side, side, 3) uint8, a pure function of the scene and the side."""
    factor = _supersampling(side)
    size = side * factor
    rng = np.random.default_rng([scene.seed, 1])
    things = _things(scene)
    if scene.style == "sketch":
        image = shapes.outlines(things[0].at(size), max(2, size // 64), size)
        return _finished(np.asarray(image.reduce(factor), np.float32), rng, scene.noise)
    canvas = _background(scene, rng, size)
    lights = np.ones((side, side), np.float32)
    for thing in reversed(things):
        layer = _painted(thing, scene.style, rng, size)
        canvas.paste(layer, mask=layer)
        if scene.style == "photo":
            lights = np.where(lights == 1, 1 + _lighting(thing, layer, factor), lights)
    if scene.cover:
        canvas = backgrounds.covered(canvas, rng, scene.x, scene.y, scene.scale, scene.cover)
    canvas = canvas.reduce(factor)
    if scene.style == "painting":
        canvas = canvas.filter(ImageFilter.ModeFilter(3)).filter(ImageFilter.GaussianBlur(side / 90))
    pixels = np.asarray(canvas, np.float32)
    if scene.style == "poster":
        return np.uint8(np.round(pixels / 127.5) * 127.5)
    return _finished(pixels * lights[..., None], rng, scene.noise if scene.style != "cartoon" else 0.0)


def _background(scene: Scene, rng: np.random.Generator, size: int) -> Image.Image:
    if scene.context < 0:
        grounds = _GROUNDS if scene.style == "poster" else _PLAIN
        return Image.new("RGB", (size, size), grounds[rng.integers(len(grounds))])
    canvas = backgrounds.background(CONTEXTS[scene.context], rng, size)
    factor = _LIGHT[scene.shade]
    return canvas.point([min(255, round(factor * v)) for v in range(256)] * 3)


def _painted(thing: _Thing, style: str, rng: np.random.Generator, size: int) -> Image.Image:
    """A layer with the thing in its fill, and close to its colour."""
    near = np.array(COLOURS[thing.colour]) + rng.integers(-12, 13, 3)
    if style == "cartoon":
        near = np.array(COLOURS[thing.colour]) * 0.75 + 64
    colour = tuple(int(c) for c in np.clip(near, 0, 255))
    second = _SECOND.get(thing.colour, shapes.WHITE)
    body = shapes.pattern(thing.fill, colour, second, 0.3 * thing.scale * size, thing.angle + 35, size)
    outline, width = (shapes.BLACK, size // 48) if style == "cartoon" else (None, max(1, size // 128))
    return shapes.paint(thing.at(size), body, outline, width)


def _lighting(thing: _Thing, layer: Image.Image, factor: int) -> np.ndarray:
    """Light from the upper left, on the thing alone: the factor of each pixel, less 1."""
    alpha = np.asarray(layer.getchannel("A").reduce(factor), np.float32) / 255
    at = (np.arange(len(alpha), dtype=np.float32) + 0.5) / len(alpha)
    slope = ((at - thing.x)[None, :] + (at - thing.y)[:, None]) / (2 * thing.scale)
    return alpha * np.clip(0.02 - 0.28 * slope, -0.3, 0.15)


def _finished(pixels: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    return np.uint8(np.clip(pixels + rng.normal(0.0, 1.0, pixels.shape).astype(np.float32) * noise, 0, 255))
