"""Journal: which shards of a build are finished. What an interrupted build goes on from.

<snapshots>/.work/
  journal.sqlite       one row for each finished shard, written after its file is safe on disk
  plan.sqlite          what is to be done (`plan.py`): made anew by every run
  shards/<id>.parquet  what came of each shard

A shard without a row does not exist, whatever files lie about; a row is never written first.
"""

import hashlib
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from indexer.durable import sync
from indexer.shards import ShardFile

_ID = "%Y%m%dT%H%M%S-%f"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS shards (
    id TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL,
    encoded INTEGER NOT NULL,
    reused INTEGER NOT NULL,
    skipped INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS job (
    one INTEGER PRIMARY KEY CHECK (one = 0),
    fingerprint TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    begun_at TEXT NOT NULL
) STRICT;
"""


DatabaseError = sqlite3.Error
"""What SQLite raises: of a full disk, too."""


@dataclass(frozen=True)
class Job:
    """The build in hand: a resumed one keeps the name and the time that it began with."""

    snapshot_id: str
    begun_at: datetime


def new_job(newest: str | None = None) -> Job:
    """Name a build that begins now; its id comes after that of the newest snapshot, even if the clock was set back.

    Ids say which snapshot is older: a rollback goes by them.
    """
    begun_at = named = datetime.now(UTC)
    with suppress(ValueError):  # of a folder that somebody named
        named = max(named, datetime.strptime(newest or "", _ID).replace(tzinfo=UTC) + timedelta(microseconds=1))
    return Job(named.strftime(_ID), begun_at)


class Journal:
    """The journal of one snapshot folder. One process writes it: the one that holds the folder's lock."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the journal in a work folder, or begin one; a row is on disk when the call that wrote it returns."""
        connection = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
        sync(folder)
        return cls(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def job(self) -> Job | None:
        """Return the build in hand, if there is one."""
        found = self._connection.execute("SELECT snapshot, begun_at FROM job").fetchone()
        return Job(found[0], datetime.fromisoformat(found[1])) if found else None

    def begin(self, *facts: str, newest: str | None = None) -> Job:
        """Begin the build that `facts` identify, after the newest snapshot there is, or go on with it."""
        fingerprint = hashlib.sha256("\n".join(facts).encode()).hexdigest()
        job = self.job()
        if job and self._connection.execute("SELECT 1 FROM job WHERE fingerprint = ?", [fingerprint]).fetchone():
            return job
        job = new_job(newest)
        values = [fingerprint, job.snapshot_id, job.begun_at.isoformat()]
        self._connection.execute("INSERT OR REPLACE INTO job VALUES (0, ?, ?, ?)", values)
        return job

    def finished(self, shard_id: str) -> ShardFile | None:
        """Return what is known of a shard, if it is finished."""
        found = self._connection.execute("SELECT * FROM shards WHERE id = ?", [shard_id]).fetchone()
        return ShardFile(*found) if found else None

    def record(self, shard: ShardFile) -> None:
        """Note that a shard is finished; its file must be safe on disk."""
        values = [shard.shard_id, shard.sha256, shard.encoded, shard.reused, shard.skipped]
        self._connection.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?, ?)", values)

    def forget(self, shard_id: str) -> None:
        """Have a shard done again."""
        self._connection.execute("DELETE FROM shards WHERE id = ?", [shard_id])

    def clear(self) -> None:
        """Forget everything: the job is published."""
        self._connection.executescript("BEGIN; DELETE FROM shards; DELETE FROM job; COMMIT")
