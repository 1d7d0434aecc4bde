"""The plan tells apart what is new, changed, moved, unchanged and gone, and cuts the rest into stable shards."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from indexer.catalog import CatalogWriter, ImageRecord
from indexer.errors import BuildError, Reason
from indexer.images import DecodePolicy
from indexer.labels import Description
from indexer.plan import Plan, image_id
from indexer.shards import SkippedPicture, WorkItem
from indexer.skipped import KnownSkip
from indexer.sources.source import Item, Refusal

WIDE = DecodePolicy(10**9, 10**9)


def digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def catalog(path: Path, pictures: dict[str, tuple[str, str]]) -> Path:
    """Write a catalogue of pictures: content and stamp by key."""
    writer = CatalogWriter(path)
    writer.add(
        ImageRecord(
            row=row,
            id=image_id(key),
            path=key,
            content_hash=digest(content),
            media_type="image/png",
            width=10,
            height=10,
            thumbnail=(0, 0),
            size=len(content),
            stamp=stamp,
        )
        for row, (key, (content, stamp)) in enumerate(pictures.items())
    )
    writer.finish()
    return path


class Reader:
    """Hashes pictures, and notes which it was asked to read."""

    def __init__(self, contents: dict[str, str]) -> None:
        self.contents = contents
        self.read: list[str] = []

    def __call__(self, items: Sequence[WorkItem]) -> list[str | None]:
        self.read += [item.key for item in items]
        return [digest(self.contents[item.place]) for item in items]


def listed(pictures: dict[str, tuple[str, str]]) -> Iterable[Item]:
    return [Item(key, key, len(content), stamp) for key, (content, stamp) in pictures.items()]


BEFORE = {
    "same.png": ("same", "1"),
    "touched.png": ("touched", "1"),
    "changed.png": ("before", "1"),
    "grown.png": ("small", "1"),
    "old/name.png": ("moved", "1"),
    "deleted.png": ("deleted", "1"),
}
NOW = {
    "same.png": ("same", "1"),
    "touched.png": ("touched", "2"),
    "changed.png": ("later!", "2"),
    "grown.png": ("larger than before", "2"),
    "new/name.png": ("moved", "1"),
    "new.png": ("brand new", "2"),
    "lookalike.png": ("DELETED", "2"),
}


def test_what_happened_to_each_picture_is_told_and_only_what_must_be_is_read(tmp_path: Path) -> None:
    reader = Reader({key: content for key, (content, _) in NOW.items()})
    with Plan(tmp_path / "plan.sqlite") as plan:
        plan.add(0, listed(NOW), labels=None)
        plan.compare(catalog(tmp_path / "old.sqlite", BEFORE), WIDE, [0], reader)
        plan.cut(100, "facts")
        counts = plan.counts()
        # `lookalike` has the size of `deleted`, so it is read; its content is another.
        assert (counts.new, counts.changed, counts.moved, counts.unchanged, counts.deleted) == (2, 2, 1, 2, 1)
        assert sorted(reader.read) == ["changed.png", "lookalike.png", "new/name.png", "touched.png"]
        rows = {item.key: item.earlier for item in plan.items()}
        assert rows == {
            "same.png": 0,
            "touched.png": 1,
            "changed.png": None,
            "grown.png": None,
            "new/name.png": 4,
            "new.png": None,
            "lookalike.png": None,
        }
        assert {item.key for item in plan.shard(1).items} == {key for key, row in rows.items() if row is None}


def test_a_picture_that_moved_to_two_names_is_copied_to_both(tmp_path: Path) -> None:
    now = {"x.png": ("moved", "1"), "y.png": ("moved", "1")}
    with Plan(tmp_path / "plan.sqlite") as plan:
        plan.add(0, listed(now), labels=None)
        plan.compare(catalog(tmp_path / "old.sqlite", BEFORE), WIDE, [0], Reader({"x.png": "moved", "y.png": "moved"}))
        plan.cut(100, "facts")
        assert [item.earlier for item in plan.items()] == [4, 4]
        assert (plan.counts().moved, plan.counts().work, plan.counts().shards, plan.counts().deleted) == (2, 0, 0, 5)


def test_pictures_over_a_network_are_not_fetched_to_be_compared(tmp_path: Path) -> None:
    reader = Reader({})
    with Plan(tmp_path / "plan.sqlite") as plan:
        plan.add(0, listed(NOW), labels=None)
        plan.compare(catalog(tmp_path / "old.sqlite", BEFORE), WIDE, [], reader)
        plan.cut(100, "facts")
        counts = plan.counts()
        assert (reader.read, counts.unchanged, counts.changed, counts.new, counts.moved) == ([], 1, 3, 3, 0)


def test_what_a_limit_bears_on_is_not_taken_from_before(tmp_path: Path) -> None:
    with Plan(tmp_path / "plan.sqlite") as plan:
        plan.add(0, listed(BEFORE), labels=None)
        plan.compare(catalog(tmp_path / "old.sqlite", BEFORE), DecodePolicy(10**9, 99), [0], Reader({}))
        plan.cut(100, "facts")
        assert (plan.counts().unchanged, plan.counts().changed) == (0, 6)
    with Plan(tmp_path / "plan.sqlite") as plan:
        plan.add(0, listed(BEFORE), labels=None)
        plan.compare(catalog(tmp_path / "old2.sqlite", BEFORE), DecodePolicy(6, 100), [0], Reader({}))
        plan.cut(100, "facts")
        assert {item.key for item in plan.items() if item.earlier is None} == {"touched.png", "deleted.png"}


def test_a_known_skip_holds_until_the_picture_changes(tmp_path: Path) -> None:
    def known(key: str, size: int | None, stamp: str | None) -> KnownSkip:
        return KnownSkip(SkippedPicture(key, Reason.NOT_AN_IMAGE, "no picture"), size, stamp)

    items = [Item("as-it-was", "a", 3, "1"), Item("changed", "b", 3, "2"), Item("unstamped", "c", 3, None)]
    refused = Item("refused", "d", refusal=Refusal(Reason.BAD_NAME, "bad name"))
    with Plan(tmp_path / "plan.sqlite") as plan:
        plan.add(0, [*items, refused], labels=None)
        plan.remember_skips([known("as-it-was", 3, "1"), known("changed", 3, "1"), known("unstamped", 3, None)])
        plan.cut(100, "facts")
        skips = {item.key: item.skip and item.skip.reason for item in plan.items()}
        assert skips == {
            "as-it-was": Reason.NOT_AN_IMAGE,
            "changed": None,
            "unstamped": None,
            "refused": Reason.BAD_NAME,
        }
        assert (plan.counts().skipped, plan.counts().work) == (2, 2)


def test_two_pictures_of_one_name_are_an_error_that_names_it(tmp_path: Path) -> None:
    one, other = Item("a.png", "a.png"), Item("b.png", "b.png")
    twice = pytest.raises(BuildError, match=r"Source 1 has a picture 'a\.png' twice")
    with Plan(tmp_path / "plan.sqlite") as plan, twice:
        plan.add(0, [one, other, one], labels=None)
    with Plan(tmp_path / "plan.sqlite") as plan:
        plan.add(0, [one], labels=None)
        with pytest.raises(BuildError, match=r"Source 2 has a picture 'a\.png' and so has source 1.*NAME=SOURCE"):
            plan.add(1, [other, one], labels=None)


def shards(tmp_path: Path, keys: Iterable[str], facts: str = "facts", size: int = 20) -> dict[str, list[str]]:
    with Plan(tmp_path / "plan.sqlite") as plan:
        plan.add(0, [Item(key, key, 1, "1") for key in keys], labels=None)
        plan.cut(size, facts)
        numbers = range(1, plan.counts().shards + 1)
        return {plan.shard_id(n): [item.key for item in plan.shard(n).items] for n in numbers}


def test_shards_hold_every_picture_once_and_about_as_many_as_asked(tmp_path: Path) -> None:
    keys = [f"{number:05}.png" for number in range(5_000)]
    found = shards(tmp_path, keys)
    assert [key for part in found.values() for key in part] == keys
    assert max(map(len, found.values())) <= 80
    assert 15 < sum(map(len, found.values())) / len(found) < 25


def test_a_picture_that_comes_changes_only_its_own_shard(tmp_path: Path) -> None:
    keys = [f"{number:05}.png" for number in range(5_000)]
    before = shards(tmp_path, keys)
    after = shards(tmp_path, sorted([*keys, "00100a.png"]))
    assert len(after.keys() - before.keys()) <= 2
    assert len(before.keys() - after.keys()) == 1


def test_other_facts_make_other_shards(tmp_path: Path) -> None:
    keys = ["a.png", "b.png"]
    assert shards(tmp_path, keys) == shards(tmp_path, keys)
    assert not shards(tmp_path, keys).keys() & shards(tmp_path, keys, facts="another model").keys()


def test_labels_come_from_folders_or_from_rows(tmp_path: Path) -> None:
    items = [Item("cats/tom.png", "x", description=Description("felis", "a cat", {"n": 1})), Item("top.png", "y")]
    with Plan(tmp_path / "plan.sqlite") as plan:
        plan.add(0, items, labels="parent")
        assert [item.description for item in plan.items()] == [Description("cats", "a cat", {"n": 1}), Description()]
        row = Description("dog", "no dog", {"b": [2], "a": None})
        assert plan.describe([("nowhere.png", row), ("top.png", row)]) == 1
        assert [item.description for item in plan.items()][1] == row


def test_the_first_row_of_a_content_stays_its_row(tmp_path: Path) -> None:
    with Plan(tmp_path / "plan.sqlite") as plan:
        assert [plan.row_of_content(content, row) for row, content in enumerate("abab")] == [0, 1, 0, 1]
