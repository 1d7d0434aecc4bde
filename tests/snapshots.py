"""Small real snapshots for tests, of vectors that need no encoder: real FAISS, real SQLite, real files."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indexer.catalog import ImageRecord
from indexer.encoder import Embeddings, EncoderName, EncoderSpec
from indexer.errors import Reason
from indexer.filters import LABELLED, Filter
from indexer.images import DecodePolicy, thumbnail
from indexer.recall import QueryKind, Tuning
from indexer.relevance_learning import Lessons
from indexer.shards import SkippedPicture
from indexer.skipped import KnownSkip
from indexer.snapshot import BuildOptions, Hit, Snapshot
from indexer.store import SnapshotStore
from indexer.writer import SnapshotWriter

LIMITS = DecodePolicy(max_bytes=64 * 2**20, max_pixels=50_000_000)
THUMBNAIL = thumbnail(Image.new("RGB", (8, 8), "teal"))


def unit_vectors(count: int, dim: int, seed: int = 0) -> Embeddings:
    """Draw directions evenly from the sphere, shape (count, dim)."""
    return unit(np.random.default_rng(seed).normal(size=(count, dim)))


def unit(vectors: NDArray[np.float64]) -> Embeddings:
    """Scale rows to length 1."""
    scaled: Embeddings = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def write_snapshot(
    store: SnapshotStore,
    vectors: Embeddings,
    *,
    ids: Sequence[str] | None = None,
    labels: Sequence[str | None] | None = None,
    contents: Sequence[bytes] | None = None,
    skipped: Sequence[str] = (),
    factory: str = "Flat",
    tuning: Tuning | None = None,
    lessons: Lessons | None = None,
    image: str = "a" * 64,
    snapshot_id: str | None = None,
    publish: bool = True,
) -> str:
    """Write a snapshot as a build does, and return its id.

    Args:
        store: where to.
        vectors: unit rows, one for each picture.
        ids: of the pictures; their row in hex where left out. Picture `x` has the path `x.png`.
        labels: of the pictures.
        contents: files of the pictures, written into `pictures` beside the store's folder.
        skipped: paths of empty files.
        factory: of the index.
        tuning: how it is searched.
        lessons: what was learnt of it; nothing where left out.
        image: hash of the image half of the encoder.
        snapshot_id: the time where left out.
        publish: whether to make the snapshot current.
    """
    snapshot_id = snapshot_id or datetime.now(UTC).strftime("%Y%m%dT%H%M%S-%f")
    names = ids or [f"{row:016x}" for row in range(len(vectors))]
    source = store.folder.parent / "pictures"
    source.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, contents or (), strict=False):
        (source / f"{name}.png").write_bytes(content)
    with store.lock():
        folder = store.start(snapshot_id)
        with SnapshotWriter(folder, vectors.shape[1]) as writer:
            for path in skipped:
                writer.skip(KnownSkip(SkippedPicture(path, Reason.EMPTY, "The file is empty."), 0, None))
            writer.add(vectors, _records(writer, names, labels or [None] * len(names), contents))
            encoder = EncoderName(model="local-dir:/nowhere")
            spec = EncoderSpec(name=encoder, dim=vectors.shape[1], image=image, text="b" * 64)
            options = BuildOptions(sources=(str(source),), near_duplicates=None)
            facts = (snapshot_id, datetime.now(UTC), options, spec, LIMITS, factory)
            writer.finish(*facts, tune=lambda _: tuning, learn=lambda *_: lessons)
        store.commit(folder)
        if publish:
            store.publish(snapshot_id)
    return snapshot_id


def search(snapshot: Snapshot, vector: NDArray[np.float32], limit: int, *, labelled: bool = False) -> list[Hit]:
    """Search for the pictures nearest to one vector, as a picture query does."""
    selection = snapshot.catalog.select(Filter(must=(LABELLED,))) if labelled else None
    (hits,) = snapshot.search(vector[None, :], limit, QueryKind.IMAGE, selection=selection)
    return hits


def replace(path: Path, data: bytes) -> None:
    """Put another file in the place of one that may not be written."""
    path.unlink()
    path.write_bytes(data)


def _records(
    writer: SnapshotWriter, names: Sequence[str], labels: Sequence[str | None], contents: Sequence[bytes] | None
) -> list[ImageRecord]:
    files = contents or [name.encode() for name in names]
    return [
        ImageRecord(
            row=row,
            id=name,
            path=f"{name}.png",
            content_hash=hashlib.sha256(content).hexdigest(),
            media_type="image/png",
            width=8,
            height=8,
            thumbnail=writer.add_thumbnail(THUMBNAIL),
            label=label,
        )
        for row, (name, label, content) in enumerate(zip(names, labels, files, strict=True))
    ]
