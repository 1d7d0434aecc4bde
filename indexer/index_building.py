"""Building indexes: training, adding, writing into a file, and the memory that takes. A door to FAISS."""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings
from indexer.errors import BuildError
from indexer.index import VectorIndex, last_line

# Rows handed to FAISS at a time, so that memory-mapped embeddings are never in memory as a whole: into an index, and
# into a file.
_ADD_ROWS, _WRITE_ROWS = 65_536, 4_096
# Indexes that keep the code of each vector and nothing else, one after the other, at the end of their files.
_CODES = (faiss.IndexFlat, faiss.IndexScalarQuantizer)
# More training vectors than this change a quantiser little and cost time and memory; of an IVF index, so many for each
# list, within the second bound.
_TRAIN_ROWS, _MOST_TRAIN_ROWS, _LIST_ROWS = 65_536, 262_144, 64
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
        factory: a factory string that `check_factory` lets pass.

    Raises:
        BuildError: FAISS cannot build this index over these vectors.
    """
    try:
        return VectorIndex(_filled(_trained(embeddings, factory), embeddings))
    except (RuntimeError, MemoryError) as error:
        raise _no_index(embeddings, factory, error) from error


def write_index(embeddings: Embeddings, factory: str, path: Path, memory_limit: int | None) -> None:
    """Build an index over `embeddings`, as `build_index` does, and write it into a file.

    Codes of single vectors (Flat, SQ8, SQfp16 and their kin), whether they are the index or what it refines with, are
    written block by block, and take next to no memory; all else is built in memory.

    Args:
        embeddings: unit rows, shape (n, dim), which may be memory-mapped.
        factory: a factory string that `check_factory` lets pass.
        path: of the file.
        memory_limit: bytes that building may take; None for any.

    Raises:
        BuildError: FAISS cannot build this index, it would take too much memory, or the disk is full.
    """
    _check_memory(embeddings, factory, memory_limit)
    try:
        index = _trained(embeddings, factory)
        with path.open("wb") as file:
            _write(index, embeddings, file)
    except (RuntimeError, MemoryError) as error:
        raise _no_index(embeddings, factory, error) from error
    except OSError as error:
        raise BuildError(f"The index {path} cannot be written: {last_line(error)}") from error


def check_factory(factory: str, dim: int) -> None:
    """Refuse a factory string that can make no index of vectors of `dim` dimensions.

    Raises:
        BuildError: FAISS does not know the string, or would crash.
    """
    if found := _NEVER.search(factory):
        raise BuildError(f"FAISS can make no index {factory!r}: {found[0]!r} is too small.")
    _empty(dim, factory)


def lists_for(count: int) -> int:
    """Return how many lists suit an IVF index over so many vectors: a power of two near 4 sqrt(count)."""
    return 1 << max(round(math.log2(4 * math.sqrt(count))), 0)


def memory_needed(count: int, dim: int, factory: str) -> int:
    """Return how many bytes building an index may take at most, as far as can be told before."""
    index = _empty(dim, factory)
    held = _held_bytes(index)
    rows = _train_rows(index) if not index.is_trained else _ADD_ROWS if held else 0
    return _GROWTH * held * count + _SAMPLE_COPIES * 4 * dim * min(count, rows)


def vector_bytes(dim: int, factory: str) -> int:
    """Estimate how many bytes the file of an index takes for each vector of `dim` dimensions."""
    index = _empty(dim, factory)  # held on to: what is looked at below are parts of it, that do not keep it alive
    return _vector_bytes(index)


def gpu_search() -> bool:
    """Tell whether FAISS finds a GPU that it can search on."""
    return hasattr(faiss, "index_cpu_to_gpu") and faiss.get_num_gpus() > 0


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


def _no_index(embeddings: Embeddings, factory: str, error: Exception) -> BuildError:
    return BuildError(f"FAISS cannot build {factory} over {len(embeddings):,} vectors: {last_line(error)}")


def _trained(embeddings: Embeddings, factory: str) -> Any:
    """Return an empty index trained on `embeddings`: on a GPU, where there is one that takes it."""
    index = _empty(embeddings.shape[1], factory)
    place = _on_gpu(index)
    if not place.is_trained:
        place.train(np.ascontiguousarray(_sample(embeddings, _train_rows(index))))
    return place


def _filled(index: Any, embeddings: Embeddings) -> Any:
    """Add all embeddings to a trained index, and return it, or its copy on the CPU."""
    for start in range(0, len(embeddings), _ADD_ROWS):
        index.add(np.ascontiguousarray(embeddings[start : start + _ADD_ROWS]))
    if isinstance(index, getattr(faiss, "GpuIndex", ())):
        index = faiss.index_gpu_to_cpu(index)
    # Some strings, such as IVF0, make an index that takes vectors and then cannot be searched.
    index.search(np.ascontiguousarray(embeddings[:1]), 1)
    return index


def _on_gpu(index: Any) -> Any:
    """Return a copy of an empty IVF index on the first GPU, or the index itself where there is none for it."""
    if not gpu_search() or not isinstance(index, faiss.IndexIVF):
        return index
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except RuntimeError:
        # Not every kind of code can be on a GPU.
        return index


def _write(index: Any, embeddings: Embeddings, file: IO[bytes]) -> None:
    """Write what `faiss.write_index` writes of a trained index with `embeddings` added."""
    if isinstance(index, faiss.IndexRefine):
        _write_refining(index, embeddings, file)
    elif type(index) in _CODES:
        _write_codes(index, embeddings, file)
    else:
        faiss.write_index(_filled(index, embeddings), faiss.PyCallbackIOWriter(file.write))


def _write_refining(index: Any, embeddings: Embeddings, file: IO[bytes]) -> None:
    """Write an IndexRefine: a header, both of its indexes, and a factor."""
    index.ntotal = len(embeddings)
    parts = [faiss.downcast_index(part) for part in (index.base_index, index.refine_index)]
    empty = b"".join(faiss.serialize_index(part).tobytes() for part in parts)
    header, factor = faiss.serialize_index(index).tobytes().split(empty)
    file.write(header)
    for part in parts:
        _write(part, embeddings, file)
    file.write(factor)


def _write_codes(index: Any, embeddings: Embeddings, file: IO[bytes]) -> None:
    """Write an index of codes, without having them in memory: a header, how many numbers follow, and the codes."""
    index.ntotal = len(embeddings)
    header = bytearray(faiss.serialize_index(index))
    # Flat's numbers are of four bytes, others' of one.
    numbers = len(embeddings) * index.sa_code_size() // (4 if isinstance(index, faiss.IndexFlat) else 1)
    struct.pack_into("<Q", header, len(header) - 8, numbers)
    file.write(header)
    for start in range(0, len(embeddings), _WRITE_ROWS):
        file.write(index.sa_encode(embeddings[start : start + _WRITE_ROWS]).data)


def _check_memory(embeddings: Embeddings, factory: str, limit: int | None) -> None:
    count, dim = embeddings.shape
    need = memory_needed(count, dim, factory)
    if limit is None or need <= limit:
        return
    others = [f"IVF{lists_for(count)},SQ8"] + ([f"IVF{lists_for(count)},PQ{dim // 8}"] if dim % 8 == 0 else [])
    needs = {other: memory_needed(count, dim, other) for other in others}
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


def _held_bytes(index: Any) -> int:
    """Estimate how many bytes of each vector are in memory while an index is built and written."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return _held_bytes(index.base_index) + _held_bytes(index.refine_index)
    return 0 if type(index) in _CODES else _vector_bytes(index)


def _train_rows(index: Any) -> int:
    """Return how many vectors an index is trained on at most."""
    inverted = faiss.try_extract_index_ivf(index)
    return min(max(_TRAIN_ROWS, _LIST_ROWS * int(inverted.nlist)), _MOST_TRAIN_ROWS) if inverted else _TRAIN_ROWS


def _sample(embeddings: Embeddings, most: int) -> Embeddings:
    """Return at most so many rows, spread evenly, so that a rebuild trains on the same ones."""
    step = -(-len(embeddings) // most)
    return embeddings[:: max(step, 1)]
