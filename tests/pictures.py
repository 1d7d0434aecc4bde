"""Little pictures for tests: drawn, encoded, or put together byte by byte."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indexer.images import DecodePolicy

POLICY = DecodePolicy(max_bytes=2**20, max_pixels=1_000_000)

Array = NDArray[np.uint8]
"""Shape (height, width, 3): an RGB picture."""

FITTING_256 = [
    ((1024, 512), (256, 128)),
    ((300, 900), (85, 256)),
    ((256, 256), (256, 256)),
    ((30, 20), (30, 20)),
    ((1, 1), (1, 1)),
    ((1, 20_000), (1, 256)),
    ((20_000, 1), (256, 1)),
]
"""Widths and heights of pictures, and theirs once they fit a square of 256 pixels."""

EXIF_LAYOUTS: dict[int, Callable[[Array], Array]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}
"""How the EXIF standard stores an upright picture under each orientation."""


def quarters(width: int = 30, height: int = 20) -> Array:
    """Draw a picture that looks different from every side: red and green above blue and yellow."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = 220, 20, 30
    picture[: height // 2, width // 2 :] = 20, 200, 40
    picture[height // 2 :, : width // 2] = 30, 40, 210
    picture[height // 2 :, width // 2 :] = 230, 220, 50
    return picture


def encode(picture: Image.Image | NDArray[Any], kind: str, **options: Any) -> bytes:
    """Write a picture in one of Pillow's formats."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def orientation(value: int) -> Image.Exif:
    """Return EXIF data with an orientation and nothing else."""
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def png(size: tuple[int, int], depth: int, colour: int, pixels: bytes, **chunks: bytes) -> bytes:
    """Put a PNG together byte by byte.

    Args:
        size: width and height.
        depth: bits of a sample.
        colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
        pixels: all rows, each after a filter byte.
        chunks: further chunks between header and pixels.
    """
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = [("IHDR", header), *chunks.items(), ("IDAT", zlib.compress(pixels)), ("IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name.encode(), data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
