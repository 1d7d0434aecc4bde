"""SnapshotWriter: writes the files of a snapshot as a build goes along, never holding them in memory."""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from indexer.catalog import CatalogWriter, ImageRecord
from indexer.encoder import Embeddings, EncoderSpec
from indexer.errors import Reason
from indexer.images import DecodePolicy
from indexer.index_building import write_index
from indexer.near_duplicates import group_near_duplicates
from indexer.recall import Tuning
from indexer.relevance_learning import Lessons
from indexer.skipped import KnownSkip, SkippedWriter
from indexer.snapshot import (
    CATALOG,
    CHECKSUM,
    EMBEDDINGS,
    INDEX,
    MANIFEST,
    SKIPPED,
    TEXT_MAP,
    THUMBNAILS,
    BuildOptions,
    FileFacts,
    Manifest,
    checksum,
    file_facts,
)


class SnapshotWriter:
    """Writes into a folder of `SnapshotStore.start`. `close` it when the build is over, however it ends."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder = folder
        self._dim = dim
        self._rows = 0
        self._skipped: Counter[Reason] = Counter()
        self._hashes = array("Q")  # 8 bytes a picture, needed together at the end
        self._embeddings = (folder / EMBEDDINGS).open("w+b")
        self._thumbnails = (folder / THUMBNAILS).open("wb")
        self._skips = SkippedWriter(folder / SKIPPED)
        self._catalog = CatalogWriter(folder / CATALOG)
        self._write_header()
        self._start_of_rows = self._embeddings.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def rows(self) -> int:
        """How many pictures have been added: the row of the next one."""
        return self._rows

    @property
    def skipped(self) -> Counter[Reason]:
        """How many pictures have been skipped for each reason."""
        return self._skipped

    def add(self, embeddings: Embeddings, records: Sequence[ImageRecord]) -> None:
        """Append pictures; record i belongs to row i of `embeddings`, shape (n, dim)."""
        self._embeddings.write(np.ascontiguousarray(embeddings, np.float32).data)
        self._catalog.add(records)
        self._hashes.extend(record.perceptual_hash for record in records)
        self._rows += len(records)

    def add_thumbnail(self, thumbnail: bytes) -> tuple[int, int]:
        """Append a thumbnail and return its offset and size, in bytes."""
        offset = self._thumbnails.tell()
        self._thumbnails.write(thumbnail)
        return offset, len(thumbnail)

    def skip(self, skip: KnownSkip) -> None:
        """Write down why a picture is not in the snapshot."""
        self._skipped[skip.picture.reason] += 1
        self._skips.add(skip)

    def embedding(self, row: int) -> NDArray[np.float32]:
        """Return an embedding added before, shape (dim,)."""
        self._embeddings.flush()
        size = self._dim * np.dtype(np.float32).itemsize
        self._embeddings.seek(self._start_of_rows + row * size)
        data = self._embeddings.read(size)
        self._embeddings.seek(0, 2)
        return np.frombuffer(data, np.float32)

    def finish(
        self,
        snapshot_id: str,
        created_at: datetime,
        options: BuildOptions,
        encoder: EncoderSpec,
        limits: DecodePolicy,
        factory: str,
        memory_limit: int | None = None,
        tune: Callable[[Path], Tuning | None] = lambda _: None,
        learn: Callable[[Path, dict[str, FileFacts]], Lessons | None] = lambda *_: None,
    ) -> Manifest:
        """Group near-duplicates, build the index, tune it, learn, close the files and write the manifest.

        Args:
            snapshot_id: its name.
            created_at: when its build began.
            options: what the build was asked for.
            encoder: of the embeddings.
            limits: by which pictures were read and decoded.
            factory: of the index, as `resolve_factory` returns it.
            memory_limit: bytes that building the index may take; None for any.
            tune: from the folder, with all its files but the manifest and the text map, to how the index is searched.
            learn: from the same, and what is known of those files, to what is learnt; None where nothing is.
        """
        self._embeddings.seek(0)
        self._write_header()
        self._embeddings.flush()
        embeddings = np.load(self._folder / EMBEDDINGS, mmap_mode="r")
        if options.near_duplicates is not None:
            hashes = np.frombuffer(self._hashes, np.uint64)
            self._catalog.group(group_near_duplicates(hashes, embeddings, similarity=options.near_duplicates))
        self._catalog.finish()
        self.close()
        write_index(embeddings, factory, self._folder / INDEX, memory_limit)
        tuning = tune(self._folder)
        files = {path.name: file_facts(path) for path in self._folder.iterdir()}
        lessons = learn(self._folder, files) or Lessons.none(self._dim)
        np.save(self._folder / TEXT_MAP, lessons.text_map)
        files[TEXT_MAP] = file_facts(self._folder / TEXT_MAP)
        manifest = Manifest(
            id=snapshot_id,
            created_at=created_at,
            options=options,
            encoder=encoder,
            limits=limits,
            factory=factory,
            tuning=tuning,
            relevance=lessons.relevance,
            count=self._rows,
            skipped=dict(self._skipped),
            files=dict(sorted(files.items())),
        )
        write_manifest(self._folder, manifest)
        return manifest

    def close(self) -> None:
        """Close all files, each even where another cannot be written to its end; harmless a second time."""
        with ExitStack() as stack:
            for file in (self._embeddings, self._thumbnails, self._skips, self._catalog):
                stack.callback(file.close)

    def _write_header(self) -> None:
        # numpy leaves room in the header for the first axis to grow, so that it can be written again in place.
        facts = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._dim)}
        npy.write_array_header_1_0(self._embeddings, facts)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the last file of a snapshot, with its checksum."""
    facts = manifest.model_dump(mode="json")
    (folder / MANIFEST).write_text(json.dumps({**facts, CHECKSUM: checksum(facts)}, indent=2) + "\n")
