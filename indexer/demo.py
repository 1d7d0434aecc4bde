"""A demo collection drawn by code: things of many kinds and colours, captioned, with the truth about each picture.

* kind       what it shows, "star": the class label
* pair       a kind in a named colour, "red star": all that a caption tells of the thing
* instance   one particular red star: its exact shade, pattern, accent, proportions, outline. Each pair of a collection
             has two or more, look-alikes that the eye tells apart and captions do not
* picture    an instance under conditions: how many, how large, where, on what, in what light

All is drawn from the seed, and the same seed gives the same bytes. Instances and pictures of the folds "train" and
"test" come from separate random streams, so that nothing a model was trained on is in the collection it is shown.
"""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from indexer.demo_shapes import CLOSE, DRAWINGS, RANGES, Field, Rgb, field, masks, mix, paint, plural, shade
from indexer.errors import BuildError

KINDS = tuple(DRAWINGS)

COLOURS = tuple(name for name in RANGES if name != "gray")  # light and shade make gray of black and white

_PALE = {"yellow", "pink", "white", "orange"}
_ACCENTS = ("white", "yellow", "gray", "orange", "black")
_DARK, _LIGHT = (38, 38, 44), (200, 200, 205)
_SKY, _GRASS = (176, 214, 240), (104, 160, 84)

PATTERNS = ("plain", "striped", "dotted", "checked", "gradient", "ringed")
BACKGROUNDS = ("plain", "gradient", "mottled", "grid", "striped", "landscape")
_NUMBERS = ("a", "two", "three", "four")
_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}

LOOK_ALIKES = 2
PICTURES_PER_INSTANCE = 10
DEFAULT_COUNT = 2000

_HALF, _SHADOWED, _BLURRED = 0.5, 0.3, 0.25  # how often
_SMALL, _BIG = 0.6, 0.82  # parts of the shorter side of the picture
_ASIDE = 0.1  # part of the width, from the middle
_LONGEST = 1.6  # longer by shorter side


class Fold(StrEnum):
    """Which of two disjoint sets of instances."""

    TRAIN = "train"
    TEST = "test"


@dataclass(frozen=True)
class Instance:
    """One particular thing.

    `period` of the pattern and width of the `outline` are parts of the thing's side (0 to 1), `angle` of the pattern is
    in degrees, `aspect` is width by height. `tone` is the pattern's second colour.
    """

    fold: Fold
    kind: str
    colour: str
    number: int
    shade: Rgb
    pattern: str
    tone: Rgb
    period: float
    angle: float
    accent: Rgb
    aspect: float
    outline: float

    @property
    def name(self) -> str:
        """What it is called in the names of files; unique in its fold."""
        return f"{self.colour}-{self.kind}-{self.number}"


@dataclass(frozen=True)
class Conditions:
    """Under what an instance is seen: what captions may tell.

    `size` and `position` are words, "" for the usual and for several things; a landscape has no `background_colour`.
    """

    count: int
    size: str
    position: str
    background: str
    background_colour: str


@dataclass(frozen=True)
class Picture:
    """An RGB picture of 96 to 256 pixels a side, and the truth about it; `format` is the file format it suits."""

    image: Image.Image
    instance: Instance
    conditions: Conditions
    captions: tuple[str, ...]
    format: str


@dataclass(frozen=True)
class Query:
    """What somebody may look for in the default collection; right answers are pictures of this kind and colour."""

    text: str
    kind: str
    colour: str


@dataclass(frozen=True)
class _Layout:
    """Where things are, in pixels: their centres (x, y) and the side of each; and the words for that, if any."""

    centres: list[tuple[float, float]]
    side: float
    size: str
    position: str


@dataclass(frozen=True)
class _Background:
    """What is behind the things: the names of its pattern and colour, and the canvas that shows it."""

    name: str
    colour: str
    canvas: Image.Image


def instance(seed: int, fold: Fold, kind: str, colour: str, number: int) -> Instance:
    """Return the look-alike `number` (0 and up) of a pair. Neighbouring numbers differ in pattern at least."""
    patterns = _random(seed, fold, kind, colour).permutation(PATTERNS).tolist()
    rng = _random(seed, fold, kind, colour, number)
    main = shade(colour, rng)
    pattern = patterns[number % len(patterns)]
    accents = [name for name in _ACCENTS if name != colour and frozenset((name, colour)) not in CLOSE]
    return Instance(
        fold=fold,
        kind=kind,
        colour=colour,
        number=number,
        shade=main,
        pattern=pattern,
        tone=_tone(colour, main, pattern, rng),
        period=float(rng.uniform(0.12, 0.3)),
        angle=float(rng.uniform(0, 180)),
        accent=shade(str(rng.choice(accents)), rng),
        aspect=float(rng.uniform(0.78, 1.28)),
        outline=float(rng.choice([0, 0, 0.012, 0.025])),
    )


def captions(kind: str, colour: str, conditions: Conditions) -> tuple[str, ...]:
    """Return what may be said of a picture, the fullest first: its pair and its conditions, never its instance."""
    several = conditions.count > 1
    number = _NUMBERS[conditions.count - 1]
    noun = plural(kind) if several else kind
    what = f"{number} {colour} {noun}" if several else _with_article(f"{colour} {noun}")
    if conditions.background == "landscape":
        where = "in a landscape"
    elif conditions.background == "plain":
        where = f"on {_with_article(conditions.background_colour)} background"
    else:
        where = f"on {_with_article(conditions.background)} {conditions.background_colour} background"
    texts = [
        f"{what} {where}",
        what,
        f"a photo of {what}",
        f"a picture of {what}",
        f"a drawing of {what} {where}",
        f"{colour} {noun}",
        f"{number} {noun}" if several else _with_article(noun),
        noun,
    ]
    if conditions.size:
        texts.append(f"a {conditions.size} {colour} {noun}")
    if conditions.position:
        texts.append(f"{what} {conditions.position}")
    return tuple(texts)


def draw(thing: Instance, rng: np.random.Generator) -> Picture:
    """Draw an instance under conditions taken from `rng`."""
    width, height = (int(side) for side in rng.integers(96, 257, size=2))
    if max(width, height) > _LONGEST * min(width, height):
        width = height = max(width, height)
    count = int(rng.choice(4, p=[0.73, 0.12, 0.08, 0.07])) + 1
    layout = _layout(width, height, count, rng)
    background = _background(thing.colour, width, height, rng)
    mirror = rng.random() < _HALF
    shadow = rng.random() < _SHADOWED
    tilt = rng.uniform(-25, 25)
    for centre in layout.centres:
        turn = math.radians(tilt + rng.uniform(-8, 8))
        _place(background.canvas, thing, centre, layout.side, turn, mirror=mirror, shadow=shadow)
    conditions = Conditions(count, layout.size, layout.position, background.name, background.colour)
    return Picture(
        image=_light(background.canvas, rng),
        instance=thing,
        conditions=conditions,
        captions=captions(thing.kind, thing.colour, conditions),
        format=str(rng.choice(list(_ENDINGS), p=[0.86, 0.08, 0.06])),
    )


def picture_of(thing: Instance, seed: int, number: int) -> Picture:
    """Draw picture `number` of an instance: the same, whatever else is drawn."""
    return draw(thing, _random(seed, thing.fold, thing.name, "picture", number))


def pairs(count: int = DEFAULT_COUNT, seed: int = 0) -> list[tuple[str, str]]:
    """Return the (kind, colour) pairs of a collection of `count` pictures: one for every 20, at most all 480.

    Star and red come first, and no kind comes again before all others.
    """
    rng = _random(seed, "pairs")
    kinds = ["star", *(str(kind) for kind in rng.permutation(KINDS) if kind != "star")]
    colours = {kind: [str(colour) for colour in rng.permutation(COLOURS)] for kind in kinds}
    colours["star"] = ["red", *(colour for colour in colours["star"] if colour != "red")]
    every = [(kind, colours[kind][turn]) for turn in range(len(COLOURS)) for kind in kinds]
    return every[: math.ceil(count / (LOOK_ALIKES * PICTURES_PER_INSTANCE))]


def collection(count: int = DEFAULT_COUNT, seed: int = 0, fold: Fold = Fold.TEST) -> Iterator[Picture]:
    """Draw a collection: 20 pictures a pair, half of each look-alike; beyond 480 pairs, more look-alikes."""
    for thing, number in _plan(count, seed, fold):
        yield picture_of(thing, seed, number)


def write_collection(directory: Path, *, count: int = DEFAULT_COUNT, seed: int = 0, fold: Fold = Fold.TEST) -> int:
    """Draw the collection into `directory`, metadata.jsonl last, and return how many pictures were drawn.

    Returns 0, having done nothing, where that very collection is complete already.

    Raises:
        BuildError: the folder holds a demo collection of another count, seed or fold.
    """
    header, metadata = directory / ".collection.json", directory / "metadata.jsonl"
    wanted = json.dumps({"count": count, "seed": seed, "fold": fold})
    directory.mkdir(parents=True, exist_ok=True)
    if header.exists() and header.read_text(encoding="utf-8") != wanted:
        raise BuildError(f"{directory} holds another demo collection; choose an empty folder.")
    if header.exists() and metadata.exists():
        return 0
    _write(header, wanted)
    lines = []
    for thing, number in _plan(count, seed, fold):
        drawn = picture_of(thing, seed, number)
        path = f"{thing.kind}/{thing.name}-{number:02}.{_ENDINGS[drawn.format]}"
        (directory / thing.kind).mkdir(exist_ok=True)
        (directory / path).write_bytes(encode(drawn))
        lines.append(json.dumps(_record(path, drawn)) + "\n")
    _write(metadata, "".join(lines))
    return count


def queries(count: int = 50, seed: int = 0) -> list[Query]:
    """Return up to 100 fixed queries to the default collection of `seed`, "a red star" first."""
    first, *others = pairs(DEFAULT_COUNT, seed)
    order = _random(seed, "queries").permutation(len(others))
    chosen = [first, *(others[i] for i in order)][:count]
    return [Query(_with_article(f"{colour} {kind}"), kind, colour) for kind, colour in chosen]


def encode(picture: Picture) -> bytes:
    """Return the picture as a file of its format."""
    buffer = io.BytesIO()
    match picture.format:
        case "PNG":
            picture.image.save(buffer, "PNG", compress_level=3)
        case "WEBP":
            picture.image.save(buffer, "WEBP", quality=80, method=0)
        case _:
            picture.image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _record(path: str, picture: Picture) -> dict[str, str | int | list[str]]:
    """Return the line of metadata.jsonl for a picture."""
    return {
        "path": path,
        "label": picture.instance.kind,
        "caption": picture.captions[0],
        "captions": list(picture.captions),
        "instance": picture.instance.name,
        "kind": picture.instance.kind,
        "colour": picture.instance.colour,
        "pattern": picture.instance.pattern,
        "count": picture.conditions.count,
        "background": picture.conditions.background,
    }


def _write(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    half = path.with_name(path.name + ".part")
    half.write_text(text, encoding="utf-8")
    half.replace(path)


def _plan(count: int, seed: int, fold: Fold) -> Iterator[tuple[Instance, int]]:
    """Yield, for each picture of a collection, its instance and its number there."""
    chosen = pairs(count, seed)
    look_alikes = max(LOOK_ALIKES, math.ceil(count / (PICTURES_PER_INSTANCE * len(chosen))))
    things = [instance(seed, fold, *pair, number) for number in range(look_alikes) for pair in chosen]
    for i in range(count):
        yield things[i % len(things)], i // len(things)


def _random(seed: int, *place: object) -> np.random.Generator:
    """Return the randomness of one place, independent of every other place's."""
    return np.random.default_rng([seed, *"/".join(map(str, place)).encode()])


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _tone(colour: str, main: Rgb, pattern: str, rng: np.random.Generator) -> Rgb:
    """Return the second colour of a pattern: near white or darker, but nothing that goes by another name."""
    if colour == "black":
        return mix(main, (255, 255, 255), rng.uniform(0.3, 0.45))
    # Half way from red to white is pink, and a gradient goes all the way.
    if colour != "white" and pattern != "gradient" and rng.random() < _HALF:
        return mix(main, (255, 255, 255), 0.8)
    return mix(main, (0, 0, 0), rng.uniform(0.2, 0.32) if colour in _PALE else rng.uniform(0.35, 0.5))


def _layout(width: int, height: int, count: int, rng: np.random.Generator) -> _Layout:
    """Find places for `count` things in a picture of `width` x `height` pixels."""
    columns, rows = {1: (1, 1), 2: (2, 1) if width >= height else (1, 2)}.get(count, (2, 2))
    cell_width, cell_height = width / columns, height / rows
    part = rng.uniform(0.48, 0.96) if count == 1 else rng.uniform(0.76, 0.96)
    side = float(part * min(cell_width, cell_height))
    cells = rng.permutation(columns * rows)[:count]
    # In the middle fifth of the free space, or anywhere in it.
    free = rng.choice([0.1, 0.5], p=[0.4, 0.6]) * np.array([cell_width - side, cell_height - side])
    shifts = rng.uniform(-1, 1, size=(count, 2)) * free
    centres = [
        (float((cell % columns + 0.5) * cell_width + dx), float((cell // columns + 0.5) * cell_height + dy))
        for cell, (dx, dy) in zip(cells.tolist(), shifts, strict=True)
    ]
    if count > 1:
        return _Layout(centres, side, "", "")
    size = "small" if part < _SMALL else "big" if part > _BIG else ""
    shift = centres[0][0] / width - 0.5
    position = "on the left" if shift < -_ASIDE else "on the right" if shift > _ASIDE else ""
    return _Layout(centres, side, size, position)


def _background(colour: str, width: int, height: int, rng: np.random.Generator) -> _Background:
    """Paint a background for a thing of another colour."""
    others = [name for name in RANGES if name != colour and frozenset((name, colour)) not in CLOSE]
    names = [name for name in BACKGROUNDS if name != "landscape" or colour not in {"green", "blue"}]
    # Plain ones more often than the rest.
    name, other = str(rng.choice([*names, "plain", "gradient"])), str(rng.choice(others))
    if name == "landscape":
        x, y = _grid(width, height)
        hill = np.sin(x / width * rng.uniform(2, 7) + rng.uniform(0, 6)) * rng.uniform(0.02, 0.1)
        grass = y / height > hill + rng.uniform(-0.1, 0.25)
        return _Background(name, "", paint(grass.astype(np.float32), _SKY, _GRASS))
    first = shade(other, rng)
    second = mix(first, (0, 0, 0) if other in _PALE else (255, 255, 255), rng.uniform(0.12, 0.3))
    turn = rng.uniform(0, math.pi) if name == "gradient" else float(rng.choice([0, 0.25, 0.5, 0.75])) * math.pi
    period = max(width, height) * (1 if name == "gradient" else rng.uniform(0.08, 0.2))
    if name == "mottled":
        coarse = rng.integers(0, 256, size=(height // 12, width // 12), dtype=np.uint8)
        blots = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        return _Background(name, other, paint(np.asarray(blots, np.float32) / np.float32(255), first, second))
    return _Background(name, other, paint(field(name, *_grid(width, height, turn, period)), first, second))


def _place(
    canvas: Image.Image,
    thing: Instance,
    centre: tuple[float, float],
    side: float,
    turn: float,
    *,
    mirror: bool,
    shadow: bool,
) -> None:
    """Paint a thing onto the canvas, turned by `turn` radians; parts that do not fit are cut."""
    cos, sin = math.cos(turn), math.sin(turn)
    stretch = math.sqrt(thing.aspect)
    # The larger side of the thing keeps its length.
    scale = np.diag([-1.0 if mirror else 1.0, 1.0]) * np.array([stretch, 1 / stretch]) / max(stretch, 1 / stretch)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ scale
    where = masks(thing.kind, side, matrix, thing.outline)
    pixels = where.whole.width
    left, top = (round(middle - pixels / 2) for middle in centre)
    period = side * (1 if thing.pattern == "gradient" else thing.period)
    u, v = _grid(pixels, pixels, turn + math.radians(thing.angle), period)
    if shadow:
        offset = round(side * 0.05)
        canvas.paste((0, 0, 0), (left + offset, top + offset), where.whole.point([value // 3 for value in range(256)]))
    canvas.paste(paint(field(thing.pattern, u, v), thing.shade, thing.tone), (left, top), where.whole)
    canvas.paste(thing.accent, (left, top), where.accent)
    canvas.paste(_LIGHT if thing.colour == "black" else _DARK, (left, top), where.dark)


def _grid(width: int, height: int, turn: float = 0.0, unit: float = 1.0) -> tuple[Field, Field]:
    """Return the coordinates of every pixel, each (height, width), from the middle, in units, turned by radians."""
    x = (np.arange(width, dtype=np.float32) - width / 2)[None, :] / np.float32(unit)
    y = (np.arange(height, dtype=np.float32) - height / 2)[:, None] / np.float32(unit)
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    return x * cos + y * sin, y * cos - x * sin


def _light(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light the picture from one side, brighter or darker; add the camera's noise and, to some, blur."""
    height, width = canvas.height, canvas.width
    turn, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.18)
    slope_x = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(math.cos(turn) * strength)
    slope_y = np.linspace(-1, 1, height, dtype=np.float32) * np.float32(math.sin(turn) * strength)
    light = slope_x[None, :] + slope_y[:, None] + np.float32(rng.uniform(0.85, 1.1))
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.choice([0, 3, 8]))
    lit = np.asarray(canvas, np.float32) * light[:, :, None] + noise
    image = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    if rng.random() < _BLURRED:
        return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.1))))
    return image
