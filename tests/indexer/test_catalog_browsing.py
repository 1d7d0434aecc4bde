"""Browsing the catalogue: pages in the order of rows, and counts of values."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.catalog import Catalog
from indexer.filters import Filter
from indexer.selection import Selection
from tests.indexer.test_catalog import bytes_read, record, written
from tests.test_properties import CONDITIONS, FIELDS, KEYS, RECORDS, holds, place

ALL = Filter()


def one_of(*values: Any) -> Filter:
    """Return a filter by label."""
    return Filter.model_validate({"must": {"key": "label", "match": {"any": values}}})


def test_pages_follow_each_other_in_the_order_of_rows(tmp_path: Path) -> None:
    catalog = written(tmp_path / "c", *map(record, range(10)))
    assert [found.row for found in catalog.page(None, -1, 4)] == [0, 1, 2, 3]
    assert [found.row for found in catalog.page(None, 3, 4)] == [4, 5, 6, 7]
    assert [found.row for found in catalog.page(None, 7, 4)] == [8, 9]
    assert catalog.page(None, 9, 4) == []


def test_pages_of_a_selection_hold_nothing_else(tmp_path: Path) -> None:
    catalog = written(tmp_path / "c", *(record(row, label="ab"[row % 2]) for row in range(10)))
    among = catalog.select(one_of("b"))
    assert [found.row for found in catalog.page(among, -1, 3)] == [1, 3, 5]
    assert [found.row for found in catalog.page(among, 5, 3)] == [7, 9]
    assert catalog.page(among, 9, 3) == []


@pytest.mark.parametrize("after", [-(10**30), -1, 5, 10, 2**63, 10**30])
def test_a_page_after_a_row_that_is_none_is_at_an_end(tmp_path: Path, after: int) -> None:
    catalog = written(tmp_path / "c", *map(record, range(10)))
    rows = [row for row in range(10) if row > after]
    for among in (None, Selection.of(range(10), 10)):
        assert [found.row for found in catalog.page(among, after, 100)] == rows


def test_a_deep_page_reads_as_little_as_the_first(tmp_path: Path) -> None:
    written(tmp_path / "c", *(record(row, label="ab"[row % 2]) for row in range(50_000)))
    for wanted in (None, one_of("b")):
        read = []
        for after in (-1, 49_000):
            catalog = Catalog.open(tmp_path / "c")
            among = None if wanted is None else catalog.select(wanted)
            before = bytes_read()
            assert len(catalog.page(among, after, 50)) == 50
            read.append(bytes_read() - before)
        assert max(read) < 100_000


def test_values_are_counted_by_how_many_pictures_have_them(tmp_path: Path) -> None:
    metadata: list[dict[str, Any]] = [
        {"v": [1, 1, "1", True, None, {"v": 1}, ["x"]]},
        {"v": 1.0},
        {"v": True},
        {"v": {"v": "x"}},
        {"v": None},
        {},
        {"v": "b"},
        {"v": "b"},
        {"v": "a"},
        {"v": "a"},
    ]
    catalog = written(tmp_path / "c", *(record(row, metadata=each) for row, each in enumerate(metadata)))
    counted = catalog.facet(ALL, "metadata.v", 100)
    assert counted == ((1, 2), ("a", 2), ("b", 2), (True, 2), ("1", 1))
    assert [type(value) for value, _ in counted] == [int, str, str, bool, str]
    assert catalog.facet(ALL, "metadata.v.v", 100) == (("x", 1),)
    assert catalog.facet(ALL, "metadata.v", 2) == ((1, 2), ("a", 2))


def test_columns_are_counted_and_null_is_no_value(tmp_path: Path) -> None:
    labels = ["b", None, "a", "b", "", None]
    catalog = written(tmp_path / "c", *(record(row, label=label, group="id0") for row, label in enumerate(labels)))
    assert catalog.facet(ALL, "label", 100) == (("b", 2), ("", 1), ("a", 1))
    assert catalog.facet(ALL, "group", 100) == (("id0", 6),)
    assert catalog.facet(ALL, "width", 100) == ((640, 6),)
    assert catalog.facet(ALL, "caption", 100) == ()
    assert catalog.facet(one_of("a", "b"), "label", 1) == (("b", 2),)


@settings(max_examples=100)
@given(facts=st.lists(RECORDS, min_size=1, max_size=6), conditions=st.lists(CONDITIONS, max_size=2), key=KEYS)
def test_counts_are_those_of_the_records_that_the_filter_matches(
    facts: list[dict[str, Any]], conditions: list[dict[str, Any]], key: str
) -> None:
    records = [{"id": f"id{row}", **fact} for row, fact in enumerate(facts)]
    counts: Counter[tuple[bool, Any]] = Counter()
    for each in records:
        if all(holds(condition, each) for condition in conditions):
            found = place(each, FIELDS[key])
            values = found if isinstance(found, list) else [found]
            counts.update({(type(value) is bool, value) for value in values if isinstance(value, str | int | float)})
    with tempfile.TemporaryDirectory() as folder:
        catalog = written(Path(folder, "c"), *(record(row, **each) for row, each in enumerate(records)))
        told = catalog.facet(Filter.model_validate_json(json.dumps({"must": conditions})), key, 100)
    assert {(type(value) is bool, value): count for value, count in told} == counts
    assert [count for _, count in told] == sorted(counts.values(), reverse=True)


@pytest.mark.parametrize("name", ["') --", "a' OR '1'='1", "; DROP TABLE images", "?1", "$", "%", "metadata", "ü,."])
def test_no_name_or_value_is_ever_sql(tmp_path: Path, name: str) -> None:
    catalog = written(tmp_path / "c", record(0, label=name, metadata={name: name}), record(1, metadata={"x": "y"}))
    assert catalog.facet(ALL, f'metadata."{name}"', 100) == ((name, 1),)
    assert catalog.facet(one_of(name), "label", 100) == ((name, 1),)
    assert len(catalog) == 2


def test_what_was_counted_lately_is_recalled(tmp_path: Path) -> None:
    catalog = written(tmp_path / "c", *(record(row, label=f"{row % 7}") for row in range(100)))
    assert catalog.facet(ALL, "label", 10) is catalog.facet(ALL, "label", 10)
    assert catalog.facet(ALL, "label", 2) != catalog.facet(ALL, "label", 10)
    assert catalog.select(ALL) is catalog.select(ALL)


@given(rows=st.sets(st.integers(0, 99)), row=st.integers(-2, 101), limit=st.integers(1, 20))
def test_the_rows_after_a_row_are_the_next_of_the_selection(rows: set[int], row: int, limit: int) -> None:
    selection = Selection.of(np.array(sorted(rows), np.int64), 100)
    assert selection.after(row, limit) == [each for each in sorted(rows) if each > row][:limit]
