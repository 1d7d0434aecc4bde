"""Searching."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from service.schemas.contract import Contract, FilterBy, Key, Limit, Text
from service.schemas.index import Problem
from service.schemas.items import FacetCount, IndexRef, Result
from service.schemas.parts import QueryPart, WeightedPart
from service.shorthand import parse

_EXAMPLES: list[JsonValue] = [
    {"query": [{"text": "a red star"}], "limit": 10},
    {"query": "2:a red star - a moon", "min_relevance": 0.5},
    {
        "query": [{"text": "a red star"}],
        "filter": {
            "must": [{"key": "metadata.year", "range": {"gte": 2020}}],
            "must_not": [{"key": "label", "match": {"any": ["heart", "moon"]}}],
        },
        "collapse_duplicates": True,
        "diversity": 0.3,
        "facets": ["label"],
    },
    {"all_of": [{"text": "a star"}, {"text": "a blue background"}], "none_of": [{"text": "a moon"}]},
]


# What takes too long for a hundred thousand results, or has no place among lines of them.
_PAGED = ("diversity", "facets", "cursor", "explain")


def _parts(query: object) -> object:
    """Read the shorthand; a list of parts is left as it is."""
    return parse(query) if isinstance(query, str) else query


Parts = Annotated[
    tuple[WeightedPart, ...],
    Field(
        max_length=16,
        description="Parts with weights, or the same in short, as a text: `2:golden retriever + @b7e0a2f1 - fruit`.",
    ),
    BeforeValidator(_parts, json_schema_input_type=tuple[WeightedPart, ...] | str),
]
Cosine = Annotated[float, Field(gt=0, le=1)]
Examples = Annotated[tuple[QueryPart, ...], Field(max_length=16)]


class SearchRequest(Contract):
    """A search: what to look for, then, in this order, what is left out and how the rest is arranged.

    `query` is one vector, the weighted sum of its parts. `all_of`, `any_of` and `none_of` are compared one by one: a
    picture's score is the least of its scores for `query` and each of `all_of` and the greatest of those for `any_of`,
    less the greatest of those for `none_of`.
    """

    model_config = ConfigDict(json_schema_extra={"examples": _EXAMPLES})

    query: Parts = ()
    all_of: Examples = ()
    any_of: Examples = ()
    none_of: Examples = ()
    suppress: Annotated[tuple[Text, ...], Field(max_length=16)] = ()
    """What the search shall not look at, such as `["red", "blue", "green"]` to search for the shape of a picture."""
    limit: Limit = 10
    filter: FilterBy = None
    exact: bool = False
    """Whether to compare with every picture, so that none of the nearest is missed, however long that takes."""
    min_score: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Least cosine similarity of a result."""
    min_relevance: Annotated[float, Field(ge=0, le=1)] | None = None
    """Least relevance of a result. Where nothing passes, the answer says `no_confident_match`."""
    collapse_duplicates: Annotated[bool | Cosine, Field(union_mode="left_to_right")] = False
    """Whether to answer with only the best of pictures that show the same: those that the build has put into one group,
    or, with a number, those whose cosine similarity is at least that."""
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much results shall differ from each other: 0 is by score alone (maximal marginal relevance)."""
    group_by: Key | None = None
    """Answer with at most `group_size` pictures of each value of a key."""
    group_size: Annotated[int, Field(ge=1, le=100)] = 1
    facets: Annotated[tuple[Key, ...], Field(max_length=8)] = ()
    """Keys whose values are counted among the nearest pictures that pass filter and cut-offs."""
    cursor: Annotated[str, Field(max_length=200_000)] | None = None
    """`next_cursor` of an answer to the same request, for what comes after it."""
    explain: bool = False
    """Whether to say of each result what carried it."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.query or self.all_of or self.any_of):
            raise ValueError("give query, all_of or any_of")
        return self

    @classmethod
    def from_form(cls, fields: dict[str, Any]) -> Self:
        """Read the fields of a form; an uploaded picture is called `file`, and is the first part of the query.

        `query`, in short, adds to it: `- a moon`.
        """
        rest = dict(fields)
        image, query = {"image": rest.pop("file", None)}, rest.pop("query", None)
        return cls.model_validate({"query": [image, *(parse(query) if query else [])], **rest})


class Hidden(Contract):
    """How many pictures an answer leaves out.

    Attributes:
        filter: those that the filter does not match.
        cutoff: those under `min_score` or `min_relevance`, of the nearest that were looked at.
        duplicates: those that show the same as a better result, of the nearest that were looked at.
    """

    filter: int
    cutoff: int
    duplicates: int


class SearchResponse(Contract):
    """Results, best first.

    Attributes:
        next_cursor: for the results after these, with the same request; null where there are none.
        no_confident_match: whether there were results but for `min_score` and `min_relevance`.
        facets: for each key the values of the nearest pictures that pass, most frequent first.
        notes: what a caller should know, such as that a long text was read in parts.
    """

    results: list[Result]
    next_cursor: str | None
    no_confident_match: bool
    hidden: Hidden
    facets: dict[str, list[FacetCount]]
    notes: list[str]
    index: IndexRef
    took_ms: dict[str, float]


class BatchRequest(Contract):
    """Several searches. One that is wrong fails by itself."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"searches": [{"query": "a red star"}, {"query": "a blue moon", "limit": 3}]}]}
    )

    searches: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=64)]
    """Each as the body of `POST /v1/search`."""


class BatchItem(Contract):
    """What came of one search: its answer where `status` is 200, else the problem."""

    status: int
    answer: SearchResponse | None = None
    problem: Problem | None = None


class BatchResponse(Contract):
    """What came of each search, in their order."""

    results: list[BatchItem]


class ExportRequest(SearchRequest):
    """A search with many results, which come as lines of JSON."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "a red star", "limit": 5_000}]})

    limit: Annotated[int, Field(ge=1, le=100_000)] = 10_000

    @model_validator(mode="after")
    def _as_they_come(self) -> Self:
        unfit = [name for name in _PAGED if getattr(self, name)]
        if unfit:
            raise ValueError(f"{unfit[0]} is for a page of results, and not for an export")
        return self
