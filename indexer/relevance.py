"""What a build learns of scores: how relevant a hit is, and how likely a label is right.

A cosine says little by itself: 0.3 is a good match of a text, and a bad one of a picture. From queries whose right
answers are known, a build learns how often a pair with such a score is right, by isotonic regression; what was learnt
is a rising line through a few knots, with the error that it has on queries it was not learnt from.
"""

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from indexer.recall import QueryKind

Line = tuple[tuple[float, float], ...]
"""A rising line: its knots, (what is seen, probability of being right)."""


class Bin(BaseModel):
    """Predictions of about the same height, on queries not learnt from: their mean, and what part of them was right."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    predicted: float = Field(ge=0, le=1)
    observed: float = Field(ge=0, le=1)
    count: int


class Learnt(BaseModel):
    """A line from what is seen to the probability of being right.

    Attributes:
        knots: of the line, rising in both; beyond its ends it is level.
        expected_calibration_error: of a line learnt from half of the queries, on the other half: mean distance between
            the predicted and the observed share in 15 bins of equal width, weighted by what is in them, 0 to 1.
        reliability: those of the bins that hold anything.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    knots: Line = Field(min_length=1)
    expected_calibration_error: float = Field(ge=0, le=1)
    reliability: tuple[Bin, ...]

    @model_validator(mode="after")
    def _rising(self) -> Self:
        seen, probability = np.array(self.knots).T
        if (np.diff(seen) <= 0).any() or (np.diff(probability) < 0).any():
            raise ValueError("the knots do not rise")
        if probability[0] < 0 or probability[-1] > 1:
            raise ValueError("a probability lies outside [0, 1]")
        return self


class Calibration(Learnt):
    """From a score to the probability that a picture with that score is what was asked for.

    Attributes:
        origin: what right answers were known from: pictures of one `labels`, of one of the `captions`, or of one group
            of `near-duplicates`.
        queries: how many it was learnt from.
        pairs: of a query and a picture: near ones, and ones drawn at random.
    """

    origin: str
    queries: int
    pairs: int

    def relevance(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return the relevance of hits, 0 to 1, from their cosine similarities, of any shape."""
        return along(self.knots, scores)


class CoveragePoint(BaseModel):
    """Labels given only where the confidence is at least `confidence`: to what part of pictures, and right how often.

    Attributes:
        coverage: part of the pictures that get a label, 0 to 1.
        accuracy: part of those labels that is right, 0 to 1.
        confidence: the least of them, 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    coverage: float
    accuracy: float
    confidence: float


class Confidence(Learnt):
    """From the share of votes that a label wins to the probability that it is right.

    Learnt from labelled pictures, each put to the vote of the others with the service's own settings.

    Attributes:
        pictures: how many.
        accuracy: part of them that got the right label, 0 to 1.
        coverage: what abstaining from the least certain brings, from all of them down to a tenth.
    """

    pictures: int
    accuracy: float
    coverage: tuple[CoveragePoint, ...]

    def confidence(self, share: float) -> float:
        """Return how likely a label is right that won so much of the vote, 0 to 1."""
        return float(along(self.knots, share))

    def accuracy_at(self, coverage: float) -> float:
        """Return the accuracy at the point of the curve that is nearest to a coverage."""
        return min(self.coverage, key=lambda point: abs(point.coverage - coverage)).accuracy


class Relevance(BaseModel):
    """What a build learnt of the scores of each kind of query, and of votes; None where it could not know.

    Attributes:
        text: of texts, as the encoder of the manifest encodes them.
        image: of pictures.
        votes: of the k-NN vote.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: Calibration | None
    image: Calibration | None
    votes: Confidence | None

    def of(self, kind: QueryKind) -> Calibration | None:
        """Return what was learnt of a kind of query."""
        return self.text if kind is QueryKind.TEXT else self.image


def along(line: Line, seen: ArrayLike) -> NDArray[np.float64]:
    """Return the probabilities on a line at what is seen, of any shape."""
    places, probabilities = np.array(line).T
    found: NDArray[np.float64] = np.interp(np.asarray(seen, np.float64), places, probabilities)
    return found
