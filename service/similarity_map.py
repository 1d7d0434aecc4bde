"""Similarity maps: which parts of a picture are like a query."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indexer.encoder import Patches
from service.searcher import Vector

# Of the longer side of a map, in pixels.
_SIDE = 256
# Patches of which all are as similar as the others, to so much, show nothing.
_LEAST_CONTRAST = 1e-4


def similarity_map(patches: Patches, query: Vector, width: int, height: int) -> bytes:
    """Return a PNG to lay over a picture of so many pixels: from clear where it is least like the query to red.

    Between the middles of patches, similarity is interpolated. What no patch covers is clear.
    """
    scale = min(1.0, _SIDE / max(width, height))
    columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
    left, top, right, bottom = patches.box
    strength = _contrast(patches.vectors @ query)
    down, down_inside = _places(rows, top, bottom, strength.shape[0])
    across, across_inside = _places(columns, left, right, strength.shape[1])
    heat = _between(_between(strength, down).T, across).T * np.outer(down_inside, across_inside)
    pixels = np.zeros((rows, columns, 4), np.uint8)
    pixels[..., 0] = 255
    pixels[..., 1] = np.round(220 * (1 - heat))  # from yellow
    pixels[..., 3] = np.round(255 * heat)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG")
    return file.getvalue()


def _contrast(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return scores stretched from 0 for the lowest to 1 for the highest."""
    lowest, highest = float(scores.min()), float(scores.max())
    if highest - lowest < _LEAST_CONTRAST:
        return np.zeros(scores.shape)
    return (scores.astype(np.float64) - lowest) / (highest - lowest)


def _places(pixels: int, start: float, end: float, patches: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return where the middle of each pixel of a side lies among the patches, in patches, and whether one covers it.

    Args:
        pixels: of the side.
        start: where the patches begin, as a share of the side.
        end: where they end.
        patches: how many there are.
    """
    shares = ((np.arange(pixels) + 0.5) / pixels - start) / (end - start)
    return np.clip(shares * patches - 0.5, 0, patches - 1), (shares >= 0) & (shares <= 1)


def _between(values: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows interpolated between those of `values`, shape (len(places), columns)."""
    before = np.floor(places).astype(np.int64)
    after = np.minimum(before + 1, len(values) - 1)
    part = (places - before)[:, None]
    mixed: NDArray[np.float64] = values[before] * (1 - part) + values[after] * part
    return mixed
