"""From hits to candidates: how relevant they are, and how those for several criteria become one list."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from indexer.snapshot import SCORE_DECIMALS, Hit
from service.question import Criterion
from service.ranking import Candidate
from service.searcher import Searcher

Floats = NDArray[np.float64]


def judged(hits: Sequence[Hit], criterion: Criterion, searcher: Searcher) -> list[Candidate]:
    """Return the hits of one criterion with their relevance, in their order."""
    return _candidates(hits, _relevance(np.array([hit.score for hit in hits]), criterion, searcher))


def fused(found: Sequence[Sequence[Hit]], criteria: Sequence[Criterion], searcher: Searcher) -> list[Candidate]:
    """Compare what was found for any criterion with all of them; best first, ties by id.

    A score is the least of those for `query`, for each of `all_of` and of the best of `any_of`, less the greatest for
    `none_of`: intersection, union and difference on scores, since signed vectors know no element-wise minimum (after
    Alfassy et al., "LaSO: Label-Set Operations Networks", CVPR 2019). A relevance is put together in the same way, but
    that what is not to be counts as 1 less its own.
    """
    images = {hit.image.row: hit.image for hits in found for hit in hits}
    rows = searcher.snapshot.embeddings[list(images)].astype(np.float64)
    scores = np.round(rows @ np.stack([each.vector for each in criteria]).astype(np.float64).T, SCORE_DECIMALS)
    least, greatest = _wanted(scores, criteria), _unwanted(scores, criteria)
    total = np.round(least - greatest, SCORE_DECIMALS).tolist()
    hits = [Hit(image, score) for image, score in zip(images.values(), total, strict=True)]
    known = [_relevance(column, each, searcher) for column, each in zip(scores.T, criteria, strict=True)]
    relevance = None
    if all(column is not None for column in known):
        columns = np.array(known).T
        relevance = np.minimum(_wanted(columns, criteria), 1 - _unwanted(columns, criteria))
    return sorted(_candidates(hits, relevance), key=lambda each: (-each.hit.score, each.hit.image.id))


def _wanted(values: Floats, criteria: Sequence[Criterion]) -> Floats:
    """Return the least value of each row, `any_of` having the greatest of its own; shape (n,)."""
    columns = [
        values[:, number] for number, each in enumerate(criteria) if each.place.startswith(("/query", "/all_of"))
    ]
    some = [values[:, number] for number, each in enumerate(criteria) if each.place.startswith("/any_of")]
    if some:
        columns.append(np.max(some, axis=0))
    least: Floats = np.min(columns, axis=0)
    return least


def _unwanted(values: Floats, criteria: Sequence[Criterion]) -> Floats:
    """Return the greatest value of each row for `none_of`, 0 where there is no such criterion; shape (n,)."""
    none = [values[:, number] for number, each in enumerate(criteria) if each.place.startswith("/none_of")]
    greatest: Floats = np.max(none, axis=0) if none else np.zeros(len(values))
    return greatest


def _relevance(scores: Floats, criterion: Criterion, searcher: Searcher) -> Floats | None:
    calibration = searcher.calibration(criterion.kind)
    return calibration.relevance(scores) if calibration else None


def _candidates(hits: Sequence[Hit], relevance: Floats | None) -> list[Candidate]:
    known = [None] * len(hits) if relevance is None else relevance.tolist()
    return [Candidate(hit, own) for hit, own in zip(hits, known, strict=True)]
