"""Ten shapes: what they are made of, and how they are painted, drawn in pencil and cut out.

A shape is a list of parts, back to front: polygons in its own square [-1, 1]^2 (x right, y down). A part has either the
object's colour and fill (BODY) or a colour of its own. A shape takes three numbers in [-1, 1] that vary its
proportions.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Part = tuple[Colour | None, np.ndarray]

BODY = None
_DARK, _WOOD, _CREAM, _GREEN = (45, 40, 42), (140, 95, 55), (238, 226, 200), (60, 135, 60)
WHITE, BLACK, _EDGE = (255, 255, 255), (20, 20, 20), (70, 62, 66)


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def _arc(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360, count: int = 28) -> np.ndarray:
    """Points of an ellipse, degrees clockwise from the right."""
    t = np.radians(np.linspace(start, stop, count))
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1)


def _band(line: np.ndarray, width: float) -> np.ndarray:
    """A polygon of constant width along a line of points."""
    along = np.gradient(line, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], 1) * (width / 2 / np.linalg.norm(along, axis=1, keepdims=True))
    return np.concatenate([line + across, (line - across)[::-1]])


def _guitar(u: np.ndarray) -> list[Part]:
    low, high = 0.47 + 0.03 * u[0], 0.35 + 0.03 * u[1]
    return [
        (_WOOD, _box(-0.075, -0.85, 0.075, 0.1)),
        (_DARK, np.array([(-0.15, -1), (0.15, -1), (0.11, -0.74), (-0.11, -0.74)])),
        (BODY, np.concatenate([_arc(0, 0.52, low, 0.46, -45, 225), _arc(0, 0.03, high, 0.33, 145, 395)])),
        (_DARK, _arc(0, 0.12, 0.14, 0.14)),
        (_DARK, _box(-0.22, 0.62, 0.22, 0.71)),
        (_CREAM, _box(-0.025, -0.7, 0.025, 0.62)),
    ]


def _balloon(u: np.ndarray) -> list[Part]:
    wide, neck = 0.72 + 0.06 * u[0], 0.5 + 0.05 * u[1]
    ropes = [(_DARK, _band(np.array([(s * 0.17, neck), (s * 0.14, 0.78)]), 0.05)) for s in (-1, 1)]
    envelope = np.concatenate([_arc(0, -0.28, wide, 0.7, 155, 385), [(0.19, neck), (-0.19, neck)]])
    return [*ropes, (BODY, envelope), (_WOOD, _box(-0.2, 0.74, 0.2, 1))]


def _broom(u: np.ndarray) -> list[Part]:
    wide, top = 0.5 + 0.06 * u[0], 0.1 + 0.08 * u[1]
    roots = np.array([-0.75, -0.25, 0.25, 0.75])
    straws = [(_DARK, _band(np.array([(0.25 * x, top + 0.2), (0.8 * wide * x, 0.98)]), 0.03)) for x in roots]
    brush = np.array([(-0.16, top), (0.16, top), (0.3, top + 0.3), (wide, 1), (-wide, 1), (-0.3, top + 0.3)])
    stick, tie = (_WOOD, _box(-0.065, -1, 0.065, top + 0.05)), (_DARK, _box(-0.2, top, 0.2, top + 0.13))
    return [stick, (BODY, brush), *straws, tie]


def _candle(u: np.ndarray) -> list[Part]:
    half, top = 0.29 + 0.04 * u[0], -0.3 + 0.1 * u[1]
    tip = np.array([(0.04 * u[2], top - 0.64)])
    flame = np.concatenate([_arc(0, top - 0.2, 0.17, 0.16, -20, 200), tip])
    heart = np.concatenate([_arc(0, top - 0.17, 0.09, 0.09, -20, 200), tip + np.array([0, 0.28])])
    return [
        (_WOOD, _arc(0, 0.9, 0.62, 0.13)),
        (BODY, np.concatenate([_box(-half, top, half, 0.86)[:2], _arc(0, 0.86, half, 0.06, 0, 180)])),
        (_DARK, _box(-0.03, top - 0.14, 0.03, top)),
        ((250, 150, 30), flame),
        ((255, 235, 130), heart),
    ]


def _teapot(u: np.ndarray) -> list[Part]:
    wide, high = 0.56 + 0.04 * u[0], 0.46 + 0.05 * u[1]
    spout = np.array([(0.4, 0.42), (0.72, 0.3), (0.98, -0.28), (0.84, -0.34), (0.62, -0.02), (0.4, 0.02)])
    return [
        (BODY, _band(_arc(-0.6, 0.16, 0.3, 0.3, 70, 290), 0.13)),
        (BODY, spout),
        (BODY, _arc(0, 0.2, wide, high)),
        (_DARK, _box(-0.3, 0.62, 0.3, 0.7)),
        (BODY, _arc(0, 0.22 - high, 0.3, 0.16)),
        (_DARK, _arc(0, 0.02 - high, 0.09, 0.09)),
    ]


def _umbrella(u: np.ndarray) -> list[Part]:
    high = 0.74 + 0.06 * u[0]
    hems = [_arc(x, 0.02, 0.24, 0.14, 0, -180, 8) for x in (0.72, 0.24, -0.24, -0.72)]
    ribs = [(_DARK, _band(np.array([(0, -high), (x, -0.1)]), 0.025)) for x in (-0.48, 0.48)]
    handle = np.concatenate(
        [[(0, -0.2), (0, 0.78)], _arc(0.15 + 0.03 * u[1], 0.78, 0.15 + 0.03 * u[1], 0.2, 180, 0, 12)]
    )
    return [
        (_DARK, _band(np.array([(0, -high - 0.18), (0, -high + 0.1)]), 0.06)),
        (_DARK, _band(handle, 0.085)),
        (BODY, np.concatenate([_arc(0, 0.02, 0.96, high, 180, 360), *hems])),
        *ribs,
    ]  # fmt: skip


def _yawl(u: np.ndarray) -> list[Part]:
    peak, foot = -0.98 + 0.06 * u[0], 0.42
    return [
        (_DARK, _box(-0.08, peak, -0.03, 0.5)),
        (_DARK, _box(0.62, -0.2, 0.66, 0.5)),
        (BODY, np.array([(0.0, peak + 0.04), (0.56 + 0.04 * u[1], foot), (0.0, foot)])),
        (BODY, np.array([(-0.12, peak + 0.15), (-0.12, foot), (-0.82, foot)])),
        (BODY, np.array([(0.68, -0.15), (0.95, foot), (0.68, foot)])),
        (_WOOD, np.array([(-0.95, 0.5), (0.98, 0.5), (0.76, 0.86), (0.6, 0.92), (-0.6, 0.92), (-0.76, 0.82)])),
        (_CREAM, _box(-0.9, 0.56, 0.94, 0.61)),
    ]


def _traffic_light(u: np.ndarray) -> list[Part]:
    half = 0.43 + 0.04 * u[0]
    lamps = ((225, 40, 40), (250, 190, 40), (40, 190, 90))
    parts: list[Part] = [(_DARK, _box(-0.09, 0.7, 0.09, 1)), (BODY, _box(-half, -1, half, 0.75))]
    for lamp, y in zip(lamps, (-0.72, -0.13, 0.46), strict=True):
        parts += [(_DARK, _arc(0, y, 0.26, 0.26)), (lamp, _arc(0, y, 0.19, 0.19))]
    return parts


def _mushroom(u: np.ndarray) -> list[Part]:
    stem, high = 0.22 + 0.04 * u[0], 0.8 + 0.06 * u[1]
    foot = np.concatenate([[(-stem, 0)], [(stem, 0)], _arc(0, 0.82, stem + 0.12, 0.16, 0, 180, 12)])
    cap = np.concatenate([_arc(0, 0.02, 0.85, high, 180, 360), _arc(0, 0.02, 0.85, 0.16, 0, 180, 12)])
    return [(_CREAM, foot), (_CREAM, _band(_arc(0, 0.3, stem + 0.08, 0.05, 0, 180, 10), 0.09)), (BODY, cap)]


def _daisy(u: np.ndarray) -> list[Part]:
    petals, y = 11 + round(2 * float(u[0])), -0.32
    parts: list[Part] = [
        (_GREEN, _band(np.array([(0, y), (0.03, 0.4), (0.08 * u[1], 1)]), 0.1)),
        (_GREEN, _arc(0.2, 0.62, 0.2, 0.09)),
    ]
    oval = _arc(0.43, 0, 0.25, 0.125 + 0.02 * u[2], count=14)
    for angle in 2 * np.pi * np.arange(petals) / petals:
        c, s = np.cos(angle), np.sin(angle)
        parts.append((BODY, oval @ np.array([(c, s), (-s, c)]) + (0, y)))
    return [*parts, ((205, 125, 25), _arc(0, y, 0.22, 0.22))]


SHAPES: dict[str, Callable[[np.ndarray], list[Part]]] = {
    "acoustic guitar": _guitar, "balloon": _balloon, "broom": _broom, "candle": _candle, "teapot": _teapot,
    "umbrella": _umbrella, "yawl": _yawl, "traffic light": _traffic_light, "mushroom": _mushroom, "daisy": _daisy,
}  # fmt: skip


def place(parts: list[Part], x: float, y: float, scale: float, angle: float, size: int) -> list[Part]:
    """The parts in pixels of a canvas.

    They are turned by `angle` (degrees, clockwise) and scaled so that 1 is `scale` of the side. Then they are moved to
    (x, y), in shares of the side.
    """
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = np.array([(c, s), (-s, c)]) * (scale * size)
    return [(colour, points @ turn + (x * size, y * size)) for colour, points in parts]


def silhouette(parts: list[Part], size: int) -> Image.Image:
    """All parts in white on black, an image of mode "L"."""
    mask = Image.new("L", (size, size))
    pen = ImageDraw.Draw(mask)
    for _, points in parts:
        pen.polygon(points.ravel().tolist(), fill=255)
    return mask


def pattern(fill: str, colour: Colour, second: Colour, period: float, angle: float, size: int) -> Image.Image:
    """A canvas of one colour, or with stripes or dots of the second colour; period in pixels."""
    canvas = Image.new("RGB", (size, size), colour)
    if fill == "plain":
        return canvas
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    at = np.arange(size, dtype=np.float32) / np.float32(period)
    u, v = np.float32(c) * at + np.float32(s) * at[:, None], np.float32(c) * at[:, None] - np.float32(s) * at
    if fill == "striped":
        on = (u % 1) < 0.45
    else:
        u = u + 0.5 * (np.floor(v) % 2)
        on = ((u % 1) - 0.5) ** 2 + ((v % 1) - 0.5) ** 2 < 0.33**2
    canvas.paste(second, mask=Image.fromarray(np.uint8(on) * 255))
    return canvas


def paint(parts: list[Part], body: Image.Image, outline: Colour | None, width: int) -> Image.Image:
    """The parts on a transparent canvas of mode "RGBA"; BODY shows the canvas `body`.

    outline None: a dark tone for each part.
    """
    size = body.size[0]
    canvas, alpha = Image.new("RGB", (size, size)), silhouette(parts, size)
    pen, cut = ImageDraw.Draw(canvas), ImageDraw.Draw(alpha)
    for colour, points in parts:
        xy = points.ravel().tolist()
        if colour is BODY:
            _inlay(canvas, body, points)
            edge = outline or _EDGE
        else:
            pen.polygon(xy, fill=colour)
            edge = outline or tuple(int(0.55 * c) for c in colour)
        for draw, fill in ((pen, edge), (cut, 255)):
            draw.line([*xy, *xy[:4]], fill=fill, width=width, joint="curve")
    canvas.putalpha(alpha)
    return canvas


def _inlay(canvas: Image.Image, body: Image.Image, points: np.ndarray) -> None:
    """Show `body` in a polygon of the canvas; only the box around it is worked on."""
    low = np.clip(np.floor(points.min(0)).astype(int), 0, canvas.size[0])
    high = np.clip(np.ceil(points.max(0)).astype(int) + 1, 0, canvas.size[0])
    if (high > low).all():
        mask = Image.new("L", tuple((high - low).tolist()))
        ImageDraw.Draw(mask).polygon((points - low).ravel().tolist(), fill=255)
        box = (*low.tolist(), *high.tolist())
        canvas.paste(body.crop(box), box, mask)


def outlines(parts: list[Part], width: int, size: int) -> Image.Image:
    """A pencil drawing: the parts' edges in dark grey on white; what lies behind is hidden."""
    canvas = Image.new("L", (size, size), 255)
    pen = ImageDraw.Draw(canvas)
    for _, points in parts:
        xy = points.ravel().tolist()
        pen.polygon(xy, fill=255)
        pen.line([*xy, *xy[:4]], fill=45, width=width, joint="curve")
    return canvas.convert("RGB")
