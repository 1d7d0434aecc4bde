"""From the parts of a query to vectors."""

from collections.abc import Sequence
from contextlib import nullcontext

from indexer.recall import QueryKind
from service.deps import Means
from service.schemas.parts import QueryPart
from service.searcher import Query, Vector


async def query_of(parts: Sequence[QueryPart], means: Means) -> Query:
    """Turn the texts and pictures among the parts of a query into vectors."""
    vectors = iter(await encoded([part for part in parts if part.id is None], means))
    return [next(vectors) if part.id is None else part.id for part in parts]


async def encoded(parts: Sequence[QueryPart], means: Means) -> list[Vector]:
    """Encode texts and pictures."""
    pipeline, encoder, took = means.pipeline, means.searcher.encoder, means.took
    files = [part.image for part in parts if part.image is not None]
    with took("decode") if files else nullcontext():
        pixels = await pipeline.decode(encoder, files)
    with took("encode") if parts else nullcontext():
        pictures = iter(await pipeline.encode_images(encoder, pixels))
        texts = await pipeline.encode_texts(encoder, [part.text for part in parts if part.text is not None])
    return [next(pictures) if part.text is None else texts[part.text] for part in parts]


def kind_of(parts: Sequence[QueryPart]) -> QueryKind:
    """Return the kind that a query is searched for as."""
    return QueryKind.TEXT if any(part.text is not None for part in parts) else QueryKind.IMAGE
