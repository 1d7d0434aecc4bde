"""k-NN classification: neighbours vote for their labels."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def vote(labels: Sequence[str], scores: NDArray[np.float32], temperature: float) -> dict[str, float]:
    """Return each label's probability, most probable first, equal ones by name.

    A neighbour with cosine similarity s weighs exp(s / temperature), as in DINO (Caron et al., ICCV 2021) and in the
    k-NN protocol of Schall et al. (SISAP 2024), where k = 21 and the temperature is 0.1.

    Args:
        labels: of the k nearest labelled pictures.
        scores: their cosine similarities, shape (k,).
        temperature: above 0; the smaller, the more the nearest count.

    Returns:
        Probabilities above or equal to 0 that sum to 1; empty where there are no neighbours.
    """
    if not labels:
        return {}
    # The best score is taken off first: the ratios stay, and exp() cannot overflow however small the temperature.
    weights = np.exp((scores.astype(np.float64) - scores.max()) / temperature)
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for label, weight in zip(labels, weights, strict=True):
        shares[label].append(float(weight))
    # fsum is exact, so that equal neighbours make equal totals in whatever order they come.
    whole = math.fsum(weights)
    totals = {label: math.fsum(weights) / whole for label, weights in shares.items()}
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))
