"""What an approximate index costs and gains: its recall against exact search, and how much quicker it is."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings
from indexer.index import VectorIndex, nearest
from indexer.tuning import Truth, milliseconds

_MOST_QUERIES = 1_000


@dataclass(frozen=True)
class IndexRecall:
    """Recall of each query (0 to 1), which rows they are, and the median processor time of a search, milliseconds."""

    queries: NDArray[np.int64]
    recall: NDArray[np.float64]
    milliseconds: float
    exact_milliseconds: float


def index_recall(index: VectorIndex, embeddings: Embeddings, queries: Embeddings) -> IndexRecall:
    """Ask an index for the ten nearest of at most 1,000 of the queries, spread evenly, with its own search parameters.

    Args:
        index: the one to judge.
        embeddings: what it was built over, unit rows, shape (n, dim).
        queries: unit rows, shape (q, dim).
    """
    rows = np.arange(0, len(queries), -(-len(queries) // _MOST_QUERIES))
    truth = Truth.of(embeddings, queries[rows])
    return IndexRecall(
        rows,
        truth.recall(index.search(truth.queries, truth.depth)),
        milliseconds(lambda query: index.search(query, truth.depth), truth.queries),
        milliseconds(lambda query: nearest(embeddings, query, truth.depth), truth.queries),
    )
