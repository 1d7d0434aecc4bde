"""Searching."""

from typing import Any, Self

from pydantic import ConfigDict, Field

from service.schemas.contract import Contract, FilterBy, Limit
from service.schemas.items import IndexRef, Result
from service.schemas.parts import QueryPart


class SearchRequest(Contract):
    """A search; several parts count equally."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": [{"text": "a red star"}], "limit": 10},
                {
                    "query": [{"text": "a red star"}],
                    "filter": {
                        "must": [{"key": "metadata.year", "range": {"gte": 2020}}],
                        "must_not": [{"key": "label", "match": {"any": ["heart", "moon"]}}],
                    },
                },
            ]
        }
    )

    query: list[QueryPart] = Field(min_length=1, max_length=16)
    limit: Limit = 10
    filter: FilterBy = None
    exact: bool = False
    """Whether to compare with every picture, so that none of the nearest is missed, however long that takes."""

    @classmethod
    def from_form(cls, fields: dict[str, Any]) -> Self:
        """Read the fields of a form; an uploaded picture is called `file`."""
        rest = dict(fields)
        return cls.model_validate({"query": [{"image": rest.pop("file", None)}], **rest})


class SearchResponse(Contract):
    """Results, best first."""

    results: list[Result]
    index: IndexRef
    took_ms: dict[str, float]
