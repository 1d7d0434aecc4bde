"""Classification: by the votes of neighbours, and by words alone."""

from asyncio import to_thread
from itertools import chain
from typing import Annotated

from fastapi import APIRouter, Depends

from indexer.filters import LABELLED, Filter
from indexer.relevance import Confidence
from service.deps import Means, QueryMeans, asked
from service.describe import Classes
from service.errors import BadQuery
from service.limits import AwaitedRoute
from service.openapi import PROBLEMS, body
from service.query import encoded, kind_of, query_of
from service.rejection import Threshold
from service.schemas.classify import (
    ClassifyRequest,
    ClassifyResponse,
    ClassProbability,
    Evidence,
    ZeroShotRequest,
    ZeroShotResponse,
)
from service.schemas.items import IndexRef, Result
from service.schemas.parts import QueryPart
from service.searcher import Searcher, Terms
from service.searcher import classify as vote_of

router = APIRouter(prefix="/v1", tags=["classify"], responses=PROBLEMS, route_class=AwaitedRoute)


@router.post("/classify", openapi_extra=body(ClassifyRequest, form=("k", "temperature", "filter", "min_confidence")))
async def classify(
    request: Annotated[ClassifyRequest, Depends(asked(ClassifyRequest))], means: QueryMeans
) -> ClassifyResponse:
    """Classify by a weighted vote of the nearest labelled pictures; abstain where that is too uncertain."""
    searcher, took, own, kind = means.searcher, means.took, _own(request), kind_of([request])
    learnt = _confidence(request, searcher)
    query = await query_of([request], means)
    with took("search"):
        voters = await means.pipeline.select(searcher.snapshot.catalog, (request.filter or Filter()).narrowed(LABELLED))
        # A picture of the index is found itself, and may not vote.
        found = await means.pipeline.search(searcher, query, Terms(request.k + (own is not None), kind, voters))
        neighbors = [hit for hit in found if hit.image.id != own][: request.k]
        probabilities = vote_of(neighbors, request.temperature)
    label, share = next(iter(probabilities.items()))
    confidence = None if learnt is None else round(learnt.confidence(share), 4)
    abstained = confidence is not None and confidence < request.min_confidence
    return ClassifyResponse(
        label=None if abstained else label,
        confidence=confidence,
        abstained=abstained,
        classes=ClassProbability.all(probabilities),
        neighbors=Result.ranked(neighbors, searcher.calibration(kind)),
        notes=means.notes,
        index=IndexRef.of(searcher),
        took_ms=took.took_ms(),
    )


@router.post("/classify/zero-shot", openapi_extra=body(ZeroShotRequest))
async def classify_zero_shot(
    request: Annotated[ZeroShotRequest, Depends(asked(ZeroShotRequest))], means: QueryMeans
) -> ZeroShotResponse:
    """Classify into labels that are only described in words, and say which words spoke for them."""
    searcher, took = means.searcher, means.took
    query = await query_of([request], means)
    classes = await _classes(request, means)
    with took("search"):
        probabilities = await to_thread(classes.probabilities, query, searcher.encoder.logit_scale)
        reason = None
        if request.none_of_these:
            threshold = await to_thread(Threshold.of, classes, searcher, request.false_rejects, _own(request))
            reason = threshold.reason(classes, query)
        best = list(probabilities)[:2]
        evidence = await to_thread(lambda: {label: classes.evidence(query, label) for label in best})
    return ZeroShotResponse(
        label=best[0] if reason is None else None,
        abstained=reason is not None,
        reason=reason,
        classes=ClassProbability.all(probabilities),
        evidence=[
            Evidence(label=label, text=text, score=score) for label, own in evidence.items() for text, score in own
        ],
        notes=means.notes,
        index=IndexRef.of(searcher),
        took_ms=took.took_ms(),
    )


def _own(request: QueryPart) -> str | None:
    """Return the id of the picture of the index that is asked about, in whole or in part."""
    return request.id or (request.region.id if request.region else None)


def _confidence(request: ClassifyRequest, searcher: Searcher) -> Confidence | None:
    relevance = searcher.snapshot.manifest.relevance
    learnt = relevance.votes if relevance else None
    if learnt is None and request.min_confidence > 0:
        raise BadQuery(
            "This index has not learnt how likely a label is right, so min_confidence cannot be used: build it from "
            "labelled pictures, 16 or more, of two labels or more."
        )
    return learnt


async def _classes(request: ZeroShotRequest, means: Means) -> Classes:
    texts = request.texts()
    distinct = list(dict.fromkeys(chain.from_iterable(texts.values())))
    # Not validated: with its label, a descriptor may be longer than a request's own texts.
    vectors = await encoded([QueryPart.model_construct(text=text) for text in distinct], means)
    return Classes(texts, dict(zip(distinct, vectors, strict=True)), described=any(request.descriptors.values()))
