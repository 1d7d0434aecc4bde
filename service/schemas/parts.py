"""The parts of a query."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, FiniteFloat, model_validator

from service.schemas.contract import Contract, ImageBytes, ItemId, Text


def _ordered(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise ValueError("the box is empty: give left, top, right and bottom, with left < right and top < bottom")
    return box


ImageUrl = Annotated[
    str,
    Field(
        max_length=2_000,
        pattern="^https?://",
        description="Of a picture; only hosts that the service's operator allows are fetched from.",
    ),
]
Share = Annotated[float, Field(ge=0, le=1)]
Box = Annotated[
    tuple[Share, Share, Share, Share],
    AfterValidator(_ordered),
    Field(
        description="Left, top, right and bottom, as shares of the picture's width and height.",
        examples=[[0, 0, 0.5, 1]],
    ),
]


class Picture(Contract):
    """Exactly one of a picture file, the URL of one, and the id of a picture in the index."""

    image: ImageBytes | None = None
    image_url: ImageUrl | None = None
    id: ItemId | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        names = [name for name in type(self).model_fields if name in _CHOICES]
        if sum(getattr(self, name) is not None for name in names) != 1:
            raise ValueError(f"give exactly one of {', '.join(names[:-1])} and {names[-1]}")
        return self


class Region(Picture):
    """A part of a picture, which is looked at as if it were the whole."""

    box: Box


class QueryPart(Picture):
    """Exactly one of a text, a picture, the id of a picture in the index, a vector, and a region of a picture."""

    text: Text | None = None
    vector: Annotated[list[FiniteFloat], Field(min_length=1, max_length=65_536)] | None = None
    """As `POST /v1/embeddings` gives it; its length does not matter."""
    region: Region | None = None


class WeightedPart(QueryPart):
    """A part of a query, and how much it counts: below 0, what the others have of it is taken away."""

    weight: Annotated[float, Field(ge=-100, le=100)] = 1.0


_CHOICES = frozenset({"text", "image", "image_url", "id", "vector", "region"})
