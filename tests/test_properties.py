"""What holds for all inputs: hypothesis looks for one for which it does not."""

import csv
import io
import json
import math
import operator
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from indexer.catalog import Catalog, CatalogWriter, ImageRecord
from indexer.errors import ImageError
from indexer.filters import Condition, Filter, Match
from indexer.images import FORMATS, DecodePolicy, decode
from indexer.labels import Description, read_descriptions
from indexer.store import SnapshotStore
from indexer.vote import vote
from service.errors import BadQuery
from service.searcher import combine
from tests.pictures import encode, orientation, quarters
from tests.snapshots import search, unit, write_snapshot

usual = settings(deadline=None, max_examples=100)
slow = settings(deadline=None, max_examples=30)


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder for one example; pytest's is for all of a test's."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# Search

DIRECTIONS = npst.arrays(np.int8, st.tuples(st.integers(1, 40), st.just(4)), elements=st.integers(-3, 3)).filter(
    lambda rows: bool(rows.any(axis=1).all())
)
"""Few different directions, shape (n, 4), so that there are duplicates and ties."""


@slow
@given(rows=DIRECTIONS, query=DIRECTIONS, limit=st.integers(1, 45), labelled=st.booleans(), data=st.data())
def test_search_is_a_sort_by_cosine_and_then_by_id(
    rows: NDArray[np.int8], query: NDArray[np.int8], limit: int, labelled: bool, data: st.DataObject
) -> None:
    vectors, vector = unit(rows.astype(np.float64)), unit(query[:1].astype(np.float64))[0]
    ids = data.draw(st.permutations([f"{number:02}" for number in range(len(rows))]))
    labels = data.draw(st.lists(st.sampled_from(["a", None]), min_size=len(rows), max_size=len(rows)))
    with folder() as place:
        store = SnapshotStore(place / "snapshots")
        snapshot = store.open(write_snapshot(store, vectors, ids=ids, labels=labels, publish=False))
        hits = search(snapshot, vector, limit, labelled=labelled)
    scores = np.round(vectors.astype(np.float64) @ vector.astype(np.float64), 6)
    order = sorted(range(len(ids)), key=lambda row: (-scores[row], ids[row]))
    expected = [row for row in order if labels[row] or not labelled][:limit]
    assert [hit.image.id for hit in hits] == [ids[row] for row in expected]
    assert [hit.score for hit in hits] == pytest.approx([scores[row] for row in expected], abs=1e-5)


# The vote

NEIGHBOURS = st.lists(st.tuples(st.sampled_from("abcde"), st.floats(-1, 1, width=32)), min_size=1, max_size=40)
TEMPERATURES = st.floats(0.001, 100)


def voted(neighbours: list[tuple[str, float]], temperature: float) -> dict[str, float]:
    """Let neighbours vote, best first as a search returns them or in any other order."""
    labels, scores = zip(*neighbours, strict=True)
    return vote(labels, np.array(scores, np.float32), temperature)


@usual
@given(neighbours=NEIGHBOURS, temperature=TEMPERATURES)
def test_a_vote_is_a_distribution_over_the_labels_of_the_neighbours(
    neighbours: list[tuple[str, float]], temperature: float
) -> None:
    found = voted(neighbours, temperature)
    assert set(found) == {label for label, _ in neighbours}
    assert math.fsum(found.values()) == pytest.approx(1, abs=1e-12)
    assert all(0 <= probability <= 1 for probability in found.values())
    assert list(found.items()) == sorted(found.items(), key=lambda item: (-item[1], item[0]))


@usual
@given(neighbours=NEIGHBOURS, temperature=TEMPERATURES, data=st.data())
def test_a_vote_does_not_depend_on_the_order_of_the_neighbours(
    neighbours: list[tuple[str, float]], temperature: float, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(neighbours))
    assert list(voted(shuffled, temperature).items()) == list(voted(neighbours, temperature).items())


@usual
@given(neighbours=NEIGHBOURS, temperature=TEMPERATURES, label=st.sampled_from("abcde"))
def test_one_more_neighbour_never_hurts_its_own_label(
    neighbours: list[tuple[str, float]], temperature: float, label: str
) -> None:
    before = voted(neighbours, temperature).get(label, 0.0)
    best = max(score for _, score in neighbours)
    assert voted([*neighbours, (label, best)], temperature)[label] >= before - 1e-12


# Decoding

SAMPLES = {kind: encode(quarters(), kind) for kind in FORMATS}
SAMPLES |= {
    "JPEG with EXIF": encode(quarters(), "JPEG", exif=orientation(6)),
    "PNG with EXIF": encode(quarters(), "PNG", exif=orientation(6)),
    "TIFF of strips": encode(quarters(), "TIFF", compression="tiff_deflate"),
    "TIFF of floats": encode(np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30), "TIFF"),
    "PNG of 16 bits": encode(np.linspace(0, 65_535, 600, dtype=np.uint16).reshape(20, 30), "PNG"),
    "PNG of a palette": encode(Image.fromarray(quarters()).quantize(4), "PNG", transparency=1),
    "GIF of frames": encode(quarters(), "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20))]),
    "WEBP of frames": encode(quarters(), "WEBP", save_all=True, append_images=[Image.new("RGB", (30, 20))]),
    "MPO": encode(quarters(), "MPO", save_all=True, append_images=[Image.new("RGB", (30, 20))]),
}
SMALL = DecodePolicy(max_bytes=100_000, max_pixels=100_000)


def is_rgb_or_refused(data: bytes) -> None:
    """Decode a picture; whatever is no ImageError fails the test."""
    try:
        decoded = decode(data, SMALL)
    except ImageError:
        return
    assert decoded.image.mode == "RGB"
    assert decoded.image.width * decoded.image.height <= SMALL.max_pixels


@pytest.mark.parametrize("kind", SAMPLES)
@usual
@given(data=st.data())
def test_a_damaged_picture_is_decoded_or_refused(kind: str, data: st.DataObject) -> None:
    sample = bytearray(SAMPLES[kind])
    # Headers are short and decide most, so they are hit more often than pixels.
    places = st.one_of(st.integers(0, min(200, len(sample)) - 1), st.integers(0, len(sample) - 1))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        sample[place] = value
    end = data.draw(st.one_of(st.just(len(sample)), st.integers(0, len(sample))))
    is_rgb_or_refused(bytes(sample[:end]))


@usual
@given(magic=st.sampled_from([b"", *(sample[:16] for sample in SAMPLES.values())]), rest=st.binary(max_size=300))
def test_random_bytes_are_decoded_or_refused(magic: bytes, rest: bytes) -> None:
    is_rgb_or_refused(magic + rest)


@usual
@given(exif=st.binary(max_size=120), head=st.sampled_from([b"", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01"]))
def test_exif_of_random_bytes_costs_no_png(head: bytes, exif: bytes) -> None:
    assert sorted(decode(encode(quarters(), "PNG", exif=head + exif), SMALL).image.size) == [20, 30]


# Composed queries


@usual
@given(
    npst.arrays(
        np.float64, st.tuples(st.integers(1, 8), st.integers(1, 16)), elements=st.floats(-1, 1, allow_subnormal=False)
    )
)
def test_a_combined_query_is_of_length_1_or_refused(parts: NDArray[np.float64]) -> None:
    assume((np.linalg.norm(parts, axis=1) > 1e-3).all())
    try:
        vector = combine(list(unit(parts)))
    except BadQuery:
        assert np.linalg.norm(unit(parts).sum(axis=0, dtype=np.float64)) < 1e-5
        return
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1, abs=1e-5)


@usual
@given(DIRECTIONS)
def test_parts_that_cancel_each_other_out_are_refused(rows: NDArray[np.int8]) -> None:
    vectors = unit(rows.astype(np.float64))
    with pytest.raises(BadQuery, match="cancel each other out"):
        combine([vectors[0], -vectors[0]])


# The catalogue

TEXT = st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


@slow
@given(
    texts=st.tuples(TEXT, TEXT, TEXT),
    label=st.none() | TEXT,
    caption=st.none() | TEXT,
    metadata=st.dictionaries(TEXT, JSON, max_size=5),
    numbers=st.tuples(*[st.integers(0, 2**63 - 1)] * 4),
)
def test_a_catalogue_gives_back_any_record(
    texts: tuple[str, str, str],
    label: str | None,
    caption: str | None,
    metadata: dict[str, Any],
    numbers: tuple[int, int, int, int],
) -> None:
    image_id, path, media_type = texts
    width, height, *thumbnail = numbers
    record = ImageRecord(
        0, image_id, path, "0" * 64, media_type, width, height, (thumbnail[0], thumbnail[1]), label, caption, metadata
    )
    with folder() as place:
        writer = CatalogWriter(place / "catalog.sqlite")
        writer.add([record])
        writer.finish()
        catalog = Catalog.open(place / "catalog.sqlite")
        assert catalog.rows([0]) == [record]
        assert catalog.get(image_id) == record
        assert catalog.label_counts() == ({} if label is None else {label: 1})


# Filters

WORDS = st.sampled_from(["a", "b", "", "1", "true", "null", "2024-05-01", "2024-05-01T10:00:00+02:00", "é", "'"])
NUMBERS = st.sampled_from([0, 1, 2, 3, -1, 1.0, 2.5, 1e300, 2**53 + 1, 2.0**53, -(2**63), 0.1])
SCALARS = WORDS | NUMBERS | st.booleans()
FIELD_NAMES = st.sampled_from(["a", "b", "a.b", "x y", "$", "é", "[0]"])
NESTED = st.recursive(
    SCALARS | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELD_NAMES, inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.builds(
    lambda label, group, width, size, metadata: {
        "label": label, "group": group, "width": width, "size": size, "metadata": metadata
    },
    label=st.none() | WORDS,
    group=st.none() | st.sampled_from(["id0", "id1"]),
    width=st.integers(1, 4),
    size=st.integers(0, 3),
    metadata=st.dictionaries(FIELD_NAMES, NESTED, max_size=4),
)  # fmt: skip
FIELDS = {
    "id": ["id"],
    "label": ["label"],
    "group": ["group"],
    "width": ["width"],
    "size": ["size"],
    "metadata.a": ["metadata", "a"],
    "metadata.b": ["metadata", "b"],
    "metadata.a.b": ["metadata", "a", "b"],
    'metadata."a.b"': ["metadata", "a.b"],
    'metadata.x y."é"': ["metadata", "x y", "é"],
    "metadata.$": ["metadata", "$"],
    'metadata."[0]".a': ["metadata", "[0]", "a"],
}
KEYS = st.sampled_from(sorted(FIELDS))
TIMES = st.sampled_from(["2024-04-30", "2024-05-01", "2024-05-01T08:00:00Z", "2024-05-01T08:00:00.001"])
BOUNDS = st.sampled_from(["gt", "gte", "lt", "lte"])
CONDITIONS = st.recursive(
    st.fixed_dictionaries(
        {
            "key": KEYS,
            "match": st.fixed_dictionaries({"value": SCALARS})
            | st.fixed_dictionaries({"any": st.lists(SCALARS, max_size=4)})
            | st.fixed_dictionaries({"except": st.lists(SCALARS, max_size=4)}),
        }
    )
    | st.fixed_dictionaries(
        {
            "key": KEYS,
            "range": st.dictionaries(BOUNDS, NUMBERS, min_size=1) | st.dictionaries(BOUNDS, TIMES, min_size=1),
        }
    )
    | st.fixed_dictionaries({"key": KEYS, "exists": st.booleans()})
    | st.fixed_dictionaries({"is_null": st.fixed_dictionaries({"key": KEYS})})
    | st.fixed_dictionaries({"is_empty": st.fixed_dictionaries({"key": KEYS})})
    | st.fixed_dictionaries({"has_id": st.lists(st.sampled_from(["id0", "id1", "id99"]), max_size=2)}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "must": st.lists(inner, max_size=3),
            "should": st.lists(inner, max_size=3),
            "must_not": inner | st.lists(inner, max_size=3),
            "min_should": st.fixed_dictionaries(
                {"conditions": st.lists(inner, min_size=1, max_size=3), "min_count": st.integers(1, 3)}
            ),
        },
    ),
    max_leaves=6,
)
MISSING = object()


def place(record: Any, names: list[str]) -> Any:
    """Return what stands at a place of a record."""
    for name in names:
        record = record.get(name, MISSING) if isinstance(record, dict) else MISSING
    return record


def equal(value: Any, wanted: Any) -> bool:
    """Compare with strict types."""
    return value == wanted and all(isinstance(value, kind) == isinstance(wanted, kind) for kind in (bool, str))


def moment(text: str) -> datetime:
    """Read a time; without a zone it is UTC."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def inside(value: Any, bounds: dict[str, Any]) -> bool:
    """Tell whether a value is in a range."""
    if isinstance(next(iter(bounds.values())), str):
        if not isinstance(value, str) or not value.startswith("2024-"):
            return False
        value, bounds = moment(value), {name: moment(bound) for name, bound in bounds.items()}
    elif isinstance(value, bool | str):
        return False
    return all(bool(getattr(operator, name.replace("te", "e"))(value, bound)) for name, bound in bounds.items())


def holds_of_a_value(condition: dict[str, Any], value: Any) -> bool:
    """Evaluate a match or a range."""
    if "range" in condition:
        return inside(value, condition["range"])
    match = condition["match"]
    if "except" in match:
        return not any(equal(value, each) for each in match["except"])
    return any(equal(value, each) for each in match.get("any", [match.get("value")]))


def holds(condition: dict[str, Any], record: dict[str, Any]) -> bool:
    """Evaluate a condition or a filter, as the grammar has it."""
    key = condition.get("key") or (condition.get("is_null") or condition.get("is_empty") or {}).get("key")
    found = place(record, FIELDS[key]) if key else MISSING
    if "has_id" in condition:
        return record["id"] in condition["has_id"]
    if "is_null" in condition:
        return found is None
    if "is_empty" in condition:
        return found is MISSING or found is None or found == []
    if "exists" in condition:
        return (found is not MISSING and found is not None) is condition["exists"]
    if key:
        values = found if isinstance(found, list) else [found]
        return any(holds_of_a_value(condition, each) for each in values if isinstance(each, str | int | float))
    few = condition.get("min_should", {"conditions": [], "min_count": 0})
    none = condition.get("must_not", [])
    return (
        all(holds(each, record) for each in condition.get("must", []))
        and (not condition.get("should") or any(holds(each, record) for each in condition["should"]))
        and not any(holds(each, record) for each in ([none] if isinstance(none, dict) else none))
        and sum(holds(each, record) for each in few["conditions"]) >= few["min_count"]
    )


@usual
@given(facts=st.lists(RECORDS, min_size=1, max_size=6), wanted=st.lists(CONDITIONS, min_size=1, max_size=6))
def test_a_filter_selects_what_it_says(facts: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    records = [{"id": f"id{row}", **fact} for row, fact in enumerate(facts)]
    with folder() as here:
        writer = CatalogWriter(here / "catalog.sqlite")
        writer.add(
            ImageRecord(row, path="x", content_hash="0" * 64, media_type="m", height=1, thumbnail=(0, 0), **fact)
            for row, fact in enumerate(records)
        )
        writer.finish()
        catalog = Catalog.open(here / "catalog.sqlite")
        for condition in wanted:
            found = catalog.select(Filter.model_validate_json(json.dumps({"must": condition})))
            assert found.rows().tolist() == [row for row, each in enumerate(records) if holds(condition, each)]


@usual
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=8, unique=True), name=st.text(min_size=1, max_size=20))
def test_any_text_is_equal_to_itself_alone(texts: list[str], name: str) -> None:
    records = [
        ImageRecord(row, f"id{row}", "x", "0" * 64, "m", 1, 1, (0, 0), text, None, {name: text})
        for row, text in enumerate(texts)
    ]
    with folder() as here:
        writer = CatalogWriter(here / "catalog.sqlite")
        writer.add(records)
        writer.finish()
        before = (here / "catalog.sqlite").read_bytes()
        catalog = Catalog.open(here / "catalog.sqlite")
        for row, text in enumerate(texts):
            by_label = Filter(must=(Condition(key="label", match=Match(value=text)),))
            assert catalog.select(by_label).rows().tolist() == [row]
            try:
                by_name = Filter(must=(Condition(key=f'metadata."{name}"', match=Match(value=text)),))
            except ValidationError:
                assert any(letter in '"\\' or letter < " " for letter in name)
            else:
                assert catalog.select(by_name).rows().tolist() == ([] if "\0" in text else [row])
        assert (here / "catalog.sqlite").read_bytes() == before


# Tables of labels

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in {".", ".."}
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
COLUMNS = NAMES.filter(lambda name: name not in {"path", "file", "label", "caption", "text"})
FILLED = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@usual
@given(
    rows=st.dictionaries(PATHS, st.tuples(FILLED, FILLED, FILLED), max_size=6),
    column=COLUMNS,
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_a_csv_table_says_what_was_written(rows: dict[str, tuple[str, str, str]], column: str, mark: str) -> None:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["path", "label", "caption", column])
    writer.writerow(["x.png", "", "", ""])
    writer.writerows([path, *cells] for path, cells in rows.items())
    with folder() as place:
        (place / "table.csv").write_bytes((mark + table.getvalue()).encode())
        said = dict(read_descriptions(place / "table.csv", place))
        for path, (label, caption, more) in rows.items():
            assert said[path] == Description(label, caption, {column: more})


@usual
@given(
    rows=st.dictionaries(PATHS, st.tuples(FILLED, FILLED, st.dictionaries(COLUMNS, JSON, max_size=3)), max_size=6),
    ascii_only=st.booleans(),
)
def test_a_jsonl_table_says_what_was_written(
    rows: dict[str, tuple[str, str, dict[str, Any]]], ascii_only: bool
) -> None:
    objects: list[dict[str, Any]] = [{"path": "x.png"}]
    objects += [{"path": path, "label": label, "caption": text, **more} for path, (label, text, more) in rows.items()]
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in objects]
    with folder() as place:
        (place / "table.jsonl").write_text("\n".join(lines), encoding="utf-8")
        said = dict(read_descriptions(place / "table.jsonl", place))
        for path, (label, text, more) in rows.items():
            assert said[path] == Description(label, text, more)
