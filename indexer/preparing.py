"""What is done with a picture before it is encoded: read, hashed, decoded, shrunken. Decoding processes run this."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from indexer.catalog import Catalog, ImageRecord
from indexer.encoder import Pixels
from indexer.images import RGB, DecodePolicy, content_hash, decode, perceptual_hash, thumbnail
from indexer.shards import PictureFacts, WorkItem
from indexer.sources.source import Source


@dataclass(frozen=True)
class Prepared:
    """A picture, ready to be encoded."""

    facts: PictureFacts
    pixels: Pixels


@dataclass(frozen=True)
class Known:
    """A picture whose content an earlier snapshot has: its record there."""

    record: ImageRecord


@dataclass(frozen=True)
class Earlier:
    """The catalogue of a snapshot whose embeddings this build would make again, of pictures within these limits."""

    catalog: Path
    limits: DecodePolicy


class Preparer:
    """Prepares pictures of these sources. Picklable until it is first called."""

    def __init__(
        self,
        sources: Sequence[Source],
        policy: DecodePolicy,
        preprocess: Callable[[Image | RGB], Pixels],
        earlier: Earlier | None,
    ) -> None:
        self._sources = sources
        self._policy = policy
        self._preprocess = preprocess
        self._earlier = earlier
        self._catalog: Catalog | None = None

    @property
    def remote(self) -> bool:
        """Whether reading waits for a network."""
        return any(source.remote for source in self._sources)

    def processes(self, cores: int) -> int:
        """Return how many processes keep so many cores busy: more than cores where they wait for a network."""
        return cores * (4 if self.remote else 1)

    def read(self, item: WorkItem) -> bytes:
        """Return the bytes of a picture.

        Raises:
            ImageError: it cannot be read.
        """
        return self._sources[item.source].read(item.place, self._policy)

    def __call__(self, item: WorkItem) -> Prepared | Known:
        """Prepare one picture.

        Raises:
            ImageError: it cannot be used.
        """
        from indexer.preprocessing import shrink  # noqa: PLC0415 - imports torch, which commands that build nothing need not

        data = self.read(item)
        digest = content_hash(data)
        if known := self._find(digest):
            return Known(known)
        decoded = decode(data, self._policy)
        small = shrink(decoded.rgb)
        facts = PictureFacts(
            content_hash=digest,
            size=len(data),
            media_type=decoded.media_type,
            width=decoded.width,
            height=decoded.height,
            perceptual_hash=perceptual_hash(small),
            thumbnail=thumbnail(small),
        )
        return Prepared(facts, self._preprocess(decoded.rgb))

    def _find(self, digest: str) -> ImageRecord | None:
        if self._earlier is None:
            return None
        if self._catalog is None:
            self._catalog = Catalog.open(self._earlier.catalog)
        record, limits = self._catalog.with_content(digest), self._earlier.limits
        if record is None or record.size > limits.max_bytes or record.width * record.height > limits.max_pixels:
            return None
        return record
