"""Pictures in the index, and the snapshot that an answer comes from."""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BeforeValidator, Field, Json

from indexer.catalog import ImageRecord
from indexer.filters import Filter
from indexer.relevance import Calibration
from indexer.snapshot import Hit
from service.schemas.contract import Contract, Key, Limit, Score
from service.searcher import Searcher

Relevance = Annotated[
    float | None,
    Field(
        ge=0,
        le=1,
        description="How likely the picture is what was asked for, as the build learnt it from queries of one part; "
        "null where it could not.",
    ),
]


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


class PartShare(Contract):
    """What one part of a query brings to a result's score.

    Attributes:
        part: where the part stands in the request, such as `/query/0`.
        score: cosine similarity of the part by itself.
        share: what it adds to the score of `query`; the shares of its parts sum up to that score.
            Null for parts of `all_of`, `any_of` and `none_of`, which are compared one by one.
    """

    part: str
    score: float
    share: float | None


class WordEffect(Contract):
    """What a word of a text brings to a result: how much the score falls without it; below 0, it does not hold."""

    part: str
    word: str
    effect: float


class Explanation(Contract):
    """What carried a result."""

    parts: list[PartShare]
    words: list[WordEffect]


class Result(Item):
    """One hit."""

    rank: int
    score: Score
    relevance: Relevance
    duplicates: int = 0
    """Pictures that show the same and were left out, of those that were looked at."""
    explanation: Explanation | None = None

    @classmethod
    def ranked(cls, hits: Sequence[Hit], calibration: Calibration | None) -> list[Self]:
        """Describe hits in their order, with how relevant their scores were found to be when the index was built."""
        scores = np.array([hit.score for hit in hits])
        known = [None] * len(hits) if calibration is None else calibration.relevance(scores).round(4).tolist()
        return [
            cls.of(hit.image, rank=rank, score=hit.score, relevance=relevance)
            for rank, (hit, relevance) in enumerate(zip(hits, known, strict=True), start=1)
        ]


MOST_VALUES = 100
"""Values of a key that are told."""


class FacetCount(Contract):
    """One value of a key, and how many pictures have it."""

    value: str | float | bool
    count: int

    @classmethod
    def all(cls, counts: Iterable[tuple[str | float | bool, int]]) -> list[Self]:
        """Keep the order."""
        return [cls(value=value, count=count) for value, count in counts]


_KEYS = re.compile(r'(?:"[^"]*"|[^",])+')


def _keys(given: object) -> object:
    """Split what has commas, but for those in quotation marks; the parameter may also be repeated."""
    return [key for each in given for key in _KEYS.findall(str(each))] if isinstance(given, list) else given


class BrowseRequest(Contract):
    """Which pictures to list: the parameters of an address."""

    filter: Annotated[Json[Filter | None], Field(description="Which pictures, as in a search; JSON text.")] = None
    limit: Limit = 50
    cursor: Annotated[str, Field(max_length=2_000)] | None = None
    """`next_cursor` of an answer to the same request, for the pictures after its last."""
    facets: Annotated[tuple[Key, ...], Field(max_length=8), BeforeValidator(_keys)] = ()
    """Keys whose values are counted among all pictures that the filter matches: `label,metadata.year`."""


class BrowseResponse(Contract):
    """Pictures in the index, in the order in which they were indexed.

    Attributes:
        facets: for each key its values and how many of all matching pictures have them, most frequent first.
        next_cursor: for the pictures after these; null where there are none.
    """

    items: list[Item]
    total: int
    """How many pictures the filter matches."""
    facets: dict[str, list[FacetCount]]
    next_cursor: str | None
    index: IndexRef
