"""Rejection: whether a picture resembles none of some labels, judged by what pictures of the index resemble.

The score of the best label is compared with what it is for pictures that are known: MaxLogit on cosines, needing no
training (Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from indexer.filters import Condition, Filter, Match
from service.describe import Classes
from service.errors import BadQuery
from service.searcher import Searcher, Vector

# Pictures that a threshold is taken from, and how few of the labels' own make none.
_SAMPLE, _FEWEST = 1_000, 20


@dataclass(frozen=True)
class Threshold:
    """The score under which the best label is none.

    Attributes:
        score: a quantile of the scores of best labels.
        false_rejects: the quantile, 0 to 1.
        pictures: how many pictures it was taken from.
        own: whether all of those have one of the labels; else there are too few of them, and any picture counts.
    """

    score: float
    false_rejects: float
    pictures: int
    own: bool

    @classmethod
    def of(cls, classes: Classes, searcher: Searcher, false_rejects: float, besides: str | None) -> Self:
        """Take the threshold from pictures of the index, spread evenly over it; `besides` is the id of one not to use.

        Raises:
            BadQuery: there are no pictures.
        """
        count = len(searcher.snapshot)
        rows = _spread(_labelled(classes.texts, searcher), besides, searcher)
        own = len(rows) >= _FEWEST
        if not own:
            rows = _spread(np.arange(count), besides, searcher)
        if not len(rows):
            raise BadQuery("none_of_these compares with other pictures of the index, and there are none.")
        best = classes.scores(searcher.snapshot.embeddings[rows]).max(axis=1)
        return cls(float(np.quantile(best, false_rejects)), false_rejects, len(rows), own)

    def reason(self, classes: Classes, picture: Vector) -> str | None:
        """Return why a picture is none of the labels, or None where it may be one."""
        (scores,) = classes.scores(picture[None])
        if scores.max() >= self.score:
            return None
        label = list(classes.texts)[int(scores.argmax())]
        whose = "that have one of these labels " if self.own else ""
        why_any = "" if self.own else f"; fewer than {_FEWEST} have one of these labels"
        return (
            f"The best label, {label!r}, has a score of {scores.max():.4f}, and only {100 * self.false_rejects:g} % of "
            f"{self.pictures:,} pictures of the index {whose}have a best score under {self.score:.4f}{why_any}."
        )


def _labelled(labels: Iterable[str], searcher: Searcher) -> NDArray[np.int64]:
    """Return the rows of the pictures that have one of some labels, whatever the case of its letters."""
    catalog = searcher.snapshot.catalog
    wanted = {label.casefold() for label in labels}
    found = tuple(label for label in catalog.label_counts() if label.casefold() in wanted)
    # Not validated: a filter of ours may list as many labels as there are.
    own = Condition.model_construct(key="label", match=Match.model_construct(any=found))
    return catalog.select(Filter().narrowed(own)).rows()


def _spread(rows: NDArray[np.int64], besides: str | None, searcher: Searcher) -> NDArray[np.int64]:
    """Return some of the rows, spread evenly."""
    if besides is not None:
        rows = rows[rows != searcher.item(besides).row]
    places = np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).astype(np.int64)
    return rows[places]
