"""Lists and tables: what rows may name, and what they may not."""

import os
import tracemalloc
from pathlib import Path

import pytest

from indexer.errors import BuildError, ImageError, Reason
from indexer.labels import Description
from indexer.sources.fetch import FetchPolicy
from indexer.sources.source import Item
from indexer.sources.tables import TableSource
from tests.indexer.sources.conftest import PICTURES, put
from tests.pictures import POLICY

PNG = PICTURES["first.png"]


def table(folder: Path, name: str, text: str | bytes) -> TableSource:
    """Write a table and open it."""
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return TableSource(str(folder / name), FetchPolicy())


def keys(source: TableSource) -> list[str]:
    """Return the keys of a table."""
    return [item.key for item in source.items()]


def reason(source: TableSource, place: str) -> Reason:
    """Have a picture refused, and return the reason."""
    with pytest.raises(ImageError) as error:
        source.read(place, POLICY)
    return error.value.reason


def test_a_list_is_lines_without_blank_ones_and_comments(tmp_path: Path) -> None:
    text = "\ufeffa.png\r\n\n  \n# b.png\nfolder/c d.png \n./e.png\nx//y.png\nlast.png"
    source = table(tmp_path, "list.txt", text)
    assert keys(source) == ["a.png", "folder/c d.png ", "e.png", "x/y.png", "last.png"]


def test_a_key_is_the_column_or_what_the_path_says(tmp_path: Path) -> None:
    rows = [
        '{"path": "a.png", "key": "one"}',
        '{"path": "a.png", "key": 2}',
        '{"path": "b/../a.png"}',
        f'{{"path": "{tmp_path}/c/d.png"}}',
        '{"path": "/else/where.png", "key": ""}',
        '{"url": "https://example.com/a.png?x=1"}',
        '{"file": "f.png", "url": "https://example.com/f.png"}',
        '{"path": "s3://bucket/a//b.png"}',
    ]
    source = table(tmp_path, "t.jsonl", "\n".join(rows))
    assert keys(source) == [
        "one",
        "2",
        "b/../a.png",
        "c/d.png",
        "/else/where.png",
        "https://example.com/a.png?x=1",
        "f.png",
        "s3://bucket/a//b.png",
    ]
    assert list(source.items())[6].description == Description(metadata={"url": "https://example.com/f.png"})


def test_size_and_stamp_come_from_the_file_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    os.utime(tmp_path / "a.png", ns=(0, 10**18))
    source = table(tmp_path, "t.csv", "path,label\na.png,red\nnone.png,blue\n")
    assert list(source.items()) == [
        Item("a.png", "a.png", len(PNG), "1000000000000000000", Description("red")),
        Item("none.png", "none.png", None, None, Description("blue")),
    ]
    assert source.read("a.png", POLICY) == PNG


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("none.png", Reason.UNREADABLE),
        ("../secret.png", Reason.OUTSIDE_SOURCE),
        ("link.png", Reason.OUTSIDE_SOURCE),
        ("a\0.png", Reason.BAD_NAME),
        ("x" * 5000, Reason.UNREADABLE),
        (".", Reason.UNREADABLE),
        ("http://127.0.0.1/", Reason.FORBIDDEN_ADDRESS),
        ("HTTPS://127.0.0.1/", Reason.FORBIDDEN_ADDRESS),
        ("file:///etc/passwd", Reason.FORBIDDEN_ADDRESS),
        ("ftp://127.0.0.1/a.png", Reason.FORBIDDEN_ADDRESS),
        ("webhdfs://127.0.0.1/a.png", Reason.FORBIDDEN_ADDRESS),
        ("memory://a.png", Reason.FORBIDDEN_ADDRESS),
        ("simplecache::http://127.0.0.1/", Reason.FORBIDDEN_ADDRESS),
        ("s3::http://127.0.0.1/", Reason.FORBIDDEN_ADDRESS),
        ("zip://a.png::http://127.0.0.1/a.zip", Reason.FORBIDDEN_ADDRESS),
        ("gs://bucket/a.png", Reason.UNREACHABLE),
    ],
)
def test_what_a_row_may_not_or_cannot_name_costs_itself(tmp_path: Path, place: str, why: Reason) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "in/link.png").symlink_to("../secret.png")
    source = table(tmp_path / "in", "t.jsonl", "")
    assert reason(source, place) is why


@pytest.mark.parametrize("place", ["../secret.png", "a/../../secret.png", "/secret.png", "..", "s3://bucket/../x"])
def test_a_row_of_a_remote_table_stays_below_the_folder_of_the_table(s3: str, place: str) -> None:
    put(f"{s3}/secret.png", PNG)
    put(f"{s3}/tables/t.txt", b"x")
    with pytest.raises(ImageError) as error:
        TableSource(f"{s3}/tables/t.txt", FetchPolicy()).read(place, POLICY)
    assert error.value.reason in {Reason.OUTSIDE_SOURCE, Reason.UNREADABLE}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("t.csv", "name,label\nx,y\n", "row 1 has no column 'path', 'file' or 'url'; it has: name, label."),
        ("t.jsonl", '{"path": "a.png"}\n{"path": 7}\n', "row 2 has no column 'path', 'file' or 'url'; it has: path."),
        ("t.jsonl", '{"path": "a.png"}\n{}\n', "row 2 has no column 'path', 'file' or 'url'; it has: nothing."),
        ("t.jsonl", "{", "is no JSON"),
        ("t.csv", b"path\n\xff\n", "is not UTF-8"),
        ("t.txt", b"\xff\n", "is not UTF-8"),
        ("t.parquet", b"PAR1", "is no Parquet"),
    ],
)
def test_a_table_that_cannot_be_understood_is_named_with_the_row(
    tmp_path: Path, name: str, text: str | bytes, sentence: str
) -> None:
    with pytest.raises(BuildError) as error:
        keys(table(tmp_path, name, text))
    assert sentence in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("where", ["", "memory://none"])
@pytest.mark.parametrize("name", ["t.txt", "t.csv", "t.parquet"])
def test_a_table_that_is_gone_is_named(tmp_path: Path, where: str, name: str) -> None:
    with pytest.raises(BuildError, match=name):
        keys(TableSource(f"{where or tmp_path}/{name}", FetchPolicy()))


def test_a_long_list_is_read_in_little_memory(tmp_path: Path) -> None:
    source = table(tmp_path, "t.txt", "".join(f"s3://bucket/{i}.png\n" for i in range(20_000)))
    assert next(source.items()).key == "s3://bucket/0.png"
    peaks = []
    for _ in range(3):  # what threads of earlier tests allocate meanwhile counts too
        tracemalloc.start()
        assert sum(1 for _ in source.items()) == 20_000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert min(peaks) < 2**18
