"""What one machine of many does in a build: see that it sees what the build sees, load the encoder, encode shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import ImageRecord
from indexer.encoder import Encoder, EncoderSpec
from indexer.encoding import ShardEncoder
from indexer.errors import BuildError, CorruptShard, EncoderError, EncoderMismatch, ImageError
from indexer.preparing import Preparer
from indexer.shards import Shard, ShardFile, ShardStore
from indexer.snapshot import EMBEDDINGS, THUMBNAILS
from indexer.workers import DecodePool, Limits

PROBE = "probe"

_SHARED = "Put the folder of snapshots on storage that all nodes share, under the same path"


class LoadEncoder(Protocol):
    """Loads the encoder of a build. Picklable: it is called on other machines."""

    def __call__(self, *, threads: int) -> Encoder:
        """Load it, to use so many threads.

        Raises:
            EncoderError: it cannot be loaded.
        """
        ...


@dataclass(frozen=True)
class Errand:
    """What every node of a build is told.

    Attributes:
        spec: of the encoder that the build expects.
        load: loads it.
        threads: of one call of the encoder; 0 means one per core that the node's encoder may use.
        limits: of one picture.
        workers: decoding processes; 0 means one per core, and four per core where pictures come over a network.
        preparer: what they do.
        store: where shard files go.
        probe: what the store holds under the name `PROBE`, if it is the store that the build sees.
        earlier: folder of the snapshot that known pictures are copied from.
    """

    spec: EncoderSpec
    load: LoadEncoder
    threads: int
    limits: Limits
    workers: int
    preparer: Preparer
    store: ShardStore
    probe: bytes
    earlier: Path | None


class Node:
    """Encodes shards on a node, with one encoder. `open` comes first; `encode` may then run in several threads.

    It ends with its process: nothing that it starts outlives that.
    """

    def __init__(self, errand: Errand, address: str, cpus: int) -> None:
        """Set up.

        Args:
            errand: what to do.
            address: of this node, for messages.
            cpus: how many cores it may use.
        """
        self._errand = errand
        self._name = f"Node {address} of the cluster"
        self._cpus = cpus
        self._encoder: ShardEncoder

    def open(self) -> None:
        """Load the encoder, and see that this node sees what the build sees.

        Raises:
            BuildError: it does not.
            EncoderError: it has another encoder, or none.
        """
        errand = self._errand
        self._see_store()
        earlier = None if errand.earlier is None else self._see_earlier(errand.earlier)
        encoder = self._load()
        workers = errand.workers or errand.preparer.processes(self._cpus)
        pool = DecodePool(errand.preparer, workers, errand.limits)
        self._encoder = ShardEncoder(pool.submit, encoder, earlier, errand.store, lambda _: None)

    def encode(self, shard: Shard, readable: bool) -> ShardFile:
        """Encode a shard and store its file.

        Without a look at the first picture, a node on which a folder is not mounted would skip one picture after
        another as unreadable.

        Args:
            shard: what to encode.
            readable: whether the build can read the first picture.

        Raises:
            BuildError: the build can, and this node cannot.
        """
        if readable and not can_read(self._errand.preparer, shard):
            raise BuildError(
                f"{self._name} cannot read {shard.items[0].key}, as this machine can. Pictures must lie where every "
                "node finds them: on shared storage, under the same path, or in an object store."
            )
        return self._encoder(shard)

    def _see_store(self) -> None:
        store = self._errand.store
        try:
            seen = store.read(PROBE)
        except CorruptShard:
            seen = b""
        if seen != self._errand.probe:
            raise BuildError(
                f"{self._name} does not see where this machine keeps finished work ({store}). {_SHARED}, or keep "
                "finished work in an object store."
            )

    def _see_earlier(self, folder: Path) -> "MappedRows":
        try:
            return MappedRows.open(folder)
        except OSError as error:
            raise BuildError(
                f"{self._name} does not see the snapshot {folder}, whose embeddings are reused: {error.strerror}. "
                f"{_SHARED}."
            ) from error

    def _load(self) -> Encoder:
        errand = self._errand
        try:
            encoder = errand.load(threads=errand.threads or self._cpus)
        except EncoderError as error:
            raise EncoderError(f"{self._name}: {error}") from error
        # Another name may lead to the same weights, and texts are not encoded here.
        expected, found = (spec.model_dump(exclude={"name", "text"}) for spec in (errand.spec, encoder.spec))
        wrong = [f"{key} is {found[key]}, not {expected[key]}" for key in found if found[key] != expected[key]]
        if wrong:
            raise EncoderMismatch(
                f"{self._name} has another {errand.spec.name} than this machine ({', '.join(wrong)}). Give all nodes "
                "the same files of the model, and the same settings."
            )
        return encoder


@dataclass(frozen=True)
class MappedRows:
    """What is copied from an earlier snapshot: the build has verified it, and has no use for its index here."""

    embeddings: NDArray[np.float32]
    thumbnails: NDArray[np.uint8]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the files that hold it.

        Raises:
            OSError: they are not there.
        """
        return cls(np.load(folder / EMBEDDINGS, mmap_mode="r"), np.memmap(folder / THUMBNAILS, np.uint8, "r"))

    def vector(self, image: ImageRecord) -> NDArray[np.float32]:
        """Return the embedding of a picture, shape (dim,)."""
        return np.array(self.embeddings[image.row])

    def thumbnail(self, image: ImageRecord) -> bytes:
        """Return the thumbnail of a picture, a JPEG."""
        offset, size = image.thumbnail
        return self.thumbnails[offset : offset + size].tobytes()


def can_read(preparer: Preparer, shard: Shard) -> bool:
    """Tell whether the first picture of a shard is found here; what lies on a network is found everywhere."""
    if preparer.remote:
        return True
    try:
        preparer.read(shard.items[0])
    except ImageError:
        return False
    return True
