"""Plan: what a build has to do, worked out on disk by comparing what the sources list with an earlier snapshot.

As git does: a picture whose size and stamp (time of change, ETag) are as before is unchanged, and is not read; one of
the same size with another stamp is read and hashed; a new name with the content of a name that is gone has moved.
"""

import hashlib
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

from indexer.errors import BuildError, Reason
from indexer.images import DecodePolicy
from indexer.labels import PARENT, Description
from indexer.shards import Shard, SkippedPicture, WorkItem
from indexer.skipped import KnownSkip
from indexer.sources.source import Item

_SCHEMA = """
CREATE TABLE items (
    seq INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    id TEXT NOT NULL,
    source INTEGER NOT NULL,
    place TEXT NOT NULL,
    size INTEGER,
    stamp TEXT,
    label TEXT,
    caption TEXT,
    metadata TEXT NOT NULL,
    reason TEXT,
    detail TEXT,
    kind TEXT,
    earlier INTEGER,
    shard INTEGER
) STRICT;
CREATE TABLE shards (number INTEGER PRIMARY KEY, id TEXT NOT NULL) STRICT;
CREATE TABLE contents (hash TEXT PRIMARY KEY, row INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE skips (key TEXT PRIMARY KEY, size INTEGER, stamp TEXT, reason TEXT, detail TEXT) STRICT, WITHOUT ROWID;
CREATE TABLE gone (row INTEGER PRIMARY KEY, size INTEGER, hash BLOB, taken INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX gone_size ON gone (size);
"""
_BLOCK = 1_000
# Memory for pages, in KiB; the rest is on disk.
_CACHE_KIB = 16_384

Hash = Callable[[Sequence[WorkItem]], Iterable[str | None]]
"""From pictures to the SHA-256 of each, in hex; None where it cannot be read."""


@dataclass(frozen=True)
class PlanCounts:
    """How many pictures of the sources are what, compared with the earlier snapshot.

    Attributes:
        new: under names that it does not have.
        changed: other content under a name that it has.
        moved: under another name than one that is gone; a second copy of that counts, too.
        unchanged: as they were.
        deleted: of its pictures are in no source any more.
        skipped: are known to be unusable, from the listing or from the earlier build.
        shards: that the new and changed ones are cut into.
    """

    new: int
    changed: int
    moved: int
    unchanged: int
    deleted: int
    skipped: int
    shards: int

    @property
    def work(self) -> int:
        """How many are to be read, decoded and encoded."""
        return self.new + self.changed

    @property
    def total(self) -> int:
        """How many the sources list."""
        return self.usable + self.skipped

    @property
    def usable(self) -> int:
        """How many may be in the snapshot."""
        return self.work + self.moved + self.unchanged


@dataclass(frozen=True, slots=True)
class PlannedItem:
    """A picture of the plan: to be left out (`skip`), copied from row `earlier`, or taken from shard number `shard`."""

    key: str
    id: str
    source: int
    place: str
    size: int | None
    stamp: str | None
    description: Description
    skip: SkippedPicture | None
    earlier: int | None
    shard: int | None


class Plan:
    """The plan of one run, in a file of its own. Its parts are to be called in the order in which they stand here."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None, uri=True)
        # Every run makes its plan anew, so nothing in it needs to survive.
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._connection.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def add(self, source: int, items: Iterable[Item], *, labels: str | None) -> None:
        """Write down what a source, by its number, lists; `parent` labels are made from the keys.

        Raises:
            BuildError: a key is taken.
        """
        query = "INSERT INTO items (key, id, source, place, size, stamp, label, caption, metadata, reason, detail)"
        query += " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        with self._transaction():
            for item in items:
                try:
                    self._connection.execute(query, _item_values(source, item, labels))
                except sqlite3.IntegrityError:
                    raise self._taken(source, item.key) from None

    def describe(self, descriptions: Iterable[tuple[str, Description]]) -> int:
        """Replace what is said of pictures, by key, and return how many of the keys are known."""
        query = "UPDATE items SET label = ?, caption = ?, metadata = ? WHERE key = ?"
        before = self._connection.total_changes
        with self._transaction():
            values = ((*_description_values(description), key) for key, description in descriptions)
            self._connection.executemany(query, values)
        return self._connection.total_changes - before

    def remember_skips(self, skips: Iterable[KnownSkip]) -> None:
        """Leave out what an earlier build could not use, as long as size and stamp are as they were."""
        rows = ((s.picture.key, s.size, s.stamp, s.picture.reason, s.picture.detail) for s in skips)
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO skips VALUES (?, ?, ?, ?, ?)", rows)
            self._connection.execute(
                "UPDATE items SET reason = s.reason, detail = s.detail FROM skips AS s WHERE s.key = items.key "
                "AND s.size = items.size AND s.stamp = items.stamp AND items.reason IS NULL"
            )

    def compare(self, catalog: Path, limits: DecodePolicy, readable: Sequence[int], hashes: Hash) -> None:
        """Find what an earlier snapshot has already.

        Args:
            catalog: its catalogue.
            limits: pictures beyond them are not taken from it.
            readable: numbers of the sources whose pictures may be read to tell whether they changed or moved.
            hashes: reads pictures.
        """
        uri = f"{catalog.resolve().as_uri()}?mode=ro&immutable=1"
        self._connection.execute("ATTACH ? AS old", [uri])
        self._connection.execute(
            "CREATE TEMP VIEW known AS SELECT row, id, size, stamp, content_hash FROM old.images "  # noqa: S608
            f"WHERE size <= {limits.max_bytes:d} AND width * height <= {limits.max_pixels:d}"
        )
        with self._transaction():
            self._connection.execute(
                "UPDATE items SET kind = 'unchanged', earlier = k.row FROM known AS k "
                "WHERE k.id = items.id AND k.stamp = items.stamp AND k.size = items.size AND items.reason IS NULL"
            )
            self._connection.execute(
                "INSERT INTO gone (row, size, hash) SELECT row, size, content_hash FROM known "
                "WHERE NOT EXISTS (SELECT 1 FROM items WHERE items.id = known.id)"
            )
            numbers = ", ".join(f"{number:d}" for number in readable)
            self._touched(numbers, hashes)
            self._moved(numbers, hashes)
            self._connection.execute(
                "UPDATE items SET kind = 'changed' WHERE kind IS NULL AND reason IS NULL "
                "AND EXISTS (SELECT 1 FROM old.images WHERE old.images.id = items.id)"
            )

    def cut(self, shard_size: int, facts: str) -> None:
        """Cut what is to be encoded into shards of about `shard_size` pictures, never more than four times as many.

        A shard ends where the hash of a key says so (as content-defined chunking cuts), so that a picture that comes
        or goes changes one shard, not all that follow. `facts` are what else decides what comes of a picture.
        """
        query = "SELECT seq, key, source, place, size, stamp FROM items WHERE earlier IS NULL AND reason IS NULL"
        with self._transaction():
            self._connection.execute("UPDATE items SET kind = 'new' WHERE kind IS NULL AND reason IS NULL")
            pending: list[Any] = []
            for row in self._blocks(query):
                pending.append(row)
                if _ends(row[1], shard_size) or len(pending) == 4 * shard_size:
                    self._end_shard(pending, facts)
                    pending = []
            if pending:
                self._end_shard(pending, facts)
            self._connection.execute("CREATE INDEX items_shard ON items (shard) WHERE shard IS NOT NULL")

    def counts(self) -> PlanCounts:
        """Count what is to be done."""
        kinds = dict(self._connection.execute("SELECT ifnull(kind, 'skipped'), count(*) FROM items GROUP BY kind"))
        (deleted,) = self._connection.execute("SELECT count(*) FROM gone WHERE NOT taken").fetchone()
        (shards,) = self._connection.execute("SELECT count(*) FROM shards").fetchone()
        names = ("new", "changed", "moved", "unchanged", "skipped")
        return PlanCounts(**{name: kinds.get(name, 0) for name in names}, deleted=deleted, shards=shards)

    def shard_id(self, number: int) -> str:
        """Return the id of a shard."""
        return str(self._connection.execute("SELECT id FROM shards WHERE number = ?", [number]).fetchone()[0])

    def shard(self, number: int) -> Shard:
        """Return a shard, by its number from 1."""
        query = "SELECT key, source, place FROM items WHERE shard = ? ORDER BY seq"
        items = self._connection.execute(query, [number]).fetchall()
        return Shard(self.shard_id(number), tuple(itertools.starmap(WorkItem, items)))

    def sample(self, count: int) -> Shard:
        """Return about `count` of the pictures to be encoded, spread evenly, to measure how long they take."""
        query = "SELECT key, source, place FROM items WHERE shard IS NOT NULL AND seq % ? = 0 LIMIT ?"
        items = self._connection.execute(query, [max(self.counts().work // count, 1), count]).fetchall()
        return Shard("sample", tuple(itertools.starmap(WorkItem, items)))

    def items(self) -> Iterator[PlannedItem]:
        """Yield every picture of the sources in its order, which is that of the snapshot's rows."""
        query = (
            "SELECT seq, key, id, source, place, size, stamp, label, caption, metadata, reason, detail, earlier, shard "
            "FROM items WHERE true"
        )
        for _, *values in self._blocks(query):
            yield _planned(values)

    def row_of_content(self, content_hash: str, row: int) -> int:
        """Return the row that this content was first given; if it is new, that is `row`."""
        self._connection.execute("INSERT OR IGNORE INTO contents VALUES (?, ?)", [content_hash, row])
        return int(self._connection.execute("SELECT row FROM contents WHERE hash = ?", [content_hash]).fetchone()[0])

    def _touched(self, numbers: str, hashes: Hash) -> None:
        """Take what has another stamp, and the same content."""
        query = (
            "SELECT seq, items.key, items.source, items.place, k.row, k.content_hash FROM items "  # noqa: S608
            "JOIN known AS k ON k.id = items.id WHERE items.kind IS NULL AND items.reason IS NULL "
            f"AND k.size = items.size AND items.source IN ({numbers})"
        )
        for block in _batched(self._blocks(query), _BLOCK):
            found = hashes([WorkItem(key, source, place) for _, key, source, place, _, _ in block])
            same = [(row, seq) for (seq, *_, row, old), new in zip(block, found, strict=True) if new == old.hex()]
            self._connection.executemany("UPDATE items SET kind = 'unchanged', earlier = ? WHERE seq = ?", same)

    def _moved(self, numbers: str, hashes: Hash) -> None:
        """Take what has another name, and the content of a name that is gone."""
        query = (
            "SELECT seq, key, source, place, size FROM items WHERE kind IS NULL AND reason IS NULL "  # noqa: S608
            f"AND source IN ({numbers}) AND size IN (SELECT size FROM gone) "
            "AND NOT EXISTS (SELECT 1 FROM known WHERE known.id = items.id)"
        )
        for block in _batched(self._blocks(query), _BLOCK):
            found = hashes([WorkItem(key, source, place) for _, key, source, place, _ in block])
            for (seq, *_, size), digest in zip(block, found, strict=True):
                self._take(seq, size, bytes.fromhex(digest or ""))

    def _take(self, seq: int, size: int, digest: bytes) -> None:
        query = "SELECT row FROM gone WHERE size = ? AND hash = ? ORDER BY taken, row LIMIT 1"
        if found := self._connection.execute(query, [size, digest]).fetchone():
            self._connection.execute("UPDATE items SET kind = 'moved', earlier = ? WHERE seq = ?", [found[0], seq])
            self._connection.execute("UPDATE gone SET taken = 1 WHERE row = ?", [found[0]])

    def _end_shard(self, rows: Sequence[Any], facts: str) -> None:
        shard_id = hashlib.sha256(json.dumps([facts, [row[1:] for row in rows]]).encode()).hexdigest()
        (number,) = self._connection.execute(
            "INSERT INTO shards (id) VALUES (?) RETURNING number", [shard_id]
        ).fetchone()
        self._connection.executemany("UPDATE items SET shard = ? WHERE seq = ?", [(number, row[0]) for row in rows])

    def _blocks(self, query: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query on `items` in their order, read block by block: items may change in between."""
        last = 0
        query = f"{query} AND seq > ? ORDER BY seq LIMIT {_BLOCK}"
        while rows := self._connection.execute(query, [last]).fetchall():
            yield from rows
            last = rows[-1][0]

    def _taken(self, source: int, key: str) -> BuildError:
        (other,) = self._connection.execute("SELECT source FROM items WHERE key = ?", [key]).fetchone()
        where = "twice" if other == source else f"and so has source {other + 1}"
        return BuildError(
            f"Source {source + 1} has a picture {key!r} {where}. Names must differ: rename one, or give a source a "
            "name of its own (NAME=SOURCE), with which all its names then begin."
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN")
        yield
        self._connection.execute("COMMIT")


def image_id(key: str) -> str:
    """Return the id of the picture with a key: 16 hex digits, the same in every snapshot."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _ends(key: str, shard_size: int) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % shard_size == 0


def _item_values(source: int, item: Item, labels: str | None) -> tuple[Any, ...]:
    description = item.description
    if labels == PARENT:
        description = replace(description, label=PurePosixPath(item.key).parent.name or None)
    head = (item.key, image_id(item.key), source, item.place, item.size, item.stamp)
    return (*head, *_description_values(description), *(item.refusal or (None, None)))


def _description_values(description: Description) -> tuple[Any, ...]:
    metadata = json.dumps(description.metadata, ensure_ascii=False, sort_keys=True)
    return description.label, description.caption, metadata


def _planned(values: Sequence[Any]) -> PlannedItem:
    key, image, source, place, size, stamp, label, caption, metadata, reason, detail, earlier, shard = values
    description = Description(label, caption, json.loads(metadata))
    skip = SkippedPicture(key, Reason(reason), detail) if reason else None
    return PlannedItem(key, image, source, place, size, stamp, description, skip, earlier, shard)


def _batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch
