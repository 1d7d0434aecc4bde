"""Classification: by the vote of the nearest pictures, and by the nearest class vector made from texts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings
from indexer.evaluate.metrics import blocks, ranking
from indexer.vote import vote

K, TEMPERATURE = 21, 0.1
"""The protocol of Schall et al. (SISAP 2024), after DINO (Caron et al., ICCV 2021)."""

SWEEP_K = (1, 3, 5, 11, 21, 51, 101)
SWEEP_TEMPERATURES = (0.02, 0.1, 0.5)

# Totals nearer to each other than this, relatively, may be equal but for rounding.
_CLOSE = 1e-9


def vote_all(
    labels: NDArray[np.int64], scores: NDArray[np.float32], classes: Sequence[str], temperature: float
) -> NDArray[np.int64]:
    """Return the class that wins `indexer.vote.vote` for each query, for many queries at once.

    Args:
        labels: classes of the neighbours, by number. Shape (q, k).
        scores: their cosine similarities. Shape (q, k).
        classes: names, in the order of the alphabet, which decides between equals.
        temperature: above 0.
    """
    winners = np.empty(len(labels), np.int64)
    for block in blocks(len(labels), len(classes)):
        exact = scores[block].astype(np.float64)
        weights = np.exp((exact - exact.max(axis=1, keepdims=True)) / temperature)
        cells = labels[block] + len(classes) * np.arange(len(exact))[:, None]
        totals = np.bincount(cells.ravel(), weights.ravel(), minlength=len(exact) * len(classes))
        totals = totals.reshape(len(exact), len(classes))
        found = totals.argmax(axis=1)
        best = totals.max(axis=1, keepdims=True)
        for row in np.flatnonzero((totals >= best * (1 - _CLOSE)).sum(axis=1) > 1):
            near = [classes[label] for label in labels[block][row]]
            found[row] = classes.index(next(iter(vote(near, scores[block][row], temperature))))
        winners[block] = found
    return winners


def nearest_class(images: Embeddings, classes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the class vector with the largest inner product for each picture, the first of equals.

    Args:
        images: shape (n, dim).
        classes: shape (classes, dim), of any length.
    """
    found = np.empty(len(images), np.int64)
    for block in blocks(len(images), len(classes)):
        found[block] = ranking(images[block] @ classes.T, 1)[:, 0]
    return found
