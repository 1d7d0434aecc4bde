"""The list of pictures that a build could not use, in Parquet: which, why, and as what they were seen."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from indexer.errors import Reason
from indexer.shards import SkippedPicture

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("size", pa.int64()),
        ("stamp", pa.string()),
    ]
)
_ROWS = 10_000
# Not in the picture, so it may be over by now: such a one is tried again by every build.
_PASSING = (Reason.UNREADABLE, Reason.UNREACHABLE, Reason.CHANGED, Reason.OUTSIDE_SOURCE, Reason.FORBIDDEN_ADDRESS)


@dataclass(frozen=True)
class KnownSkip:
    """A picture that a build could not use, and size and stamp that it had then."""

    picture: SkippedPicture
    size: int | None
    stamp: str | None

    @property
    def lasting(self) -> bool:
        """Whether it is of no use until it changes."""
        return self.picture.reason not in _PASSING and self.stamp is not None


class SkippedWriter:
    """Writes the list, in bounded memory."""

    def __init__(self, path: Path) -> None:
        self._writer = parquet.ParquetWriter(path, _SCHEMA)
        self._waiting: list[KnownSkip] = []

    def add(self, skip: KnownSkip) -> None:
        """Append a picture."""
        self._waiting.append(skip)
        if len(self._waiting) == _ROWS:
            self._flush()

    def close(self) -> None:
        """Finish the file; harmless a second time."""
        if self._waiting:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        # Taken first: what could not be written is not written again when the file is closed.
        waiting, self._waiting = self._waiting, []
        rows = [
            {
                "key": skip.picture.key,
                "reason": skip.picture.reason,
                "detail": skip.picture.detail,
                "size": skip.size,
                "stamp": skip.stamp,
            }
            for skip in waiting
        ]
        self._writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))


def read_skipped(path: Path) -> Iterator[KnownSkip]:
    """Yield the pictures of a list, in its order."""
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                picture = SkippedPicture(row["key"], Reason(row["reason"]), row["detail"])
                yield KnownSkip(picture, row["size"], row["stamp"])
