"""Labels in words: how well each fits a picture, and which of its texts say so."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings
from indexer.snapshot import SCORE_DECIMALS
from service.searcher import Vector, combine

Scores = NDArray[np.float64]

# By whole words: antlers begin with an "a", and are none.
_IS = re.compile(r"(a|an|used)\b", re.IGNORECASE)
_VERB = re.compile(r"(has|often|typically|may|can)\b", re.IGNORECASE)


def joined(label: str, descriptor: str) -> str:
    """Return a label with one of its descriptors: `hen, which has two legs`.

    The rule of Menon and Vondrick, "Visual Classification via Description from Large Language Models" (ICLR 2023).
    """
    descriptor = descriptor.strip()
    if _VERB.match(descriptor):
        return f"{label}, which {descriptor}"
    return f"{label}, which {'is' if _IS.match(descriptor) else 'has'} {descriptor}"


@dataclass(frozen=True)
class Classes:
    """Labels, the texts that describe each, and the unit vectors of the texts.

    Attributes:
        texts: of each label, one at least.
        known: the vector of each text.
        described: whether a label's score is the mean of its texts' cosines, as for descriptors; else it is the cosine
            to the direction of their mean, as for prompts (Radford et al., ICML 2021).
    """

    texts: Mapping[str, Sequence[str]]
    known: Mapping[str, Vector]
    described: bool

    @cached_property
    def _directions(self) -> Scores:
        """What a picture's vector is multiplied with to give its scores, shape (labels, dim)."""
        own = [[self.known[text] for text in texts] for texts in self.texts.values()]
        # The mean of cosines is the product with the mean vector, which is shorter than 1.
        return np.stack([np.mean(each, axis=0, dtype=np.float64) if self.described else combine(each) for each in own])

    def scores(self, pictures: Embeddings) -> Scores:
        """Return the scores of pictures, unit rows of shape (n, dim), for each label: shape (n, labels)."""
        return pictures.astype(np.float64) @ self._directions.T

    def probabilities(self, picture: Vector, logit_scale: float) -> dict[str, float]:
        """Return the probability of each label, most probable first, equal ones by name.

        It is the softmax of the scaled scores.
        """
        (scores,) = self.scores(picture[None])
        weights = np.exp(logit_scale * (scores - scores.max()))
        probabilities = dict(zip(self.texts, (weights / weights.sum()).tolist(), strict=True))
        return dict(sorted(probabilities.items(), key=lambda item: (-item[1], item[0])))

    def evidence(self, picture: Vector, label: str) -> list[tuple[str, float]]:
        """Return the texts of a label and the cosine of each to a picture, best first, equal ones by text."""
        scores = [
            (text, round(float(picture.astype(np.float64) @ self.known[text]), SCORE_DECIMALS))
            for text in self.texts[label]
        ]
        return sorted(scores, key=lambda each: (-each[1], each[0]))
