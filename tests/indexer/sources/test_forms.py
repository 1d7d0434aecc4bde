"""One collection as a folder, a tar, lists, tables and objects: the same keys, the same bytes."""

import os
import pickle
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from indexer.errors import ImageError
from indexer.labels import Description
from indexer.sources.fetch import FetchPolicy
from indexer.sources.opening import open_sources
from indexer.sources.source import Item, Source
from tests.indexer.sources.conftest import PICTURES, put, table_of, tar_of
from tests.pictures import POLICY

Form = Callable[[Path, str], str]
"""Writes the collection in a folder in some form, where a URL says, and returns what a user would type."""

NO_FETCH = FetchPolicy()
ROWS: list[dict[str, Any]] = [{"path": name} for name in PICTURES]


def read_all(source: Source) -> dict[str, bytes]:
    """Return what a source holds, read by a copy that has travelled; every key once."""
    items = list(source.items())
    assert len({item.key for item in items}) == len(items)
    copy: Source = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own, a line ago
    return {item.key: copy.read(item.place, POLICY) for item in items}


def opened(name: str, fetch: FetchPolicy = NO_FETCH) -> Source:
    """Open what a user types."""
    (source,) = open_sources([name], fetch)
    return source


def as_folder(folder: Path, _: str) -> str:
    return str(folder)


def as_tar(folder: Path, _: str) -> str:
    (folder.parent / "all.tar").write_bytes(tar_of(folder))
    return str(folder.parent / "all.tar")


def as_remote_folder(folder: Path, url: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            put(f"{url}/~/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return url


def as_remote_tar(folder: Path, url: str) -> str:
    put(f"{url}/all.tar", tar_of(folder))
    return f"{url}/all.tar"


def as_table(ending: str) -> Form:
    def form(folder: Path, _: str) -> str:
        (folder / f"table{ending}").write_bytes(table_of(ROWS, ending))
        return str(folder / f"table{ending}")

    return form


def as_absolute_table(folder: Path, _: str) -> str:
    rows = [{"path": str(folder / name), "key": name} for name in PICTURES]
    (folder.parent / "table.csv").write_bytes(table_of(rows, ".csv"))
    return str(folder.parent / "table.csv")


def as_remote_table(ending: str) -> Form:
    def form(folder: Path, url: str) -> str:
        as_remote_folder(folder, url)
        put(f"{url}/table{ending}", table_of(ROWS, ending))
        return f"{url}/table{ending}"

    return form


def as_table_of_objects(folder: Path, url: str) -> str:
    as_remote_folder(folder, url)
    plain = [name for name in PICTURES if "::" not in name]
    rows = [{"url": f"{url}/{name}", "key": name} for name in plain]
    rows += [{"path": name, "key": name} for name in PICTURES.keys() - plain]
    (folder / "table.jsonl").write_bytes(table_of(rows, ".jsonl"))
    return str(folder / "table.jsonl")


LOCAL: dict[str, Form] = {
    "folder": as_folder,
    "tar": as_tar,
    **{f"table{ending}": as_table(ending) for ending in (".txt", ".csv", ".jsonl", ".parquet")},
    "absolute table": as_absolute_table,
}
REMOTE: dict[str, Form] = {
    "remote folder": as_remote_folder,
    "remote tar": as_remote_tar,
    **{f"remote table{ending}": as_remote_table(ending) for ending in (".txt", ".csv", ".jsonl", ".parquet")},
    "table of objects": as_table_of_objects,
}


@pytest.mark.parametrize("form", LOCAL)
def test_a_local_form_holds_the_collection(folder: Path, form: str) -> None:
    source = opened(LOCAL[form](folder, ""))
    assert read_all(source) == PICTURES
    assert not source.remote


@pytest.mark.parametrize("form", REMOTE)
def test_a_form_on_s3_holds_the_collection(folder: Path, s3: str, form: str) -> None:
    name = REMOTE[form](folder, f"{s3}/{form.replace(' ', '-')}")
    assert read_all(opened(name)) == PICTURES


@pytest.mark.parametrize("form", [form for form in REMOTE if form != "table of objects"])
def test_a_form_in_another_file_system_holds_the_collection(folder: Path, form: str) -> None:
    source = opened(REMOTE[form](folder, f"memory://forms/{form.replace(' ', '-')}"))
    assert read_all(source) == PICTURES
    assert source.remote


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    """Serve the collection over HTTP, and return host and port."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_table_of_urls_holds_the_collection_where_its_host_is_allowed(folder: Path, web: str, ending: str) -> None:
    rows = [{"url": f"http://{web}/{quote(name)}", "key": name} for name in PICTURES]
    (folder.parent / f"urls{ending}").write_bytes(table_of(rows, ending))
    name = str(folder.parent / f"urls{ending}")
    source = opened(name, FetchPolicy((web,)))
    assert read_all(source) == PICTURES
    assert source.remote
    with pytest.raises(ImageError, match="KINDRED_FETCH_HOSTS"):
        opened(name).read(rows[0]["url"], POLICY)


@pytest.mark.parametrize("form", ["folder", "tar", "table.parquet", "remote folder"])
def test_a_form_is_listed_in_the_same_order_twice(folder: Path, s3: str, form: str) -> None:
    name = {**LOCAL, **REMOTE}[form](folder, f"{s3}/again-{form.replace(' ', '-')}")
    source = opened(name)
    assert list(source.items()) == list(source.items())


@pytest.mark.parametrize("form", ["folder", "tar", "remote folder", "remote tar", "table.csv"])
def test_a_stamp_changes_with_the_bytes_and_with_nothing_else(folder: Path, s3: str, form: str) -> None:
    url = f"{s3}/stamped-{form.replace(' ', '-')}"
    make = {**LOCAL, **REMOTE}[form]

    def listed() -> dict[str, Item]:
        name = make(folder, url)
        for path in folder.parent.rglob("*"):
            age(path)
        return {item.key: item for item in opened(name).items()}

    before = listed()
    assert all(before[key].stamp for key in PICTURES)
    assert listed() == before
    (folder / "blue/0.jpg").write_bytes(PICTURES["first.png"])
    assert listed()["blue/0.jpg"].stamp != before["blue/0.jpg"].stamp


def age(path: Path) -> None:
    """Make a file as old as its content says, and long settled."""
    if path.is_file():
        os.utime(path, ns=(0, 10**18 + zlib.crc32(path.read_bytes())))


@pytest.mark.parametrize("form", [".csv", ".jsonl", ".parquet", "tar", "json in a tar"])
def test_what_is_said_of_a_picture_comes_along(tmp_path: Path, form: str) -> None:
    row = {"path": "a.png", "label": "red", "caption": "a red one", "photographer": "Kim"}
    if "tar" in form:
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.png").write_bytes(PICTURES["first.png"])
        if form == "tar":
            (tmp_path / "in/a.txt").write_text("a red one\n")
            (tmp_path / "in/a.cls").write_text("red")
            (tmp_path / "in/a.json").write_text('{"photographer": "Kim"}')
        else:
            (tmp_path / "in/a.json").write_bytes(table_of([row], ".jsonl"))
        (tmp_path / "t.tar").write_bytes(tar_of(tmp_path / "in"))
        name = "t.tar"
    else:
        (tmp_path / f"t{form}").write_bytes(table_of([row], form))
        name = f"t{form}"
    (item,) = opened(str(tmp_path / name)).items()
    assert (item.key, item.description) == ("a.png", Description("red", "a red one", {"photographer": "Kim"}))
