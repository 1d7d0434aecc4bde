"""Which classes are kept back from training, so that an evaluation is on things never seen."""

import math

import numpy as np

from indexer.errors import TrainingError
from indexer.samples import Samples


def hold_out(samples: Samples, part: float, seed: int) -> tuple[Samples, Samples]:
    """Split into training and test samples by class: no class is in both. A sample without label is its own class.

    Args:
        samples: to split.
        part: of the classes to keep for the test, between 0 and 1.
        seed: of the choice.

    Raises:
        TrainingError: the classes are too few to be split.
    """
    classes = [f"picture {sample.name}" if sample.label is None else f"label {sample.label}" for sample in samples]
    names = sorted(set(classes))
    if len(names) < 3:  # noqa: PLR2004 - two to train on, one to test on
        raise TrainingError(
            f"With {len(names)} classes none can be kept for the evaluation. Say what to evaluate on: --test-where."
        )
    kept = set(np.random.default_rng(seed).choice(names, size=math.ceil(part * len(names)), replace=False).tolist())
    test = [i for i, name in enumerate(classes) if name in kept]
    return samples.subset(i for i, name in enumerate(classes) if name not in kept), samples.subset(test)
