"""The public routes: validate, take the searcher of this moment, ask it, describe the answer."""

import base64
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Response

from indexer.errors import ImageError
from indexer.images import DecodePolicy, decode
from indexer.recall import QueryKind
from service.deps import AppMetrics, CurrentSearcher, Live, Policy, Stopwatch, Took, asked
from service.errors import BadQuery, ItemGone
from service.openapi import PROBLEMS, body
from service.schemas import (
    ClassifyRequest,
    ClassifyResponse,
    ClassProbability,
    Embedding,
    EmbeddingsRequest,
    EmbeddingsResponse,
    Health,
    IndexRef,
    IndexResponse,
    ItemDetail,
    QueryPart,
    Result,
    SearchRequest,
    SearchResponse,
    Usage,
    ZeroShotRequest,
    ZeroShotResponse,
)
from service.searcher import Searcher, Vector, combine
from service.telemetry import METRICS_TYPE

router = APIRouter(prefix="/v1", responses=PROBLEMS)
probes = APIRouter()

# A stored picture is data, never a page: a browser shall not guess its type nor run what is in it.
_PICTURE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cache-Control": "private, max-age=3600",
}


@router.post("/search", openapi_extra=body(SearchRequest, form=("limit",)))
def search(
    request: Annotated[SearchRequest, Depends(asked(SearchRequest))],
    searcher: CurrentSearcher,
    policy: Policy,
    took: Took,
) -> SearchResponse:
    """Find the pictures nearest to a text, a picture or a picture in the index."""
    vector = combine([_vector(part, searcher, policy, took) for part in request.query])
    with took("search"):
        (hits,) = searcher.snapshot.search(vector[None, :], request.limit, _kind(request.query))
    return SearchResponse(results=Result.ranked(hits), index=IndexRef.of(searcher), took_ms=took.took_ms())


@router.post("/classify", openapi_extra=body(ClassifyRequest, form=("k", "temperature")))
def classify(
    request: Annotated[ClassifyRequest, Depends(asked(ClassifyRequest))],
    searcher: CurrentSearcher,
    policy: Policy,
    took: Took,
) -> ClassifyResponse:
    """Classify by a weighted vote of the nearest labelled pictures."""
    vector = _vector(request, searcher, policy, took)
    with took("search"):
        answer = searcher.classify(vector, _kind([request]), request.k, request.temperature, without=request.id)
    return ClassifyResponse(
        label=next(iter(answer.probabilities)),
        classes=ClassProbability.all(answer.probabilities),
        neighbors=Result.ranked(answer.neighbors),
        index=IndexRef.of(searcher),
        took_ms=took.took_ms(),
    )


@router.post("/classify/zero-shot", openapi_extra=body(ZeroShotRequest))
def classify_zero_shot(
    request: Annotated[ZeroShotRequest, Depends(asked(ZeroShotRequest))],
    searcher: CurrentSearcher,
    policy: Policy,
    took: Took,
) -> ZeroShotResponse:
    """Classify into labels that are only described in words."""
    vector = _vector(request, searcher, policy, took)
    with took("encode"):
        probabilities = searcher.classify_zero_shot(vector, request.prompts())
    return ZeroShotResponse(
        label=next(iter(probabilities)),
        classes=ClassProbability.all(probabilities),
        index=IndexRef.of(searcher),
        took_ms=took.took_ms(),
    )


@router.post("/embeddings", openapi_extra=body(EmbeddingsRequest))
def embeddings(
    request: Annotated[EmbeddingsRequest, Depends(asked(EmbeddingsRequest))],
    searcher: CurrentSearcher,
    policy: Policy,
    took: Took,
) -> EmbeddingsResponse:
    """Encode texts, or pictures given as data URIs, as OpenAI's route does."""
    if request.dimensions not in {None, searcher.encoder.spec.dim}:
        raise BadQuery(f"This encoder has {searcher.encoder.spec.dim} dimensions, not {request.dimensions}.")
    vectors = [_vector(part, searcher, policy, took) for part in request.input]
    tokens = searcher.encoder.count_tokens([part.text for part in request.input if part.text is not None])
    return EmbeddingsResponse(
        data=[
            Embedding(index=i, embedding=_written(vector, request.encoding_format)) for i, vector in enumerate(vectors)
        ],
        model=str(searcher.encoder.spec.name),
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )


@router.get("/index")
def index(searcher: CurrentSearcher, live: Live) -> IndexResponse:
    """Describe the served snapshot and its encoder."""
    return IndexResponse.of(searcher, live.refused)


@router.get("/items/{item_id}")
def item(item_id: str, searcher: CurrentSearcher) -> ItemDetail:
    """Describe one picture in the index."""
    return ItemDetail.of(searcher.item(item_id))


@router.get("/items/{item_id}/thumbnail", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
def thumbnail(item_id: str, searcher: CurrentSearcher) -> Response:
    """Return a small JPEG of one picture in the index."""
    data = searcher.snapshot.thumbnail(searcher.item(item_id))
    return Response(data, headers=_PICTURE_HEADERS, media_type="image/jpeg")


@router.get("/items/{item_id}/image", response_class=Response, responses={200: {"content": {"image/*": {}}}})
def image(item_id: str, searcher: CurrentSearcher, policy: Policy) -> Response:
    """Return the file of one picture in the index, if it is still the one that was indexed."""
    found = searcher.item(item_id)
    try:
        data = searcher.snapshot.original(found, policy)
    except ImageError as error:
        raise ItemGone(str(error)) from error
    return Response(data, headers=_PICTURE_HEADERS, media_type=found.media_type)


@probes.get("/livez")
def livez() -> Health:
    """Tell that the process answers."""
    return Health(status="ok")


@probes.get("/readyz", responses={503: {"model": Health}})
def readyz(live: Live, response: Response) -> Health:
    """Tell whether queries can be answered."""
    if live.searcher is not None:
        return Health(status="ok")
    response.status_code = 503
    return Health(status="not ready", reason=live.refused or "no snapshot has been published")


@probes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(of_app: AppMetrics) -> Response:
    """Return metrics for Prometheus."""
    return Response(of_app.text(), media_type=METRICS_TYPE)


def _vector(part: QueryPart, searcher: Searcher, policy: DecodePolicy, took: Stopwatch) -> Vector:
    """Turn one part of a query into its vector."""
    if part.id is not None:
        return searcher.snapshot.vector(searcher.item(part.id))
    if part.image is not None:
        with took("decode"):
            picture = decode(part.image, policy).rgb
        with took("encode"):
            return searcher.encode_image(picture)
    with took("encode"):
        return searcher.encode_text(str(part.text))


def _kind(parts: Sequence[QueryPart]) -> QueryKind:
    return QueryKind.TEXT if any(part.text is not None for part in parts) else QueryKind.IMAGE


def _written(vector: Vector, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in np.asarray(vector)]
