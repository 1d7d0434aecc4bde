"""Retrieval: pictures by pictures of the same label, pictures by caption, captions by picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings
from indexer.evaluate.metrics import (
    average_precision,
    blocks,
    first_right,
    hit_at,
    interpolated_precision,
    ranking,
)

Rows = NDArray[np.int64]
"""Row numbers of embeddings."""


@dataclass(frozen=True)
class ImageToImage:
    """How well pictures find the pictures of their label.

    Attributes:
        queries: rows of the queries of `average_precision`.
        average_precision: of each query, at full depth.
        curve: mean interpolated precision at recall 0, 0.01, ..., 1.
        accompanied: rows of the pictures whose label another picture has.
        r1, r5: of these, 1 where the first one (five) other pictures hold one of the label, else 0.
    """

    queries: Rows
    average_precision: NDArray[np.float64]
    curve: NDArray[np.float64]
    accompanied: Rows
    r1: NDArray[np.float64]
    r5: NDArray[np.float64]


def image_to_image(embeddings: Embeddings, labels: NDArray[np.int64], *, with_self: bool) -> ImageToImage:
    """Let every labelled picture query all pictures.

    The protocol of GPR1200 (Schall et al., MMM 2022) and of INSTRE as Schall et al. (SISAP 2024) use it. R@1 and R@5
    always leave the query out, as for CUB.

    Args:
        embeddings: shape (n, dim).
        labels: numbers from 0, or -1 for a picture without label, which is an answer but no query. Shape (n,).
        with_self: whether the query stays among the answers and counts as a hit, as in that protocol. If not, pictures
            that are alone with their label are no queries.
    """
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    accompanied = np.flatnonzero((labels >= 0) & (sizes[labels] > 1))
    queries = np.flatnonzero(labels >= 0) if with_self else accompanied
    found: list[tuple[NDArray[np.float64], ...]] = []
    for block in blocks(len(queries), len(embeddings)):
        rows = queries[block]
        order = ranking(embeddings[rows] @ embeddings.T)
        others = order[order != rows[:, None]].reshape(len(rows), -1)
        right = labels[others] == labels[rows, None]
        counted = labels[order] == labels[rows, None] if with_self else right
        found.append((average_precision(counted), interpolated_precision(counted), hit_at(right, 1), hit_at(right, 5)))
    if not found:
        return ImageToImage(queries, np.empty(0), np.empty(0), queries, np.empty(0), np.empty(0))
    precision, curves, r1, r5 = (np.concatenate(each) for each in zip(*found, strict=True))
    hits = np.isin(queries, accompanied)
    return ImageToImage(queries, precision, curves.mean(axis=0), accompanied, r1[hits], r5[hits])


@dataclass(frozen=True)
class Nearest:
    """The nearest candidates of queries, best first, and their cosine similarities; both of shape (q, k)."""

    rows: Rows
    scores: NDArray[np.float32]


def nearest(queries: Embeddings, candidates: Embeddings, own: Rows, k: int) -> Nearest:
    """Return the k nearest candidates of each query.

    Args:
        queries: shape (q, dim).
        candidates: shape (n, dim).
        own: row of the candidate that is the query itself and is left out, or -1; shape (q,).
        k: at most n, less one where a query is left out.
    """
    rows, best = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    for block in blocks(len(queries), len(candidates)):
        scores = queries[block] @ candidates.T
        present = np.flatnonzero(own[block] >= 0)
        scores[present, own[block][present]] = -np.inf
        rows[block] = ranking(scores, k)
        best[block] = np.take_along_axis(scores, rows[block], axis=1)
    return Nearest(rows, best)


def first_right_ranks(queries: Embeddings, candidates: Embeddings, right: Sequence[Rows]) -> Rows:
    """Return the rank, from 1, of the best right candidate of each query.

    Args:
        queries: shape (q, dim).
        candidates: shape (n, dim).
        right: rows of the right candidates of each query, at least one each.
    """
    ranks = np.empty(len(queries), np.int64)
    for block in blocks(len(queries), len(candidates)):
        scores = queries[block] @ candidates.T
        mask = np.zeros(scores.shape, np.bool_)
        for query, rows in zip(mask, right[block], strict=True):
            query[rows] = True
        ranks[block] = first_right(scores, mask)
    return ranks
