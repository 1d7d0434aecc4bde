"""The public routes: validate, take the searcher of this moment, ask it, describe the answer."""

import base64
from asyncio import to_thread
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from indexer.errors import ImageError
from indexer.images import DecodePolicy
from indexer.recall import QueryKind
from service.deps import AppMetrics, AppSettings, CurrentSearcher, Live, Means, QueryMeans, asked
from service.errors import BadQuery, ItemGone
from service.limits import AwaitedRoute
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
from service.searcher import Query, Terms, Vector
from service.searcher import classify as vote_of
from service.telemetry import METRICS_TYPE

router = APIRouter(prefix="/v1", responses=PROBLEMS, route_class=AwaitedRoute)
probes = APIRouter()

# A stored picture is data, never a page: a browser shall not guess its type nor run what is in it.
_PICTURE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cache-Control": "private, max-age=3600",
}


@router.post("/search", openapi_extra=body(SearchRequest, form=("limit", "filter", "exact")))
async def search(request: Annotated[SearchRequest, Depends(asked(SearchRequest))], means: QueryMeans) -> SearchResponse:
    """Find the pictures nearest to a text, a picture or a picture in the index."""
    searcher, took = means.searcher, means.took
    query = await _query(request.query, means)
    with took("search"):
        among = None if request.filter is None else await to_thread(searcher.snapshot.catalog.select, request.filter)
        terms = Terms(request.limit, _kind(request.query), among, request.exact)
        hits = await means.pipeline.search(searcher, query, terms)
    return SearchResponse(results=Result.ranked(hits), index=IndexRef.of(searcher), took_ms=took.took_ms())


@router.post("/classify", openapi_extra=body(ClassifyRequest, form=("k", "temperature", "filter")))
async def classify(
    request: Annotated[ClassifyRequest, Depends(asked(ClassifyRequest))], means: QueryMeans
) -> ClassifyResponse:
    """Classify by a weighted vote of the nearest labelled pictures."""
    searcher, took = means.searcher, means.took
    query = await _query([request], means)
    with took("search"):
        voters = await to_thread(searcher.labelled, request.filter)
        # A picture of the index is found itself, and may not vote.
        terms = Terms(request.k + (request.id is not None), _kind([request]), voters)
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
    query = await _query([request], means)
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


@router.post("/embeddings", openapi_extra=body(EmbeddingsRequest))
async def embeddings(
    request: Annotated[EmbeddingsRequest, Depends(asked(EmbeddingsRequest))], means: QueryMeans
) -> EmbeddingsResponse:
    """Encode texts, or pictures given as data URIs, as OpenAI's route does."""
    encoder = means.searcher.encoder
    if request.dimensions not in {None, encoder.spec.dim}:
        raise BadQuery(f"This encoder has {encoder.spec.dim} dimensions, not {request.dimensions}.")
    vectors = await _encoded(request.input, means)
    texts = [part.text for part in request.input if part.text is not None]
    tokens = await to_thread(encoder.count_tokens, texts)
    return EmbeddingsResponse(
        data=[
            Embedding(index=i, embedding=_written(vector, request.encoding_format)) for i, vector in enumerate(vectors)
        ],
        model=str(encoder.spec.name),
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
def image(item_id: str, searcher: CurrentSearcher, settings: AppSettings) -> Response:
    """Return the file of one picture in the index, if it is still the one that was indexed."""
    found = searcher.item(item_id)
    try:
        data = searcher.snapshot.original(found, DecodePolicy.of(settings))
    except ImageError as error:
        raise ItemGone(str(error)) from error
    return Response(data, headers=_PICTURE_HEADERS, media_type=found.media_type)


@probes.get("/livez")
async def livez() -> Health:
    """Tell that the process answers."""
    return Health(status="ok")


@probes.get("/readyz", responses={503: {"model": Health}})
async def readyz(live: Live, response: Response) -> Health:
    """Tell whether queries can be answered."""
    if live.searcher is not None:
        return Health(status="ok")
    response.status_code = 503
    return Health(status="not ready", reason=live.refused or "no snapshot has been published")


@probes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(of_app: AppMetrics) -> Response:
    """Return metrics for Prometheus."""
    return Response(of_app.text(), media_type=METRICS_TYPE)


async def _query(parts: Sequence[QueryPart], means: Means) -> Query:
    """Turn the texts and pictures among the parts of a query into vectors."""
    vectors = iter(await _encoded([part for part in parts if part.id is None], means))
    return [next(vectors) if part.id is None else part.id for part in parts]


async def _encoded(parts: Sequence[QueryPart], means: Means) -> list[Vector]:
    """Encode texts and pictures."""
    pipeline, encoder, took = means.pipeline, means.searcher.encoder, means.took
    files = [part.image for part in parts if part.image is not None]
    with took("decode") if files else nullcontext():
        pixels = await pipeline.decode(encoder, files)
    with took("encode") if parts else nullcontext():
        pictures = iter(await pipeline.encode_images(encoder, pixels))
        texts = await pipeline.encode_texts(encoder, [part.text for part in parts if part.text is not None])
    return [next(pictures) if part.text is None else texts[part.text] for part in parts]


def _kind(parts: Sequence[QueryPart]) -> QueryKind:
    return QueryKind.TEXT if any(part.text is not None for part in parts) else QueryKind.IMAGE


def _written(vector: Vector, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return list(vector.tolist())
