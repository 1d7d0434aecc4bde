"""Probabilities of being right: a rising line fitted to what was seen, and how far it is off. The door to SciPy."""

import numpy as np
from numpy.typing import NDArray

from indexer.relevance import Bin, Line

_BINS = 15
# A line through so few knots, nowhere farther than this from all of them, is the same to a user.
_MOST_KNOTS, _TOLERANCE = 32, 0.005
_SEEN_DECIMALS, _PROBABILITY_DECIMALS = 6, 4

Values = NDArray[np.float64]


def fit_line(seen: Values, right: Values) -> Line:
    """Fit a rising line from what is seen to the probability of being right, in few knots.

    Centred isotonic regression (Oron & Flournoy, 2017): each step of the isotonic fit stands at the mean of what was
    seen in it, and the line goes straight from one to the next. It keeps no more of chance than the steps do, and
    tells apart what they hold equal.

    Args:
        seen: shape (n,), n at least 1.
        right: 1 where it is, 0 where not, shape (n,).
    """
    from scipy.optimize import isotonic_regression  # noqa: PLC0415 - takes a second to import

    places, which, counts = np.unique(np.round(seen, _SEEN_DECIMALS), return_inverse=True, return_counts=True)
    fit = isotonic_regression(np.bincount(which, right) / counts, weights=counts)
    starts = fit.blocks[:-1]
    centres = np.add.reduceat(places * counts, starts) / np.add.reduceat(counts, starts)
    levels = fit.x[starts].clip(0, 1)
    return tuple(
        (round(float(centres[knot]), _SEEN_DECIMALS), rounded(levels[knot])) for knot in _thinned(centres, levels)
    )


def calibration_error(predicted: Values, right: Values) -> tuple[float, tuple[Bin, ...]]:
    """Return the expected calibration error in 15 bins of equal width (Naeini, Cooper & Hauskrecht, 2015), and those.

    Args:
        predicted: probabilities of being right, shape (n,).
        right: 1 where it is, 0 where not, shape (n,).
    """
    which = np.minimum((predicted * _BINS).astype(np.int64), _BINS - 1)
    bins = tuple(_bin(predicted[which == number], right[which == number]) for number in np.unique(which))
    wrong = sum(each.count * abs(each.predicted - each.observed) for each in bins)
    return rounded(wrong / len(predicted)), bins


def rounded(probability: float | np.floating) -> float:
    """Return a probability as it is kept, and shown."""
    return round(float(probability), _PROBABILITY_DECIMALS)


def _bin(predicted: Values, right: Values) -> Bin:
    return Bin(predicted=rounded(predicted.mean()), observed=rounded(right.mean()), count=len(right))


def _thinned(places: Values, levels: Values) -> list[int]:
    """Return which knots of a rising line to keep: its ends, then one by one what the line so far is farthest from."""
    chosen = sorted({0, len(places) - 1})
    while len(chosen) < _MOST_KNOTS:
        distances = np.abs(np.interp(places, places[chosen], levels[chosen]) - levels)
        farthest = int(distances.argmax())
        if distances[farthest] <= _TOLERANCE:
            break
        chosen = sorted({*chosen, farthest})
    return chosen
