"""Catalog: what is known of each picture, by row and by id. The door to SQLite."""

import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from indexer.errors import BuildError, CorruptSnapshot

_SCHEMA = """
CREATE TABLE images (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    path TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    media_type TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    label TEXT,
    caption TEXT,
    metadata TEXT NOT NULL,
    thumbnail_offset INTEGER NOT NULL,
    thumbnail_size INTEGER NOT NULL
) STRICT
"""
_COLUMNS = (
    "row, id, path, content_hash, media_type, width, height, label, caption, metadata, thumbnail_offset, thumbnail_size"
)
# SQLite's limit of parameters in one statement is 32,766.
_MOST_ROWS = 10_000


@dataclass(frozen=True)
class ImageRecord:
    """One catalogued picture.

    Attributes:
        row: its row in the embeddings.
        id: stable over reindexing: made from `path`.
        path: relative to the snapshot's source, with `/` between its parts.
        content_hash: SHA-256 of the file, in hex.
        media_type: such as image/jpeg.
        width: of the upright picture, in pixels.
        height: of the upright picture, in pixels.
        thumbnail: offset and size in the snapshot's thumbnails, in bytes.
        label: its class, if it has one.
        caption: its caption, if it has one.
        metadata: all further columns of the label table.
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


class Catalog:
    """A read-only catalogue. Lookups may run in several threads."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a catalogue file that nobody will write again.

        Raises:
            CorruptSnapshot: the file is no catalogue.
        """
        try:
            uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
            # A first read keeps the file open, so that a snapshot pruned while it serves can be read to its end.
            connection.execute("SELECT count(*) FROM images").fetchone()
        except sqlite3.Error as error:
            raise CorruptSnapshot(f"{path} is no catalogue: {error}") from error
        return cls(connection)

    def __del__(self) -> None:
        self._connection.close()

    def __len__(self) -> int:
        return int(self._fetch("SELECT count(*) FROM images")[0][0])

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

    def by_content(self) -> dict[str, ImageRecord]:
        """Return one record for each content hash."""
        query = f"SELECT {_COLUMNS} FROM images ORDER BY row DESC"  # noqa: S608 - a constant
        return {record.content_hash: record for record in map(_record, self._fetch(query))}

    def label_counts(self) -> dict[str, int]:
        """Return how many pictures each label has."""
        return dict(self._fetch("SELECT label, count(*) FROM images WHERE label IS NOT NULL GROUP BY label"))

    def _fetch(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(query, parameters).fetchall()


class CatalogWriter:
    """Writes a catalogue file, batch by batch."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        # A build that dies is thrown away as a whole, so a journal of its own would protect nothing.
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute(_SCHEMA)

    def add(self, records: Iterable[ImageRecord]) -> None:
        """Append records.

        Raises:
            BuildError: two pictures have one id.
        """
        marks = ",".join("?" * len(_COLUMNS.split(",")))
        query = f"INSERT INTO images ({_COLUMNS}) VALUES ({marks})"  # noqa: S608 - only question marks
        try:
            self._connection.executemany(query, map(_values, records))
        except sqlite3.IntegrityError as error:
            raise BuildError(f"Two pictures have the same id: {error}. Rename one of them.") from error

    def finish(self) -> None:
        """Add what makes lookups fast, and close the file."""
        self._connection.execute("CREATE INDEX images_label ON images (label) WHERE label IS NOT NULL")
        self._connection.commit()
        self._connection.close()

    def close(self) -> None:
        """Close the file as it is; harmless after `finish`."""
        self._connection.close()


def _values(record: ImageRecord) -> tuple[Any, ...]:
    metadata = json.dumps(record.metadata, ensure_ascii=False, sort_keys=True)
    head = (record.row, record.id, record.path, record.content_hash, record.media_type, record.width, record.height)
    return (*head, record.label, record.caption, metadata, *record.thumbnail)


def _record(values: tuple[Any, ...]) -> ImageRecord:
    row, image_id, path, content_hash, media_type, width, height, label, caption, metadata, offset, size = values
    return ImageRecord(
        row=row,
        id=image_id,
        path=path,
        content_hash=content_hash,
        media_type=media_type,
        width=width,
        height=height,
        thumbnail=(offset, size),
        label=label,
        caption=caption,
        metadata=json.loads(metadata),
    )
