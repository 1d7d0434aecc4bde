"""Shards: the work of a build, cut into files that are complete or not there.

A shard is some hundred pictures of the plan, encoded together. Its file is Parquet, one row for each picture in the
order of the plan: its embedding and what the catalogue needs, or why it cannot be used. Any tool reads it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from indexer.durable import write_whole
from indexer.errors import CorruptShard, ImageError, Reason

_FIELDS = [
    ("key", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
    ("content_hash", pa.string()),
    ("size", pa.int64()),
    ("media_type", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("perceptual_hash", pa.uint64()),
    ("thumbnail", pa.binary()),
    ("vector", pa.list_(pa.float32())),
    ("encoded", pa.bool_()),
]
_SCHEMA = pa.schema(_FIELDS)


@dataclass(frozen=True, slots=True)
class WorkItem:
    """A picture to be read, decoded and encoded: where `source`, by its number, finds it."""

    key: str
    source: int
    place: str


@dataclass(frozen=True)
class Shard:
    """Pictures that are encoded together; `id` is the hash of all that decides what comes of them."""

    id: str
    items: tuple[WorkItem, ...]


@dataclass(frozen=True)
class PictureFacts:
    """What is known of a picture once it is decoded; `size` is that of its file, in bytes."""

    content_hash: str
    size: int
    media_type: str
    width: int
    height: int
    perceptual_hash: int
    thumbnail: bytes


@dataclass(frozen=True)
class EncodedPicture:
    """What a build keeps of a picture: `vector` has shape (dim,); `encoded` is false where an earlier one was known."""

    key: str
    facts: PictureFacts
    vector: NDArray[np.float32]
    encoded: bool


@dataclass(frozen=True)
class SkippedPicture:
    """Why a picture is not in the snapshot."""

    key: str
    reason: Reason
    detail: str

    @classmethod
    def of(cls, key: str, error: ImageError) -> "SkippedPicture":
        """Write an error down."""
        return cls(key, error.reason, str(error))


Row = EncodedPicture | SkippedPicture


@dataclass(frozen=True)
class ShardFile:
    """A finished shard: SHA-256 of its file, and how many of its pictures were encoded, reused and skipped."""

    shard_id: str
    sha256: str
    encoded: int
    reused: int
    skipped: int

    @property
    def pictures(self) -> int:
        """How many pictures it has, the skipped ones too."""
        return self.encoded + self.reused + self.skipped


class ShardStore(Protocol):
    """Where shard files lie. Picklable: other machines write there too."""

    def write(self, name: str, data: bytes) -> None:
        """Store a file as a whole or not at all; it is safe on disk when this returns."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file.

        Raises:
            CorruptShard: there is none.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        ...


@dataclass(frozen=True)
class ShardFolder:
    """Shard files in a folder."""

    folder: Path

    def write(self, name: str, data: bytes) -> None:
        """Store a file."""
        write_whole(self.folder / name, data)

    def read(self, name: str) -> bytes:
        """Return a file."""
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise CorruptShard(f"The shard {self.folder / name} cannot be read: {error.strerror}.") from error

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        (self.folder / name).unlink(missing_ok=True)


def write_shard(store: ShardStore, shard_id: str, rows: Sequence[Row]) -> ShardFile:
    """Store what came of a shard."""
    columns = {name: pa.array([_cell(row, name) for row in rows], kind) for name, kind in _FIELDS}
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns, _SCHEMA), sink, compression="none", use_dictionary=False)
    data = sink.getvalue().to_pybytes()
    store.write(file_name(shard_id), data)
    encoded = sum(isinstance(row, EncodedPicture) and row.encoded for row in rows)
    skipped = sum(isinstance(row, SkippedPicture) for row in rows)
    reused = len(rows) - encoded - skipped
    return ShardFile(shard_id, hashlib.sha256(data).hexdigest(), encoded, reused, skipped)


def read_shard_file(store: ShardStore, shard_id: str, sha256: str) -> list[Row]:
    """Return what came of a shard, in the order of its items.

    Raises:
        CorruptShard: its file is gone, or is not the one with this SHA-256.
    """
    data = store.read(file_name(shard_id))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptShard(f"The shard {file_name(shard_id)} has changed since it was written.")
    table = parquet.read_table(pa.BufferReader(data), schema=_SCHEMA)
    # Floats are taken as arrays: as Python objects they would cost ten times the memory and the time.
    flat, ends = _vectors(table.column("vector"))
    rows: list[Row] = []
    for i, cells in enumerate(table.drop_columns(["vector"]).to_pylist()):
        reason, detail = cells.pop("reason"), cells.pop("detail")
        if reason is not None:
            rows.append(SkippedPicture(cells["key"], Reason(reason), detail))
        else:
            key, encoded = cells.pop("key"), cells.pop("encoded")
            rows.append(EncodedPicture(key, PictureFacts(**cells), flat[ends[i] : ends[i + 1]], encoded))
    return rows


def file_name(shard_id: str) -> str:
    """Return the name of the file of a shard."""
    return f"{shard_id}.parquet"


def _cell(row: Row, name: str) -> Any:
    return getattr(row, name, getattr(getattr(row, "facts", None), name, None))


def _vectors(column: Any) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return all embeddings end to end, and where each begins."""
    lists = column.combine_chunks()
    return lists.values.to_numpy(), lists.offsets.to_numpy()
