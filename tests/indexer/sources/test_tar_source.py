"""Tars as sources: every picture under its whole name."""

import tarfile
from pathlib import Path

import pytest

from indexer.errors import BuildError, ImageError, Reason
from indexer.labels import Description
from indexer.sources.fetch import FetchPolicy
from indexer.sources.opening import open_sources
from indexer.sources.tar_source import TarSource
from tests.indexer.sources.conftest import PICTURES, put
from tests.indexer.test_tars import special, tar
from tests.pictures import POLICY

PNG = PICTURES["first.png"]


def source(folder: Path, *members: tuple[str | tarfile.TarInfo, bytes]) -> TarSource:
    """Write a tar and open it."""
    (folder / "s.tar").write_bytes(tar(*members))
    return TarSource((str(folder / "s.tar"),))


def test_every_picture_counts_and_has_its_own_texts_or_those_of_its_key(tmp_path: Path) -> None:
    made = source(
        tmp_path,
        ("a.txt", b"the a"),
        ("a.jpg", b"1"),
        ("a.PNG", b"2"),
        ("at 10.22.png", b"3"),
        ("at 10.25.png", b"4"),
        ("at 10.25.txt", b"five past"),
        ("a.mask.png", b"5"),
        ("b.mp4", b"6"),
    )
    said = {item.key: item.description.caption for item in made.items() if not item.refusal}
    assert said == {
        "a.jpg": "the a",
        "a.PNG": "the a",
        "a.mask.png": "the a",
        "at 10.22.png": None,
        "at 10.25.png": "five past",
    }
    read = {item.key: made.read(item.place, POLICY) for item in made.items() if not item.refusal}
    assert read == {"a.jpg": b"1", "a.PNG": b"2", "a.mask.png": b"5", "at 10.22.png": b"3", "at 10.25.png": b"4"}
    refused = {item.key: item.refusal.reason for item in made.items() if item.refusal}
    assert refused == {"b.mp4": Reason.NOT_AN_IMAGE}


def test_several_captions_are_the_first_and_all(tmp_path: Path) -> None:
    made = source(tmp_path, ("a.png", PNG), ("a.txt", b"one\ntwo\n"), ("a.json", b'{"caption": "three", "x": 1}'))
    (item,) = made.items()
    assert item.description == Description(None, "one", {"x": 1, "captions": ["one", "two", "three"]})


def test_a_hostile_member_is_listed_as_refused(tmp_path: Path) -> None:
    made = source(
        tmp_path,
        (special("link.png", tarfile.SYMTYPE, "/etc/passwd"), b""),
        ("../out.png", PNG),
        ("x\udcff.png", PNG),
        ("good.png", PNG),
        ("bad.png", PNG),
        ("bad.json", b"{"),
    )
    assert {item.key: item.refusal and item.refusal.reason for item in made.items()} == {
        "link.png": Reason.OUTSIDE_SOURCE,
        "../out.png": Reason.BAD_NAME,
        r"x\udcff.png": Reason.BAD_NAME,
        "good.png": None,
        "bad.png": Reason.UNREADABLE,
    }


def test_several_tars_are_one_source_in_their_order(tmp_path: Path) -> None:
    for number in (0, 1, 2):
        (tmp_path / f"{number:02}.tar").write_bytes(tar((f"{2 - number}.png", bytes([number]))))
    for name in (str(tmp_path), str(tmp_path / "{00..02}.tar")):
        (made,) = open_sources([name], FetchPolicy())
        assert [(item.key, made.read(item.place, POLICY)) for item in made.items()] == [
            ("2.png", b"\0"),
            ("1.png", b"\1"),
            ("0.png", b"\2"),
        ]


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_tar_that_has_become_another_costs_its_pictures(tmp_path: Path, where: str) -> None:
    name = str(tmp_path / "s.tar") if where == "local" else f"memory://{tmp_path.name}/s.tar"

    def write(data: bytes) -> None:
        put(name, data) if where == "memory" else Path(name).write_bytes(data)

    write(tar(("a.png", PNG), ("b.png", b"x" * (POLICY.max_bytes + 1))))
    made = TarSource((name,))
    first, second = made.items()
    assert made.read(first.place, POLICY) == PNG
    write(tar(("a.png", PNG))[:600])
    for place, why in (
        (first.place, Reason.CHANGED),
        (second.place, Reason.TOO_MANY_BYTES),
        ("0:5:/etc/passwd", Reason.OUTSIDE_SOURCE),
    ):
        with pytest.raises(ImageError) as error:
            made.read(place, POLICY)
        assert error.value.reason is why


@pytest.mark.parametrize("name", ["none.tar", "memory://none.tar"])
def test_a_tar_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    name = name if "://" in name else str(tmp_path / name)
    with pytest.raises(BuildError, match=r"none\.tar"):
        list(TarSource((name,)).items())


def test_a_remote_tar_that_is_damaged_is_named() -> None:
    put("memory://damaged.tar", tar(("a.png", PNG))[:700])
    with pytest.raises(BuildError, match=r"memory://damaged\.tar is"):
        list(TarSource(("memory://damaged.tar",)).items())
