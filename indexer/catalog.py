"""Catalog: what is known of each picture, by row and by id. The door to SQLite."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Self, TypeVar

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from indexer.errors import BuildError, CorruptSnapshot
from indexer.filter_sql import counting_sql, to_sql
from indexer.filters import Filter
from indexer.selection import Selection

_SCHEMA = """
CREATE TABLE images (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    source INTEGER NOT NULL,
    path TEXT NOT NULL,
    place TEXT,
    size INTEGER NOT NULL,
    stamp TEXT,
    content_hash BLOB NOT NULL,
    media_type TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    label TEXT,
    caption TEXT,
    metadata TEXT NOT NULL,
    thumbnail_offset INTEGER NOT NULL,
    thumbnail_size INTEGER NOT NULL,
    perceptual_hash INTEGER NOT NULL,
    near_group TEXT
) STRICT
"""
_COLUMNS = (
    "row, id, source, path, place, size, stamp, content_hash, media_type, width, height, label, caption, metadata, "
    "thumbnail_offset, thumbnail_size, perceptual_hash, near_group"
)
# Made when all rows are in: sorting once is many times faster than inserting ids in their random order.
_INDEXES = """
CREATE UNIQUE INDEX images_id ON images (id);
CREATE INDEX images_content ON images (content_hash);
CREATE INDEX images_label ON images (label) WHERE label IS NOT NULL;
CREATE TABLE labels (label TEXT PRIMARY KEY, pictures INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO labels SELECT label, count(*) FROM images WHERE label IS NOT NULL GROUP BY label;
"""
# Memory for pages, and again for sorting, in KiB; what is beyond goes to temporary files.
_CACHE_KIB = 16_384
# SQLite's limit of parameters in one statement is 32,766.
_MOST_ROWS = 10_000
# Clients page, and ask again: a selection takes a bit for each picture.
_KEPT_SCANS = 64
# A scan looks so often whether anybody waits for it, in steps of SQLite's machine: a few thousand rows.
_STEPS = 100_000

Found = TypeVar("Found")


@dataclass(frozen=True)
class ImageRecord:
    """One catalogued picture.

    Attributes:
        row: its row in the embeddings.
        id: stable over reindexing: made from `path`.
        path: in its source, with `/` between its parts.
        content_hash: SHA-256 of the file, in hex.
        media_type: such as image/jpeg.
        width: of the upright picture, in pixels.
        height: of the upright picture, in pixels.
        thumbnail: offset and size in the snapshot's thumbnails, in bytes.
        label: its class, if it has one.
        caption: its caption, if it has one.
        metadata: all further columns of the label table.
        source: number of the source that it came from.
        place: what the source finds it by; None where that is `path`.
        size: of the file, in bytes.
        stamp: what the source said of the file's version; None where it said nothing.
        perceptual_hash: 64 bits, unsigned; few differ between pictures that look the same.
        group: id of the first picture of its group of near-duplicates, if it is in one.
    """

    row: int
    id: str
    path: str
    content_hash: str
    media_type: str
    width: int
    height: int
    thumbnail: tuple[int, int]
    label: str | None = None
    caption: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    source: int = 0
    place: str | None = None
    size: int = 0
    stamp: str | None = None
    perceptual_hash: int = 0
    group: str | None = None


class Catalog:
    """A read-only catalogue. Lookups and selections may run in several threads."""

    def __init__(self, lookups: sqlite3.Connection, scans: sqlite3.Connection) -> None:
        self._lookups, self._lookup_lock = lookups, threading.Lock()
        # Another connection: a scan of the whole file must not hold up the lookups of other requests.
        self._scans, self._scan_lock = scans, threading.Lock()
        self._kept: LRUCache[tuple[Any, ...], Any] = LRUCache(_KEPT_SCANS)
        self._kept_lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a catalogue file that nobody will write again.

        Raises:
            CorruptSnapshot: the file is no catalogue.
        """
        try:
            return cls(_connect(path), _connect(path))
        except sqlite3.Error as error:
            raise CorruptSnapshot(f"{path} is no catalogue: {error}") from error

    def __del__(self) -> None:
        self._lookups.close()
        self._scans.close()

    def __len__(self) -> int:
        # Rows are numbered from 0 without a gap; counting them would read the whole file.
        return int(self._fetch("SELECT ifnull(max(row) + 1, 0) FROM images")[0][0])

    def rows(self, rows: Sequence[int]) -> list[ImageRecord]:
        """Return the records of `rows`, in their order."""
        found: dict[int, ImageRecord] = {}
        for start in range(0, len(rows), _MOST_ROWS):
            part = rows[start : start + _MOST_ROWS]
            marks = ",".join("?" * len(part))
            query = f"SELECT {_COLUMNS} FROM images WHERE row IN ({marks})"  # noqa: S608 - only question marks
            found.update((record.row, record) for record in map(_record, self._fetch(query, part)))
        return [found[row] for row in rows]

    def get(self, image_id: str) -> ImageRecord | None:
        """Return the record with an id."""
        found = self._fetch(f"SELECT {_COLUMNS} FROM images WHERE id = ?", [image_id])  # noqa: S608 - a constant
        return _record(found[0]) if found else None

    def with_content(self, content_hash: str) -> ImageRecord | None:
        """Return the first record with a content hash."""
        query = f"SELECT {_COLUMNS} FROM images WHERE content_hash = ? ORDER BY row LIMIT 1"  # noqa: S608 - a constant
        found = self._fetch(query, [bytes.fromhex(content_hash)])
        return _record(found[0]) if found else None

    def page(self, among: Selection | None, after: int, limit: int) -> list[ImageRecord]:
        """Return the first records of a selection, or of all, whose row is above `after`, in the order of their rows.

        However many come before them: `after` is the row that the page before ended with, -1 for the first page.
        """
        if among is not None:
            return self.rows(among.after(after, limit))
        start = max(after + 1, 0)
        return self.rows(range(start, min(start + limit, len(self))))

    def select(self, wanted: Filter, given_up: Event | None = None) -> Selection:
        """Return the rows of the pictures that a filter matches: the same object for one that was asked for lately.

        Args:
            wanted: which pictures.
            given_up: once it is set, this ends with an error, as nobody waits for it.
        """
        query, parameters = _selecting(wanted)
        return self._scanned(
            query, parameters, lambda rows: Selection.of((row for (row,) in rows), len(self)), given_up
        )

    def kept(self, wanted: Filter) -> Selection | None:
        """Return what `select` would, if it was asked for lately."""
        query, parameters = _selecting(wanted)
        found: Selection | None = self._recalled((query, *parameters))
        return found

    def facet(
        self, wanted: Filter, key: str, most: int, given_up: Event | None = None
    ) -> tuple[tuple[str | float | bool, int], ...]:
        """Return the values of a key and how many of the pictures that a filter matches have each.

        Each element of an array is a value, an object and null are none.

        Args:
            wanted: which pictures are counted.
            key: see `indexer.filters`.
            most: how many values at most: the most frequent, in this order, then by value.
            given_up: as for `select`.
        """
        query, parameters = counting_sql(wanted, key, most)
        return self._scanned(query, parameters, lambda rows: tuple(_counted(*row) for row in rows), given_up)

    def label_counts(self) -> dict[str, int]:
        """Return how many pictures each label has."""
        return dict(self._fetch("SELECT label, pictures FROM labels"))

    def _fetch(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lookup_lock:
            return self._lookups.execute(query, parameters).fetchall()

    def _scanned(
        self,
        query: str,
        parameters: Sequence[Any],
        read: Callable[[Iterable[tuple[Any, ...]]], Found],
        given_up: Event | None,
    ) -> Found:
        """Return what `read` makes of a query that reads the whole file, or recall it."""
        # 1 and 1.0 are one value to Python and to a filter; what is not one to a filter is told apart by the query.
        key = (query, *parameters)
        found = self._recalled(key)
        if found is None:
            with self._scan_lock:
                self._scans.set_progress_handler(given_up.is_set if given_up else None, _STEPS)
                # Another request may have asked for the same while this one waited.
                found = self._recalled(key) or read(self._scans.execute(query, parameters))
                with self._kept_lock:
                    self._kept[key] = found
        scanned: Found = found
        return scanned

    def _recalled(self, key: tuple[Any, ...]) -> Any:
        with self._kept_lock:
            return self._kept.get(key)


def _selecting(wanted: Filter) -> tuple[str, Sequence[Any]]:
    where, parameters = to_sql(wanted)
    return f"SELECT row FROM images WHERE {where}", parameters  # noqa: S608 - constants of `filter_sql`; values are bound


def _counted(value: Any, boolean: int, pictures: int) -> tuple[str | float | bool, int]:
    return bool(value) if boolean else value, pictures


def _connect(path: Path) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
    # A first read keeps the file open, so that a snapshot pruned while it serves can be read to its end.
    connection.execute("SELECT max(row) FROM images").fetchone()
    return connection


class CatalogWriter:
    """Writes a catalogue file, batch by batch, in bounded memory. The same calls make the same file, bit for bit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = sqlite3.connect(path)
        # A build that dies is thrown away as a whole, so a journal of its own would protect nothing, and the files of
        # one that does not are synced when it is committed.
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._connection.execute(_SCHEMA)

    def add(self, records: Iterable[ImageRecord]) -> None:
        """Append records; their rows go on from those before without a gap.

        Raises:
            BuildError: the disk is full.
        """
        marks = ",".join("?" * len(_COLUMNS.split(",")))
        query = f"INSERT INTO images ({_COLUMNS}) VALUES ({marks})"  # noqa: S608 - only question marks
        with self._sentences():
            self._connection.executemany(query, map(_values, records))

    def group(self, firsts: NDArray[np.int64]) -> None:
        """Put rows into groups of near-duplicates.

        Args:
            firsts: for each row the row of the first picture of its group, -1 where it is in none; shape (n,).

        Raises:
            BuildError: the disk is full.
        """
        changes = ((int(firsts[row]), int(row)) for row in np.flatnonzero(firsts >= 0))
        query = "UPDATE images SET near_group = (SELECT id FROM images WHERE row = ?) WHERE row = ?"
        with self._sentences():
            self._connection.executemany(query, changes)

    def finish(self) -> None:
        """Add what makes lookups fast, and close the file.

        Raises:
            BuildError: two pictures have one id, or the disk is full.
        """
        with self._sentences():
            self._connection.commit()
            self._connection.executescript(_INDEXES)
        self._connection.close()

    def close(self) -> None:
        """Close the file as it is; harmless after `finish`."""
        self._connection.close()

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """Turn SQLite's errors into sentences."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise BuildError(f"Two pictures have the same id: {error}. Rename one of them.") from error
        except sqlite3.OperationalError as error:
            raise BuildError(f"The catalogue {self._path} cannot be written: {error}.") from error


def _values(record: ImageRecord) -> tuple[Any, ...]:
    return (
        record.row,
        record.id,
        record.source,
        record.path,
        record.place,
        record.size,
        record.stamp,
        bytes.fromhex(record.content_hash),
        record.media_type,
        record.width,
        record.height,
        record.label,
        record.caption,
        json.dumps(record.metadata, ensure_ascii=False, sort_keys=True) if record.metadata else "{}",
        *record.thumbnail,
        # SQLite's integers are signed.
        record.perceptual_hash - (record.perceptual_hash >> 63 << 64),
        record.group,
    )


def _record(values: tuple[Any, ...]) -> ImageRecord:
    row, image_id, source, path, place, size, stamp, content_hash, media_type, width, height, *rest = values
    label, caption, metadata, offset, thumbnail_size, perceptual_hash, near_group = rest
    return ImageRecord(
        row=row,
        id=image_id,
        path=path,
        content_hash=content_hash.hex(),
        media_type=media_type,
        width=width,
        height=height,
        thumbnail=(offset, thumbnail_size),
        label=label,
        caption=caption,
        metadata=json.loads(metadata),
        source=source,
        place=place,
        size=size,
        stamp=stamp,
        perceptual_hash=perceptual_hash & (1 << 64) - 1,
        group=near_group,
    )
