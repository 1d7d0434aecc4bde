"""The index that `auto` chooses, built, tuned and searched as shipped: see `search_engine.py`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np

from indexer.index import SearchParameters, VectorIndex
from indexer.index_building import write_index
from indexer.index_policy import AUTO, resolve_factory
from indexer.tuning import Queries, tune
from tests.bench.search_engine import TARGETS, K, Rows, Setting, Vectors, main


class Kindred:
    """This indexer's index, memory-mapped."""

    def build(self, pictures: Vectors, path: Path) -> None:
        """Build and write."""
        write_index(pictures, resolve_factory(AUTO, *pictures.shape), path, memory_limit=None)

    def open(self, path: Path, threads: int) -> None:
        """Open."""
        faiss.omp_set_num_threads(threads)
        self._index = VectorIndex.open(path)
        self._pictures = np.load(path.parent / "pictures.npy", mmap_mode="r")

    def search(self, vectors: Vectors, setting: Setting) -> Rows:
        """Search."""
        return self._index.search(vectors, K, SearchParameters(**setting))

    def settings(self, vectors: Vectors, neighbours: Rows) -> Iterator[Setting]:
        """Return what the build's own tuning tries for each target, in order of rising recall."""
        del neighbours
        if self._index.exact:
            return iter([{}])
        queries = Queries("the queries that are measured", vectors)
        curves = [tune(self._index, self._pictures, queries, queries, target).image.curve for target in TARGETS]
        points = sorted((point for curve in curves for point in curve), key=lambda point: point.recall)
        return (point.parameters.model_dump() for point in points)


if __name__ == "__main__":
    main({"kindred": Kindred}, sys.argv[1:])
