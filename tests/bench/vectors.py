"""Embeddings to search and queries for them, drawn rather than encoded: a million pictures in seconds.

The shape is that of a two-tower model such as CLIP, in numbers that can be checked on the result:

* Pictures are unit vectors: an offset all share (two pictures agree to a cosine of about 0.33), one of 5,000 topics of
  uneven size, and what is their own. The spread of topics and of members falls off as a power of the axis, so that the
  participation ratio of the covariance is about 80 of 512 dimensions. A random rotation mixes the axes.
* Image queries are members moved to a cosine of 0.9, in directions in which members differ, as a crop or another
  encoding of a picture moves it. The other neighbours follow at about 0.75.
* Text queries come from outside the pictures' distribution: an offset of their own (the "modality gap" of Liang et al.,
  "Mind the Gap", 2022), a weak component towards one topic and much else. The best picture has a cosine of about 0.36
  and the tenth 0.34, as with CLIP's captions. The best ten lie in many topics: an HNSW32 with efSearch 128 that finds
  0.99 of an image query's neighbours among 200,000 pictures finds 0.8 of a text query's.
"""

from pathlib import Path

import faiss
import numpy as np

from tests.bench.search_engine import KINDS, K, Vectors

DIM = 512
QUERIES = 256  # of each kind

_SEED = 20260
_BLOCK = 50_000
_TOPICS = 5000


def make(folder: Path, count: int) -> None:
    """Draw vectors into a folder, unless they are there.

    `pictures.npy` has shape (count, DIM); `image.npy` and `text.npy` (QUERIES, DIM); `image-neighbours.npy` and
    `text-neighbours.npy` (QUERIES, K) rows of the pictures with the greatest cosines, best first.

    Args:
        folder: made if it is not there.
        count: how many pictures. Fewer of them are the first of more.
    """
    last = folder / f"{KINDS[-1]}-neighbours.npy"
    if last.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    world = _World(np.random.default_rng(_SEED))
    _write_pictures(folder / "pictures.npy", world, count)
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    for kind, queries in zip(KINDS, (world.images(pictures), world.texts()), strict=True):
        np.save(folder / f"{kind}.npy", queries)
        np.save(
            folder / f"{kind}-neighbours.npy", faiss.knn(queries, pictures, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
        )


class _World:
    """What pictures and texts have in common: offsets, topics and the axes along which they spread."""

    def __init__(self, random: np.random.Generator) -> None:
        self._rotation = np.linalg.qr(random.standard_normal((DIM, DIM)))[0].astype(np.float32)
        self._offset, other = _unit(random.standard_normal((2, DIM), dtype=np.float32))
        self._text_offset = _unit(0.4 * self._offset + 0.92 * other)
        self._topics = self._spread(random, _TOPICS, 0.8)
        weights = np.arange(1, _TOPICS + 1) ** -0.5
        self._sizes = weights / weights.sum()

    def pictures(self, block: int, count: int) -> Vectors:
        """Return some members, shape (count, DIM); the same for the same block, whatever the count of others."""
        random = np.random.default_rng([_SEED, 1, block])
        topics = self._topics[random.choice(_TOPICS, count, p=self._sizes)]
        return _unit(0.5 * self._offset + 0.6 * topics + 0.4 * self._spread(random, count, 0.8))

    def images(self, pictures: Vectors) -> Vectors:
        """Return members moved to a cosine of 0.9, shape (QUERIES, DIM)."""
        random = np.random.default_rng([_SEED, 2])
        sources = pictures[np.sort(random.choice(len(pictures), QUERIES, replace=False))]
        moves = self._spread(random, QUERIES, 0.8)
        moves = _unit(moves - (moves * sources).sum(axis=1, keepdims=True) * sources)
        moved: Vectors = np.float32(0.9) * sources + np.sqrt(np.float32(0.19)) * moves
        return moved

    def texts(self) -> Vectors:
        """Return queries from outside the pictures' distribution, shape (QUERIES, DIM)."""
        random = np.random.default_rng([_SEED, 3])
        topics = self._topics[random.choice(_TOPICS, QUERIES, p=self._sizes)]
        return _unit(0.8 * self._text_offset + 0.2 * topics + 0.6 * self._spread(random, QUERIES, 0.4))

    def _spread(self, random: np.random.Generator, count: int, decay: float) -> Vectors:
        """Return Gaussian rows of mean squared length 1 whose variance falls as the axis to the power -decay."""
        variances = np.arange(1, DIM + 1, dtype=np.float32) ** -decay
        scale = np.sqrt(variances / variances.sum())
        rows: Vectors = (random.standard_normal((count, DIM), dtype=np.float32) * scale) @ self._rotation
        return rows


def _write_pictures(path: Path, world: _World, count: int) -> None:
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, DIM))
    for begin in range(0, count, _BLOCK):
        end = min(begin + _BLOCK, count)
        out[begin:end] = world.pictures(begin // _BLOCK, end - begin)
    out.flush()


def _unit(rows: Vectors) -> Vectors:
    units: Vectors = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    return units
