"""VectorIndex: exact or approximate nearest neighbours by inner product. The door to FAISS."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings
from indexer.errors import BuildError, CorruptSnapshot

AUTO = "auto"

# Rows handed to FAISS at a time, so that memory-mapped embeddings are never in memory as a whole.
_ADD_ROWS = 65_536
# More training vectors than this change a quantiser little and cost memory.
_TRAIN_ROWS = 262_144
# k-means starts anew this often, and the best outcome counts: a single start may end far from it.
_KMEANS_STARTS = 5


@dataclass(frozen=True)
class Neighbors:
    """Rows of the nearest embeddings, best first, and their cosine similarities; both of shape (k,)."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Clusters:
    """Outcome of k-means: unit `centroids`, shape (k, dim), and the nearest one's number of each row, shape (n,)."""

    centroids: Embeddings
    assignment: NDArray[np.int64]


class VectorIndex:
    """A FAISS index over unit vectors; vector i is row i of the embeddings. Searches may run in several threads."""

    def __init__(self, index: Any) -> None:
        self._index = index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    @classmethod
    def build(cls, embeddings: Embeddings, factory: str) -> Self:
        """Build an index over `embeddings`, shape (n, dim), which may be memory-mapped.

        Args:
            embeddings: unit rows.
            factory: a factory string as `resolve_factory` returns.

        Raises:
            BuildError: FAISS cannot build this index over these vectors.
        """
        index = _empty(embeddings.shape[1], factory)
        try:
            if not index.is_trained:
                index.train(np.ascontiguousarray(_sample(embeddings)))
            for start in range(0, len(embeddings), _ADD_ROWS):
                index.add(np.ascontiguousarray(embeddings[start : start + _ADD_ROWS]))
            # Some strings, such as IVF0, make an index that takes vectors and then cannot be searched.
            index.search(np.ascontiguousarray(embeddings[:1]), 1)
        except (RuntimeError, MemoryError) as error:
            detail = _last_line(error)
            raise BuildError(f"FAISS cannot build {factory} over {len(embeddings):,} vectors: {detail}") from error
        return cls(index)

    def save(self, path: Path) -> None:
        """Write the index into a file."""
        try:
            faiss.write_index(self._index, str(path))
        except RuntimeError as error:
            raise BuildError(f"FAISS cannot write {path}: {_last_line(error)}") from error

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read an index from a file.

        FAISS does not detect corruption: the caller has compared the file's hash.

        Raises:
            CorruptSnapshot: the file is no FAISS index.
        """
        try:
            return cls(faiss.read_index(str(path)))
        except (RuntimeError, MemoryError) as error:
            raise CorruptSnapshot(f"{path} is no FAISS index: {_last_line(error)}") from error

    def search(self, vector: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Return the rows of at most k nearest vectors, in FAISS's order.

        Args:
            vector: unit length, shape (dim,).
            k: at least 1; an approximate index may find fewer.
        """
        _, rows = self._index.search(vector[None, :], min(k, len(self)))
        found: NDArray[np.int64] = rows[0][rows[0] >= 0]
        return found

    def search_many(self, vectors: Embeddings, k: int) -> NDArray[np.int64]:
        """Return the rows of the min(k, len) nearest vectors to each of n, shape (n, min(k, len)), in FAISS's order.

        Faster by far than one search after the other: FAISS multiplies whole blocks. For exact indexes: an approximate
        one may find fewer, and puts -1 in place of a row.
        """
        rows: NDArray[np.int64] = self._index.search(np.ascontiguousarray(vectors), min(k, len(self)))[1]
        return rows


def resolve_factory(factory: str, dim: int) -> str:
    """Return the FAISS factory string that `factory` stands for: itself, or `auto`'s choice.

    `auto` is Flat: exact, with nothing to tune. Others trade recall for speed, with FAISS's default search parameters.

    Raises:
        BuildError: FAISS does not know the string.
    """
    choice = "Flat" if factory == AUTO else factory
    _empty(dim, choice)
    return choice


def kmeans(embeddings: Embeddings, k: int, seed: int) -> Clusters:
    """Cluster unit rows, shape (n, dim), by spherical k-means (Dhillon & Modha, 2001) from k-means++ starts.

    The same seed gives the same clusters on the same machine. Time grows with n times k.

    Raises:
        BuildError: there are fewer rows than clusters, or FAISS cannot cluster them.
    """
    if not 1 <= k <= len(embeddings):
        raise BuildError(
            f"{len(embeddings):,} pictures cannot make {k:,} clusters: give from 1 to as many as there are."
        )
    rows = np.ascontiguousarray(embeddings, np.float32)
    # Every row is trained on, and FAISS does not warn of clusters that are smaller than a quantiser's should be.
    options = {"min_points_per_centroid": 1, "max_points_per_centroid": len(rows), "nredo": _KMEANS_STARTS}
    start = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    try:
        clustering = faiss.Kmeans(rows.shape[1], k, spherical=True, seed=seed, init_method=start, **options)
        clustering.train(rows)
        _, nearest = clustering.index.search(rows, 1)
    except (RuntimeError, MemoryError) as error:
        detail = _last_line(error)
        raise BuildError(f"FAISS cannot make {k:,} clusters of {len(rows):,} vectors: {detail}") from error
    return Clusters(np.asarray(clustering.centroids), nearest[:, 0])


def _empty(dim: int, factory: str) -> Any:
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, MemoryError, TypeError) as error:
        detail = _last_line(error)
        raise BuildError(f"FAISS knows no index {factory!r} of {dim} dimensions: {detail}") from error


def _sample(embeddings: Embeddings) -> Embeddings:
    """Return at most `_TRAIN_ROWS` rows, spread evenly, so that a rebuild trains on the same ones."""
    step = -(-len(embeddings) // _TRAIN_ROWS)
    return embeddings[:: max(step, 1)]


def _last_line(error: Exception) -> str:
    # FAISS puts the C++ source position first and what went wrong last.
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
