"""Searching."""

from asyncio import to_thread
from typing import Annotated

from fastapi import APIRouter, Depends

from service.deps import QueryMeans, asked
from service.limits import AwaitedRoute
from service.openapi import PROBLEMS, body
from service.query import kind_of, query_of
from service.schemas.items import IndexRef, Result
from service.schemas.search import SearchRequest, SearchResponse
from service.searcher import Terms

router = APIRouter(prefix="/v1", responses=PROBLEMS, route_class=AwaitedRoute)


@router.post("/search", openapi_extra=body(SearchRequest, form=("limit", "filter", "exact")))
async def search(request: Annotated[SearchRequest, Depends(asked(SearchRequest))], means: QueryMeans) -> SearchResponse:
    """Find the pictures nearest to a text, a picture or a picture in the index."""
    searcher, took = means.searcher, means.took
    query = await query_of(request.query, means)
    with took("search"):
        among = None if request.filter is None else await to_thread(searcher.snapshot.catalog.select, request.filter)
        terms = Terms(request.limit, kind_of(request.query), among, request.exact)
        hits = await means.pipeline.search(searcher, query, terms)
    return SearchResponse(results=Result.ranked(hits), index=IndexRef.of(searcher), took_ms=took.took_ms())
