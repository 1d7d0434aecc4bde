"""Classification: by the votes of neighbours, and by words alone."""

from asyncio import to_thread
from itertools import chain
from typing import Annotated

from fastapi import APIRouter, Depends

from service.deps import QueryMeans, asked
from service.limits import AwaitedRoute
from service.openapi import PROBLEMS, body
from service.query import kind_of, query_of
from service.schemas.classify import (
    ClassifyRequest,
    ClassifyResponse,
    ClassProbability,
    ZeroShotRequest,
    ZeroShotResponse,
)
from service.schemas.items import IndexRef, Result
from service.searcher import Terms
from service.searcher import classify as vote_of

router = APIRouter(prefix="/v1", responses=PROBLEMS, route_class=AwaitedRoute)


@router.post("/classify", openapi_extra=body(ClassifyRequest, form=("k", "temperature", "filter")))
async def classify(
    request: Annotated[ClassifyRequest, Depends(asked(ClassifyRequest))], means: QueryMeans
) -> ClassifyResponse:
    """Classify by a weighted vote of the nearest labelled pictures."""
    searcher, took = means.searcher, means.took
    query = await query_of([request], means)
    with took("search"):
        voters = await to_thread(searcher.labelled, request.filter)
        # A picture of the index is found itself, and may not vote.
        terms = Terms(request.k + (request.id is not None), kind_of([request]), voters)
        found = await means.pipeline.search(searcher, query, terms)
        neighbors = [hit for hit in found if hit.image.id != request.id][: request.k]
        probabilities = vote_of(neighbors, request.temperature)
    return ClassifyResponse(
        label=next(iter(probabilities)),
        classes=ClassProbability.all(probabilities),
        neighbors=Result.ranked(neighbors),
        index=IndexRef.of(searcher),
        took_ms=took.took_ms(),
    )


@router.post("/classify/zero-shot", openapi_extra=body(ZeroShotRequest))
async def classify_zero_shot(
    request: Annotated[ZeroShotRequest, Depends(asked(ZeroShotRequest))], means: QueryMeans
) -> ZeroShotResponse:
    """Classify into labels that are only described in words."""
    searcher, took = means.searcher, means.took
    query = await query_of([request], means)
    with took("encode"):
        prompts = request.prompts()
        known = await means.pipeline.encode_texts(searcher.encoder, chain.from_iterable(prompts.values()))
        vectors = {label: [known[text] for text in texts] for label, texts in prompts.items()}
        probabilities = await to_thread(searcher.classify_zero_shot, query, vectors)
    return ZeroShotResponse(
        label=next(iter(probabilities)),
        classes=ClassProbability.all(probabilities),
        index=IndexRef.of(searcher),
        took_ms=took.took_ms(),
    )
