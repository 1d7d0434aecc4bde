"""Ranking: what is left out of the nearest pictures, and how the rest is arranged.

In this order: cut-offs, near-duplicates, diversity, groups, pages. A page goes on from those before it: pictures that
have been shown are never shown again, and count when others are compared with what is there.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from indexer.catalog import ImageRecord
from indexer.encoder import Embeddings
from indexer.filters import names
from indexer.snapshot import Hit

# Scores are given out to so many decimals.
_SCORE_STEP = 1e-6


@dataclass(frozen=True)
class Candidate:
    """A hit, and how likely it is what was asked for, 0 to 1; None where that is not known."""

    hit: Hit
    relevance: float | None

    @property
    def row(self) -> int:
        """The picture's row in the embeddings."""
        return self.hit.image.row


@dataclass(frozen=True)
class Arrangement:
    """How candidates are arranged: see `SearchRequest`, whose fields these are."""

    min_score: float | None = None
    min_relevance: float | None = None
    collapse_duplicates: bool | float = False
    diversity: float = 0.0
    group_by: str | None = None
    group_size: int = 1

    @property
    def plain(self) -> bool:
        """Whether the candidates are shown as they come, so that no more of them are needed than are shown."""
        return not (self.collapse_duplicates or self.diversity or self.group_by)

    def passes(self, candidate: Candidate) -> bool:
        """Tell whether a candidate is above the cut-offs."""
        above = self.min_score is None or candidate.hit.score >= self.min_score
        return above and (self.min_relevance is None or (candidate.relevance or 0.0) >= self.min_relevance)


@dataclass(frozen=True)
class Page:
    """Some results, best first.

    Attributes:
        chosen: the results.
        passed: the candidates above the cut-offs.
        cut: how many candidates are below them.
        duplicates: how many near-duplicates stand behind the picture of a row.
    """

    chosen: list[Candidate]
    passed: list[Candidate]
    cut: int
    duplicates: Counter[int] = field(default_factory=Counter)


def arrange(
    candidates: Sequence[Candidate], shown: Sequence[int], limit: int, how: Arrangement, embeddings: Embeddings
) -> Page:
    """Choose the next results.

    Args:
        candidates: best first, those among them that have been shown as well.
        shown: rows of the pictures on earlier pages, first to last.
        limit: how many results at most.
        how: see `Arrangement`.
        embeddings: unit rows by which pictures are compared, shape (n, dim).
    """
    earlier = set(shown)
    passed = [candidate for candidate in candidates if how.passes(candidate)]
    page = Page([], passed, len(candidates) - len(passed))
    leaders = passed
    if how.collapse_duplicates:
        leaders = _leaders(passed, shown, how.collapse_duplicates, embeddings, page.duplicates)
    rest: Iterable[Candidate] = [candidate for candidate in leaders if candidate.row not in earlier]
    if how.diversity:
        rest = _diverse(list(rest), shown, how.diversity, embeddings)
    if how.group_by is not None:
        before = [candidate for candidate in candidates if candidate.row in earlier]
        rest = _grouped(rest, before, how.group_by, how.group_size)
    page.chosen.extend(islice(rest, limit))
    return page


def values_of(image: ImageRecord, key: str) -> list[Any]:
    """Return what a picture has under a key of filters: texts, numbers and booleans, each of an array."""
    if not key.startswith("metadata"):
        found = getattr(image, key)
    else:
        found = image.metadata
        for name in names(key):
            found = found.get(name) if isinstance(found, dict) else None
    each = found if isinstance(found, list) else [found]
    return [value for value in each if isinstance(value, str | int | float)]


def counted(images: Iterable[ImageRecord], key: str) -> list[tuple[Any, int]]:
    """Count the pictures that have each value of a key: most frequent first, then numbers, texts and booleans."""
    # True and 1 are one key to a Counter.
    counts = Counter((_rank(value), value) for image in images for value in dict.fromkeys(values_of(image, key)))
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return [(value, count) for (_, value), count in ordered]


def _rank(value: str | float) -> int:
    return 2 if isinstance(value, bool) else 1 if isinstance(value, str) else 0


def _leaders(
    candidates: Sequence[Candidate],
    shown: Sequence[int],
    same: bool | float,
    embeddings: Embeddings,
    duplicates: Counter[int],
) -> list[Candidate]:
    """Leave out what shows the same as an earlier candidate, or as a picture of an earlier page."""
    placed = set(shown)
    leaders: list[Candidate] = []
    find = _ByGroup() if same is True else _ByCosine(float(same), embeddings)
    for candidate in sorted(candidates, key=lambda each: each.row not in placed):  # stable: the rest by score
        leader = find.leader(candidate)
        if leader is None or candidate.row in placed:
            leaders.append(candidate)
        else:
            duplicates[leader.row] += 1
    return leaders


class _ByGroup:
    """Finds the leader of a near-duplicate by the groups that the indexer made."""

    def __init__(self) -> None:
        self._leaders: dict[str, Candidate] = {}

    def leader(self, candidate: Candidate) -> Candidate | None:
        """Return the earlier candidate that shows the same; without one, this is the leader of those to come."""
        group = candidate.hit.image.group
        if group is None:
            return None
        leader = self._leaders.setdefault(group, candidate)
        return None if leader is candidate else leader


class _ByCosine:
    """The same by the cosine of embeddings."""

    def __init__(self, least: float, embeddings: Embeddings) -> None:
        self._least, self._embeddings = least, embeddings
        self._leaders: list[Candidate] = []
        self._vectors = np.empty((64, embeddings.shape[1]), np.float32)

    def leader(self, candidate: Candidate) -> Candidate | None:
        """Return the earlier candidate that shows the same; without one, this is the leader of those to come."""
        vector = self._embeddings[candidate.row]
        count = len(self._leaders)
        if count:
            cosines = self._vectors[:count] @ vector
            nearest = int(cosines.argmax())
            if cosines[nearest] >= self._least:
                return self._leaders[nearest]
        if count == len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
        self._vectors[count] = vector
        self._leaders.append(candidate)
        return None


def _diverse(
    candidates: Sequence[Candidate], shown: Sequence[int], diversity: float, embeddings: Embeddings
) -> Iterator[Candidate]:
    """Choose candidates one after the other by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    The next is the one with the greatest (1 - d) s - d m: s its score, rescaled so that those of the candidates run
    from 0 to 1, since scores of texts are much closer together than those of pictures; m its greatest cosine to what
    was chosen before or is on an earlier page; d the diversity.
    """
    if not candidates:
        return
    scores = np.array([candidate.hit.score for candidate in candidates])
    scores = (scores - scores.min()) / max(float(np.ptp(scores)), _SCORE_STEP)
    vectors = embeddings[[candidate.row for candidate in candidates]]
    alike = np.full(len(candidates), -1.0)
    for row in shown:
        np.maximum(alike, vectors @ embeddings[row], out=alike)
    left = np.ones(len(candidates), bool)
    while left.any():
        # What nothing was compared with yet is as unlike as can be, and -1 for all changes no order.
        gains = np.where(left, (1 - diversity) * scores - diversity * alike, -np.inf)
        best = int(gains.argmax())  # the first of equals: the one with the better score
        left[best] = False
        np.maximum(alike, vectors @ vectors[best], out=alike)
        yield candidates[best]


def _grouped(candidates: Iterable[Candidate], before: Iterable[Candidate], key: str, size: int) -> Iterator[Candidate]:
    """Leave out candidates of whose value there are enough already. One without a value is in no group."""
    counts = Counter(value for candidate in before for value in values_of(candidate.hit.image, key))
    for candidate in candidates:
        values = values_of(candidate.hit.image, key)
        if all(counts[value] < size for value in values):
            counts.update(values)
            yield candidate
