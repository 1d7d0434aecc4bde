"""Indexes that others would use, in a Python that has them: see `search_engine.py`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import faiss
import hnswlib  # type: ignore[import-untyped]
import numpy as np
from autofaiss import build_index  # type: ignore[import-not-found]
from usearch.index import Index  # type: ignore[import-not-found]

from tests.bench.search_engine import Engine, K, Rows, Setting, Vectors, main

_ADD_ROWS = 50_000
# Breadths of a graph search; neighbours in this list differ in recall by about a hundredth.
_BREADTHS = [round(16 * 1.25**step) for step in range(32)]
_LINKS = 32
# Breadths while building. A wider one makes a better graph and takes longer.
_FAISS_BREADTH, _HNSWLIB_BREADTH, _USEARCH_BREADTH = 80, 100, 128


class _Graph:
    """What the graphs have in common: one number sets how widely they search."""

    def settings(self, vectors: Vectors, neighbours: Rows) -> Iterator[Setting]:
        """Return growing breadths."""
        del vectors, neighbours
        return ({"breadth": breadth} for breadth in _BREADTHS)


class FaissHnsw(_Graph):
    """FAISS's HNSW over vectors as they are."""

    def build(self, pictures: Vectors, path: Path) -> None:
        """Build and write."""
        index = faiss.IndexHNSWFlat(pictures.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _FAISS_BREADTH
        for start in range(0, len(pictures), _ADD_ROWS):
            index.add(pictures[start : start + _ADD_ROWS])
        faiss.write_index(index, str(path))

    def open(self, path: Path, threads: int) -> None:
        """Open."""
        faiss.omp_set_num_threads(threads)
        self._index = faiss.read_index(str(path))

    def search(self, vectors: Vectors, setting: Setting) -> Rows:
        """Search."""
        params = faiss.SearchParametersHNSW(efSearch=setting["breadth"])
        rows: Rows = self._index.search(vectors, K, params=params)[1]
        return rows


class Autofaiss(FaissHnsw):
    """What autofaiss chooses; at sizes where that is a graph over vectors as they are."""

    def build(self, pictures: Vectors, path: Path) -> None:
        """Build and write, with the memory that autofaiss takes for granted."""
        built, _ = build_index(pictures, save_on_disk=False, metric_type="ip", current_memory_available="24G")
        if not isinstance(built, faiss.IndexHNSW):
            raise TypeError(f"autofaiss chose a {type(built).__name__}, whose searches this benchmark cannot set.")
        faiss.write_index(built, str(path))


class Hnswlib(_Graph):
    """hnswlib."""

    def build(self, pictures: Vectors, path: Path) -> None:
        """Build and write."""
        index = hnswlib.Index("ip", pictures.shape[1])
        index.init_index(len(pictures), M=_LINKS, ef_construction=_HNSWLIB_BREADTH)
        for start in range(0, len(pictures), _ADD_ROWS):
            index.add_items(pictures[start : start + _ADD_ROWS])
        index.save_index(str(path))

    def open(self, path: Path, threads: int) -> None:
        """Open."""
        self._index, self._threads = hnswlib.Index("ip", np.load(path.parent / "text.npy").shape[1]), threads
        self._index.load_index(str(path))

    def search(self, vectors: Vectors, setting: Setting) -> Rows:
        """Search."""
        self._index.set_ef(setting["breadth"])
        rows, _ = self._index.knn_query(vectors, K, num_threads=self._threads)
        return np.asarray(rows).astype(np.int64)


class Usearch(_Graph):
    """usearch, with vectors in half precision."""

    def build(self, pictures: Vectors, path: Path) -> None:
        """Build and write."""
        index = self._empty(pictures.shape[1])
        for start in range(0, len(pictures), _ADD_ROWS):
            block = np.array(pictures[start : start + _ADD_ROWS])
            index.add(np.arange(start, start + len(block)), block)
        index.save(str(path))

    def open(self, path: Path, threads: int) -> None:
        """Open."""
        self._index, self._threads = self._empty(np.load(path.parent / "text.npy").shape[1]), threads
        self._index.load(str(path))

    def search(self, vectors: Vectors, setting: Setting) -> Rows:
        """Search."""
        self._index.expansion_search = setting["breadth"]
        found = self._index.search(vectors, K, threads=self._threads)
        return np.asarray(found.keys).reshape(len(vectors), K).astype(np.int64)

    def _empty(self, dim: int) -> Index:
        return Index(ndim=dim, metric="ip", dtype="f16", connectivity=_LINKS, expansion_add=_USEARCH_BREADTH)


_PEERS: dict[str, type[Engine]] = {
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "FAISS HNSW32": FaissHnsw,
    "autofaiss": Autofaiss,
}


if __name__ == "__main__":
    main(_PEERS, sys.argv[1:])
