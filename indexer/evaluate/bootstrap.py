"""Confidence intervals by the cluster bootstrap: whole groups of queries are drawn again, with replacement.

Queries of one instance succeed and fail together. Drawn one by one they would promise too narrow an interval
(Field and Welsh, J. R. Stat. Soc. B 69, 2007).
"""

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1_000
LEVEL = 0.95

# Draws of so many groups are in memory at a time.
_CHUNK = 4_000_000


def resampled_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Return the mean of each figure over the queries of groups drawn with replacement.

    All figures see the same draws, so that a difference of two columns is a paired one.

    Args:
        sums: sum of each figure's values over the queries of each group. Shape (figures, groups).
        counts: how many queries that are. Shape (figures, groups).
        resamples: how often as many groups are drawn as there are.
        seed: of the draws.

    Returns:
        Shape (resamples, figures); NaN where a draw holds no query of a figure.
    """
    groups = sums.shape[1]
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, len(sums)))
    size = max(1, _CHUNK // groups)
    for start in range(0, resamples, size):
        draws = rng.multinomial(groups, np.full(groups, 1 / groups), min(size, resamples - start)).astype(np.float64)
        with np.errstate(invalid="ignore"):
            means[start : start + size] = (draws @ sums.T) / (draws @ counts.T)
    return means


def interval(means: NDArray[np.float64]) -> tuple[float, float]:
    """Return the percentile interval of resampled means, of which at least one is a number."""
    low, high = np.nanpercentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
