"""The catalogue: what is written about pictures is what is read, whatever it is."""

import dataclasses
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.catalog import Catalog, CatalogWriter, ImageRecord
from indexer.errors import BuildError, CorruptSnapshot

TEXTS = [
    "plain",
    "",
    "日本語 العربية 🦊",
    'it\'s "quoted"; DROP TABLE images; --',
    "a\nb\tc\\d",
    "nul\0byte",
    "%_*?",
    "e\u0301",
]


def record(row: int, **facts: Any) -> ImageRecord:
    """Return a record that is like no other."""
    usual = ImageRecord(row, f"id{row}", f"f/{row}.png", f"{row:064x}", "image/png", 640, 480, (row * 100, 100))
    return dataclasses.replace(usual, **facts)


def written(path: Path, *records: ImageRecord) -> Catalog:
    """Write a catalogue and open it."""
    writer = CatalogWriter(path)
    writer.add(records)
    writer.finish()
    return Catalog.open(path)


def bytes_read() -> int:
    """Return how many bytes this process has read from files."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["rchar"])


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    facts = record(
        0,
        label="cat",
        caption="a cat",
        metadata={"size": 3},
        width=1,
        height=20_000,
        source=3,
        place="s3://bucket/x",
        size=2**40,
        stamp="W/1",
        perceptual_hash=2**64 - 1,
        group="id0",
    )
    catalog = written(tmp_path / "c", facts)
    assert catalog.get("id0") == facts
    assert catalog.rows([0]) == [facts]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_in_every_field(tmp_path: Path, text: str) -> None:
    texts = dict.fromkeys(["id", "path", "place", "stamp", "label", "caption", "group"], text)
    facts = record(0, **texts, metadata={text: [text]})
    assert written(tmp_path / "c", facts).get(text) == facts


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"a": None, "b": True, "c": 1.5, "d": -(2**70), "e": 1e-300, "f": 0.1},
        {"deep": {"er": [[], {}, [{"": None}]]}},
        {"z": 1, "a": 2, "é": 3},
    ],
)
def test_nested_metadata_survives(tmp_path: Path, metadata: dict[str, Any]) -> None:
    assert written(tmp_path / "c", record(0, metadata=metadata)).rows([0])[0].metadata == metadata


def test_what_was_not_said_is_none(tmp_path: Path) -> None:
    facts = written(tmp_path / "c", record(0)).rows([0])[0]
    assert (facts.label, facts.caption, facts.metadata) == (None, None, {})
    assert (facts.place, facts.stamp, facts.group) == (None, None, None)


@pytest.mark.parametrize("bits", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_all_64_bits_of_a_perceptual_hash_survive(tmp_path: Path, bits: int) -> None:
    assert written(tmp_path / "c", record(0, perceptual_hash=bits)).rows([0])[0].perceptual_hash == bits


def test_an_unknown_id_is_none(tmp_path: Path) -> None:
    catalog = written(tmp_path / "c", record(0))
    assert [catalog.get(name) for name in ("", "id1", "ID0", "id0 ", "id0' OR '1'='1")] == [None] * 5


def test_rows_come_in_the_order_asked_for_and_as_often(tmp_path: Path) -> None:
    catalog = written(tmp_path / "c", *map(record, range(10)))
    assert [found.row for found in catalog.rows([7, 0, 9, 7])] == [7, 0, 9, 7]
    assert catalog.rows([]) == []


def test_more_rows_than_sqlite_takes_parameters_come_in_order(tmp_path: Path) -> None:
    catalog = written(tmp_path / "c", *map(record, range(33_000)))
    assert len(catalog) == 33_000
    assert [found.id for found in catalog.rows(range(32_999, -1, -1))] == [f"id{row}" for row in range(32_999, -1, -1)]


def test_batches_add_up(tmp_path: Path) -> None:
    writer = CatalogWriter(tmp_path / "c")
    writer.add([record(0), record(1)])
    writer.add([])
    writer.add([record(2)])
    writer.finish()
    assert [found.row for found in Catalog.open(tmp_path / "c").rows([0, 1, 2])] == [0, 1, 2]


def test_two_pictures_of_one_id_are_a_build_error(tmp_path: Path) -> None:
    writer = CatalogWriter(tmp_path / "c")
    writer.add([record(0), record(1, id="id0")])
    with pytest.raises(BuildError, match=r"^Two pictures have the same id: .*images\.id.*\.$"):
        writer.finish()
    writer.close()


def test_a_full_disk_is_a_build_error(tmp_path: Path) -> None:
    writer = CatalogWriter(tmp_path / "c")
    # SQLite's own limit of a file's pages stands for the disk's.
    writer._connection.execute("PRAGMA max_page_count = 20")
    with pytest.raises(BuildError, match=r"^The catalogue .*/c cannot be written: database or disk is full\.$"):
        writer.add(map(record, range(10_000)))
    writer.close()


def test_groups_are_put_in_after_the_rows(tmp_path: Path) -> None:
    writer = CatalogWriter(tmp_path / "c")
    writer.add(map(record, range(4)))
    writer.group(np.array([-1, 1, -1, 1]))
    writer.finish()
    assert [found.group for found in Catalog.open(tmp_path / "c").rows(range(4))] == [None, "id1", None, "id1"]


def test_the_same_calls_make_the_same_file(tmp_path: Path) -> None:
    for name in "ab":
        writer = CatalogWriter(tmp_path / name)
        for start in range(0, 20_000, 1_000):
            rows = range(start, start + 1_000)
            writer.add(record(row, id=f"{row * 7_919 % 20_011:016x}", label=f"{row % 37}") for row in rows)
        writer.group(np.arange(20_000) // 3 * 3 - (np.arange(20_000) % 2))
        writer.finish()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_labels_are_counted_and_none_is_no_label(tmp_path: Path) -> None:
    labels = ["cat", None, "dog", "cat", "", None, "Cat"]
    catalog = written(tmp_path / "c", *(record(row, label=label) for row, label in enumerate(labels)))
    assert catalog.label_counts() == {"cat": 2, "dog": 1, "": 1, "Cat": 1}


def test_each_content_has_its_first_record(tmp_path: Path) -> None:
    hashes = ["a" * 64, "b" * 64, "a" * 64, "b" * 64]
    catalog = written(tmp_path / "c", *(record(row, content_hash=digest) for row, digest in enumerate(hashes)))
    assert catalog.with_content("a" * 64) == record(0, content_hash="a" * 64)
    assert catalog.with_content("b" * 64) == record(1, content_hash="b" * 64)
    assert catalog.with_content("c" * 64) is None


def test_the_file_is_what_sqlite_itself_reads(tmp_path: Path) -> None:
    written(tmp_path / "c", record(0, metadata={"ü": [1]}, caption="a"), record(1, label="x"))
    connection = sqlite3.connect(tmp_path / "c")
    rows = connection.execute("SELECT row, id, caption, label, metadata, thumbnail_offset FROM images").fetchall()
    connection.close()
    assert [(*row[:4], json.loads(row[4]), row[5]) for row in rows] == [
        (0, "id0", "a", None, {"ü": [1]}, 0),
        (1, "id1", None, "x", {}, 100),
    ]


def test_lookups_in_many_threads_are_right(tmp_path: Path) -> None:
    catalog = written(tmp_path / "c", *map(record, range(500)))

    def look_up(row: int) -> tuple[str, ImageRecord | None]:
        return catalog.rows([row, 0])[0].id, catalog.get(f"id{row}")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look_up, range(500)))
    assert found == [(f"id{row}", record(row)) for row in range(500)]


def test_opening_and_looking_up_reads_little_of_the_file(tmp_path: Path) -> None:
    written(tmp_path / "c", *map(record, range(50_000)))
    before = bytes_read()
    catalog = Catalog.open(tmp_path / "c")
    assert (len(catalog), catalog.label_counts()) == (50_000, {})
    assert catalog.get("id40000") == catalog.with_content(f"{40_000:064x}") == catalog.rows([40_000])[0]
    assert (tmp_path / "c").stat().st_size > 5_000_000
    assert bytes_read() - before < 200_000


def test_a_catalogue_is_readable_after_its_file_is_deleted(tmp_path: Path) -> None:
    facts = [record(row, caption="long " * 200) for row in range(2_000)]
    catalog = written(tmp_path / "c", *facts)
    (tmp_path / "c").unlink()
    assert catalog.rows(range(2_000)) == facts


def test_a_path_with_signs_of_uris_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a?b#c%20d é").mkdir()
    assert len(written(tmp_path / "a?b#c%20d é" / "c", record(0))) == 1


def test_reading_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    catalog = written(tmp_path / "c", record(0))
    before = (tmp_path / "c").read_bytes()
    assert len(catalog) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c").read_bytes() == before


@pytest.mark.parametrize("data", [None, b"", b"garbage" * 1_000, b"SQLite format 3\0" + bytes(5_000)])
def test_a_file_that_is_no_catalogue_is_corrupt(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "c").write_bytes(data)
    with pytest.raises(CorruptSnapshot, match="is no catalogue: "):
        Catalog.open(tmp_path / "c")
