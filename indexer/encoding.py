"""Encoding shards: pictures are prepared by a pool of processes, encoded in batches, written to a file."""

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from indexer.ahead import BATCH_SIZE, ahead
from indexer.catalog import ImageRecord
from indexer.encoder import Encoder, Pixels
from indexer.errors import ImageError
from indexer.preparing import Known, Prepared, Preparer
from indexer.shards import (
    EncodedPicture,
    PictureFacts,
    Row,
    Shard,
    ShardFile,
    ShardStore,
    SkippedPicture,
    WorkItem,
    write_shard,
)
from indexer.snapshot import Snapshot
from indexer.workers import DecodePool, Limits

# Of two shards in hand one is decoded while the other is encoded and written.
_SHARDS_PER_ENCODER = 2


@dataclass(frozen=True)
class Work:
    """What all shards of a build have in common.

    Attributes:
        preparer: what decoding processes do with a picture.
        pictures: how many the build has to encode in all, however much of that is finished.
        earlier: the snapshot that known pictures are copied from.
        store: where shard files go.
        tell: is told of so many more pictures that are done; safe to call from several threads.
    """

    preparer: Preparer
    pictures: int
    earlier: Snapshot | None
    store: ShardStore
    tell: Callable[[int], None]


class EarlierRows(Protocol):
    """What is copied of known pictures: from a `Snapshot`, or from its files alone."""

    def vector(self, image: ImageRecord) -> NDArray[np.float32]:
        """Return the embedding of a picture, shape (dim,)."""
        ...

    def thumbnail(self, image: ImageRecord) -> bytes:
        """Return the thumbnail of a picture, a JPEG."""
        ...


Executor = Callable[[Work, Iterable[Shard], threading.Event], Iterator[ShardFile]]
"""Encodes shards, in any order, and yields each as soon as it is stored; begins none once the event is set."""

Submit = Callable[[WorkItem], Future[Prepared | Known]]
"""Hands a picture to the decoding processes."""


@dataclass(frozen=True)
class ShardEncoder:
    """Encodes shards with one encoder; safe to call from several threads.

    Attributes:
        submit: hands a picture to the decoding processes.
        encoder: of the snapshot to be.
        earlier: what known pictures are copied from.
        store: where shard files go.
        tell: is told of so many more pictures that are done.
    """

    submit: Submit
    encoder: Encoder
    earlier: EarlierRows | None
    store: ShardStore
    tell: Callable[[int], None]

    def __call__(self, shard: Shard) -> ShardFile:
        """Encode a shard and store its file.

        Batches are cut by the place in the shard, not by what happens to be ready, so that a shard that is done again
        comes out the same, bit for bit.
        """
        rows: list[Row] = []
        waiting = ahead(self.submit, shard.items)
        while batch := list(itertools.islice(waiting, BATCH_SIZE)):
            rows += self._batch(batch)
            self.tell(len(batch))
        return write_shard(self.store, shard.id, rows)

    def _batch(self, batch: Sequence[tuple[WorkItem, Future[Prepared | Known]]]) -> list[Row]:
        found: list[Prepared | Known | ImageError] = []
        for _, future in batch:
            try:
                found.append(future.result())
            except ImageError as error:
                found.append(error)
        new: dict[str, Pixels] = {}
        for each in found:
            if isinstance(each, Prepared):
                new.setdefault(each.facts.content_hash, each.pixels)
        vectors = dict(zip(new, self.encoder.encode_images(list(new.values())), strict=True))
        return [self._row(item, each, vectors) for (item, _), each in zip(batch, found, strict=True)]

    def _row(
        self, item: WorkItem, found: Prepared | Known | ImageError, vectors: dict[str, NDArray[np.float32]]
    ) -> Row:
        if isinstance(found, ImageError):
            return SkippedPicture.of(item.key, found)
        if isinstance(found, Prepared):
            return EncodedPicture(item.key, found.facts, vectors[found.facts.content_hash], encoded=True)
        return copied(item.key, found.record, cast("EarlierRows", self.earlier))  # that is what it is known from


def copied(key: str, record: ImageRecord, earlier: EarlierRows) -> EncodedPicture:
    """Return what an earlier snapshot has of a picture, under a key that it may not have had there."""
    facts = PictureFacts(
        content_hash=record.content_hash,
        size=record.size,
        media_type=record.media_type,
        width=record.width,
        height=record.height,
        perceptual_hash=record.perceptual_hash,
        thumbnail=earlier.thumbnail(record),
    )
    return EncodedPicture(key, facts, earlier.vector(record), encoded=False)


def encode_shards(
    encoders: Sequence[ShardEncoder], shards: Iterable[Shard], stop: threading.Event
) -> Iterator[ShardFile]:
    """Encode shards on every encoder at once, and yield each as soon as it is stored.

    Once `stop` is set no shard is begun; those in hand are finished.
    """
    free: SimpleQueue[ShardEncoder] = SimpleQueue()
    for encoder in [*encoders] * _SHARDS_PER_ENCODER:
        free.put(encoder)

    def run(shard: Shard) -> ShardFile:
        encode = free.get()
        try:
            return encode(shard)
        finally:
            free.put(encode)

    with ThreadPoolExecutor(free.qsize()) as pool:
        pending: set[Future[ShardFile]] = set()
        for shard in shards:
            if stop.is_set():
                break
            pending.add(pool.submit(run, shard))
            if len(pending) == len(encoders) * _SHARDS_PER_ENCODER:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in as_completed(pending))


class LocalExecutor:
    """Encodes shards on this machine: one encoder for each device, decoding processes for all of them together."""

    def __init__(self, encoders: Callable[[int], Sequence[Encoder]], workers: int, limits: Limits) -> None:
        """Set up.

        Args:
            encoders: the encoders for a build of so many pictures.
            workers: decoding processes; 0 means one per core, and four per core where pictures come over a network.
            limits: of one picture.
        """
        self._encoders = encoders
        self._workers = workers
        self._limits = limits

    def __call__(self, work: Work, shards: Iterable[Shard], stop: threading.Event) -> Iterator[ShardFile]:
        """Encode shards as `Executor` says."""
        workers = self._workers or work.preparer.processes(os.cpu_count() or 1)
        with DecodePool(work.preparer, workers, self._limits) as pool:
            encoders = [
                ShardEncoder(pool.submit, encoder, work.earlier, work.store, work.tell)
                for encoder in self._encoders(work.pictures)
            ]
            yield from encode_shards(encoders, shards, stop)
