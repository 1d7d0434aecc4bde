"""The map: pictures on a grid whose neighbours look alike."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from service.schemas.contract import Contract, FilterBy, ItemId
from service.schemas.items import IndexRef, Item

MOST = 1_000
"""Pictures on a map."""


class MapRequest(Contract):
    """Which pictures: those with certain ids, or a sample of those that a filter matches, spread over the index."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"limit": 100}]})

    ids: Annotated[list[ItemId], Field(min_length=1, max_length=MOST)] | None = None
    filter: FilterBy = None
    limit: Annotated[int, Field(ge=1, le=MOST, description="How many pictures at most.")] = 400

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.ids is not None and self.filter is not None:
            raise ValueError("give either ids or a filter")
        return self


class Placed(Item):
    """A picture and its cell."""

    row: int
    column: int


class MapResponse(Contract):
    """A grid, and the pictures on it. A cell may be empty."""

    columns: int
    rows: int
    items: list[Placed]
    index: IndexRef
    took_ms: dict[str, float]
