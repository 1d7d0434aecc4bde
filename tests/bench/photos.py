"""Pictures that cost what photographs cost: noise, gradients and shapes, as JPEG of a photograph's size."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_OCTAVES = (4, 16, 64, 256)
_SHAPES = 12


@dataclass(frozen=True)
class Camera:
    """What a set is taken with: width and height in pixels, grain in grey levels, JPEG quality."""

    width: int
    height: int
    grain: float
    quality: int


SMALL = Camera(500, 375, grain=14, quality=92)
"""Web pictures, about 60 kB."""
LARGE = Camera(4000, 3000, grain=11, quality=90)
"""12 megapixels, about 2.6 MB."""


def take(folder: Path, camera: Camera, count: int) -> Path:
    """Draw the first `count` pictures of a camera into a folder of their own, those that are not there yet."""
    home = folder / f"{camera.width}x{camera.height}-{count}"
    home.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        path = home / f"{camera.width}-{seed:06d}.jpg"
        if not path.exists():
            half = path.with_suffix(".half")
            draw(camera, seed).save(half, "JPEG", quality=camera.quality)
            half.replace(path)
    return home


def mix(folder: Path, homes: list[Path]) -> Path:
    """Link the pictures of several folders into one."""
    home = folder / "+".join(each.name for each in homes)
    home.mkdir(exist_ok=True)
    for path in (path for each in homes for path in each.iterdir()):
        if not (home / path.name).exists():
            os.link(path, home / path.name)
    return home


def draw(camera: Camera, seed: int) -> Image.Image:
    """Draw a picture; the same seed draws the same one."""
    rng = np.random.default_rng(seed)
    grain = rng.standard_normal((camera.height, camera.width), np.float32) * np.float32(camera.grain)
    colours = [_clouds(camera, rng) for _ in range(3)]
    pixels = np.stack([np.clip(clouds + grain, 0, 255).astype(np.uint8) for clouds in colours], axis=-1)
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        x, y, side = rng.uniform(0, camera.width), rng.uniform(0, camera.height), rng.uniform(0.03, 0.2) * camera.width
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x - side, y - side, x + side, y + side / 2), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def _clouds(camera: Camera, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a gradient and noise of every scale, shape (height, width), about 0 to 255."""
    across, down = rng.uniform(-60, 60, 2)
    x = np.linspace(0, across, camera.width, dtype=np.float32)
    clouds = 128 + x + np.linspace(0, down, camera.height, dtype=np.float32)[:, None]
    for octave in _OCTAVES:
        noise = Image.fromarray(rng.standard_normal((octave, octave), np.float32))
        scaled = noise.resize((camera.width, camera.height), Image.Resampling.BILINEAR)
        clouds += np.asarray(scaled) * np.float32(90 / np.sqrt(octave))
    return clouds
