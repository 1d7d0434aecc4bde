"""learn(): what a build learns of a snapshot's scores, votes and captions, from what is known to be right."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.calibration import Values, calibration_error, fit_line, rounded
from indexer.catalog import Catalog, ImageRecord
from indexer.encoder import Embeddings, Encoder
from indexer.filters import LABELLED, Condition, Filter
from indexer.held_out import SourcedQueries, captions, crops, encode_texts, label_sentences, spread
from indexer.index import Rows, nearest
from indexer.relevance import Calibration, Confidence, CoveragePoint, Line, Relevance, along
from indexer.selection import Selection
from indexer.text_map import fit_text_map
from indexer.vote import vote

# Pictures that a query is paired with: its nearest, which a search would show, and as many drawn at random.
_NEAR, _RANDOM = 50, 50
# From fewer queries, or labelled pictures, nothing is learnt that would hold for others.
_FEWEST_QUERIES, _FEWEST_PICTURES = 8, 16
_MOST_VOTED_ON, _MOST_CAPTIONED = 1_000, 4_096
# A map from so many is as good as one from all, to a hundredth or so, and encoding captions is what learning costs.
_CAPTIONS_PER_DIMENSION = 4
# The service's own vote, where a request does not say otherwise.
_VOTERS, _TEMPERATURE = 21, 0.1
# Neighbours that are fetched, and once more where too many of them show the same as the picture, and may not vote.
_FETCHED = (2 * _VOTERS, 1_000)
_COVERAGES = np.linspace(1, 0.1, 19)


@dataclass(frozen=True)
class Lessons:
    """What was learnt of a snapshot.

    Attributes:
        relevance: of scores and votes.
        text_map: as `fit_text_map` returns it, shape (dim, dim); (0, dim) where there are too few captions.
    """

    relevance: Relevance | None
    text_map: Embeddings

    @classmethod
    def none(cls, dim: int) -> "Lessons":
        """Return what is known of a snapshot that nothing was learnt of."""
        return cls(None, np.empty((0, dim), np.float32))


def learn(catalog: Catalog, embeddings: Embeddings, thumbnails: NDArray[np.uint8], encoder: Encoder) -> Lessons:
    """Learn what can be learnt of a snapshot; the same snapshot and encoder give the same.

    Args:
        catalog: of the snapshot, which has one picture at least.
        embeddings: unit rows, shape (n, dim), which may be memory-mapped.
        thumbnails: the bytes of its thumbnails, one JPEG after the other.
        encoder: that made its embeddings.
    """
    learner = _Learner(catalog, embeddings, thumbnails, encoder)
    return Lessons(Relevance(text=learner.texts(), image=learner.pictures(), votes=learner.votes()), learner.text_map())


@dataclass(frozen=True)
class _Known:
    """Queries whose right answers are known: pictures with the same key as the query.

    Attributes:
        origin: what the keys are.
        queries: of one kind.
        keys: of the queries; None where it is not known.
        key: of a picture; None where it is not known.
    """

    origin: str
    queries: SourcedQueries
    keys: Sequence[str | None]
    key: Callable[[ImageRecord], str | None]


@dataclass(frozen=True)
class _Pairs:
    """What was seen of pairs, whether each is right (1 or 0), and the number of its query; shape (n,) each."""

    seen: Values
    right: Values
    query: NDArray[np.int64]


class _Learner:
    """Learns of one snapshot."""

    def __init__(
        self, catalog: Catalog, embeddings: Embeddings, thumbnails: NDArray[np.uint8], encoder: Encoder
    ) -> None:
        self._catalog = catalog
        self._embeddings = embeddings
        self._thumbnails = thumbnails
        self._encoder = encoder

    def texts(self) -> Calibration | None:
        """Learn of texts: of labels where there are any, else of captions."""

        def ways() -> Iterator[_Known]:
            sentences = label_sentences(self._catalog, self._encoder)
            yield _Known("labels", sentences, sentences.sources, _label)
            captioned = captions(self._catalog, self._encoder)
            yield _Known("captions", captioned, captioned.sources, _caption)

        return self._first(ways())

    def pictures(self) -> Calibration | None:
        """Learn of pictures: what is asked for is another one of the label, else one that shows the same."""
        queries = crops(self._catalog, self._thumbnails, self._encoder)
        sources = [self._catalog.get(source) for source in queries.sources]
        ways = (("labels", _label), ("near-duplicates", _likeness))
        known = (
            _Known(origin, queries, [key(source) if source else None for source in sources], key)
            for origin, key in ways
        )
        return self._first(known)

    def votes(self) -> Confidence | None:
        """Learn of the k-NN vote, by leaving out one picture after the other, and all that show the same as it."""
        labelled = self._labelled
        if labelled.count < _FEWEST_PICTURES or len(self._catalog.label_counts()) < 2:  # noqa: PLR2004 - a choice
            return None
        voted_on = self._catalog.rows(_spread_rows(labelled, _MOST_VOTED_ON))
        outcomes = [self._outcome(record, voters) for record, voters in self._voters(voted_on)]
        shares, right = np.array([outcome for outcome in outcomes if outcome], np.float64).reshape(-1, 2).T
        return _confidence(shares, right) if len(shares) >= _FEWEST_PICTURES else None

    def text_map(self) -> Embeddings:
        """Learn the map from texts to pictures."""
        captioned = self._catalog.select(Filter(must=(Condition(key="caption", exists=True),)))
        records = self._catalog.rows(_spread_rows(captioned, _MOST_CAPTIONED))
        dim = self._encoder.spec.dim
        texts = spread(list(dict.fromkeys(str(record.caption) for record in records)), _CAPTIONS_PER_DIMENSION * dim)
        # Fewer captions than dimensions leave directions that no caption says anything of. Measured on the demo
        # collection: a map from half as many does worse than the texts' own vectors, one from as many does better.
        if len(texts) < dim:
            return Lessons.none(dim).text_map
        vectors = dict(zip(texts, encode_texts(self._encoder, texts), strict=True))
        used = [record for record in records if record.caption in vectors]
        pictures = np.array(self._embeddings[[record.row for record in used]])
        return fit_text_map(pictures, np.stack([vectors[str(record.caption)] for record in used]))

    @cached_property
    def _labelled(self) -> Selection:
        return self._catalog.select(Filter(must=(LABELLED,)))

    def _first(self, ways: Iterator[_Known]) -> Calibration | None:
        """Learn in the first of several ways that there is enough to learn from."""
        return next(filter(None, map(self._calibration, ways)), None)

    def _calibration(self, known: _Known) -> Calibration | None:
        asked = [number for number, key in enumerate(known.keys) if key is not None]
        if len(asked) < _FEWEST_QUERIES:
            return None
        pairs = self._pairs(known, asked)
        halves, outcomes = np.unique(pairs.query % 2), np.unique(pairs.right)
        if len(halves) < 2 or len(outcomes) < 2:  # noqa: PLR2004 - nothing to measure with, or nothing to tell apart
            return None
        return Calibration(**_learnt(pairs), origin=known.origin, queries=len(asked), pairs=len(pairs.seen))

    def _pairs(self, known: _Known, asked: Sequence[int]) -> _Pairs:
        """Pair queries with pictures near to them and with random ones; what is not known of is left out."""
        total, vectors = len(self._embeddings), known.queries.vectors[asked]
        near = nearest(self._embeddings, vectors, min(_NEAR, total))
        random = np.random.default_rng(0).integers(total, size=(len(asked), _RANDOM))
        rows = [np.unique(own) for own in np.concatenate([near, random], axis=1)]
        keys = {record.row: known.key(record) for record in self._records(np.concatenate(rows))}
        seen, right, query = [], [], []
        for number, own in enumerate(rows):
            theirs = [keys[row] for row in own.tolist()]
            told = np.array([key is not None for key in theirs])
            scores = self._embeddings[own].astype(np.float64) @ vectors[number].astype(np.float64)
            seen.append(scores[told])
            right.append(np.array([key == known.keys[asked[number]] for key in theirs], np.float64)[told])
            query.append(np.full(told.sum(), number))
        return _Pairs(*map(np.concatenate, (seen, right, query)))

    def _records(self, rows: Rows) -> list[ImageRecord]:
        return self._catalog.rows(np.unique(rows).tolist())

    def _voters(self, records: Sequence[ImageRecord]) -> Iterator[tuple[ImageRecord, list[ImageRecord]]]:
        """Yield each picture with the nearest labelled ones that may vote on it, nearest first."""
        waiting = list(records)
        for fetched in _FETCHED:
            depth = min(fetched, self._labelled.count)
            found = nearest(self._embeddings, self._embeddings[[own.row for own in waiting]], depth, self._labelled)
            known = {record.row: record for record in self._records(found)}
            unsettled = []
            for own, rows in zip(waiting, found.tolist(), strict=True):
                voters = [known[row] for row in rows if not _same(own, known[row])][:_VOTERS]
                if len(voters) == _VOTERS or depth == self._labelled.count or fetched == _FETCHED[-1]:
                    yield own, voters
                else:
                    unsettled.append(own)
            if not unsettled:
                return
            waiting = unsettled

    def _outcome(self, own: ImageRecord, voters: Sequence[ImageRecord]) -> tuple[float, bool] | None:
        """Return the share of the label that wins, and whether it is the right one; None without voters."""
        if not voters:
            return None
        scores = self._embeddings[[voter.row for voter in voters]] @ self._embeddings[own.row]
        label, share = next(iter(vote([str(voter.label) for voter in voters], scores, _TEMPERATURE).items()))
        return share, label == own.label


def _spread_rows(selection: Selection, most: int) -> list[int]:
    rows = selection.rows()
    chosen: list[int] = rows[spread(range(len(rows)), most)].tolist()
    return chosen


def _label(record: ImageRecord) -> str | None:
    return record.label


def _caption(record: ImageRecord) -> str | None:
    return record.caption


def _likeness(record: ImageRecord) -> str:
    return record.group or record.id


def _same(one: ImageRecord, other: ImageRecord) -> bool:
    """Tell whether two pictures show the same, so that the one would vote on itself in the other."""
    return one.content_hash == other.content_hash or _likeness(one) == _likeness(other)


def _learnt(pairs: _Pairs) -> dict[str, Any]:
    """Fit a line to all pairs, and measure one fitted to every second query on the others."""
    held_back = pairs.query % 2 == 1
    half = fit_line(pairs.seen[~held_back], pairs.right[~held_back])
    error, reliability = calibration_error(along(half, pairs.seen[held_back]), pairs.right[held_back])
    knots = fit_line(pairs.seen, pairs.right)
    return {"knots": knots, "expected_calibration_error": error, "reliability": reliability}


def _confidence(shares: Values, right: Values) -> Confidence:
    learnt = _learnt(_Pairs(shares, right, np.arange(len(shares))))
    # Of equal shares the wrong ones come first: the curve promises no more than a threshold can keep.
    order = np.lexsort((right, -shares))
    coverage = tuple(_covered(float(part), shares[order], right[order], learnt["knots"]) for part in _COVERAGES)
    return Confidence(**learnt, pictures=len(shares), accuracy=rounded(right.mean()), coverage=coverage)


def _covered(coverage: float, shares: Values, right: Values, knots: Line) -> CoveragePoint:
    """Tell how often labels are right that go to a part of the pictures, the most certain of them first."""
    count = max(round(coverage * len(shares)), 1)
    least = along(knots, shares[count - 1]).item()
    return CoveragePoint(coverage=rounded(coverage), accuracy=rounded(right[:count].mean()), confidence=rounded(least))
