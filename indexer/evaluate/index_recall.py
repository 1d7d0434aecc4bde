"""What an approximate index costs and gains: its recall against exact search, and how much quicker it is."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings
from indexer.index import VectorIndex
from indexer.index_building import build_index, resolve_factory

DEPTH = 10
_MOST_QUERIES = 1_000
_TIMED_QUERIES = 100
# Similarities of one pair differ by so much between ways to compute them.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class IndexRecall:
    """Recall of each query (0 to 1), which rows of the given ones they are, and median milliseconds of a search."""

    queries: NDArray[np.int64]
    recall: NDArray[np.float64]
    milliseconds: float
    exact_milliseconds: float


def build_indexes(embeddings: Embeddings, factory: str) -> tuple[VectorIndex, VectorIndex]:
    """Return the index of a FAISS factory string over the embeddings, and an exact one.

    Raises:
        BuildError: FAISS cannot build it.
    """
    index = build_index(embeddings, resolve_factory(factory, embeddings.shape[1]))
    return index, build_index(embeddings, "Flat")


def index_recall(index: VectorIndex, exact: VectorIndex, embeddings: Embeddings, queries: Embeddings) -> IndexRecall:
    """Ask both indexes for the ten nearest of at most 1,000 of the queries, spread evenly.

    An answer counts that is as near as the tenth exact one: among equals, an index may take any.

    Args:
        index: the one to judge.
        exact: the judge.
        embeddings: what both hold, shape (n, dim).
        queries: unit rows, shape (q, dim).
    """
    rows = np.arange(0, len(queries), -(-len(queries) // _MOST_QUERIES))
    depth = min(DEPTH, len(embeddings))
    recall = np.empty(len(rows))
    for number, row in enumerate(rows):
        query = queries[row]
        worst = (embeddings[exact.search(query[None, :], depth)[0]] @ query).min()
        found = index.search(query[None, :], depth)[0]
        answers = embeddings[found[found >= 0]] @ query
        recall[number] = (answers >= worst - _ROUNDING).sum() / depth
    timed = queries[rows[:_TIMED_QUERIES]]
    return IndexRecall(rows, recall, _milliseconds(index, timed, depth), _milliseconds(exact, timed, depth))


def _milliseconds(index: VectorIndex, queries: Embeddings, depth: int) -> float:
    times = []
    for query in queries:
        start = time.perf_counter()
        index.search(query[None, :], depth)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1_000
