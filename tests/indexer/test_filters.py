"""Filters: what each condition means, what is refused, and that no text of a request is ever SQL."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from indexer.catalog import Catalog
from indexer.filter_sql import to_sql
from indexer.filters import LABELLED, Filter
from indexer.recall import QueryKind
from indexer.store import SnapshotStore
from tests.indexer.test_catalog import record, written
from tests.snapshots import unit_vectors, write_snapshot

RECORDS = [
    record(
        0,
        label="cat",
        width=100,
        metadata={"year": 2020, "tags": ["a", "b"], "seen": True, "taken": "2024-05-01T12:00:00Z"},
    ),
    record(
        1,
        label="dog",
        caption="a dog",
        width=200,
        metadata={"year": 2021.0, "tags": [], "seen": False, "taken": "2024-05-01T13:30:00+02:00"},
    ),
    record(
        2,
        width=300,
        metadata={"year": "2020", "tags": None, "place": {"city": "Oslo", "x.y": 1}, "taken": "2024-05-02"},
    ),
    record(3, label="cat", width=400, group="id0"),
    record(
        4,
        label="",
        width=500,
        size=7,
        metadata={"year": [2020, 2022], "tags": "a", "seen": 1, "place": {"city": ["Oslo", None, {"a": "Rome"}]}},
    ),
]
EVERYTHING = [0, 1, 2, 3, 4]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Write those records."""
    return written(tmp_path / "c", *RECORDS)


def rows(catalog: Catalog, wanted: Any) -> list[int]:
    """Return what a filter selects."""
    selection = catalog.select(Filter.model_validate(wanted))
    found: list[int] = selection.rows().tolist()
    assert len(found) == selection.count
    return found


def only(key: str, **test: Any) -> dict[str, Any]:
    """Return a filter of one condition on a field."""
    return {"must": [{"key": key, **test}]}


# What a condition means


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (only("label", match={"value": "cat"}), [0, 3]),
        (only("label", match={"value": "Cat"}), []),
        (only("label", match={"value": ""}), [4]),
        (only("label", match={"any": ["cat", "dog", "x"]}), [0, 1, 3]),
        (only("label", match={"any": []}), []),
        (only("label", match={"except": ["cat"]}), [1, 4]),
        (only("label", match={"except": []}), [0, 1, 3, 4]),
        (only("label", match={"value": 0}), []),
        (only("label", match={"except": [0]}), [0, 1, 3, 4]),
        (only("caption", match={"value": "a dog"}), [1]),
        (only("path", match={"value": "f/2.png"}), [2]),
        (only("media_type", match={"value": "image/png"}), EVERYTHING),
        (only("group", match={"value": "id0"}), [3]),
        (only("id", match={"any": ["id4", "id0"]}), [0, 4]),
        (only("width", match={"value": 300}), [2]),
        (only("width", match={"value": 300.0}), [2]),
        (only("width", match={"value": "300"}), []),
        (only("size", match={"value": False}), []),
        (only("size", match={"value": 7}), [4]),
        (only("metadata.year", match={"value": 2020}), [0, 4]),
        (only("metadata.year", match={"value": "2020"}), [2]),
        (only("metadata.year", match={"value": 2021}), [1]),
        (only("metadata.year", match={"any": [2022, "2020"]}), [2, 4]),
        (only("metadata.year", match={"except": [2020]}), [1, 2, 4]),
        (only("metadata.seen", match={"value": True}), [0]),
        (only("metadata.seen", match={"value": 1}), [4]),
        (only("metadata.seen", match={"value": False}), [1]),
        (only("metadata.tags", match={"value": "a"}), [0, 4]),
        (only("metadata.tags", match={"except": ["a"]}), [0]),
        (only("metadata.place", match={"except": ["a"]}), []),
        (only("metadata.place.city", match={"value": "Oslo"}), [2, 4]),
        (only("metadata.place.city", match={"value": "Rome"}), []),
        (only('metadata.place."x.y"', match={"value": 1}), [2]),
        (only("metadata.place.x.y", match={"value": 1}), []),
        (only('metadata."place"."city"', match={"value": "Oslo"}), [2, 4]),
    ],
)
def test_a_match_holds_for_values_of_the_same_type_that_are_equal(
    catalog: Catalog, wanted: Any, expected: list[int]
) -> None:
    assert rows(catalog, wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (only("width", range={"gt": 200}), [2, 3, 4]),
        (only("width", range={"gte": 200, "lt": 400.5}), [1, 2, 3]),
        (only("width", range={"lte": 99.99}), []),
        (only("label", range={"gte": 0}), []),
        (only("metadata.year", range={"gte": 2020}), [0, 1, 4]),
        (only("metadata.year", range={"gt": 2021, "lte": 2022}), [4]),
        (only("metadata.seen", range={"gte": 0}), [4]),
        (only("metadata.nothing", range={"gte": 0}), []),
    ],
)
def test_a_range_holds_for_numbers_alone(catalog: Catalog, wanted: Any, expected: list[int]) -> None:
    assert rows(catalog, wanted) == expected


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"gte": "2024-05-01T11:30:00Z"}, [0, 1, 2]),
        ({"gt": "2024-05-01T11:30:00Z"}, [0, 2]),
        ({"gt": "2024-05-01T13:30:00+02:00", "lt": "2024-05-02"}, [0]),
        ({"lte": "2024-05-02"}, [0, 1, 2]),
        ({"lt": "2024-05-01"}, []),
        ({"lt": "2024-05-01T11:30:00.001"}, [1]),
    ],
)
def test_a_range_of_times_compares_moments(catalog: Catalog, bounds: dict[str, str], expected: list[int]) -> None:
    assert rows(catalog, only("metadata.taken", range=bounds)) == expected


@pytest.mark.parametrize("text", ["now", "12:00", "2460000.5", "2024-5-1", "2024-13-01", "later", "", "2024-05-01 x"])
def test_a_text_that_is_no_time_is_in_no_range_of_times(tmp_path: Path, text: str) -> None:
    catalog = written(tmp_path / "d", record(0, metadata={"taken": text}))
    assert rows(catalog, only("metadata.taken", range={"gte": "0001-01-01"})) == []
    assert rows(catalog, only("metadata.taken", range={"lte": "9999-01-01"})) == []


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (only("label", exists=True), [0, 1, 3, 4]),
        (only("label", exists=False), [2]),
        (only("metadata.tags", exists=True), [0, 1, 4]),
        (only("metadata.tags", exists=False), [2, 3]),
        (only("metadata.place.city", exists=True), [2, 4]),
        ({"must": [{"is_null": {"key": "label"}}]}, [2]),
        ({"must": [{"is_null": {"key": "metadata.tags"}}]}, [2]),
        ({"must": [{"is_empty": {"key": "group"}}]}, [0, 1, 2, 4]),
        ({"must": [{"is_empty": {"key": "metadata.tags"}}]}, [1, 2, 3]),
        ({"must_not": [{"is_empty": {"key": "metadata.tags"}}]}, [0, 4]),
        ({"must_not": [{"is_null": {"key": "metadata.tags"}}]}, [0, 1, 3, 4]),
        ({"must": [{"has_id": ["id3", "id1", "id9"]}]}, [1, 3]),
        ({"must_not": [{"has_id": ["id3"]}]}, [0, 1, 2, 4]),
        ({"must": [{"has_id": []}]}, []),
    ],
)
def test_what_is_missing_null_or_empty_is_told_apart(catalog: Catalog, wanted: Any, expected: list[int]) -> None:
    assert rows(catalog, wanted) == expected


CAT, WIDE, SEEN = (
    {"key": "label", "match": {"value": "cat"}},
    {"key": "width", "range": {"gte": 300}},
    {"key": "metadata.seen", "match": {"any": [True, 1]}},
)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, EVERYTHING),
        ({"must": [], "should": [], "must_not": []}, EVERYTHING),
        ({"must": [{}]}, EVERYTHING),
        ({"must_not": [{}]}, []),
        ({"must": [CAT, WIDE]}, [3]),
        ({"should": [CAT, WIDE]}, [0, 2, 3, 4]),
        ({"must_not": [CAT, WIDE]}, [1]),
        ({"must_not": [SEEN]}, [1, 2, 3]),
        ({"must": [CAT], "should": [SEEN, WIDE], "must_not": [{"has_id": ["id3"]}]}, [0]),
        ({"min_should": {"conditions": [CAT, WIDE, SEEN], "min_count": 1}}, [0, 2, 3, 4]),
        ({"min_should": {"conditions": [CAT, WIDE, SEEN], "min_count": 2}}, [0, 3, 4]),
        ({"min_should": {"conditions": [CAT, WIDE, SEEN], "min_count": 4}}, []),
        ({"must": {"should": [CAT, {"must": [WIDE, SEEN]}]}}, [0, 3, 4]),
        ({"must_not": {"must_not": CAT}}, [0, 3]),
        ({"must": CAT}, [0, 3]),
        ({"should": None, "must": CAT}, [0, 3]),
    ],
)
def test_clauses_are_joined_as_qdrant_joins_them(catalog: Catalog, wanted: Any, expected: list[int]) -> None:
    assert rows(catalog, wanted) == expected


def test_a_filter_is_narrowed_by_one_more_condition(catalog: Catalog) -> None:
    wide = Filter.model_validate({"must": WIDE})
    assert rows(catalog, wide.narrowed(LABELLED)) == [3, 4]
    assert rows(catalog, Filter().narrowed(LABELLED)) == [0, 1, 3, 4]


# What is refused


def deep(levels: int) -> dict[str, Any]:
    """Return a filter that many levels deep."""
    wanted: dict[str, Any] = {"must": [CAT]}
    for _ in range(levels - 1):
        wanted = {"must": [wanted]}
    return wanted


@pytest.mark.parametrize(
    ("wanted", "place", "why"),
    [
        (
            only("colour", exists=True),
            ("must", 0, "key"),
            "there are id, path, label, caption, media_type, group, width",
        ),
        (only("Label", exists=True), ("must", 0, "key"), "metadata.NAME"),
        (only("metadata", exists=True), ("must", 0, "key"), "metadata.NAME"),
        (only("metadata.", exists=True), ("must", 0, "key"), "metadata.NAME"),
        (only("metadata.a..b", exists=True), ("must", 0, "key"), "metadata.NAME"),
        (only("metadata.tags[]", exists=True), ("must", 0, "key"), 'metadata."a.b"'),
        (only('metadata."', exists=True), ("must", 0, "key"), "quotation mark"),
        (only('metadata."a"b', exists=True), ("must", 0, "key"), "quotation mark"),
        (only("metadata.a\\b", exists=True), ("must", 0, "key"), "backslash"),
        (only("metadata.a\0", exists=True), ("must", 0, "key"), "control character"),
        (only("metadata." + "x" * 500, exists=True), ("must", 0, "key"), "at most 500 characters"),
        (only("label"), ("must", 0), "a key goes with exactly one of match, range and exists"),
        (only("label", exists=True, match={"value": "a"}), ("must", 0), "exactly one of match, range and exists"),
        ({"must": [{"match": {"value": 1}}]}, ("must", 0), "exactly one of match, range and exists"),
        ({"must": [{**CAT, "must": [WIDE]}]}, ("must", 0), "give one of key, is_null, is_empty, has_id and a nested"),
        ({"must": [{"has_id": ["a"], "is_null": {"key": "label"}}]}, ("must", 0), "give one of key"),
        (only("label", match={}), ("must", 0, "match"), "exactly one of value, any and except"),
        (only("label", match={"value": "a", "any": []}), ("must", 0, "match"), "exactly one of value, any and except"),
        (only("label", match={"value": None}), ("must", 0, "match"), "exactly one of value, any and except"),
        (only("label", match={"value": ["a"]}), ("must", 0, "match", "value"), "a text, a number, true or false"),
        (only("label", match={"any": "cat"}), ("must", 0, "match", "any"), "valid tuple"),
        (only("label", match={"any": [None]}), ("must", 0, "match", "any", 0), "a text, a number, true or false"),
        (only("label", match={"text": "cat"}), ("must", 0, "match", "text"), "Extra inputs are not permitted"),
        (only("label", match={"value": "x" * 10_001}), ("must", 0, "match", "value"), "at most 10,000 characters"),
        (only("label", match={"value": "\ud800"}), ("must", 0, "match", "value"), "surrogate"),
        (only("width", match={"value": 2**63}), ("must", 0, "match", "value"), "64 bits"),
        (only("width", match={"value": 10**400}), ("must", 0, "match", "value"), "64 bits"),
        (only("width", match={"value": float("nan")}), ("must", 0, "match", "value"), "finite"),
        (only("width", range={"lt": float("inf")}), ("must", 0, "range", "lt"), "finite"),
        (only("width", range={"lt": True}), ("must", 0, "range", "lt"), "a number or a date"),
        (only("width", range={"lt": "soon"}), ("must", 0, "range", "lt"), "2024-05-01T12:00:00Z"),
        (only("width", range={}), ("must", 0, "range"), "give gt, gte, lt or lte"),
        (only("width", range={"gt": 1, "lt": "2024-05-01"}), ("must", 0, "range"), "either numbers or times"),
        (only("label", exists=1), ("must", 0, "exists"), "valid boolean"),
        (
            {"min_should": {"conditions": [CAT], "min_count": 0}},
            ("min_should", "min_count"),
            "greater than or equal to 1",
        ),
        ({"min_should": {"conditions": [], "min_count": 1}}, ("min_should", "conditions"), "at least 1 item"),
        ({"must": [{"has_id": [3]}]}, ("must", 0, "has_id", 0), "valid string"),
        ({"must": 3}, ("must",), "valid tuple"),
        ({"where": "1"}, ("where",), "Extra inputs are not permitted"),
        (deep(9), (), "nested at most 8 deep"),
        ({"must": [CAT] * 129}, ("must",), "at most 128 items"),
        ({"must": [CAT] * 65, "should": [{"must": [WIDE] * 63}]}, (), "at most 128 conditions"),
        (
            {"must": [{"has_id": ["a"] * 6_000}, {"key": "size", "match": {"any": [1] * 4_001}}]},
            (),
            "at most 10,000 val",
        ),
    ],
)
def test_what_is_no_filter_is_told_where_and_why(wanted: Any, place: tuple[str | int, ...], why: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Filter.model_validate(wanted)
    errors = refused.value.errors()
    found = [(each["loc"], each["msg"]) for each in errors if each["loc"][-len(place) :] == place or not place]
    assert any(why in message for _, message in found), errors


def test_the_largest_filters_are_answered(catalog: Catalog) -> None:
    assert rows(catalog, deep(8)) == [0, 3]
    wide = {"key": "metadata.year", "match": {"any": [2020, "2020", True]}}
    assert rows(catalog, {"should": [wide] * 64, "must": [wide] * 64}) == [0, 2, 4]
    assert rows(catalog, {"must": [{"key": "label", "match": {"any": ["cat", *map(str, range(9_999))]}}]}) == [0, 3]
    many = [*map(str, range(5_000)), *range(4_999), 2020]
    assert rows(catalog, {"must": [{"key": "metadata.year", "match": {"any": many}}]}) == [0, 1, 2, 4]
    wanted: dict[str, Any] = {"must_not": [CAT] * 100}
    for _ in range(7):
        wanted = {"min_should": {"conditions": [wanted, SEEN, SEEN], "min_count": 1}}
    assert rows(catalog, wanted) == [*EVERYTHING[:3], 4]


# Texts are never SQL

HOSTILE = [
    "'",
    '"',
    "''",
    "';DROP TABLE images;--",
    "x' OR '1'='1",
    "--",
    "/*",
    "?",
    "?1",
    ":a",
    "@a",
    "$",
    "$.a",
    "$[0]",
    "]",
    "a\0b",
    "a",
    "a\0",
    "%",
    "_",
    "*",
    "[a-z]",
    "\\",
    "\\u0000",
    "{}",
    "null",
    "true",
    "1",
    "日本語",
    "🦊",
    "e\u0301",
    "é",
    "\u202e",
    "\n",
    "x" * 10_000,
]


def test_hostile_texts_match_what_is_literally_equal_and_change_nothing(tmp_path: Path) -> None:
    facts = [record(row, label=text, caption=text) for row, text in enumerate(HOSTILE)]
    catalog = written(tmp_path / "c", *facts)
    before = hashlib.sha256((tmp_path / "c").read_bytes()).digest()
    for row, text in enumerate(HOSTILE):
        for key in ("label", "caption"):
            assert rows(catalog, only(key, match={"value": text})) == [row]
            assert rows(catalog, only(key, match={"except": [text]})) == [
                each for each in range(len(facts)) if each != row
            ]
        assert rows(catalog, {"must": [{"has_id": [text[:64]]}]}) == []
    assert hashlib.sha256((tmp_path / "c").read_bytes()).digest() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_hostile_texts_in_metadata_match_what_is_literally_equal(tmp_path: Path) -> None:
    facts = [record(row, metadata={"a": text, "b": [text]}) for row, text in enumerate(HOSTILE)]
    catalog = written(tmp_path / "c", *facts)
    for row, text in enumerate(HOSTILE):
        # SQLite reads no text of JSON beyond a NUL.
        expected = [row] if "\0" not in text and text != "\\u0000" else []
        assert rows(catalog, only("metadata.a", match={"value": text})) == expected
        assert rows(catalog, only("metadata.b", match={"any": [text]})) == expected


def test_hostile_names_are_refused_or_mean_that_very_name(tmp_path: Path) -> None:
    catalog = written(tmp_path / "c", *(record(row, metadata={text: row}) for row, text in enumerate(HOSTILE)))
    answered = 0
    for row, text in enumerate(HOSTILE):
        for key in (f"metadata.{text}", f'metadata."{text}"'):
            try:
                found = rows(catalog, only(key, exists=True))
            except ValidationError:
                continue
            assert found == ([] if "." in text and '"' not in key else [row])
            answered += 1
    assert answered > 40


def test_the_sql_is_the_same_whatever_the_names_and_values() -> None:
    plain, _ = to_sql(Filter.model_validate(only("metadata.a", match={"any": ["a", 1]})))
    for text in HOSTILE:
        if not set(text) & {'"', "\\", "\0", "\n"} and len(text) < 100:
            where, parameters = to_sql(Filter.model_validate(only(f'metadata."{text}"', match={"any": [text, 1]})))
            assert where == plain
            assert parameters == (f'$."{text}"', text, 1)


# Selections


def test_the_same_filter_gives_the_same_selection_and_others_do_not(catalog: Catalog) -> None:
    asked = [only("metadata.seen", match={"value": value}) for value in (True, 1, "1", 1.0)]
    selections = [catalog.select(Filter.model_validate(wanted)) for wanted in asked]
    assert [selection.rows().tolist() for selection in selections] == [[0], [4], [], [4]]
    assert [catalog.select(Filter.model_validate(wanted)) for wanted in asked] == selections


def test_a_selection_is_forgotten_after_many_others(catalog: Catalog) -> None:
    first = catalog.select(Filter())
    for width in range(64):
        catalog.select(Filter.model_validate(only("width", match={"value": width})))
    assert catalog.select(Filter()) is not first
    assert len(catalog._kept) == 64


def test_a_scan_holds_up_neither_lookups_nor_selections_that_are_known(catalog: Catalog) -> None:
    known = catalog.select(Filter())
    with ThreadPoolExecutor(1) as pool:
        with catalog._scan_lock:
            waiting = pool.submit(catalog.select, Filter(must=(LABELLED,)))
            assert catalog.get("id1") == RECORDS[1]
            assert catalog.select(Filter()) is known
            assert not waiting.done()
        assert waiting.result().count == 4


def test_selections_in_many_threads_are_right(catalog: Catalog) -> None:
    def select(number: int) -> list[int]:
        return rows(catalog, only("width", range={"lte": number}))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(select, range(600)))
    assert found == [EVERYTHING[: number // 100] for number in range(600)]


# Filtered searches

FACTORIES = [
    "Flat",
    "SQ8",
    "HNSW8",
    "IVF8,Flat",
    "IVF8,SQ8",
    "IVF8,PQ8x4fs,Refine(SQfp16)",
    "RR16,IVF8,RaBitQfs,Refine(SQ8)",
    "PQ8x4fs,RFlat",
]


@pytest.mark.parametrize("few", [0, 20_000], ids=["by the index", "by comparing"])
@pytest.mark.parametrize("factory", FACTORIES)
def test_a_search_finds_as_many_as_match_and_nothing_else(
    tmp_path: Path, factory: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.snapshot._FEW", few)
    vectors = unit_vectors(2_000, 16)
    labels = ["rare" if row % 100 == 7 else "half" if row % 2 else None for row in range(2_000)]
    store = SnapshotStore(tmp_path / "snapshots")
    snapshot = store.open(write_snapshot(store, vectors, labels=labels, factory=factory))
    queries = unit_vectors(8, 16, seed=1)
    for label, most in (("rare", 20), ("half", 980), ("none", 0)):
        matching = np.array([row for row in range(2_000) if labels[row] == label])
        selection = snapshot.catalog.select(Filter.model_validate(only("label", match={"value": label})))
        for limit in (1, 10, 50):
            for exact in (False, True):
                found = snapshot.search(queries, limit, QueryKind.IMAGE, selection=selection, exact=exact)
                for query, hits in zip(queries, found, strict=True):
                    got = [hit.image.row for hit in hits]
                    assert len(set(got)) == len(got) == min(limit, most)
                    assert set(got) <= set(matching.tolist())
                    if most and (exact or few or factory == "Flat"):
                        assert got == matching[np.argsort(-(vectors[matching] @ query))][:limit].tolist()


def test_metadata_of_any_depth_can_be_filtered(tmp_path: Path) -> None:
    nested: Any = "end"
    for _ in range(200):
        nested = {"a": nested}
    assert json.dumps(nested)
    catalog = written(tmp_path / "c", record(0, metadata=nested))
    assert rows(catalog, only("metadata" + ".a" * 200, match={"value": "end"})) == [0]
    assert rows(catalog, only("metadata" + ".a" * 199, match={"value": "end"})) == []
