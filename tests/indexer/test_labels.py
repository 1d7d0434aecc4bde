"""Labels: from folder names and tables, and what is said of a table that is no good."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from indexer.errors import BuildError
from indexer.labels import Description, read_descriptions, read_rows


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Make a collection of two files."""
    for name in ("cats/tom.png", "dogs/rex.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True)
        (tmp_path / "pictures" / name).touch()
    return tmp_path / "pictures"


def load_labels(table: str, source: Path) -> Callable[[str], Description]:
    """Read a table to its end, and return what it says by path."""
    said = dict(read_descriptions(Path(table), source))
    return lambda path: said.get(path, Description())


def describe(source: Path, name: str, table: str | bytes, path: str = "cats/tom.png") -> Description:
    """Write a table and return what it says of a picture."""
    (source.parent / name).write_bytes(table if isinstance(table, bytes) else table.encode())
    return load_labels(str(source.parent / name), source)(path)


def test_a_csv_table_gives_label_caption_and_metadata(source: Path) -> None:
    table = 'path,label,caption,year,by\ncats/tom.png,cat,"a cat, ""Tom""",1940,Hanna\ndogs/rex.png,dog,,,\n'
    tom = Description("cat", 'a cat, "Tom"', {"year": "1940", "by": "Hanna"})
    assert describe(source, "t.csv", table) == tom
    assert describe(source, "t.csv", table, "dogs/rex.png") == Description("dog")


def test_a_jsonl_table_gives_label_caption_and_metadata(source: Path) -> None:
    row = {"path": "cats/tom.png", "label": "cat", "caption": "a cat", "year": 1940, "tags": ["x", {"y": None}]}
    found = describe(source, "t.jsonl", json.dumps(row))
    assert found == Description("cat", "a cat", {"year": 1940, "tags": ["x", {"y": None}]})


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("t.csv", "file,text\ncats/tom.png,a cat\n"),
        ("t.jsonl", '{"file": "cats/tom.png", "text": "a cat"}\n'),
    ],
)
def test_file_and_text_are_other_names_of_path_and_caption(source: Path, name: str, table: str) -> None:
    assert describe(source, name, table) == Description(caption="a cat")


def test_a_picture_that_no_row_names_has_no_description(source: Path) -> None:
    assert describe(source, "t.csv", "path,label\ncats/tom.png,cat\n", "dogs/rex.png") == Description()


@pytest.mark.parametrize("path", ["./cats/tom.png", "cats//tom.png", "cats/./tom.png"])
def test_a_path_may_be_written_in_other_ways(source: Path, path: str) -> None:
    assert describe(source, "t.csv", f"path,label\n{path},cat\n") == Description("cat")


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_paths_may_be_absolute(source: Path, name: str) -> None:
    path = source / "cats" / "tom.png"
    table = f"path,label\n{path},cat\n" if name == "t.csv" else json.dumps({"path": str(path), "label": "cat"})
    assert describe(source, name, table) == Description("cat")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("t.csv", "path,label\ncats/tom.png,Kätzchen 🐈\n"),
        ("t.jsonl", '{"path": "cats/tom.png", "label": "Kätzchen 🐈"}'),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_utf_8_is_read_with_and_without_its_mark(source: Path, name: str, table: str, mark: str) -> None:
    assert describe(source, name, mark + table) == Description("Kätzchen 🐈")


def test_lines_may_end_as_windows_ends_them(source: Path) -> None:
    assert describe(source, "t.csv", "path,label\r\ncats/tom.png,cat\r\n") == Description("cat")
    assert describe(source, "t.jsonl", '{"path": "cats/tom.png", "label": "cat"}\r\n\r\n') == Description("cat")


def test_a_quoted_cell_may_hold_lines(source: Path) -> None:
    table = 'path,caption\ncats/tom.png,"one\ntwo"\ndogs/rex.png,three\n'
    assert describe(source, "t.csv", table) == Description(caption="one\ntwo")
    assert describe(source, "t.csv", table, "dogs/rex.png") == Description(caption="three")


def test_short_and_long_rows_of_csv_are_read_as_far_as_there_are_columns(source: Path) -> None:
    table = "path,label,year\ncats/tom.png\ndogs/rex.png,dog,1990,what,is,this\n"
    assert describe(source, "t.csv", table) == Description()
    assert describe(source, "t.csv", table, "dogs/rex.png") == Description("dog", None, {"year": "1990"})


@pytest.mark.parametrize(("value", "label"), [("7", "7"), ("0", "0"), ("null", None), ('""', None)])
def test_a_label_of_json_becomes_text(source: Path, value: str, label: str | None) -> None:
    assert describe(source, "t.jsonl", f'{{"path": "cats/tom.png", "label": {value}}}').label == label


def test_the_last_row_of_a_picture_counts(source: Path) -> None:
    assert describe(source, "t.csv", "path,label\ncats/tom.png,a\ncats/tom.png,b\n") == Description("b")


# Captions


@pytest.mark.parametrize(
    ("metadata", "captions"),
    [
        ({}, ()),
        ({"captions": None}, ()),
        ({"captions": []}, ()),
        ({"captions": ["a cat", "Tom"]}, ("a cat", "Tom")),
        ({"captions": ["Tom", "a cat ", "Tom", " ", ""]}, ("Tom", "a cat")),
        ({"captions": "a cat\nTom"}, ("a cat", "Tom")),
        ({"captions": "a cat, Tom; really\r\n\n Tom \n"}, ("a cat, Tom; really", "Tom")),
    ],
)
def test_captions_are_a_list_or_one_per_line(metadata: dict[str, Any], captions: tuple[str, ...]) -> None:
    assert Description(metadata=metadata).captions() == captions


def test_the_caption_comes_before_the_captions_and_counts_once() -> None:
    description = Description(caption="a cat", metadata={"captions": ["Tom", "a cat"]})
    assert description.captions() == ("a cat", "Tom")


@pytest.mark.parametrize("captions", [7, True, {"en": "a cat"}, ["a cat", None], [["a cat"]]])
def test_captions_that_are_no_texts_are_refused(captions: Any) -> None:
    with pytest.raises(BuildError, match="The column 'captions' must hold a list of texts, or a text with one"):
        Description(metadata={"captions": captions}).captions()


def test_a_table_keeps_its_captions_as_metadata(source: Path) -> None:
    found = describe(source, "t.jsonl", '{"path": "cats/tom.png", "captions": ["a cat", "Tom"]}')
    assert found == Description(metadata={"captions": ["a cat", "Tom"]})
    found = describe(source, "t.csv", 'path,captions\ncats/tom.png,"a cat\nTom"\n')
    assert found == Description(metadata={"captions": "a cat\nTom"})
    assert found.captions() == ("a cat", "Tom")


# Parquet


def parquet_table(source: Path, columns: dict[str, Any]) -> Path:
    """Write a Parquet file beside the collection."""
    parquet.write_table(pa.table(columns), source.parent / "t.parquet")
    return source.parent / "t.parquet"


def test_a_parquet_table_gives_label_captions_and_metadata(source: Path) -> None:
    columns = {
        "path": ["cats/tom.png", "dogs/rex.png"],
        "label": pa.array([3, None], pa.int32()),
        "caption": ["a cat", None],
        "captions": [["Tom", "a cat"], []],
        "year": [1940, None],
        "box": [{"x": 1.5, "y": 2.5}, None],
        "on": pa.array([True, False]).dictionary_encode(),
    }
    found = load_labels(str(parquet_table(source, columns)), source)
    metadata = {"captions": ["Tom", "a cat"], "year": 1940, "box": {"x": 1.5, "y": 2.5}, "on": True}
    assert found("cats/tom.png") == Description("3", "a cat", metadata)
    assert found("cats/tom.png").captions() == ("a cat", "Tom")
    assert found("dogs/rex.png") == Description(metadata={"captions": [], "on": False})


def test_what_parquet_holds_and_json_does_not_becomes_text(source: Path) -> None:
    columns = {"path": ["cats/tom.png"], "at": [datetime(2024, 1, 2, tzinfo=UTC)], "price": [Decimal("1.50")]}
    found = load_labels(str(parquet_table(source, columns)), source)("cats/tom.png")
    assert found.metadata == {"at": "2024-01-02 00:00:00+00:00", "price": "1.50"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"\x89PNG", [b"\xff"]])
def test_a_value_of_parquet_that_no_answer_can_hold_is_named(source: Path, value: Any) -> None:
    table = parquet_table(source, {"path": ["cats/tom.png", "dogs/rex.png"], "x": [None, value]})
    with pytest.raises(BuildError, match=r"^Row 2 of .*t\.parquet holds what JSON cannot: "):
        load_labels(str(table), source)


def test_a_long_parquet_table_is_read_row_by_row(source: Path) -> None:
    paths = [f"{i}.png" for i in range(70_000)]
    table = parquet_table(source, {"path": paths, "i": list(range(70_000))})
    assert list(read_rows(table)) == [(i + 1, {"path": f"{i}.png", "i": i}) for i in range(70_000)]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"path,label\ncats/tom.png,cat\n", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_no_parquet_is_refused(source: Path, data: bytes) -> None:
    assert "t.parquet is no Parquet: " in refusal(source, "t.parquet", data)


def test_a_damaged_parquet_table_is_refused(source: Path) -> None:
    table = parquet_table(source, {"path": [f"{i}.png" for i in range(1_000)]})
    data = bytearray(table.read_bytes())
    data[8:200] = bytes(192)
    assert "t.parquet" in refusal(source, "t.parquet", bytes(data))


def test_a_missing_parquet_table_is_refused(source: Path) -> None:
    with pytest.raises(BuildError, match=r"cannot be read: .*No such file"):
        load_labels(str(source / "missing.parquet"), source)


# Tables that are no good


def refusal(source: Path, name: str, table: str | bytes) -> str:
    """Have a table refused, and return the sentence."""
    with pytest.raises(BuildError) as refused:
        describe(source, name, table)
    return str(refused.value)


@pytest.mark.parametrize(
    "line",
    ["{", "cats/tom.png", "{'path': 1}", "[" * 100_000, '{"path": "x", "n": ' + "9" * 5_000 + "}"],
    ids=["half", "no JSON", "Python", "deep", "long number"],
)
def test_a_bad_line_of_json_is_named(source: Path, line: str) -> None:
    good = '{"path": "cats/tom.png"}'
    sentence = refusal(source, "t.jsonl", f"{good}\n\n{line}\n{good}\n")
    assert sentence.startswith(f"Row 3 of {source.parent / 't.jsonl'} is no JSON: ")


@pytest.mark.parametrize("line", ["[1, 2]", '"cats/tom.png"', "7", "true"])
def test_a_line_of_json_that_is_no_object_is_named(source: Path, line: str) -> None:
    assert "ow 2" in refusal(source, "t.jsonl", f'{{"path": "cats/tom.png"}}\n{line}\n')


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"\\ud800"', '["\\udfff"]'])
def test_a_value_that_no_answer_can_hold_is_named(source: Path, value: str) -> None:
    assert "ow 1" in refusal(source, "t.jsonl", f'{{"path": "cats/tom.png", "x": {value}}}\n')


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("t.csv", "picture,label\ncats/tom.png,cat\n"),
        ("t.csv", "path;label\ncats/tom.png;cat\n"),
        ("t.jsonl", '{"picture": "cats/tom.png", "label": "cat"}'),
        ("t.jsonl", '{"path": null, "label": "cat"}'),
        ("t.jsonl", '{"path": 7, "label": "cat"}'),
    ],
)
def test_a_table_without_paths_is_refused_with_its_columns(source: Path, name: str, table: str) -> None:
    sentence = refusal(source, name, table)
    assert f"{name}, row 1 has no column 'path' (or 'file'); it has: " in sentence
    assert "label" in sentence


def test_a_row_without_a_path_is_named(source: Path) -> None:
    assert "t.csv, row 2 has no column 'path'" in refusal(source, "t.csv", "path,label\ncats/tom.png,cat\n,dog\n")


@pytest.mark.parametrize("name", ["t.txt", "t", "t.xlsx", "t.tsv", "parents"])
def test_a_table_of_another_ending_is_refused(source: Path, name: str) -> None:
    sentence = refusal(source, name, "path,label\n")
    assert sentence.startswith("Labels come from 'parent' or a table ending in .csv, .jsonl or .parquet, not from ")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("t.csv", "path,label\ncats/tom.png,Kätzchen\n".encode("latin-1")),
        ("t.jsonl", '{"path": "cats/tom.png", "label": "Kätzchen"}'.encode("latin-1")),
        ("t.csv", "path,label\n".encode("utf-16")),
    ],
)
def test_a_table_that_is_no_utf_8_is_refused(source: Path, name: str, table: bytes) -> None:
    assert "is not UTF-8: " in refusal(source, name, table)


def test_a_table_with_a_quote_that_never_closes_is_refused(source: Path) -> None:
    table = 'path,caption\ncats/tom.png,"a cat\n' + "dogs/rex.png,a dog\n" * 10_000
    assert "t.csv" in refusal(source, "t.csv", table)


def test_a_missing_table_is_refused(source: Path) -> None:
    with pytest.raises(BuildError, match=r"cannot be read: No such file or directory\.$"):
        load_labels(str(source / "missing.csv"), source)


def test_a_folder_is_no_table(source: Path) -> None:
    (source / "folder.csv").mkdir()
    with pytest.raises(BuildError, match=r"cannot be read: Is a directory\.$"):
        load_labels(str(source / "folder.csv"), source)
