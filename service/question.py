"""ask(): from a search request to what pictures are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from indexer.recall import QueryKind
from indexer.selection import Selection
from service.deps import Means
from service.errors import BadQuery
from service.query import directions, encoded, kind_of, without
from service.schemas.parts import QueryPart
from service.schemas.search import SearchRequest
from service.searcher import Searcher, Vector, combine


@dataclass(frozen=True)
class Criterion:
    """One vector that pictures are compared with, and where in the request it comes from: `/query` or `/all_of/0`."""

    place: str
    vector: Vector
    kind: QueryKind


@dataclass(frozen=True)
class Question:
    """A request whose texts and pictures have become vectors.

    Attributes:
        places: each part by its place in the request, such as `/query/0`.
        parts: their vectors.
        basis: what the search shall not look at, orthonormal rows, shape (n, dim).
        criteria: what pictures are compared with.
        among: the pictures that the filter matches; None for all.
    """

    request: SearchRequest
    places: Mapping[str, QueryPart]
    parts: Mapping[str, Vector]
    basis: Vector
    criteria: Sequence[Criterion]
    among: Selection | None


async def ask(request: SearchRequest, means: Means) -> Question:
    """Encode what a request is made of, and select what its filter matches."""
    lists = {"query": request.query, "all_of": request.all_of, "any_of": request.any_of, "none_of": request.none_of}
    places = {f"/{name}/{number}": part for name, parts in lists.items() for number, part in enumerate(parts)}
    parts = dict(zip(places, await encoded(list(places.values()), means), strict=True))
    basis = await directions(request.suppress, means)
    criteria = [
        Criterion(place, without(parts[place], basis), kind_of([part]))
        for place, part in places.items()
        if not place.startswith("/query")
    ]
    if request.query:
        own = [parts[f"/query/{number}"] for number in range(len(request.query))]
        whole = combine(own, [part.weight for part in request.query])
        criteria.append(Criterion("/query", without(whole, basis), kind_of(request.query)))
    if request.min_relevance is not None:
        _check_relevance(criteria, means.searcher)
    among = None
    if request.filter is not None:
        among = await means.pipeline.select(means.searcher.snapshot.catalog, request.filter)
    return Question(request, places, parts, basis, criteria, among)


def _check_relevance(criteria: Sequence[Criterion], searcher: Searcher) -> None:
    for kind in dict.fromkeys(each.kind for each in criteria):
        if searcher.calibration(kind) is None:
            raise BadQuery(
                f"This index has not learnt how relevant a {kind} score is, so min_relevance cannot be used: build it "
                "with labels or captions, or use min_score."
            )
