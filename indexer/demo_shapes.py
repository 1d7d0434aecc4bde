"""How things of the demo collection look: the drawing table, the colours, and the functions that paint with them.

A drawing is a list of parts in a square of 100 x 100, y pointing down, later parts over earlier ones:

    ROLE FORM NUMBERS; ...

The role says whose paint a part gets: `main` the thing's colour and pattern, `accent` and `dark` its details, `hole`
none. The form says what the numbers are: `poly` corners and `smooth` points of a closed curve (x y x y ...), `oval` the
two corners of its box, `line` and `curve` a stroke: its width, then the points it goes through.
"""

import colorsys
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]

# (height, width), 0 to 1: how much of the second of two colours each pixel has.
Field = npt.NDArray[np.float32]

DRAWINGS = {
    "airplane": "main poly 50 0 57 12 57 88 50 96 43 88 43 12; main poly 50 32 98 60 98 71 50 56 2 71 2 60; "
    "main poly 50 76 74 91 74 98 50 91 26 98 26 91; accent oval 46 8 54 20; dark line 3 24 48 24 58; "
    "dark line 3 76 48 76 58",
    "anchor": "main oval 37 0 63 26; hole oval 45 8 55 18; main line 9 50 24 50 92; main line 8 27 38 73 38; "
    "main curve 10 8 62 22 86 50 93 78 86 92 62; main poly 0 68 8 48 22 66; main poly 100 68 92 48 78 66",
    "apple": "main smooth 50 24 72 14 94 34 86 72 66 96 50 90 34 96 14 72 6 34 28 14; "
    "dark curve 5 50 28 50 14 57 3; accent smooth 56 14 70 2 88 6 72 18",
    "arrow": "main poly 3 37 56 37 56 12 98 50 56 88 56 63 3 63",
    "balloon": "dark curve 2.5 50 78 43 86 55 93 50 100; main poly 50 66 41 80 59 80; main oval 20 0 80 73; "
    "accent smooth 30 22 38 12 42 16 34 28",
    "bell": "dark oval 40 78 60 97; main oval 42 1 58 17; "
    "main poly 50 9 62 12 71 22 75 40 79 64 92 79 92 84 8 84 8 79 21 64 25 40 29 22 38 12; "
    "accent line 5 21 68 79 68",
    "bird": "main poly 64 56 100 42 94 72 68 72; main smooth 20 58 38 44 60 46 78 62 60 82 34 80; "
    "main oval 10 18 46 54; accent poly 0 38 13 31 13 43; dark smooth 38 56 62 54 76 64 52 72; "
    "dark oval 19 28 27 36; dark line 3 44 80 42 98; dark line 3 56 80 56 98",
    "boat": "main poly 3 68 97 68 80 94 20 94; dark line 4 48 4 48 68; main poly 53 8 53 60 92 60; "
    "accent poly 43 18 43 60 12 60",
    "book": "main poly 50 22 28 12 3 18 3 82 28 76 50 88 72 76 97 82 97 18 72 12; dark line 3 50 22 50 88; "
    "dark line 3 13 33 28 30 40 35; dark line 3 13 47 28 44 40 49; dark line 3 13 61 28 58 40 63; "
    "dark line 3 60 35 72 30 87 33; dark line 3 60 49 72 44 87 47; dark line 3 60 63 72 58 87 61",
    "bottle": "main poly 41 4 59 4 59 28 75 46 75 98 25 98 25 46 41 28; accent poly 25 58 75 58 75 82 25 82; "
    "dark poly 38 1 62 1 62 12 38 12",
    "bus": "main poly 2 22 94 22 98 50 98 78 2 78; accent poly 8 30 24 30 24 48 8 48; "
    "accent poly 30 30 46 30 46 48 30 48; accent poly 52 30 68 30 68 48 52 48; "
    "accent poly 75 30 89 30 92 48 75 48; dark line 3 2 60 98 60; dark oval 14 66 36 88; dark oval 66 66 88 88; "
    "accent oval 21 73 29 81; accent oval 73 73 81 81",
    "butterfly": "main smooth 48 46 30 12 6 6 3 32 22 50; main smooth 52 46 70 12 94 6 97 32 78 50; "
    "main smooth 48 52 22 54 12 76 28 92 44 74; main smooth 52 52 78 54 88 76 72 92 56 74; "
    "accent oval 13 18 29 34; accent oval 71 18 87 34; accent oval 24 66 35 78; accent oval 65 66 76 78; "
    "dark oval 46 24 54 84; dark curve 2.5 49 28 44 14 36 6; dark curve 2.5 51 28 56 14 64 6",
    "cake": "main poly 12 54 88 54 88 92 12 92; main poly 27 28 73 28 73 54 27 54; dark line 4 2 93 98 93; "
    "accent poly 12 54 88 54 88 64 78 60 69 67 60 60 50 67 40 60 31 67 22 60 12 64; dark line 4 38 16 38 28; "
    "accent poly 27 28 73 28 73 36 65 33 58 39 50 33 42 39 35 33 27 36; dark line 4 50 16 50 28; "
    "dark line 4 62 16 62 28; accent oval 35 4 41 15; accent oval 47 4 53 15; accent oval 59 4 65 15",
    "candle": "dark oval 14 84 86 98; main poly 35 34 65 34 65 91 35 91; dark line 3 50 26 50 36; "
    "accent smooth 50 1 60 18 50 30 40 18; main curve 6 84 90 97 82 88 74",
    "car": "main poly 2 56 16 50 30 28 66 28 84 50 98 56 98 76 2 76; accent poly 27 49 35 34 47 34 47 49; "
    "accent poly 52 34 63 34 75 49 52 49; dark oval 13 63 37 87; dark oval 63 63 87 87; accent oval 20 70 30 80; "
    "accent oval 70 70 80 80; dark line 3 50 56 57 56",
    "carrot": "dark curve 6 50 30 42 14 28 6; dark curve 6 50 30 50 14 48 1; dark curve 6 50 30 58 14 72 6; "
    "main smooth 50 24 68 28 68 44 58 76 50 99 42 76 32 44 32 28; dark line 2.5 33 46 46 47; "
    "dark line 2.5 55 58 63 57; dark line 2.5 40 69 49 70",
    "cat": "main poly 13 56 12 3 46 30; main poly 87 56 88 3 54 30; accent poly 20 34 20 16 33 28; "
    "accent poly 80 34 80 16 67 28; main oval 8 24 92 96; dark oval 28 48 39 63; dark oval 61 48 72 63; "
    "accent poly 43 67 57 67 50 75; dark curve 2.5 50 75 45 82 36 80; dark curve 2.5 50 75 55 82 64 80; "
    "dark line 2 22 70 0 66; dark line 2 22 76 0 80; dark line 2 78 70 100 66; dark line 2 78 76 100 80",
    "chair": "dark line 6 30 40 30 56; dark line 6 70 40 70 56; main poly 22 2 78 2 76 44 24 44; "
    "dark line 7 20 64 18 98; dark line 7 80 64 82 98; dark line 5 34 64 34 86; dark line 5 66 64 66 86; "
    "main poly 22 53 78 53 90 68 10 68",
    "clock": "dark oval 2 2 98 98; main oval 9 9 91 91; dark line 4 50 14 50 23; dark line 4 50 77 50 86; "
    "dark line 4 14 50 23 50; dark line 4 77 50 86 50; dark line 5 50 27 50 50 67 60; accent oval 45 45 55 55",
    "cloud": "main oval 2 44 44 84; main oval 20 18 66 70; main oval 50 32 98 84; main poly 24 60 76 60 76 84 24 84",
    "crown": "main poly 5 24 28 52 50 10 72 52 95 24 86 90 14 90; accent oval 0 15 11 26; "
    "accent oval 44 2 56 14; accent oval 89 15 100 26; accent oval 23 66 35 78; accent oval 44 66 56 78; "
    "accent oval 65 66 77 78",
    "cup": "main curve 8 66 38 90 38 90 62 63 70; main poly 12 22 70 22 64 92 18 92; accent oval 12 14 70 30; "
    "dark oval 17 17 65 27",
    "drop": "main oval 20 40 80 98; main poly 50 1 76 56.5 24 56.5; accent smooth 30 70 36 64 40 80 50 90 36 86",
    "envelope": "main poly 3 19 97 19 97 81 3 81; dark line 3 3 19 50 58 97 19; dark line 3 3 81 38 48; "
    "dark line 3 97 81 62 48; accent oval 43 50 57 64",
    "fish": "main poly 70 50 99 24 92 50 99 76; accent poly 36 32 58 10 66 36; accent poly 42 68 56 84 60 66; "
    "main smooth 3 50 28 27 60 30 82 50 60 70 28 73; dark oval 15 40 24 49; dark curve 3 34 36 40 50 34 64",
    "flag": "main smooth 16 8 38 15 66 5 96 12 96 12 95 34 96 58 96 58 66 52 38 62 16 55 16 55; "
    "dark line 6 14 2 14 99; accent oval 44 22 66 44; dark oval 9 0 19 8",
    "flower": "dark line 4 50 50 50 98; dark smooth 50 88 62 70 80 68 70 84; main oval 37 2 63 28; "
    "main oval 57 13 83 39; main oval 57 36 83 62; main oval 37 46 63 72; main oval 17 36 43 62; "
    "main oval 17 13 43 39; accent oval 38 26 62 49",
    "guitar": "main oval 22 48 78 99; main oval 29 32 71 70; dark poly 46 8 54 8 54 52 46 52; "
    "dark poly 42 0 58 0 56 14 44 14; dark oval 41 50 59 68; dark line 4 37 84 63 84; accent line 2 50 14 50 84",
    "hammer": "dark poly 43 30 57 30 60 99 40 99; main poly 8 6 26 6 30 12 62 12 94 4 84 36 62 32 30 32 26 38 8 38",
    "hat": "main poly 27 6 73 6 70 70 30 70; main oval 3 62 97 84; accent poly 28.5 48 71.5 48 70.5 64 29.5 64",
    "heart": "main poly 50 96 12 56 50 26 88 56; main oval 3 10 53 60; main oval 47 10 97 60; "
    "main poly 9 50 50 24 91 50 50 95",
    "house": "dark poly 70 8 82 8 82 40 70 40; main poly 13 46 87 46 87 97 13 97; dark poly 2 50 50 6 98 50; "
    "accent poly 43 68 59 68 59 97 43 97; accent poly 20 58 34 58 34 72 20 72; "
    "accent poly 67 58 81 58 81 72 67 72",
    "key": "main oval 2 25 50 75; hole oval 15 39 37 61; main poly 46 44 98 44 98 56 46 56; "
    "main poly 72 54 80 54 80 74 72 74; main poly 88 54 96 54 96 70 88 70",
    "kite": "dark curve 2.5 50 76 38 84 60 90 46 100; main poly 50 1 86 34 50 78 14 34; "
    "dark line 2.5 50 1 50 78; dark line 2.5 14 34 86 34; accent poly 36 80 48 84 36 90; "
    "accent poly 64 84 52 87 64 94",
    "ladder": "main line 8 30 2 22 98; main line 8 70 2 78 98; main line 7 30 16 70 16; main line 7 28 34 72 34; "
    "main line 7 27 52 73 52; main line 7 25 70 75 70; main line 7 23 87 77 87",
    "lamp": "dark line 6 50 50 50 88; dark oval 26 84 74 98; main poly 34 4 66 4 88 52 12 52; "
    "dark line 2.5 70 52 70 66; accent oval 66 64 74 72",
    "leaf": "dark line 5 4 98 30 68; main smooth 12 88 8 58 28 26 60 9 96 4 96 4 91 40 74 72 42 92; "
    "dark line 3 12 90 84 16; dark line 2 34 66 30 44; dark line 2 34 66 56 70; dark line 2 54 46 52 26; "
    "dark line 2 54 46 74 48",
    "moon": "main smooth 62 2 36 8 14 30 10 54 22 80 46 96 72 94 90 80 90 80 66 78 48 62 42 40 48 18 62 2",
    "mushroom": "accent smooth 38 48 62 48 68 94 50 98 32 94; "
    "main poly 2 58 5 38 16 20 32 8 50 4 68 8 84 20 95 38 98 58; accent oval 22 24 38 40; "
    "accent oval 48 12 62 26; accent oval 66 34 82 50; accent oval 42 40 54 52; dark line 3 4 58 96 58",
    "pear": "main smooth 50 12 62 20 66 42 84 66 76 92 50 99 24 92 16 66 34 42 38 20; "
    "dark curve 5 50 16 52 6 58 0; accent smooth 54 10 70 2 88 8 72 18",
    "ring": "main oval 3 3 97 97; hole oval 27 27 73 73",
    "rocket": "accent poly 39 76 61 76 50 99; dark poly 36 50 14 86 38 78; dark poly 64 50 86 86 62 78; "
    "main poly 50 1 60 12 67 30 68 54 62 79 38 79 32 54 33 30 40 12; accent oval 41 28 59 46; "
    "dark line 3 35 64 65 64",
    "shirt": "main poly 34 8 42 15 58 15 66 8 99 28 88 50 76 42 76 95 24 95 24 42 12 50 1 28; "
    "dark line 3 50 20 50 95; dark line 4 33 8 42 15 50 22 58 15 67 8; accent oval 54 34 60 40; "
    "accent oval 54 52 60 58; accent oval 54 70 60 76",
    "snowman": "dark line 3 30 46 4 32; dark line 3 70 46 96 32; main oval 22 52 78 99; main oval 30 28 70 64; "
    "main oval 35 8 65 38; dark poly 38 0 62 0 62 12 38 12; dark line 4 30 12 70 12; dark oval 42 17 47 22; "
    "dark oval 54 17 59 22; accent poly 50 23 50 29 70 27; dark oval 47 42 53 48; dark oval 47 54 53 60; "
    "dark oval 47 68 53 74",
    "sock": "main smooth 36 3 36 3 68 3 68 3 69 30 68 58 60 82 34 97 10 96 5 82 16 72 34 62 36 34; "
    "accent poly 34 2 70 2 70 18 34 18; accent smooth 5 84 10 76 22 76 24 95 10 96; "
    "accent smooth 52 64 68 58 62 80 54 78",
    "star": "main poly 50 2 61 38 99 38 69 60 80 96 50 74 20 96 31 60 1 38 39 38",
    "tree": "dark poly 43 82 57 82 57 99 43 99; main poly 50 1 76 36 24 36; main poly 50 20 84 61 16 61; "
    "main poly 50 40 93 85 7 85",
    "umbrella": "dark line 4 50 2 50 50; dark curve 4.5 50 46 50 84 57 95 66 92 68 82; "
    "main poly 2 56 6 34 24 14 50 6 76 14 94 34 98 56 82 48 66 56 50 48 34 56 18 48; dark line 2 50 8 34 56; "
    "dark line 2 50 8 66 56",
}

# Ranges of hue (degrees), saturation and value (0 to 1) that go by the colour's name.
RANGES = {
    "red": ((350, 362), (0.80, 1.00), (0.70, 0.95)),
    "orange": ((22, 31), (0.85, 1.00), (0.90, 1.00)),
    "yellow": ((50, 57), (0.75, 1.00), (0.92, 1.00)),
    "green": ((105, 145), (0.55, 0.95), (0.45, 0.80)),
    "blue": ((208, 235), (0.65, 1.00), (0.60, 0.95)),
    "purple": ((268, 285), (0.55, 0.90), (0.42, 0.72)),
    "pink": ((325, 342), (0.30, 0.48), (0.95, 1.00)),
    "brown": ((20, 28), (0.60, 0.80), (0.33, 0.48)),
    "black": ((0, 360), (0.00, 0.15), (0.04, 0.14)),
    "white": ((0, 360), (0.00, 0.05), (0.94, 1.00)),
    "gray": ((0, 360), (0.00, 0.06), (0.42, 0.66)),
}

# Colours that bad light may confuse; never together in one picture, as thing and background.
CLOSE = {
    frozenset(pair)
    for pair in (
        ("red", "orange"),
        ("red", "pink"),
        ("red", "brown"),
        ("orange", "yellow"),
        ("orange", "brown"),
        ("orange", "pink"),
        ("purple", "pink"),
        ("purple", "blue"),
        ("purple", "brown"),
        ("black", "brown"),
        ("black", "gray"),
        ("black", "blue"),
        ("black", "purple"),
        ("black", "green"),
        ("white", "gray"),
        ("white", "yellow"),
        ("white", "pink"),
    )
}

# Plurals that are not the kind and an "s".
_PLURALS = {"bus": "buses", "butterfly": "butterflies", "fish": "fish", "leaf": "leaves", "snowman": "snowmen"}

# Parts of a pattern's period.
_STRIPE, _DOT, _WIRE = 0.21, 0.3, 0.075

_ROLES = ("hole", "main", "accent", "dark")
_STROKES = ("line", "curve")
_CIRCLE = np.linspace(0, 2 * math.pi, 40, endpoint=False)

# How many mask pixels a pixel has on a side, and how far masks reach: a square turned by 45 degrees still fits.
_OVERSAMPLING = 2
REACH = 1.4


@dataclass(frozen=True)
class _Part:
    """One part of a drawing: `points` (N, 2) in a unit square about 0; `width` is 0 unless it is a stroke."""

    role: int
    points: npt.NDArray[np.float64]
    width: float


@dataclass(frozen=True)
class Masks:
    """Where a thing's paints go, each an "L" picture of one side: all of the thing, its accent and its dark details."""

    whole: Image.Image
    accent: Image.Image
    dark: Image.Image


def plural(kind: str) -> str:
    """Return the word for several of a kind."""
    return _PLURALS.get(kind, kind + "s")


def masks(kind: str, side: float, matrix: npt.NDArray[np.float64], outline: float) -> Masks:
    """Draw a thing `side` pixels large into masks of `side * REACH` pixels, centred.

    Args:
        kind: a key of `DRAWINGS`.
        side: of the thing's square, in pixels.
        matrix: (2, 2), applied to the points of the drawing: turns, mirrors, stretches.
        outline: width of the dark line around the thing as a part of its side, 0 for none.
    """
    pixels = math.ceil(side * REACH)
    canvas = Image.new("L", (pixels * _OVERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    scale, centre = side * _OVERSAMPLING, pixels * _OVERSAMPLING / 2
    placed = [(part, (part.points @ matrix.T * scale + centre).ravel().tolist()) for part in _parts(kind)]
    if outline:
        # All outlines under all parts, so that only the outer half of the outermost ones is left to see.
        for part, points in placed:
            if part.role != _ROLES.index("hole"):
                ring = points if part.width else points + points[:4]
                _stroke(pen, ring, (part.width + 2 * outline) * scale, _ROLES.index("dark"))
    for part, points in placed:
        if part.width:
            _stroke(pen, points, part.width * scale, part.role)
        else:
            pen.polygon(points, fill=part.role)
    return Masks(*(_coverage(canvas, roles) for roles in ({1, 2, 3}, {2}, {3})))


def shade(colour: str, rng: np.random.Generator) -> Rgb:
    """Return a shade that goes by the colour's name."""
    hue, saturation, value = (rng.uniform(*limits) for limits in RANGES[colour])
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def mix(first: Rgb, second: Rgb, part: float) -> Rgb:
    """Return the first colour with a `part` (0 to 1) of the second."""
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(first, second, strict=True))
    return red, green, blue


def field(pattern: str, u: Field, v: Field) -> Field:
    """Return a pattern over coordinates that count its periods, 0 in the middle (a gradient has one period)."""
    # Distances from the middle of the period's square: 0 there, 0.5 at its sides.
    x, y = abs(u % 1 - 0.5), abs(v % 1 - 0.5)
    match pattern:
        case "striped":
            part = x < _STRIPE
        case "dotted":
            part = np.hypot(x, y) < _DOT
        case "checked":
            part = (u % 2 < 1) == (v % 2 < 1)
        case "grid":
            part = np.minimum(x, y) < _WIRE
        case "ringed":
            part = np.hypot(u, v) % 1 < 2 * _STRIPE
        case "gradient":
            part = np.clip(u + 0.5, 0, 1)
        case _:
            part = np.zeros_like(u)
    return part.astype(np.float32)


def paint(pattern: Field, first: Rgb, second: Rgb) -> Image.Image:
    """Return the RGB picture of a pattern in two colours."""
    image = Image.new("RGB", pattern.shape[::-1], first)
    image.paste(second, mask=Image.fromarray((pattern * 255).astype(np.uint8)))
    return image


def _coverage(canvas: Image.Image, roles: set[int]) -> Image.Image:
    """Return how much of each pixel, 0 to 255, is painted by one of the roles."""
    table = [255 if value in roles else 0 for value in range(256)]
    return canvas.point(table).reduce(_OVERSAMPLING)


def _stroke(pen: ImageDraw.ImageDraw, points: list[float], width: float, role: int) -> None:
    """Draw a line with round joints and round ends."""
    pen.line(points, fill=role, width=max(1, round(width)), joint="curve")
    radius = width / 2
    for x, y in (points[:2], points[-2:]):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=role)


@cache
def _parts(kind: str) -> tuple[_Part, ...]:
    """Read a kind's drawing from the table."""
    parts = []
    for text in DRAWINGS[kind].split(";"):
        role, form, *words = text.split()
        numbers = [float(word) / 100 for word in words]
        width = numbers.pop(0) if form in _STROKES else 0.0
        points = np.reshape(numbers, (-1, 2)) - 0.5
        if form == "oval":
            middle, radius = points.mean(axis=0), (points[1] - points[0]) / 2
            points = middle + radius * np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE)], axis=1)
        elif form in {"smooth", "curve"}:
            points = _spline(points, closed=form == "smooth")
        parts.append(_Part(_ROLES.index(role), points, width))
    return tuple(parts)


def _spline(points: npt.NDArray[np.float64], *, closed: bool, steps: int = 8) -> npt.NDArray[np.float64]:
    """Return a Catmull-Rom curve through points (N, 2); a point given twice is a corner."""
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([points[:1], points, points[-1:]])
    before, start, end, after = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    cubic = 3 * (start - end) + after - before
    square = 2 * before - 5 * start + 4 * end - after
    curve = start + 0.5 * t * (end - before + t * (square + t * cubic))
    return np.concatenate([curve.reshape(-1, 2), padded[-2:-1]])
