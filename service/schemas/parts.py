"""The parts of a query."""

from typing import Self

from pydantic import model_validator

from service.schemas.contract import Contract, ImageBytes, ItemId, Text


class QueryPart(Contract):
    """Exactly one of a text, a picture, or the id of a picture in the index."""

    text: Text | None = None
    image: ImageBytes | None = None
    id: ItemId | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.text, self.image, self.id)) != 1:
            raise ValueError("give exactly one of text, image and id")
        return self
