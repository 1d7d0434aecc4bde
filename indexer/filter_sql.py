"""From a filter to SQL over the catalogue's table of pictures: constants of this module, and bound parameters."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from indexer.filters import COLUMNS, Condition, Filter, Match, Range, names

_COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
# SQLite takes other texts for times as well, such as 'now'.
_DATED = "GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'"


def to_sql(wanted: Filter) -> tuple[str, tuple[Any, ...]]:
    """Return an SQL expression that holds for the pictures of a filter, and what is bound to its parameters."""
    writer = _Writer([])
    return writer.all_of(wanted), tuple(writer.parameters)


def counting_sql(wanted: Filter, key: str, most: int) -> tuple[str, tuple[Any, ...]]:
    """Return a statement that counts the pictures of a filter by their values of a key, and what is bound to it.

    Its rows are a value, whether it is a boolean (which SQLite has as 0 or 1), and how many pictures have it: the most
    frequent values, of equally frequent ones numbers before texts before booleans, and smaller ones before larger.
    """
    writer = _Writer([])
    matching = f"(SELECT * FROM images WHERE {writer.all_of(wanted)})"  # noqa: S608 - constants; all values are bound
    field = writer.field(key)
    tables = matching if field.elements is None else f"{matching}, {field.elements}"
    statement = f"""
        SELECT {field.value}, {field.kinds.get(bool, "0")}, count(DISTINCT row) FROM {tables}
        WHERE {_joined("OR", field.kinds.values())}
        GROUP BY 1, 2 ORDER BY 3 DESC, 2, 1 LIMIT {writer.bound(most)}
    """  # noqa: S608
    return statement, tuple(writer.parameters)


@dataclass(frozen=True)
class _Field:
    """What is asked of a field, in SQL.

    Attributes:
        there: that it has anything but null.
        null: that it is null.
        empty: that it has nothing, a null, or an empty array.
        value: one of its values.
        kinds: that a value is of a type, for each type that there may be: str, float for all numbers, bool.
        elements: the table of its values, where it may have several.
    """

    there: str
    null: str
    empty: str
    value: str
    kinds: dict[type, str]
    elements: str | None = None

    def any(self, test: str) -> str:
        """Return that a test of `value` holds for any of its values."""
        return test if self.elements is None else f"EXISTS (SELECT 1 FROM {self.elements} WHERE {test})"  # noqa: S608


def _column(key: str) -> _Field:
    name = "near_group" if key == "group" else key
    there, null = f"{name} IS NOT NULL", f"{name} IS NULL"
    return _Field(there, null, null, name, {COLUMNS[key]: there})


def _place(path: str) -> _Field:
    """Return a place in the metadata; `path` is the parameter that its path is bound to."""
    kind = f"json_type(metadata, {path})"
    return _Field(
        there=f"{kind} <> 'null'",
        null=f"{kind} = 'null'",
        empty=f"ifnull({kind}, 'null') = 'null' OR json_array_length(metadata, {path}) = 0 AND {kind} = 'array'",
        value="json_each.value",
        kinds={
            # SQLite cuts a JSON text off at a NUL, so that it would be equal to others: metadata that hold one have no
            # texts. (A NUL is written as these six characters.)
            str: r"json_each.type = 'text' AND instr(metadata, '\u0000') = 0",
            float: "json_each.type IN ('integer', 'real')",
            bool: "json_each.type IN ('true', 'false')",
        },
        # The elements of an array, and what is none by itself; of an object it would be what is in it.
        elements=f"json_each(iif({kind} = 'object', NULL, metadata), {path})",
    )


@dataclass(frozen=True)
class _Writer:
    """Writes expressions and gathers their parameters.

    An expression may be NULL, which counts as false: what is not to hold is `IS NOT TRUE`.
    """

    parameters: list[Any]

    def all_of(self, wanted: Filter) -> str:
        """Write what a filter asks for."""
        parts = [self._condition(condition) for condition in wanted.must]
        parts += [_not(self._condition(condition)) for condition in wanted.must_not]
        if wanted.should:
            parts.append(_joined("OR", map(self._condition, wanted.should)))
        if wanted.min_should:
            held = " + ".join(f"(({self._condition(each)}) IS TRUE)" for each in wanted.min_should.conditions)
            parts.append(f"{held} >= {self.bound(wanted.min_should.min_count)}")
        return _joined("AND", parts) or "1"

    def _condition(self, condition: Condition) -> str:
        if condition.has_id is not None:
            return f"id IN ({self._list(condition.has_id)})"
        if condition.is_null is not None:
            return self.field(condition.is_null.key).null
        if condition.is_empty is not None:
            return self.field(condition.is_empty.key).empty
        if condition.key is not None:
            return self._of_key(condition, self.field(condition.key))
        return self.all_of(condition)

    def _of_key(self, condition: Condition, field: _Field) -> str:
        if condition.match is not None:
            return field.any(self._matching(condition.match, field))
        if condition.range is not None:
            return field.any(self._within(condition.range, field))
        return field.there if condition.exists else _not(field.there)

    def field(self, key: str) -> _Field:
        """Return what is asked of a field."""
        if key in COLUMNS:
            return _column(key)
        return _place(self.bound("$" + "".join(f'."{name}"' for name in names(key))))

    def _matching(self, match: Match, field: _Field) -> str:
        if match.except_ is not None:
            of_any_kind = _joined("OR", field.kinds.values())
            return f"({of_any_kind}) AND {_not(self._equal(match.except_, field))}"
        return self._equal((match.value,) if match.any is None else match.any, field)

    def _equal(self, values: Sequence[Any], field: _Field) -> str:
        tests = []
        for kind, is_of_kind in field.kinds.items():
            own = [value for value in values if _kind(value) is kind]
            if own:
                tests.append(f"{is_of_kind} AND {field.value} IN ({self._list(own)})")
        return _joined("OR", tests) or "0"

    def _within(self, wanted: Range, field: _Field) -> str:
        kind = str if wanted.of_times else float
        if kind not in field.kinds:
            return "0"
        value = f"julianday({field.value})" if wanted.of_times else field.value
        tests = [field.kinds[kind], *([f"{field.value} {_DATED}"] if wanted.of_times else [])]
        tests += [f"{value} {_COMPARISONS[name]} {self._moment(bound)}" for name, bound in wanted.bounds().items()]
        return " AND ".join(tests)

    def _moment(self, bound: float | datetime) -> str:
        if isinstance(bound, datetime):
            return f"julianday({self.bound(bound.replace(tzinfo=None).isoformat(' ', 'microseconds'))})"
        return self.bound(bound)

    def _list(self, values: Iterable[Any]) -> str:
        return ", ".join(map(self.bound, values))

    def bound(self, value: Any) -> str:
        """Bind a value, and return its parameter."""
        self.parameters.append(value)
        return f"?{len(self.parameters)}"


def _not(expression: str) -> str:
    return f"({expression}) IS NOT TRUE"


def _joined(operator: str, expressions: Iterable[str]) -> str:
    return f" {operator} ".join(f"({expression})" for expression in expressions)


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)
