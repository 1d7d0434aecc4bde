"""Building indexes: training, adding, writing into a file, and the memory that takes. A door to FAISS."""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings
from indexer.errors import BuildError
from indexer.index import VectorIndex, last_line

AUTO = "auto"

# Rows handed to FAISS at a time, so that memory-mapped embeddings are never in memory as a whole.
_ADD_ROWS = 65_536
# More training vectors than this change a quantiser little and cost memory.
_TRAIN_ROWS = 262_144
# FAISS's arrays grow by doubling, and for a moment there are both, the old one and the new one.
_GROWTH = 2
# What is trained on is copied, rotated and sorted.
_SAMPLE_COPIES = 3
# FAISS takes these, and then crashes or never ends: a part of no size, and a graph of one link or none.
_NEVER = re.compile(r"(?<!\d)0+(?!\d)|(HNSW|NSG)1(?!\d)")
# k-means starts anew this often, and the best outcome counts: a single start may end far from it.
_KMEANS_STARTS = 5


@dataclass(frozen=True)
class Clusters:
    """Outcome of k-means: unit `centroids`, shape (k, dim), and the nearest one's number of each row, shape (n,)."""

    centroids: Embeddings
    assignment: NDArray[np.int64]


def build_index(embeddings: Embeddings, factory: str) -> VectorIndex:
    """Build an index over `embeddings`, shape (n, dim), which may be memory-mapped.

    Args:
        embeddings: unit rows.
        factory: a factory string as `resolve_factory` returns.

    Raises:
        BuildError: FAISS cannot build this index over these vectors.
    """
    return VectorIndex(_built(embeddings, factory))


def write_index(embeddings: Embeddings, factory: str, path: Path, memory_limit: int | None) -> None:
    """Build an index over `embeddings`, as `build_index` does, and write it into a file.

    Flat is written block by block, and takes next to no memory; all others are built in memory.

    Args:
        embeddings: unit rows, shape (n, dim), which may be memory-mapped.
        factory: a factory string as `resolve_factory` returns.
        path: of the file.
        memory_limit: bytes that building may take; None for any.

    Raises:
        BuildError: FAISS cannot build this index, it would take too much memory, or the disk is full.
    """
    try:
        if factory == "Flat":
            _write_flat(embeddings, path)
            return
        _check_memory(embeddings, factory, memory_limit)
        faiss.write_index(_built(embeddings, factory), str(path))
    except (OSError, RuntimeError) as error:
        raise BuildError(f"The index {path} cannot be written: {last_line(error)}") from error


def resolve_factory(factory: str, dim: int) -> str:
    """Return the FAISS factory string that `factory` stands for: itself, or `auto`'s choice.

    `auto` is Flat: exact, with nothing to tune. Others trade recall for speed, with FAISS's default search parameters.

    Raises:
        BuildError: FAISS does not know the string, or would crash.
    """
    choice = "Flat" if factory == AUTO else factory
    if found := _NEVER.search(choice):
        raise BuildError(f"FAISS can make no index {factory!r}: {found[0]!r} is too small.")
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
        detail = last_line(error)
        raise BuildError(f"FAISS cannot make {k:,} clusters of {len(rows):,} vectors: {detail}") from error
    return Clusters(np.asarray(clustering.centroids), nearest[:, 0])


def _empty(dim: int, factory: str) -> Any:
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, MemoryError, TypeError) as error:
        detail = last_line(error)
        raise BuildError(f"FAISS knows no index {factory!r} of {dim} dimensions: {detail}") from error


def _built(embeddings: Embeddings, factory: str) -> Any:
    """Train an index on `embeddings` and add all of them: on a GPU, where there is one that takes it."""
    index = _empty(embeddings.shape[1], factory)
    try:
        place = _on_gpu(index)
        if not place.is_trained:
            place.train(np.ascontiguousarray(_sample(embeddings)))
        for start in range(0, len(embeddings), _ADD_ROWS):
            place.add(np.ascontiguousarray(embeddings[start : start + _ADD_ROWS]))
        if place is not index:
            index = faiss.index_gpu_to_cpu(place)
        # Some strings, such as IVF0, make an index that takes vectors and then cannot be searched.
        index.search(np.ascontiguousarray(embeddings[:1]), 1)
    except (RuntimeError, MemoryError) as error:
        detail = last_line(error)
        raise BuildError(f"FAISS cannot build {factory} over {len(embeddings):,} vectors: {detail}") from error
    return index


def _on_gpu(index: Any) -> Any:
    """Return a copy of an empty IVF index on the first GPU, or the index itself where there is none for it."""
    if not hasattr(faiss, "index_cpu_to_gpu") or not faiss.get_num_gpus() or not isinstance(index, faiss.IndexIVF):
        return index
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except RuntimeError:
        # Not every kind of code can be on a GPU.
        return index


def _write_flat(embeddings: Embeddings, path: Path) -> None:
    """Write what `faiss.write_index` writes of an IndexFlatIP over `embeddings`, without having them in memory."""
    count, dim = embeddings.shape
    header = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dim)))
    # Four letters, the dimension, the number of vectors, and so on; at the end how many numbers follow.
    struct.pack_into("<q", header, 8, count)
    struct.pack_into("<Q", header, len(header) - 8, count * dim)
    with path.open("wb") as file:
        file.write(header)
        for start in range(0, count, _ADD_ROWS):
            file.write(np.ascontiguousarray(embeddings[start : start + _ADD_ROWS], "<f4").data)


def _check_memory(embeddings: Embeddings, factory: str, limit: int | None) -> None:
    count, dim = embeddings.shape
    need = _memory(count, dim, factory)
    if limit is None or need <= limit:
        return
    others = [f"IVF{_lists(count)},SQ8"] + ([f"IVF{_lists(count)},PQ{dim // 8}"] if dim % 8 == 0 else [])
    needs = {other: _memory(count, dim, other) for other in others}
    fitting = [
        "Flat (next to nothing)",
        *(f"{other} ({_giga(less)})" for other, less in needs.items() if less <= limit),
    ]
    raise BuildError(
        f"Building {factory} over {count:,} vectors may take {_giga(need)} of memory; the limit is {_giga(limit)}. "
        f"Raise it, or choose an index that fits: {', '.join(fitting)}."
    )


def _giga(size: int) -> str:
    return f"{size / 10**9:.3g} GB"


def _lists(count: int) -> int:
    """Return how many lists suit an IVF index over so many vectors: a power of two near 4 sqrt(count)."""
    return 1 << max(round(math.log2(4 * math.sqrt(count))), 0)


def _memory(count: int, dim: int, factory: str) -> int:
    """Return how many bytes building an index may take at most, as far as can be told before."""
    index = _empty(dim, factory)
    sample = min(count, _ADD_ROWS if index.is_trained else _TRAIN_ROWS)
    return _GROWTH * _vector_bytes(index) * count + _SAMPLE_COPIES * 4 * dim * sample


def _vector_bytes(index: Any) -> int:
    """Estimate how many bytes an index keeps of each vector: its code, and its number or its links."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform | faiss.IndexIDMap):
        return _vector_bytes(index.index)
    if isinstance(index, faiss.IndexRefine):
        return _vector_bytes(index.base_index) + _vector_bytes(index.refine_index)
    if isinstance(index, faiss.IndexHNSW):
        # Links take 4 bytes each; a lock, a level and the links of upper levels come to some 32.
        return int(_vector_bytes(index.storage) + 4 * index.hnsw.cum_nneighbor_per_level.at(1) + 32)
    if isinstance(index, faiss.IndexNSG):
        # It is made of a graph of the nearest neighbours, and that in lists of twice the size.
        return int(4 * index.d + 16 * index.GK)
    try:
        return int(index.sa_code_size()) + 8
    except RuntimeError:
        return 4 * int(index.d)


def _sample(embeddings: Embeddings) -> Embeddings:
    """Return at most `_TRAIN_ROWS` rows, spread evenly, so that a rebuild trains on the same ones."""
    step = -(-len(embeddings) // _TRAIN_ROWS)
    return embeddings[:: max(step, 1)]
