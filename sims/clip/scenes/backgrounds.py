"""Ten backgrounds for scenes, and what can stand in front: each drawn on a square canvas from a palette of its own.

Random numbers place trees, waves and bricks only, so all pictures of one background look much alike. Lengths are shares
of the side.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Rng = np.random.Generator


def _sky(size: int, top: Colour, low: Colour) -> Image.Image:
    t = np.linspace(0, 1, size)[:, None, None]
    rows = np.uint8(np.array(top) * (1 - t) + np.array(low) * t)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows, (size, size, 3))))


def _ridge(rng: Rng, height: float, swing: float, waves: float, count: int = 24) -> np.ndarray:
    """A hilly line closed at the bottom, in shares of the side."""
    x = np.linspace(-0.02, 1.02, count)
    y = height + swing * np.sin(2 * np.pi * (waves * x + rng.random()))
    return np.concatenate([np.stack([x, y], 1), [(1.02, 1.02), (-0.02, 1.02)]])


class _Pen:
    """ImageDraw in shares of the side."""

    def __init__(self, image: Image.Image):
        self.size, self.draw = image.size[0], ImageDraw.Draw(image)

    def polygon(self, points: np.ndarray, fill: Colour) -> None:
        self.draw.polygon((np.asarray(points) * self.size).ravel().tolist(), fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        self.draw.rectangle([end * self.size for end in (left, top, right, bottom)], fill=fill)

    def disc(self, x: float, y: float, r: float, fill: Colour) -> None:
        ends = (x - r, y - r, x + r, y + r)
        self.draw.ellipse([end * self.size for end in ends], fill=fill)

    def line(self, points: np.ndarray, fill: Colour, width: float) -> None:
        xy = (np.asarray(points) * self.size).ravel().tolist()
        self.draw.line(xy, fill=fill, width=max(1, round(width * self.size)))


def _forest(rng: Rng, pen: _Pen) -> None:
    pen.box(0, 0.7, 1, 1, (85, 95, 50))
    for depth, (green, trunk) in enumerate((((60, 110, 70), (85, 65, 50)), ((35, 85, 45), (75, 50, 35)))):
        count = 6 - depth
        for x in (np.arange(count) + rng.uniform(0.2, 0.8, count)) / count:
            foot, high = 0.72 + 0.1 * depth, 0.62 + 0.12 * depth + 0.08 * rng.random()
            pen.box(x - 0.018, foot - 0.2, x + 0.018, foot, trunk)
            for step in range(3):
                top, half = foot - high + 0.17 * step, 0.06 + 0.03 * step
                pen.polygon([(x, top), (x + half, top + 0.24), (x - half, top + 0.24)], green)


def _beach(rng: Rng, pen: _Pen) -> None:
    pen.disc(0.12 + 0.1 * rng.random(), 0.12, 0.07, (255, 240, 170))
    pen.box(0, 0.3, 1, 0.5, (40, 140, 180))
    pen.polygon(_ridge(rng, 0.46, 0.02, 1.5), (235, 245, 245))
    pen.polygon(_ridge(rng, 0.49, 0.02, 1.5), (235, 205, 140))
    for x, y in rng.uniform((0, 0.56), (1, 1), (40, 2)):
        pen.disc(x, y, 0.006, (205, 170, 105))


def _desert(rng: Rng, pen: _Pen) -> None:
    for height, colour in ((0.42, (215, 140, 75)), (0.6, (225, 155, 85)), (0.8, (205, 125, 65))):
        pen.polygon(_ridge(rng, height, 0.06, 0.9), colour)
    for side in (0, 1):
        x, y, green = 0.1 + 0.8 * side + 0.08 * rng.uniform(-1, 1), 0.72 - 0.1 * side, (70, 120, 60)
        pen.box(x - 0.022, y - 0.28, x + 0.022, y, green)
        for s, up in ((-1, 0.14), (1, 0.19)):
            pen.line([(x, y - up + 0.05), (x + s * 0.07, y - up + 0.05), (x + s * 0.07, y - up - 0.07)], green, 0.03)


def _meadow(rng: Rng, pen: _Pen) -> None:
    for x in (0.25 + 0.2 * rng.random(), 0.75 + 0.15 * rng.random()):
        for dx, r in ((-0.08, 0.05), (0, 0.07), (0.08, 0.05)):
            pen.disc(x + dx, 0.14, r, (250, 250, 250))
    pen.polygon(_ridge(rng, 0.38, 0.05, 1), (130, 190, 90))
    pen.polygon(_ridge(rng, 0.5, 0.03, 1.3), (110, 175, 65))
    for x, y in rng.uniform((0, 0.56), (1, 1.05), (70, 2)):
        pen.line([(x, y), (x + rng.uniform(-0.02, 0.02), y - 0.06)], (75, 140, 45), 0.008)


def _room(rng: Rng, pen: _Pen) -> None:
    shift = rng.random()
    for k in range(-1, 9):
        left = (k + shift) / 8
        pen.box(left, 0, left + 1 / 16, 0.68, (200, 172, 145))
    x = rng.uniform(0.1, 0.2) if rng.random() < 0.5 else rng.uniform(0.6, 0.7)
    pen.box(x, 0.08, x + 0.26, 0.36, (120, 80, 50))
    pen.box(x + 0.03, 0.11, x + 0.23, 0.33, (170, 205, 215))
    pen.box(x + 0.12, 0.11, x + 0.14, 0.33, (120, 80, 50))
    pen.box(0, 0.68, 1, 1, (150, 100, 65))
    pen.box(0, 0.66, 1, 0.7, (240, 230, 215))
    for y in (0.78, 0.88):
        pen.line([(0, y), (1, y)], (110, 70, 45), 0.008)


def _city(rng: Rng, pen: _Pen) -> None:
    pen.disc(0.15 + 0.7 * rng.random(), 0.1, 0.05, (245, 240, 205))
    left = -0.05
    while left < 1:
        width, top = rng.uniform(0.15, 0.22), rng.uniform(0.22, 0.5)
        pen.box(left, top, left + width - 0.012, 1, (35, 35, 55))
        for x in np.arange(left + 0.025, left + width - 0.045, 0.055):
            for y in np.arange(top + 0.04, 0.84, 0.08):
                pen.box(x, y, x + 0.027, y + 0.04, (250, 215, 100) if rng.random() < 0.6 else (60, 60, 85))
        left += width
    pen.box(0, 0.9, 1, 1, (60, 60, 70))
    for x in np.arange(-0.1, 1.1, 0.2) + 0.2 * rng.random():
        pen.box(x, 0.94, x + 0.1, 0.96, (225, 225, 225))


def _bricks(rng: Rng, pen: _Pen) -> None:
    high, wide = 0.1, 0.22
    x0, y0 = rng.random(2) * (wide, high)
    for row in range(-1, 11):
        for column in range(-2, 6):
            left, top = column * wide + x0 + wide / 2 * (row % 2), row * high + y0
            red = np.array((170, 80, 60)) + rng.integers(-14, 15)
            pen.box(left, top, left + wide - 0.018, top + high - 0.018, tuple(red.tolist()))


def _kitchen(rng: Rng, pen: _Pen) -> None:
    step = 0.15
    x0, y0 = rng.random(2) * step
    for row in range(-1, 6):
        for column in range(-1, 8):
            left, top = column * step + x0, row * step + y0
            blue = (120, 185, 200) if (row + column) % 2 else (200, 228, 232)
            pen.box(left, top, left + step - 0.014, top + step - 0.014, blue)
    pen.box(0, 0.76, 1, 0.82, (95, 85, 85))
    pen.box(0, 0.82, 1, 1, (230, 225, 215))
    for x in (np.arange(3) + rng.random()) / 3:
        pen.box(x, 0.82, x + 0.01, 1, (150, 145, 140))


def _snow(rng: Rng, pen: _Pen) -> None:
    for x in (np.arange(4) + rng.uniform(0, 0.6)) / 3 - 0.15:
        top = 0.16 + 0.14 * rng.random()
        pen.polygon([(x, top), (x + 0.3, 0.68), (x - 0.3, 0.68)], (110, 125, 155))
        pen.polygon([(x, top), (x + 0.1, top + 0.17), (x + 0.02, top + 0.13), (x - 0.1, top + 0.17)], (250, 252, 255))
    pen.polygon(_ridge(rng, 0.62, 0.03, 1.2), (238, 244, 250))
    pen.polygon(_ridge(rng, 0.8, 0.03, 1), (222, 232, 244))
    for x, y in rng.random((45, 2)):
        pen.disc(x, y, 0.011, (255, 255, 255))


def _sea(rng: Rng, pen: _Pen) -> None:
    pen.box(0, 0.3, 1, 1, (30, 95, 155))
    for k, y in enumerate(np.arange(0.36, 1.02, 0.085)):
        x = np.linspace(0, 1, 40)
        crest = y + 0.018 * np.abs(np.sin(np.pi * (5 * x + rng.random()))) * (1 + 0.15 * k)
        pen.line(np.stack([x, crest], 1), (120, 180, 215) if k % 2 else (70, 140, 195), 0.016)


# What is painted, and on what: a sky from its colour at the top to that at the bottom, or a wall of one colour.
_BACKGROUNDS: dict[str, tuple[Callable[[Rng, _Pen], None], *tuple[Colour, ...]]] = {
    "forest": (_forest, (120, 165, 125), (95, 140, 95)),
    "beach": (_beach, (110, 185, 235), (190, 225, 240)),
    "desert": (_desert, (245, 200, 130), (250, 225, 180)),
    "meadow": (_meadow, (130, 190, 240), (205, 230, 245)),
    "room": (_room, (215, 195, 165)),
    "city": (_city, (25, 25, 75), (85, 60, 120)),
    "brick wall": (_bricks, (205, 190, 180)),
    "kitchen": (_kitchen, (250, 250, 250)),
    "snow": (_snow, (150, 180, 215), (215, 228, 240)),
    "sea": (_sea, (150, 205, 235), (215, 235, 240)),
}


def background(name: str, rng: Rng, size: int) -> Image.Image:
    """A picture of size x size pixels of the background of this name."""
    paint, *colours = _BACKGROUNDS[name]
    image = Image.new("RGB", (size, size), *colours) if len(colours) == 1 else _sky(size, *colours)
    paint(rng, _Pen(image))
    return image


def covered(image: Image.Image, rng: Rng, x: float, y: float, scale: float, share: float) -> Image.Image:
    """A post and a rail in front of (x, y), each as wide as `share` of an object of half side `scale`."""
    pen, half, grey = _Pen(image), share * scale, int(rng.integers(60, 110))
    post, rail = x + scale * rng.uniform(-0.45, 0.45), y + scale * rng.uniform(-0.45, 0.45)
    front, edge = (grey, grey - 8, grey - 14), (grey + 45, grey + 38, grey + 30)
    pen.box(0, rail - half, 1, rail + half, front)
    pen.box(0, rail - half, 1, rail - 0.7 * half, edge)
    pen.box(post - half, 0, post + half, 1, front)
    pen.box(post - half, 0, post - 0.7 * half, 1, edge)
    return image
