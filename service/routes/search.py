"""Searching."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from indexer.errors import KindredError
from service.answer import answer
from service.deps import Means, QueryMeans, asked, invalid
from service.errors import as_problem
from service.limits import AwaitedRoute
from service.openapi import PROBLEMS, body
from service.schemas.index import Problem
from service.schemas.items import Result
from service.schemas.search import (
    BatchItem,
    BatchRequest,
    BatchResponse,
    ExportRequest,
    SearchRequest,
    SearchResponse,
)

router = APIRouter(prefix="/v1", tags=["search"], responses=PROBLEMS, route_class=AwaitedRoute)

NDJSON = "application/x-ndjson"

_FORM = tuple(
    name for name in SearchRequest.model_fields if name not in {"all_of", "any_of", "none_of", "suppress", "facets"}
)
_BLOCK = 500


@router.post("/search", openapi_extra=body(SearchRequest, form=_FORM))
async def search(request: Annotated[SearchRequest, Depends(asked(SearchRequest))], means: QueryMeans) -> SearchResponse:
    """Find the pictures nearest to texts, pictures and pictures in the index, put together as the request says."""
    return await answer(request, means)


@router.post("/search/batch", openapi_extra=body(BatchRequest))
async def batch(
    request: Annotated[BatchRequest, Depends(asked(BatchRequest))], means: QueryMeans, http: Request
) -> BatchResponse:
    """Answer several searches at once; one that fails does so by itself."""
    return BatchResponse(results=await asyncio.gather(*(_one(each, means, http) for each in request.searches)))


@router.post(
    "/search/export",
    openapi_extra=body(ExportRequest),
    response_class=StreamingResponse,
    responses={200: {"content": {NDJSON: {"schema": {"type": "string"}}}}},
)
async def export(
    request: Annotated[ExportRequest, Depends(asked(ExportRequest))], means: QueryMeans
) -> StreamingResponse:
    """Send many results, best first, each a line of JSON."""
    found = await answer(request, means)
    headers = {"X-Snapshot": found.index.snapshot}
    return StreamingResponse(_lines(found.results), media_type=NDJSON, headers=headers)


async def _one(search: dict[str, object], means: Means, http: Request) -> BatchItem:
    own = replace(means, took=means.took.anew(), notes=[])
    try:
        return BatchItem(status=200, answer=await answer(SearchRequest.model_validate(search), own))
    except ValidationError as error:
        problem = as_problem(http, invalid(error))
    except KindredError as error:
        problem = as_problem(http, error)
    return BatchItem(status=problem["status"], problem=Problem.model_validate(problem))


def _lines(results: list[Result]) -> Iterator[str]:
    for start in range(0, len(results), _BLOCK):
        yield "".join(f"{result.model_dump_json()}\n" for result in results[start : start + _BLOCK])
