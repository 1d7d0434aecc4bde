"""Pictures in the index, and the snapshot that an answer comes from."""

from typing import Any, Self

from indexer.catalog import ImageRecord
from indexer.snapshot import Hit
from service.schemas.contract import Contract, Score
from service.searcher import Searcher


class IndexRef(Contract):
    """The snapshot that an answer comes from."""

    snapshot: str
    model: str
    count: int

    @classmethod
    def of(cls, searcher: Searcher) -> Self:
        """Name the snapshot and encoder of a searcher."""
        manifest = searcher.snapshot.manifest
        return cls(snapshot=manifest.id, model=str(searcher.encoder.spec.name), count=manifest.count)


class Item(Contract):
    """A picture in the index."""

    id: str
    label: str | None
    caption: str | None
    path: str
    metadata: dict[str, Any]
    thumbnail: str

    @classmethod
    def of(cls, image: ImageRecord, /, **more: Any) -> Self:
        """Describe a catalogued picture."""
        return cls(
            id=image.id,
            label=image.label,
            caption=image.caption,
            path=image.path,
            metadata=image.metadata,
            thumbnail=f"/v1/items/{image.id}/thumbnail",
            **more,
        )


class ItemDetail(Item):
    """A picture in the index, with all that is known of it."""

    image: str
    width: int
    height: int
    media_type: str
    content_hash: str

    @classmethod
    def of(cls, image: ImageRecord, /, **more: Any) -> Self:
        """Describe a catalogued picture fully."""
        return super().of(
            image,
            image=f"/v1/items/{image.id}/image",
            width=image.width,
            height=image.height,
            media_type=image.media_type,
            content_hash=image.content_hash,
            **more,
        )


class Result(Item):
    """One hit."""

    rank: int
    score: Score

    @classmethod
    def ranked(cls, hits: list[Hit]) -> list[Self]:
        """Describe hits, best first; the first has rank 1."""
        return [cls.of(hit.image, rank=rank, score=hit.score) for rank, hit in enumerate(hits, start=1)]
