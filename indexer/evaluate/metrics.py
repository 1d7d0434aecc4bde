"""Ranking metrics: pure functions of numpy arrays.

One rule for ties everywhere: equal scores keep the order of the rows, so that every figure is deterministic.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
"""Shape (queries, candidates): similarities, the larger the nearer."""

Right = NDArray[np.bool_]
"""Shape (queries, candidates): which candidates are right answers; columns by row or by rank, as a function says."""

# Scores of one block: small enough for the processor's cache, where sorting is several times faster.
_BLOCK = 2**20


def blocks(queries: int, candidates: int) -> Iterator[slice]:
    """Cut queries into blocks, so that the matrix of all scores is never in memory as a whole."""
    size = max(1, _BLOCK // max(candidates, 1))
    for start in range(0, queries, size):
        yield slice(start, min(start + size, queries))


def ranking(scores: Scores, k: int | None = None) -> NDArray[np.int64]:
    """Return the rows of the candidates, best first, equal scores by row.

    Args:
        scores: no NaN among them.
        k: how many of each query; None means all.

    Returns:
        Shape (queries, k), k at most the number of candidates.
    """
    # Score and row in one integer, whose order is the wanted one: numpy sorts integers six times as fast as it sorts
    # floats stably, and the first k of distinct integers are the same however they are found. The bits of a float are
    # ordered as an integer's, backwards below zero; adding 0 turns -0 into 0.
    bits = (scores + np.float32(0)).view(np.uint32)
    descending = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF))
    rows = np.arange(scores.shape[1], dtype=np.uint64)
    keys = descending.astype(np.uint64) << np.uint64(32) | rows
    if k is not None and k < scores.shape[1]:
        keys.partition(k - 1, axis=1)
        keys = keys[:, :k].copy()
    keys.sort(axis=1)
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def average_precision(right: Right) -> NDArray[np.float64]:
    """Return 1/R * sum over the hits of (hits so far / rank), R being the number of hits.

    Args:
        right: columns by rank; at least one hit in each row.
    """
    queries, columns = np.nonzero(right)
    counts = right.sum(axis=1)
    first_hit = np.cumsum(counts) - counts
    hits_so_far = np.arange(1, len(queries) + 1) - first_hit[queries]
    precision = hits_so_far / (columns + 1)
    return np.asarray(np.bincount(queries, precision, minlength=len(right)) / counts, np.float64)


def interpolated_precision(right: Right, steps: int = 100) -> NDArray[np.float64]:
    """Return the best precision at a recall of at least 0, 1/steps, ..., 1, as in the TREC evaluations.

    Args:
        right: columns by rank; at least one hit in each row.
        steps: number of steps between the levels of recall.

    Returns:
        Shape (queries, steps + 1).
    """
    curves = np.empty((len(right), steps + 1))
    levels = np.arange(steps + 1)
    for query, row in enumerate(right):
        ranks = np.flatnonzero(row) + 1
        precision = np.arange(1, len(ranks) + 1) / ranks
        best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
        # Hits needed for each level, rounded up in whole numbers: 0.07 * 100 is more than 7.
        needed = np.maximum(-(-levels * len(ranks) // steps), 1)
        curves[query] = best_from_here[needed - 1]
    return curves


def hit_at(right: Right, k: int) -> NDArray[np.float64]:
    """Return 1 for each query with a right answer among the first k, else 0; the mean is R@k. Columns by rank."""
    return np.asarray(right[:, :k].any(axis=1), np.float64)


def first_right(scores: Scores, right: Right) -> NDArray[np.int64]:
    """Return the rank, from 1, of the best right answer of each query. Columns by row; one right answer at least."""
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    tied = scores == best
    first = np.argmax(right & tied, axis=1)
    before = np.arange(scores.shape[1]) < first[:, None]
    return np.asarray(1 + (scores > best).sum(axis=1) + (tied & before).sum(axis=1), np.int64)


def confusion_matrix(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return how many queries of each class (row) were taken for each class (column)."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def modality_gap(images: NDArray[np.float32], texts: NDArray[np.float32]) -> float:
    """Return the squared distance of the mean image embedding and the mean text embedding, between 0 and 4.

    As CLIP-Refine measures it (Yamaguchi et al., CVPR 2025), after Liang et al. (NeurIPS 2022).
    """
    gap = images.mean(axis=0, dtype=np.float64) - texts.mean(axis=0, dtype=np.float64)
    return float(gap @ gap)
