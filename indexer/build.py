"""build(): scan, decode, encode, write, publish."""

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from indexer.ahead import BATCH_SIZE, ahead
from indexer.catalog import ImageRecord
from indexer.encoder import Encoder, Pixels
from indexer.errors import BuildError, ImageError, Reason, SnapshotError
from indexer.images import DecodePolicy, ImageFile, content_hash, decode, is_utf8, read, scan, thumbnail
from indexer.index import resolve_factory
from indexer.labels import Describe, load_labels
from indexer.progress import Reporter
from indexer.snapshot import BuildOptions, Manifest, Snapshot
from indexer.store import SnapshotStore
from indexer.writer import SnapshotWriter


@dataclass(frozen=True)
class BuildReport:
    """What a build did; `encoded` and `reused` pictures make up the snapshot."""

    manifest: Manifest
    encoded: int
    reused: int
    skipped: Counter[Reason]


@dataclass(frozen=True)
class _Picture:
    """A picture on its way into the snapshot: with `pixels` to be encoded, or with the `vector` of an earlier build."""

    path: str
    content_hash: str
    media_type: str
    width: int
    height: int
    thumbnail: bytes
    pixels: Pixels | None = None
    vector: NDArray[np.float32] | None = None


class _Earlier:
    """What an earlier snapshot knows of pictures, by their content."""

    def __init__(self, snapshot: Snapshot | None) -> None:
        self._snapshot = snapshot
        self._images = snapshot.catalog.by_content() if snapshot else {}

    def find(self, path: str, digest: str) -> _Picture | None:
        image = self._images.get(digest)
        if self._snapshot is None or image is None:
            return None
        thumbnail, vector = self._snapshot.thumbnail(image), self._snapshot.vector(image)
        return _Picture(path, digest, image.media_type, image.width, image.height, thumbnail, vector=vector)


def build(
    options: BuildOptions, store: SnapshotStore, encoder: Encoder, policy: DecodePolicy, progress: Reporter
) -> BuildReport:
    """Build a snapshot of a collection and publish it.

    Embeddings are reused where the newest snapshot of the same image half has a picture of the same content.

    Raises:
        BuildError: the source, the labels or the index are not usable, no picture is, or another build is running.
    """
    if not options.source.is_dir():
        raise BuildError(f"The source {options.source} is not a folder.")
    if not is_utf8(str(options.source)):
        raise BuildError(f"The path of the source is not UTF-8: {os.fsencode(options.source)!r}. Rename the folder.")
    describe = load_labels(options.labels, options.source)
    factory = resolve_factory(options.index, encoder.spec.dim)
    with store.lock():
        snapshot_id = datetime.now(UTC).strftime("%Y%m%dT%H%M%S-%f")
        folder = store.start(snapshot_id)
        with SnapshotWriter(folder, encoder.spec.dim) as writer:
            prepare = _preparer(options, encoder, policy, _Earlier(_newest(store, encoder)))
            files = [file for file in scan(options.source) if str(file.location) != options.labels]
            encoded = _write_pictures(files, prepare, encoder, describe, writer, progress)
            if not writer.rows:
                reasons = ", ".join(f"{count} {reason}" for reason, count in writer.skipped.items()) or "no files"
                raise BuildError(f"No picture in {options.source} can be used ({reasons}); nothing was published.")
            progress.update("index", writer.rows, writer.rows)
            manifest = writer.finish(snapshot_id, options, encoder.spec, factory)
        progress.update("publish", manifest.count, manifest.count)
        store.commit(folder)
        store.publish(snapshot_id)
    return BuildReport(manifest, encoded, manifest.count - encoded, writer.skipped)


def image_id(path: str) -> str:
    """Return the id of the picture at a path of the collection: 16 hex digits, the same in every snapshot."""
    return hashlib.sha256(path.encode()).hexdigest()[:16]


def _newest(store: SnapshotStore, encoder: Encoder) -> Snapshot | None:
    """Return the newest sound snapshot whose embeddings this encoder would make again."""
    for snapshot_id in store.ids():
        try:
            if store.manifest(snapshot_id).encoder.image == encoder.spec.image:
                return store.open(snapshot_id)
        except SnapshotError:
            # A damaged snapshot costs its embeddings, not the build that may replace it.
            continue
    return None


def _preparer(
    options: BuildOptions, encoder: Encoder, policy: DecodePolicy, earlier: _Earlier
) -> Callable[[ImageFile], _Picture]:
    """Return what is done with one file before its picture is encoded; it may run in several threads."""

    def prepare(file: ImageFile) -> _Picture:
        data = read(file, options.source, policy)
        digest = content_hash(data)
        if known := earlier.find(file.path, digest):
            return known
        image = decode(data, policy)
        small, pixels = thumbnail(image.image), encoder.preprocess(image.image)
        return _Picture(file.path, digest, image.media_type, image.width, image.height, small, pixels=pixels)

    return prepare


def _write_pictures(
    files: Sequence[ImageFile],
    prepare: Callable[[ImageFile], _Picture],
    encoder: Encoder,
    describe: Describe,
    writer: SnapshotWriter,
    progress: Reporter,
) -> int:
    """Write every usable picture, and return how many were encoded."""
    rows: dict[str, int] = {}
    encoded = done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        prepared_files = ahead(pool, prepare, files)
        while batch := list(itertools.islice(prepared_files, BATCH_SIZE)):
            pictures = []
            for file, prepared in batch:
                try:
                    pictures.append(prepared.result())
                except ImageError as error:
                    writer.skip(file.path, error)
            encoded += _write_batch(pictures, encoder, describe, rows, writer)
            done += len(batch)
            progress.update("encode", done, len(files))
    return encoded


def _write_batch(
    pictures: list[_Picture], encoder: Encoder, describe: Describe, rows: dict[str, int], writer: SnapshotWriter
) -> int:
    """Encode what is new in a batch, write all of it, and return how many were encoded.

    `rows` holds the row of each content written so far: exact duplicates share one embedding.
    """
    new: dict[str, Pixels] = {}
    for picture in pictures:
        if picture.pixels is not None and picture.content_hash not in rows:
            new[picture.content_hash] = picture.pixels
    vectors = dict(zip(new, encoder.encode_images(list(new.values())), strict=True))
    batch = []
    for picture in pictures:
        digest = picture.content_hash
        if picture.vector is not None:
            batch.append(picture.vector)
        else:
            batch.append(vectors[digest] if digest in vectors else writer.embedding(rows[digest]))
    if batch:
        start = writer.rows
        writer.add(
            np.stack(batch), [_record(picture, start + i, describe, writer) for i, picture in enumerate(pictures)]
        )
        for i, picture in enumerate(pictures):
            rows.setdefault(picture.content_hash, start + i)
    return len(new)


def _record(picture: _Picture, row: int, describe: Describe, writer: SnapshotWriter) -> ImageRecord:
    description = describe(picture.path)
    return ImageRecord(
        row=row,
        id=image_id(picture.path),
        path=picture.path,
        content_hash=picture.content_hash,
        media_type=picture.media_type,
        width=picture.width,
        height=picture.height,
        thumbnail=writer.add_thumbnail(picture.thumbnail),
        label=description.label,
        caption=description.caption,
        metadata=description.metadata,
    )
