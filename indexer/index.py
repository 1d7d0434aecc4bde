"""VectorIndex: exact or approximate nearest neighbours by inner product. A door to FAISS."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from indexer.encoder import Embeddings
from indexer.errors import CorruptSnapshot
from indexer.selection import Selection

Rows = NDArray[np.int64]
"""Row numbers of embeddings."""

DEPTH = 10
"""Neighbours of a query that count where recall is measured, which is recall@10."""

# To this multiple of k the candidates of a deep search fall.
_FACTOR_FLOOR = 8
# Those on a GPU are of a class of their own, which FAISS for CPUs has not.
_IVF = tuple(getattr(faiss, name) for name in ("IndexIVF", "GpuIndexIVF") if hasattr(faiss, name))
# FAISS's number of a way to scan packed codes.
_LIST_BY_LIST = 11
# Rows of a selection that are copied at a time, to be compared with a query.
_GATHER_ROWS = 65_536


class SearchParameters(BaseModel):
    """How thoroughly an approximate index searches. What an index has no use for is None, and FAISS's default holds.

    Attributes:
        nprobe: lists of an IVF index that are scanned.
        ef_search: nodes that an HNSW graph keeps in view.
        k_factor: candidates that a refining index compares exactly, as a multiple of the results asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nprobe: int | None = Field(default=None, ge=1)
    ef_search: int | None = Field(default=None, ge=1)
    k_factor: float | None = Field(default=None, ge=1)

    def widened(self, factor: float) -> Self:
        """Return a search of `factor` (1 or more) times as much: as wide as it takes where few vectors are wanted."""
        more = {name: math.ceil(value * factor) for name in ("nprobe", "ef_search") if (value := getattr(self, name))}
        return self.model_copy(update=more)

    def deepened(self, k: int) -> Self:
        """Return a search for `k` (1 or more) neighbours as thorough as this one is for `DEPTH` of them.

        The lists scanned, and the nodes kept in view, grow with k, and the multiple of k that is compared exactly
        falls. Measured with lists, over 1,000,000 x 512: pictures find 0.99 of a thousand so, and 0.61 to 0.88 where
        the lists grow more slowly.
        """
        depth = max(k / DEPTH, 1)
        changed: dict[str, float] = {
            name: round(value * depth) for name in ("nprobe", "ef_search") if (value := getattr(self, name))
        }
        if self.k_factor is not None:
            changed["k_factor"] = max(self.k_factor / depth**0.5, min(self.k_factor, _FACTOR_FLOOR))
        return self.model_copy(update=changed)


DEFAULT = SearchParameters()


@dataclass(frozen=True)
class Adjustable:
    """What can be set of the searches of an index.

    Attributes:
        lists: lists of an IVF index: the most that `nprobe` can be; 0 where there are none.
        graph: whether it is one that `ef_search` is for.
        refines: whether it compares `k_factor` times as many candidates exactly.
    """

    lists: int = 0
    graph: bool = False
    refines: bool = False


class Index(Protocol):
    """What answers searches: an index on a CPU or on GPUs. Searches may run in several threads."""

    def __len__(self) -> int:
        """Return how many vectors there are."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    @property
    def exact(self) -> bool:
        """Whether it finds the true nearest, so that there is nothing to tune."""
        ...

    @property
    def selects(self) -> bool:
        """Whether it can search among the rows of a selection."""
        ...

    def search(
        self, vectors: Embeddings, k: int, parameters: SearchParameters = DEFAULT, selection: Selection | None = None
    ) -> Rows:
        """Return the rows of the nearest vectors to each of n.

        Args:
            vectors: unit rows, shape (n, dim).
            k: at least 1.
            parameters: how thoroughly to search.
            selection: the rows to search among; None for all. Only for an index that `selects`.

        Returns:
            Shape (n, k), best first in the index's own order; -1 where it finds no more.
        """
        ...


class VectorIndex:
    """A FAISS index over unit vectors; vector i is row i of the embeddings."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.exact = isinstance(index, faiss.IndexFlat)
        self.selects = _honours_selectors(index)
        self._fast_scan = _fast_scan(index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    @property
    def faiss_index(self) -> Any:
        """The index itself, for the other doors to FAISS: only to be read."""
        return self._index

    @property
    def adjustable(self) -> Adjustable:
        """What can be set of its searches."""
        return _adjustable(self._index)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the index in a file that nobody will write again: vectors are read from it when they are needed.

        FAISS does not detect corruption: the caller has compared the file's hash.

        Raises:
            CorruptSnapshot: the file is no FAISS index.
        """
        try:
            # Maps what it can (all of Flat, so that no vector is in memory twice) and reads the rest.
            return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC))
        except (RuntimeError, MemoryError) as error:
            raise CorruptSnapshot(f"{path} is no FAISS index: {last_line(error)}") from error

    def search(
        self, vectors: Embeddings, k: int, parameters: SearchParameters = DEFAULT, selection: Selection | None = None
    ) -> Rows:
        """Return the rows of the nearest vectors to each of n, as `Index.search` says."""
        return self.scored(vectors, k, parameters, selection)[1]

    def scored(
        self, vectors: Embeddings, k: int, parameters: SearchParameters = DEFAULT, selection: Selection | None = None
    ) -> tuple[NDArray[np.float32], Rows]:
        """Return what `search` does, and before it the scores as the index reckons them, shape (n, k) too."""
        params = _faiss_parameters(self._index, parameters.deepened(k), _selector(selection))
        if self._fast_scan is not None:
            # Which of its loops finds the same: a query by itself is answered a quarter sooner by one that goes from
            # list to list, several by one that has them share each list. FAISS takes this from the index alone; should
            # two threads set it at once, one of them takes a little longer.
            self._fast_scan.implem = _LIST_BY_LIST if len(vectors) == 1 else 0
        scores, rows = self._index.search(np.ascontiguousarray(vectors, np.float32), k, params=params)
        return scores, rows


def nearest(embeddings: Embeddings, vectors: Embeddings, k: int, selection: Selection | None = None) -> Rows:
    """Return the rows of the k nearest embeddings to each of n vectors, by comparing with all of them.

    Args:
        embeddings: unit rows, shape (rows, dim), which may be memory-mapped.
        vectors: unit rows, shape (n, dim).
        k: at least 1.
        selection: the rows to compare with; None for all.

    Returns:
        Shape (n, k), best first; -1 where there are no more.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    best = faiss.ResultHeap(len(vectors), k, keep_max=True)
    rows = None if selection is None else selection.rows()
    # All at once where they lie in order; a selection is copied together, block by block.
    block = max(len(embeddings), 1) if rows is None else _GATHER_ROWS
    for start in range(0, len(embeddings) if rows is None else len(rows), block):
        part = embeddings if rows is None else embeddings[rows[start : start + block]]
        scores, places = faiss.knn(vectors, part, min(k, len(part)), faiss.METRIC_INNER_PRODUCT)
        best.add_result(scores, places if rows is None else rows[start + places])
    best.finalize()
    found: Rows = best.I
    return found


def faiss_build() -> str:
    """Return the version of FAISS and what it was built for, such as `1.15.1, OPTIMIZE AVX512`."""
    return f"{faiss.__version__}, {faiss.get_compile_options().strip()}"


def compute_alone() -> None:
    """Have FAISS answer this thread's calls with this thread alone: where requests are the parallelism."""
    faiss.omp_set_num_threads(1)


def last_line(error: Exception) -> str:
    """Return what FAISS says went wrong: it puts the C++ source position first."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _selector(selection: Selection | None) -> Any:
    return None if selection is None else faiss.IDSelectorBitmap(selection.bits)


def _faiss_parameters(index: Any, parameters: SearchParameters, selector: Any) -> Any:
    """Return the parameters of one search: never set on the index, which other threads are searching."""
    index = faiss.downcast_index(index)
    # FAISS takes no None for "no selector".
    chosen = {} if selector is None else {"sel": selector}
    if isinstance(index, faiss.IndexRefine):
        inner = _faiss_parameters(index.base_index, parameters, selector)
        factor = index.k_factor if parameters.k_factor is None else parameters.k_factor
        return faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner, **chosen)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _faiss_parameters(index.index, parameters, selector)
        return faiss.SearchParametersPreTransform(index_params=inner, **chosen)
    if isinstance(index, _IVF):
        return faiss.SearchParametersIVF(nprobe=parameters.nprobe or index.nprobe, **chosen)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=parameters.ef_search or index.hnsw.efSearch, **chosen)
    # Others have nothing to set, and some refuse any parameters.
    return faiss.SearchParameters(**chosen) if chosen else None


def _layers(index: Any) -> Iterator[Any]:
    """Yield an index and what it is made around: re-ranking and rotation come before what they are for."""
    index = faiss.downcast_index(index)
    yield index
    if isinstance(index, faiss.IndexRefine):
        yield from _layers(index.base_index)
    elif isinstance(index, faiss.IndexPreTransform):
        yield from _layers(index.index)


def _fast_scan(index: Any) -> Any:
    """Return the inverted lists of packed codes within an index, None where it has none."""
    return next((layer for layer in _layers(index) if isinstance(layer, faiss.IndexIVFFastScan)), None)


def _adjustable(index: Any) -> Adjustable:
    *around, core = _layers(index)
    return Adjustable(
        lists=int(core.nlist) if isinstance(core, faiss.IndexIVF) else 0,
        graph=isinstance(core, faiss.IndexHNSW),
        refines=any(isinstance(layer, faiss.IndexRefine) for layer in around),
    )


def _honours_selectors(index: Any) -> bool:
    """Tell whether an index searches among selected rows: some refuse to, and some take no notice."""
    total = int(index.ntotal)
    if not total:
        return True
    odd = Selection.of(range(1, total, 2), total)
    probe = np.zeros((1, int(index.d)), np.float32)
    probe[0, 0] = 1
    try:
        rows = index.search(probe, min(total, 10), params=_faiss_parameters(index, DEFAULT, _selector(odd)))[1]
    except RuntimeError:
        return False
    return bool(((rows < 0) | (rows % 2 == 1)).all())
