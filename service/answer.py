"""answer(): from a search request to its answer, over the snapshot of the moment."""

import asyncio
import json
from collections.abc import Sequence

from service.cursor import Cursor, digest
from service.deps import Means
from service.errors import BadQuery
from service.explain import explained
from service.fusion import fused, judged
from service.question import Question, ask
from service.ranking import Arrangement, Candidate, Page, arrange, counted
from service.schemas.items import MOST_VALUES, FacetCount, IndexRef, Result
from service.schemas.search import Hidden, SearchRequest, SearchResponse
from service.searcher import Searcher, Terms

MOST_SHOWN = 10_000
"""Results that can be paged through."""

# Candidates for so many results, where some of them may be left out, and at least.
_SPARE, _FEWEST = 4, 200
# Facets count so many of the nearest; what must be compared with several examples is found among so many for each.
_COUNTED = 1_000
# How much deeper to look where too many candidates were left out.
_DEEPER = 4


async def answer(request: SearchRequest, means: Means) -> SearchResponse:
    """Answer a search.

    Raises:
        KindredError: it has no answer; the error says why.
    """
    question = await ask(request, means)
    same = _digest(request)
    shown = _shown(request.cursor, same, means.searcher)
    with means.took("search"):
        page, exhausted = await _page(question, shown, means)
    chosen = page.chosen[: request.limit]
    more = len(page.chosen) > len(chosen) or not exhausted
    rows = [*shown, *(candidate.row for candidate in chosen)]
    results = [_result(candidate, len(shown) + rank, page) for rank, candidate in enumerate(chosen, start=1)]
    if request.explain and results:
        explanations = await explained(question, rows[len(shown) :], means)
        both = zip(results, explanations, strict=True)
        results = [result.model_copy(update={"explanation": own}) for result, own in both]
    return SearchResponse(
        results=results,
        next_cursor=_cursor(same, rows, means.searcher) if chosen and more and len(rows) < MOST_SHOWN else None,
        no_confident_match=page.cut > 0 and not page.passed,
        hidden=Hidden(
            filter=0 if question.among is None else len(means.searcher.snapshot) - question.among.count,
            cutoff=page.cut,
            duplicates=sum(page.duplicates.values()),
        ),
        facets={key: _facet(page.passed, key) for key in request.facets},
        notes=means.notes,
        index=IndexRef.of(means.searcher),
        took_ms=means.took.took_ms(),
    )


async def _page(question: Question, shown: Sequence[int], means: Means) -> tuple[Page, bool]:
    """Return one more result than asked for, if there are so many, and whether there are no further candidates."""
    request, snapshot = question.request, means.searcher.snapshot
    how = Arrangement(**{name: getattr(request, name) for name in Arrangement.__dataclass_fields__})
    wanted = len(shown) + request.limit + 1
    depth = wanted if how.plain else max(_SPARE * wanted, _FEWEST)
    if request.facets or len(question.criteria) > 1:
        depth = max(depth, _COUNTED)
    available = len(snapshot) if question.among is None else question.among.count
    deepest = min(max(MOST_SHOWN, wanted), available)
    while True:
        candidates = await _candidates(question, min(depth, deepest), means)
        arranging = candidates, shown, request.limit + 1, how, snapshot.embeddings
        page = arrange(*arranging) if how.plain else await asyncio.to_thread(arrange, *arranging)
        # Beyond one that is below the cut-offs there are only others below them.
        exhausted = depth >= available or page.cut > 0
        if len(page.chosen) > request.limit or exhausted:
            return page, exhausted
        if depth >= deepest:
            means.notes.append(f"Only the {deepest:,} nearest pictures were looked at.")
            return page, True
        depth *= _DEEPER


async def _candidates(question: Question, depth: int, means: Means) -> list[Candidate]:
    """Return the nearest pictures, best first, ties by id, with their relevance."""
    if not depth:
        return []
    searcher, request = means.searcher, question.request
    wanted = [each for each in question.criteria if not each.place.startswith("/none_of")]
    terms = [Terms(depth, each.kind, question.among, request.exact) for each in wanted]
    found = await asyncio.gather(
        *(means.pipeline.search(searcher, each.vector, own) for each, own in zip(wanted, terms, strict=True))
    )
    if len(question.criteria) == 1:
        return judged(found[0], wanted[0], searcher)
    return await asyncio.to_thread(fused, found, question.criteria, searcher)


def _result(candidate: Candidate, rank: int, page: Page) -> Result:
    hit = candidate.hit
    return Result.of(
        hit.image,
        rank=rank,
        score=hit.score,
        relevance=None if candidate.relevance is None else round(candidate.relevance, 4),
        duplicates=page.duplicates[candidate.row],
    )


def _facet(passed: Sequence[Candidate], key: str) -> list[FacetCount]:
    values = counted((candidate.hit.image for candidate in passed), key)
    return FacetCount.all(values[:MOST_VALUES])


def _shown(text: str | None, same: str, searcher: Searcher) -> tuple[int, ...]:
    """Return the rows of the pictures on earlier pages."""
    if text is None:
        return ()
    cursor = Cursor.read(text, searcher.snapshot.manifest.id, same)
    if not all(0 <= row < len(searcher.snapshot) for row in cursor.rows):
        raise BadQuery("This is no cursor: send `next_cursor` of an earlier answer as it came.")
    return cursor.rows


def _cursor(same: str, rows: Sequence[int], searcher: Searcher) -> str:
    return Cursor(snapshot=searcher.snapshot.manifest.id, request=same, rows=tuple(rows)).encoded()


def _digest(request: SearchRequest) -> str:
    """Return what the pages of one request have in common; they may differ in size."""
    told = request.model_dump(exclude={"cursor", "limit", "explain"})
    return digest(
        "search", json.dumps(told, default=lambda each: digest(each) if isinstance(each, bytes) else str(each))
    )
