"""Object stores: listed like folders, read in spite of what passes (R10)."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.core import url_to_fs

from indexer.errors import BuildError, ImageError, Reason
from indexer.sources import remote
from indexer.sources.folder import FolderSource
from indexer.sources.remote import RemoteSource
from indexer.sources.retries import Patience
from tests.faults import FOREVER, Fault, FaultServer, answers, head, resets, sends, short, silent
from tests.indexer.sources.conftest import HIDDEN, PICTURES, put
from tests.pictures import POLICY

PNG = PICTURES["first.png"]


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PATIENCE", Patience(2, 0.01, 5))
    quick = {"connect_timeout": 0.3, "read_timeout": 0.3, "retries": {"total_max_attempts": 1}}
    monkeypatch.setattr(remote, "_S3", {"config_kwargs": quick})


def reason(source: RemoteSource, place: str) -> Reason:
    """Have a picture refused, and return the reason."""
    with pytest.raises(ImageError) as error:
        source.read(place, POLICY)
    return error.value.reason


@pytest.mark.parametrize("root", ["s3", "memory"])
def test_a_prefix_is_listed_in_the_order_of_the_folder(folder: Path, s3: str, root: str) -> None:
    url = f"{s3}/ordered" if root == "s3" else "memory://ordered"
    for name, data in {**PICTURES, **HIDDEN}.items():
        put(f"{url}/~/{name}", data)
    put(f"{url}-not/a.png", PNG)
    for typed in (url, f"{url}/"):
        assert [item.key for item in RemoteSource(typed).items()] == [item.key for item in FolderSource(folder).items()]


def test_the_stamp_on_s3_is_the_etag_and_the_size_is_told(s3: str) -> None:
    put(f"{s3}/one/a.png", PNG)
    put(f"{s3}/one/empty.png", b"")
    put(f"{s3}/~/one/folder/", b"")
    first, empty = RemoteSource(f"{s3}/one").items()
    assert (first.key, first.size, first.stamp) == (
        "a.png",
        len(PNG),
        f'"{hashlib.md5(PNG, usedforsecurity=False).hexdigest()}"',
    )
    assert empty.refusal
    assert empty.refusal.reason is Reason.EMPTY


def test_a_file_and_a_folder_of_one_name_are_both_listed(s3: str) -> None:
    for name in ("a", "a/b.png", "a/b.png/c.png"):
        put(f"{s3}/~/both/{name}", name.encode())
    source = RemoteSource(f"{s3}/both")
    assert {item.key: source.read(item.place, POLICY) for item in source.items()} == {
        "a": b"a",
        "a/b.png": b"a/b.png",
        "a/b.png/c.png": b"a/b.png/c.png",
    }


def test_what_is_gone_empty_or_too_large_costs_itself(s3: str) -> None:
    put(f"{s3}/some/empty.png", b"")
    put(f"{s3}/some/just.png", bytes(POLICY.max_bytes))
    put(f"{s3}/some/large.png", bytes(POLICY.max_bytes + 1))
    source = RemoteSource(f"{s3}/some")
    assert reason(source, "empty.png") is Reason.EMPTY
    assert reason(source, "large.png") is Reason.TOO_MANY_BYTES
    assert reason(source, "gone.png") is Reason.UNREADABLE
    assert source.read("just.png", POLICY) == bytes(POLICY.max_bytes)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://bucket/nothing", "There is nothing at s3://bucket/nothing."),
        ("s3://none", "There is nothing at s3://none."),
        ("s3://bucket/file.png", "There is nothing at s3://bucket/file.png."),
        ("memory://file.png", "There is nothing at memory://file.png."),
        ("memory://nothing", "There is nothing at memory://nothing."),
        ("gs://bucket/folder", "needs a package that is not installed"),
        ("nope://bucket/folder", "names no file system of fsspec, such as s3, gs or az"),
    ],
)
def test_what_is_no_prefix_is_named(s3: str, url: str, sentence: str) -> None:
    put(f"{s3}/file.png", PNG)
    put("memory://file.png", PNG)
    with pytest.raises(BuildError) as error:
        list(RemoteSource(url).items())
    assert sentence in str(error.value)


def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object, **__: object) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote, "url_to_fs", without)
    for call in (lambda: list(RemoteSource("s3://b/f").items()), lambda: RemoteSource("s3://b/f").read("a", POLICY)):
        with pytest.raises((BuildError, ImageError), match=r"\(pip install kindred\[s3\]\)"):
            call()


@pytest.fixture
def store(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """Put a server that fails in the place of S3."""
    assert s3
    with FaultServer(PNG) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server.host}")
        url_to_fs("s3://x")[0].clear_instance_cache()
        yield server
        url_to_fs("s3://x")[0].clear_instance_cache()


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize(
    "fault",
    [
        answers("503 Slow Down"),
        answers("500 Internal Server Error"),
        answers("429 Too Many Requests"),
        sends(),
        resets(None),
        resets(10),
        short,
        silent,
    ],
)
def test_a_fault_of_a_store_that_passes_is_read_in_spite_of(store: FaultServer, fault: Fault) -> None:
    store.url(fault, times=1, path="/bucket/a.png")
    assert RemoteSource("s3://bucket").read("a.png", POLICY) == PNG
    assert store.seen["/bucket/a.png"] == 2


@pytest.mark.usefixtures("_hasty")
def test_a_store_that_stays_broken_is_unreachable(store: FaultServer) -> None:
    store.url(answers("503 Slow Down"), times=FOREVER, path="/bucket/a.png")
    assert reason(RemoteSource("s3://bucket"), "a.png") is Reason.UNREACHABLE
    assert store.seen["/bucket/a.png"] > 1


@pytest.mark.usefixtures("_hasty")
def test_a_picture_that_may_not_be_read_is_not_asked_for_twice(store: FaultServer) -> None:
    store.url(answers("403 Forbidden"), times=FOREVER, path="/bucket/a.png")
    assert reason(RemoteSource("s3://bucket"), "a.png") is Reason.UNREADABLE
    assert store.seen["/bucket/a.png"] == 1


LISTING = "/bucket?list-type=2&prefix=&delimiter=%2F&encoding-type=url"


def page(*names: str, after: str = "") -> Fault:
    """Answer with a page of a listing; `after`: where the next one begins."""
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{after}</NextContinuationToken>" if after else ""
    entries = [f"<Contents><Key>{name}</Key><ETag>e</ETag><Size>1</Size></Contents>" for name in names]
    xml = f"<ListBucketResult>{more}{''.join(entries)}</ListBucketResult>".encode()
    return sends(head(Content_Length=len(xml), Content_Type="application/xml"), xml)


@pytest.mark.usefixtures("_hasty")
def test_a_long_listing_is_read_a_page_at_a_time(store: FaultServer) -> None:
    second = LISTING.replace("&encoding-type", "&continuation-token=b.png&encoding-type")
    store.url(page("a.png", "b.png", after="b.png"), FOREVER, LISTING)
    store.url(page("c.png"), FOREVER, second)
    items = RemoteSource("s3://bucket").items()
    assert [next(items).key, next(items).key] == ["a.png", "b.png"]
    assert store.seen.keys() == {LISTING}
    assert [item.key for item in items] == ["c.png"]
    assert store.seen == {LISTING: 1, second: 1}


@pytest.mark.usefixtures("_hasty")
def test_a_store_that_cannot_be_listed_is_named(store: FaultServer) -> None:
    store.url(answers("503 Slow Down"), FOREVER, LISTING)
    with pytest.raises(BuildError, match=r"^s3://bucket cannot be listed: "):
        list(RemoteSource("s3://bucket").items())
    assert store.seen.keys() == {LISTING}
    assert store.seen[LISTING] > 1
