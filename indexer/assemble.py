"""assemble(): from a plan, its finished shards and an earlier snapshot to the rows of a new one, in a stream."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import ImageRecord
from indexer.encoding import copied
from indexer.errors import CorruptShard
from indexer.plan import Plan, PlannedItem
from indexer.shards import PictureFacts, Row, SkippedPicture
from indexer.skipped import KnownSkip
from indexer.snapshot import Snapshot
from indexer.writer import SnapshotWriter

ReadShard = Callable[[int], list[Row]]
"""From the number of a shard to what came of it."""

_BLOCK = 1_000


@dataclass(frozen=True)
class Assembled:
    """How many of a snapshot's pictures were encoded for it, and how many were reused."""

    encoded: int
    reused: int


def assemble(
    plan: Plan, read_shard: ReadShard, earlier: Snapshot | None, writer: SnapshotWriter, tell: Callable[[int], None]
) -> Assembled:
    """Write every picture of a plan, in its order; at any time one shard and one block of rows are in memory.

    Exact duplicates share one embedding: that of the first.
    """
    assembly = _Assembly(plan, read_shard, earlier, writer)
    for done, item in enumerate(plan.items(), start=1):
        assembly.add(item)
        if done % _BLOCK == 0:
            assembly.flush()
            tell(done)
    assembly.flush()
    return Assembled(assembly.encoded, assembly.reused)


class _Assembly:
    """A snapshot being put together."""

    def __init__(self, plan: Plan, read_shard: ReadShard, earlier: Snapshot | None, writer: SnapshotWriter) -> None:
        self._plan = plan
        self._read_shard = read_shard
        self._earlier = earlier
        self._writer = writer
        self._shard = 0
        self._rows: list[Row] = []
        self._vectors: list[NDArray[np.float32]] = []
        self._records: list[ImageRecord] = []
        self.encoded = 0
        self.reused = 0

    def add(self, item: PlannedItem) -> None:
        """Take the next picture of the plan."""
        found = item.skip or self._find(item)
        if isinstance(found, SkippedPicture):
            self._writer.skip(KnownSkip(found, item.size, item.stamp))
            return
        row = self._writer.rows + len(self._records)
        first = self._plan.row_of_content(found.facts.content_hash, row)
        vector = found.vector if first == row else self._vector(first)
        encoded = found.encoded and first == row
        self.encoded += encoded
        self.reused += not encoded
        self._vectors.append(vector)
        self._records.append(_record(item, found.facts, row, self._writer.add_thumbnail(found.facts.thumbnail)))

    def flush(self) -> None:
        """Write what has been taken."""
        if self._records:
            self._writer.add(np.stack(self._vectors), self._records)
            self._vectors, self._records = [], []

    def _find(self, item: PlannedItem) -> Row:
        if item.earlier is not None and self._earlier is not None:
            return copied(item.key, self._earlier.catalog.rows([item.earlier])[0], self._earlier)
        if item.shard is not None and item.shard != self._shard:
            self._shard, self._rows = item.shard, self._read_shard(item.shard)[::-1]
        row = self._rows.pop()
        if row.key != item.key:
            raise CorruptShard(f"Shard {self._shard} has {row.key!r} in the place of {item.key!r}.")
        return row

    def _vector(self, row: int) -> NDArray[np.float32]:
        written = self._writer.rows
        return self._vectors[row - written] if row >= written else self._writer.embedding(row)


def _record(item: PlannedItem, facts: PictureFacts, row: int, thumbnail: tuple[int, int]) -> ImageRecord:
    return ImageRecord(
        row=row,
        id=item.id,
        path=item.key,
        content_hash=facts.content_hash,
        media_type=facts.media_type,
        width=facts.width,
        height=facts.height,
        thumbnail=thumbnail,
        label=item.description.label,
        caption=item.description.caption,
        metadata=item.description.metadata,
        source=item.source,
        place=None if item.place == item.key else item.place,
        size=facts.size,
        stamp=item.stamp,
        perceptual_hash=facts.perceptual_hash,
    )
