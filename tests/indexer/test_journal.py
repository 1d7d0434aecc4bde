"""The journal knows the build in hand and its finished shards, in whatever process asks."""

import sqlite3
from pathlib import Path

from indexer.journal import Journal
from indexer.shards import ShardFile

ONE = ShardFile("one", "ab" * 32, encoded=3, reused=2, skipped=1)


def test_a_finished_shard_is_known_to_the_next_process(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        assert journal.finished("one") is None
        journal.record(ONE)
    with Journal.open(tmp_path) as journal:
        assert journal.finished("one") == ONE
        journal.forget("one")
        assert journal.finished("one") is None


def test_a_build_of_the_same_facts_goes_on_and_another_begins_anew(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        assert journal.job() is None
        first = journal.begin("pictures", "model")
        journal.record(ONE)
    with Journal.open(tmp_path) as journal:
        assert journal.begin("pictures", "model") == first
        other = journal.begin("pictures", "another model")
        assert other.snapshot_id > first.snapshot_id
        # Shards are named by all that decides what is in them: the first build may be taken up again.
        assert journal.finished("one") == ONE
        journal.clear()
        assert (journal.job(), journal.finished("one")) == (None, None)


def test_a_row_is_on_disk_when_it_is_written(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        facts = [
            journal._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        ]
        assert facts == ["wal", 2]  # 2 is FULL
        journal.record(ONE)
        with sqlite3.connect(tmp_path / "journal.sqlite") as other:
            assert other.execute("SELECT id, encoded FROM shards").fetchall() == [("one", 3)]
