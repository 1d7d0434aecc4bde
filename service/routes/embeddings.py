"""Embeddings, as OpenAI's route has them."""

import base64
from asyncio import to_thread
from typing import Annotated

from fastapi import APIRouter, Depends

from service.deps import QueryMeans, asked
from service.errors import BadQuery
from service.limits import AwaitedRoute
from service.openapi import PROBLEMS, body
from service.query import encoded
from service.schemas.embeddings import Embedding, EmbeddingsRequest, EmbeddingsResponse, Usage
from service.searcher import Vector

router = APIRouter(prefix="/v1", tags=["embeddings"], responses=PROBLEMS, route_class=AwaitedRoute)


@router.post("/embeddings", openapi_extra=body(EmbeddingsRequest))
async def embeddings(
    request: Annotated[EmbeddingsRequest, Depends(asked(EmbeddingsRequest))], means: QueryMeans
) -> EmbeddingsResponse:
    """Encode texts, or pictures given as data URIs, as OpenAI's route does."""
    encoder = means.searcher.encoder
    if request.dimensions not in {None, encoder.spec.dim}:
        raise BadQuery(f"This encoder has {encoder.spec.dim} dimensions, not {request.dimensions}.")
    vectors = await encoded(request.input, means)
    texts = [part.text for part in request.input if part.text is not None]
    tokens = await to_thread(encoder.count_tokens, texts)
    return EmbeddingsResponse(
        data=[
            Embedding(index=i, embedding=_written(vector, request.encoding_format)) for i, vector in enumerate(vectors)
        ],
        model=str(encoder.spec.name),
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _written(vector: Vector, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return list(vector.tolist())
