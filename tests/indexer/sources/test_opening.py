"""What a user types, and what becomes of it."""

from pathlib import Path

import pytest

from indexer.errors import BuildError
from indexer.sources.fetch import FetchPolicy
from indexer.sources.folder import FolderSource
from indexer.sources.opening import NamedSource, absolute, open_sources
from indexer.sources.remote import RemoteSource
from indexer.sources.tables import TableSource
from indexer.sources.tar_source import TarSource
from tests.indexer.test_tars import tar
from tests.pictures import POLICY

FETCH = FetchPolicy(("images.example.com",))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with something of every kind."""
    for name in ("pictures", "shards", "cats=dogs", "nothing"):
        (tmp_path / name).mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"a")
    for name in ("0.tar", "1.tar"):
        (tmp_path / "shards" / name).write_bytes(tar((f"{name}.png", b"b")))
    for name in ("list.txt", "t.csv", "t.jsonl", "t.parquet"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_typed_is_opened_by_what_lies_there(here: Path) -> None:
    shards = TarSource((f"{here}/shards/0.tar", f"{here}/shards/1.tar"))
    expected: dict[str, object] = {
        "pictures": FolderSource(here / "pictures"),
        "./pictures/../pictures/": FolderSource(here / "pictures"),
        f"file://{here}/pictures": FolderSource(here / "pictures"),
        "nothing": FolderSource(here / "nothing"),
        "cats=dogs": FolderSource(here / "cats=dogs"),
        "shards": shards,
        "shards/{0..1}.tar": shards,
        "shards/1.tar": TarSource((f"{here}/shards/1.tar",)),
        **{name: TableSource(f"{here}/{name}", FETCH) for name in ("list.txt", "t.csv", "t.jsonl", "t.parquet")},
        "s3://bucket/pictures": RemoteSource("s3://bucket/pictures"),
        "s3://bucket/a=b": RemoteSource("s3://bucket/a=b"),
        "gs://bucket/t.csv": TableSource("gs://bucket/t.csv", FETCH),
        "s3://bucket/{08..10}.tar": TarSource(("s3://bucket/08.tar", "s3://bucket/09.tar", "s3://bucket/10.tar")),
        "mine=pictures": NamedSource("mine", FolderSource(here / "pictures")),
        "mine=s3://bucket/pictures": NamedSource("mine", RemoteSource("s3://bucket/pictures")),
    }
    assert open_sources(list(expected), FETCH) == tuple(expected.values())


def test_a_name_comes_before_every_key_and_changes_nothing_else(here: Path) -> None:
    (named,) = open_sources(["mine=pictures"], FETCH)
    (item,) = named.items()
    (plain,) = FolderSource(here / "pictures").items()
    assert (item.key, item.place, item.size) == ("mine/a.png", plain.place, 1)
    assert named.read(item.place, POLICY) == b"a"
    assert not named.remote


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none", r"/none does not exist\. A source is a folder, a list or table \(\.txt, \.csv, \.jsonl, \.parquet\)"),
        ("none.csv", r"/none\.csv does not exist\."),
        ("mine=none", r"/none does not exist\."),
        ("pictures/a.png", r"/pictures/a\.png is neither a folder, a list or table"),
        ("shards/{0..2}.tar", r"The shard .*/2\.tar does not exist\."),
        ("shards/0.tar.gz", r"is compressed"),
        ("https://example.com/t.csv", r"is not fetched from the web\. Download it first"),
        ("mine=http://example.com/", r"Download it first"),
        ("simplecache::https://example.com/all.tar", r"Download it first"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_is_no_source_is_named_with_what_would_be(name: str, sentence: str) -> None:
    with pytest.raises(BuildError, match=sentence):
        open_sources([name], FETCH)


def test_a_name_is_made_to_hold_in_any_folder(here: Path) -> None:
    expected = {
        "pictures": f"{here}/pictures",
        "../x": f"{here.parent}/x",
        "/a/b/": "/a/b",
        "mine=pictures": f"mine={here}/pictures",
        "cats=dogs": f"{here}/cats=dogs",
        "shards/{0..1}.tar": f"{here}/shards/{{0..1}}.tar",
        "s3://bucket//a/": "s3://bucket//a/",
        "mine=s3://bucket": "mine=s3://bucket",
    }
    assert [absolute(name) for name in expected] == list(expected.values())
    assert [absolute(absolute(name)) for name in expected] == list(expected.values())
