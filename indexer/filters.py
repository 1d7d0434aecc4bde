r"""Filter: which pictures a search may answer with, in Qdrant's grammar.

    {
      "must": [
        {"key": "label", "match": {"any": ["cat", "dog"]}},
        {"key": "metadata.year", "range": {"gte": 2020}}
      ],
      "must_not": [{"is_empty": {"key": "metadata.\"taken.at\""}}]
    }

A key is a column of the catalogue, or a place in a picture's metadata: `metadata.` and names with dots between them; a
name that holds `.`, `[` or `]` is put in quotation marks. The values of a field are the texts, numbers and booleans
that stand there, by themselves or in an array, and what is asked of values holds if it holds of any of them. Types are
strict: `true` is not 1, "3" is not 3, but 3 is 3.0.

The grammar: https://qdrant.tech/documentation/concepts/filtering/
"""

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    WithJsonSchema,
    model_validator,
)

MOST_LEVELS = 8
"""Filters within each other. SQLite's limit of the depth of an expression is 1,000."""

MOST_CONDITIONS = 128
"""Conditions of a filter, nested ones and all."""

MOST_VALUES = 10_000
"""Values and ids that a filter lists. SQLite's limit of parameters of a statement is 32,766."""

COLUMNS: dict[str, type[str | float]] = dict.fromkeys(("id", "path", "label", "caption", "media_type", "group"), str)
COLUMNS |= dict.fromkeys(("width", "height", "size"), float)
"""The columns to filter by, and what they hold: texts or numbers."""

# Characters of a text that a filter holds.
_LONGEST = 10_000
# SQLite's paths know no escapes: a name that JSON writes with one cannot be said in them.
_NAME = re.compile(r'\.(?:"([^"\\\x00-\x1f]+)"|([^.\[\]"\\\x00-\x1f]+))')
_PLACE = re.compile(rf"metadata(?:{_NAME.pattern})+")


def names(key: str) -> list[str]:
    """Return the names in a key that begins with `metadata.`."""
    return [quoted or bare for quoted, bare in _NAME.findall(key.removeprefix("metadata"))]


def known_key(key: str) -> str:
    """Let through what can be filtered by."""
    if key not in COLUMNS and not _PLACE.fullmatch(key):
        raise ValueError(
            f"no field is called so: there are {', '.join(COLUMNS)} and, of metadata, metadata.NAME or "
            'metadata.NAME.NAME; a name with a dot or a bracket is written metadata."a.b", and one with a quotation '
            "mark, a backslash or a control character cannot be filtered by"
        )
    return key


def _scalar(value: Any) -> Any:
    """Let through what a value may be equal to."""
    if isinstance(value, str):
        if len(value) > _LONGEST:
            raise ValueError(f"a text of a filter has at most {_LONGEST:,} characters")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError("the text holds half of a surrogate pair")
    elif not isinstance(value, bool | int | float):
        raise ValueError("give a text, a number, true or false")  # noqa: TRY004 - pydantic wants a ValueError
    elif not (-(2**63) <= value < 2**63 if isinstance(value, int) else math.isfinite(value)):
        raise ValueError("a number is finite, and a whole one has at most 64 bits")
    return value


def _bound(value: Any) -> Any:
    """Let through a number; read a date as its beginning, and a time without a zone as UTC."""
    if isinstance(value, str | datetime):
        try:
            moment = datetime.fromisoformat(value) if isinstance(value, str) else value
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise ValueError("give a number, or a date or a time as in 2024-05-01T12:00:00Z") from error
    if isinstance(value, bool):
        raise ValueError("give a number or a date")  # noqa: TRY004 - pydantic wants a ValueError
    return _scalar(value)


def _listed(value: Any) -> Any:
    """Take a single condition as a list of one, as Qdrant does."""
    return [] if value is None else [value] if isinstance(value, dict | BaseModel) else value


Key = Annotated[str, Field(max_length=500, examples=["label", "metadata.year"]), AfterValidator(known_key)]
Scalar = Annotated[
    str | int | float | bool,
    PlainValidator(_scalar),
    WithJsonSchema({"type": ["string", "number", "boolean"], "maxLength": _LONGEST}),
]
Scalars = Annotated[tuple[Scalar, ...], Field(max_length=MOST_VALUES)]
Bound = Annotated[
    int | float | datetime,
    PlainValidator(_bound),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "format": "date-time"}]}),
]
Conditions = Annotated[tuple["Condition", ...], BeforeValidator(_listed), Field(max_length=MOST_CONDITIONS)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Match(_Part):
    """Exactly one of a value to be equal to, a list of them, and a list of values to differ from."""

    value: Scalar | None = None
    any: Scalars | None = None
    except_: Scalars | None = Field(default=None, alias="except")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(given is not None for given in (self.value, self.any, self.except_)) != 1:
            raise ValueError("give exactly one of value, any and except")
        return self


class Range(_Part):
    """Bounds: of numbers, or of times (ISO 8601, compared as moments; without a zone they are UTC)."""

    gt: Bound | None = None
    gte: Bound | None = None
    lt: Bound | None = None
    lte: Bound | None = None

    def bounds(self) -> dict[str, int | float | datetime]:
        """Return those that are given."""
        return {name: bound for name, bound in self if bound is not None}

    @property
    def of_times(self) -> bool:
        """Whether the bounds are times."""
        return any(isinstance(bound, datetime) for bound in self.bounds().values())

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if len({isinstance(bound, datetime) for bound in self.bounds().values()}) != 1:
            raise ValueError("give gt, gte, lt or lte, and either numbers or times")
        return self


class OfKey(_Part):
    """The field that is asked for."""

    key: Key


class MinShould(_Part):
    """At least `min_count` of the conditions hold."""

    conditions: Annotated[Conditions, Field(min_length=1)]
    min_count: int = Field(strict=True, ge=1, lt=2**31)


class Filter(_Part):
    """All of `must` hold, none of `must_not`, and at least one of `should` if there are any.

    A single condition may stand for a list of one. An empty filter matches everything.
    """

    must: Conditions = ()
    should: Conditions = ()
    must_not: Conditions = ()
    min_should: MinShould | None = None

    def narrowed(self, condition: "Condition") -> "Filter":
        """Return a filter that asks for a condition as well."""
        # Without validation: what is ours does not count towards what a request may ask for.
        return self.model_copy(update={"must": (*self.must, condition)})

    def walk(self, level: int = 1) -> Iterator[tuple[int, "Condition"]]:
        """Yield every condition and its level: 1, or more where it is nested."""
        few = self.min_should.conditions if self.min_should else ()
        for condition in (*self.must, *self.should, *self.must_not, *few):
            yield level, condition
            yield from condition.walk(level + 1)

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        conditions = list(self.walk())
        if max((level for level, _ in conditions), default=0) > MOST_LEVELS:
            raise ValueError(f"filters are nested at most {MOST_LEVELS} deep")
        if len(conditions) > MOST_CONDITIONS:
            raise ValueError(f"a filter has at most {MOST_CONDITIONS} conditions")
        if sum(condition.listed() for _, condition in conditions) > MOST_VALUES:
            raise ValueError(f"a filter lists at most {MOST_VALUES:,} values")
        return self


class Condition(Filter):
    """What is asked of one field (`key` with `match`, `range` or `exists`; `is_null`; `is_empty`), ids, or a filter."""

    key: Key | None = None
    match: Match | None = None
    range: Range | None = None
    exists: StrictBool | None = None
    """Whether there is anything but null."""
    is_null: OfKey | None = None
    """There is a null."""
    is_empty: OfKey | None = None
    """There is nothing, a null, or an empty array."""
    has_id: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=MOST_VALUES)] | None = None

    def listed(self) -> int:
        """Return how many values and ids it lists, nested ones left out."""
        lists = (self.has_id, *((self.match.any, self.match.except_) if self.match else ()))
        return sum(len(values) for values in lists if values)

    @model_validator(mode="after")
    def _one(self) -> Self:
        nested = [part for part in (self.must, self.should, self.must_not, self.min_should) if part]
        asked = [self.key, self.is_null, self.is_empty, self.has_id, nested or None]
        if sum(each is not None for each in asked) > 1:
            raise ValueError("give one of key, is_null, is_empty, has_id and a nested filter")
        if sum(each is not None for each in (self.match, self.range, self.exists)) != (self.key is not None):
            raise ValueError("a key goes with exactly one of match, range and exists")
        return self


LABELLED = Condition(key="label", exists=True)
"""Pictures that have a label."""
