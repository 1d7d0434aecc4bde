"""Pipeline: the stages of a query, each with a queue and threads of its own."""

import asyncio
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from math import ceil
from threading import Event
from typing import Any, TypeVar

from cachetools import LRUCache

from indexer.catalog import Catalog
from indexer.encoder import Embeddings, Encoder, Pixels
from indexer.filters import Filter
from indexer.images import RGB, DecodePolicy, decode
from indexer.index import compute_alone
from indexer.selection import Selection
from indexer.snapshot import Hit
from service.admission import Budget, Room
from service.batcher import Batcher
from service.searcher import Searcher, Terms, Vector
from service.settings import ServiceSettings
from service.shadow import Shadow
from service.telemetry import Metrics

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, as shares of its width and height."""

File = tuple[bytes, Box | None]
"""A picture file, and what part of the picture is meant; None for all of it."""

# What has come in may be expected to wait so long for one stage, in seconds: it may have brought much, or be slow.
_LONGEST_WAIT = 1.0

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pipeline:
    """Decodes, encodes and searches for the requests of one event loop, those that wait at the same time together.

    A picture is decoded by any of the cores. One batch is encoded at a time, by as many cores as the encoder may use.
    """

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        cores = os.cpu_count() or 1
        room = Room(settings.queue, _LONGEST_WAIT, always=settings.max_batch)
        self._policy = DecodePolicy.of(settings)
        self._pixels = Budget(settings.decode_pixels)
        self._most = settings.max_batch
        self._decoding: Batcher[Callable[..., Pixels], File, Pixels] = Batcher(
            "decode", self._decode, metrics, most=1, wait_seconds=0, room=room, threads=cores
        )
        self._encoding: Batcher[Callable[[Sequence[Any]], Embeddings], Any, Vector] = Batcher(
            "encode",
            _encode,
            metrics,
            most=settings.max_batch,
            wait_seconds=settings.batch_wait_seconds,
            room=room,
        )
        self._searching: Batcher[tuple[Searcher, Terms], Vector, list[Hit]] = Batcher(
            "search",
            _search,
            metrics,
            most=settings.max_batch,
            wait_seconds=settings.batch_wait_seconds,
            # A batch that has been encoded comes at once, and shall find room.
            room=Room(settings.queue + settings.max_batch),
            threads=cores,
        )
        # One at a time: the catalogue reads its file for one at a time.
        self._scanning: Batcher[None, Callable[[], Any], Any] = Batcher(
            "filter", _scan, metrics, most=1, wait_seconds=0, room=room
        )
        self._texts: LRUCache[tuple[str, str, str], Vector] = LRUCache(settings.text_cache)
        self._shadow = Shadow(settings.shadow_rate, metrics)
        self._hits, self._misses = metrics.text_cache.labels("hit"), metrics.text_cache.labels("miss")

    async def decode(self, encoder: Encoder, files: Sequence[File]) -> list[Pixels]:
        """Decode picture files into what an encoder takes.

        Raises:
            ImageError: one is no picture that can be used.
        """
        return await self._each(self._decoding, files, encoder.preprocess)

    async def encode_images(self, encoder: Encoder, pixels: Sequence[Pixels]) -> list[Vector]:
        """Encode preprocessed pictures."""
        return await self._each(self._encoding, pixels, encoder.encode_images)

    async def encode_texts(self, encoder: Encoder, texts: Iterable[str]) -> Mapping[str, Vector]:
        """Encode texts, or recall their embeddings, also from before a swap that left the text half as it was."""
        key = (encoder.spec.text, encoder.spec.precision)
        found = {text: self._texts.get((*key, text)) for text in texts}
        new = [text for text, vector in found.items() if vector is None]
        self._hits.inc(len(found) - len(new))
        self._misses.inc(len(new))
        fresh = dict(zip(new, await self._each(self._encoding, new, encoder.encode_texts), strict=True))
        if self._texts.maxsize:
            # Copied: each is a row of its batch, which it would keep in memory whole.
            self._texts.update({(*key, text): vector.copy() for text, vector in fresh.items()})
        return {text: fresh[text] if vector is None else vector for text, vector in found.items()}

    async def search(self, searcher: Searcher, vector: Vector, terms: Terms) -> list[Hit]:
        """Search for one vector, as `Searcher.search` says."""
        hits = await self._searching(vector, (searcher, terms))
        self._shadow.offer(searcher, vector, terms, hits)
        return hits

    async def select(self, catalog: Catalog, wanted: Filter) -> Selection:
        """Return the rows of the pictures that a filter matches, as `Catalog.select` does."""
        kept = await asyncio.to_thread(catalog.kept, wanted)
        return await self.scan(partial(catalog.select, wanted)) if kept is None else kept

    async def scan(self, look: Callable[[Event], Result]) -> Result:
        """Read a catalogue from its beginning to its end, when those who came before have.

        Args:
            look: reads it, and stops doing so when the event is set: nobody waits any more.
        """
        given_up = Event()
        try:
            found: Result = await self._scanning(partial(look, given_up), None)
        finally:
            given_up.set()
        return found

    def close(self) -> None:
        """Refuse what waits, and end all threads."""
        for stage in (self._decoding, self._encoding, self._searching, self._scanning):
            stage.close()
        self._shadow.close()

    async def _each(self, stage: Batcher[Any, Item, Result], items: Sequence[Item], group: Hashable) -> list[Result]:
        """Have items of one request done, a batch at a time, so that it does not fill the queue by itself."""
        done: list[Result] = []
        for start in range(0, len(items), self._most):
            done += await asyncio.gather(*(stage(item, group) for item in items[start : start + self._most]))
        return done

    def _decode(self, preprocess: Callable[..., Pixels], files: Sequence[File]) -> list[Pixels]:
        return [self._decoded(preprocess, *file) for file in files]

    def _decoded(self, preprocess: Callable[..., Pixels], data: bytes, box: Box | None) -> Pixels:
        """Decode a picture once there is memory for it, and make of it what an encoder takes, which is small."""
        with ExitStack() as held:
            picture = decode(data, self._policy, lambda pixels: held.enter_context(self._pixels.holding(pixels)))
            return preprocess(_cut(picture.rgb, box))


def _cut(picture: RGB, box: Box | None) -> RGB:
    """Return a part of a picture, of a pixel at least."""
    if box is None:
        return picture
    height, width = picture.shape[:2]
    left, top = int(box[0] * width), int(box[1] * height)
    right, bottom = max(ceil(box[2] * width), left + 1), max(ceil(box[3] * height), top + 1)
    return picture[min(top, height - 1) : bottom, min(left, width - 1) : right]


def _scan(_: None, looks: Sequence[Callable[[], Any]]) -> list[Any]:
    return [look() for look in looks]


def _encode(encode: Callable[[Sequence[Any]], Embeddings], inputs: Sequence[Any]) -> list[Vector]:
    return list(encode(inputs))


def _search(group: tuple[Searcher, Terms], vectors: Sequence[Vector]) -> list[list[Hit]]:
    compute_alone()
    searcher, terms = group
    return searcher.search(vectors, terms)
