"""Clocks that jump: ids stay in order, a rollback goes to the predecessor, and no limit is measured by the clock."""

import ast
import shutil
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from indexer import journal
from indexer.encoder import Encoder
from indexer.journal import Journal, new_job
from indexer.store import SnapshotStore
from tests.conftest import build_snapshot
from tests.snapshots import unit_vectors, write_snapshot
from tests.test_architecture import MODULES
from tests.trust.figures import noted

# What reads the clock, and why a jump of it does no harm: ages of files that nobody misses, dates that servers send and
# that are clipped to a range, times that are only told, ages, and the dates on which keys expire.
CLOCK_READERS = {
    "indexer.durable": {"time.time"},
    "indexer.sources.fetch": {"time.time"},
    "indexer.journal": {"datetime.now"},
    "indexer.sources.folder": {"time.time_ns"},
    "service.doctor": {"datetime.now"},
    "service.keys": {"datetime.now"},
    "service.keys_command": {"datetime.now"},
    "service.client_wire": {"datetime.now"},
    "service.reindex": {"datetime.now"},
}
YEAR = timedelta(days=366)


def test_the_clock_is_read_only_where_a_jump_of_it_does_no_harm() -> None:
    found: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        read = {ast.unparse(call.func) for call in calls} & {"time.time", "time.time_ns", "datetime.now", "time"}
        if read:
            found[name] = read
    assert [name for name, read in found.items() if read - CLOCK_READERS.get(name, set())] == []
    noted(promise="R23", figure=f"{len(found)} modules read the clock, each known; all limits are monotonic")


@pytest.mark.parametrize("newest", ["20990101T000000-999999", "21001231T235959-000000"])
def test_a_build_after_the_clock_was_set_back_is_named_after_the_newest_snapshot(newest: str) -> None:
    before = datetime.now(UTC)
    job = new_job(newest)
    assert job.snapshot_id > newest
    assert before <= job.begun_at <= datetime.now(UTC)  # what it says of its age is the clock's word


@pytest.mark.parametrize("newest", [None, "", "by-hand", "20200101T000000-000000"])
def test_a_build_by_a_clock_that_goes_right_is_named_by_it(newest: str | None) -> None:
    job = new_job(newest)
    assert job.snapshot_id == job.begun_at.strftime("%Y%m%dT%H%M%S-%f")


def test_the_journal_begins_after_the_newest_and_goes_on_with_what_it_began(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as opened:
        begun = opened.begin("facts", newest="20990101T000000-000000")
        assert begun.snapshot_id == "20990101T000000-000001"
        assert opened.begin("facts", newest="20990601T000000-000000") == begun


def test_a_folder_named_by_hand_does_not_hide_the_newest_snapshot(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "s")
    assert store.newest() is None
    first = write_snapshot(store, unit_vectors(9, 16), snapshot_id="20260101T000000-000001")
    shutil.copytree(store.folder / first, store.folder / "kept-by-hand")
    assert store.ids()[0] == "kept-by-hand"
    assert store.newest() == first


def test_builds_by_a_clock_that_jumps_a_year_and_back_are_kept_and_rolled_back_in_order(
    source: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shifted(datetime):
        """A clock of the day that goes wrong."""

        by = timedelta()

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Shifted":
            return cls.fromtimestamp((datetime.now(tz) + cls.by).timestamp(), tz)

    monkeypatch.setattr(journal, "datetime", Shifted)
    store, manifests = SnapshotStore(tmp_path / "s"), []
    for shift in (timedelta(), YEAR, -YEAR):
        Shifted.by = shift
        manifests.append(build_snapshot(source, store.folder, encoder).manifest)
    ids, times = [each.id for each in manifests], [each.created_at for each in manifests]
    assert times[1] - times[0] > YEAR > times[0] - times[2] - timedelta(hours=1)
    assert times[2] < times[0]  # the clock was indeed set back
    assert ids == sorted(ids)
    assert store.previous() == ids[1]
    store.publish(store.previous())
    assert store.prune(1) == [ids[0]]
    assert store.ids() == [ids[2], ids[1]]
    assert store.published() == ids[1]
    noted(promise="R23", figure="builds by a right clock, one a year ahead and one a year behind: ids in order")
