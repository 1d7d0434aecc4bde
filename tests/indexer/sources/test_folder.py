"""Folders: listed as they are scanned, with stamps that can be trusted."""

import os
import time
from pathlib import Path

import pytest

from indexer.errors import BuildError, ImageError, Reason
from indexer.images import scan
from indexer.sources.folder import FolderSource
from indexer.sources.source import Item
from tests.pictures import POLICY

DAY = 86_400 * 10**9


def item(root: Path, name: str) -> Item:
    """Return what a folder says of one file."""
    return next(each for each in FolderSource(root).items() if each.key == name)


def test_keys_and_order_are_those_of_the_scan(folder: Path) -> None:
    assert [each.key for each in FolderSource(folder).items()] == [file.path for file in scan(folder)]


def test_size_and_stamp_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"12345")
    os.utime(tmp_path / "a.png", ns=(0, 1_234_567_890_123_456_789))
    assert item(tmp_path, "a.png") == Item("a.png", "a.png", 5, "1234567890123456789")


@pytest.mark.parametrize(("age", "trusted"), [(0, False), (DAY // 86_400, False), (DAY // 8_640, True), (-DAY, False)])
def test_a_file_of_just_now_or_of_the_future_has_no_stamp_yet(tmp_path: Path, age: int, trusted: bool) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    os.utime(tmp_path / "a.png", ns=(0, time.time_ns() - age))
    assert (item(tmp_path, "a.png").stamp is not None) is trusted


def test_a_name_that_is_no_utf8_is_refused_under_a_name_that_is(tmp_path: Path) -> None:
    for name in (b"\xff.png", b"\xfe.png"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(b"x")
    items = list(FolderSource(tmp_path).items())
    assert [each.key for each in items] == [r"\udcfe.png", r"\udcff.png"]
    assert [each.refusal and each.refusal.reason for each in items] == [Reason.BAD_NAME] * 2


def test_a_file_that_is_gone_or_leads_out_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "in/link.png").symlink_to("../secret")
    for place, why in (("link.png", Reason.OUTSIDE_SOURCE), ("gone.png", Reason.UNREADABLE)):
        with pytest.raises(ImageError) as error:
            FolderSource(tmp_path / "in").read(place, POLICY)
        assert error.value.reason is why


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="none does not exist"):
        next(FolderSource(tmp_path / "none").items())
