"""reindex(): another index over the current snapshot's pictures, without reading a source or encoding a picture."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from indexer.encoder import Encoder
from indexer.errors import EncoderMismatch
from indexer.index_building import write_index
from indexer.index_policy import check_index, resolve_factory
from indexer.journal import new_job
from indexer.snapshot import EMBEDDINGS, INDEX, BuildOptions, Manifest, Snapshot, file_facts
from indexer.snapshot_tuning import tune_snapshot
from indexer.store import SnapshotStore
from indexer.writer import write_manifest

Change = Callable[[BuildOptions], BuildOptions]
"""From what the current snapshot was asked for to what the new one is."""


def reindex(
    store: SnapshotStore,
    change: Change,
    load: Callable[[Manifest], Encoder],
    memory_limit: int | None = None,
    gpu_memory: int = 0,
) -> Manifest:
    """Publish a snapshot that has the current one's pictures and what was learnt of them, and an index of its own.

    Its other files are the current one's: links where the disk has them, so that they take no room.

    Args:
        store: of the snapshots.
        change: of the options; `index`, `target_recall` and `accept_low_recall` matter here.
        load: gives the encoder that a manifest names; only called for an approximate index, to make queries.
        memory_limit: bytes that building the index may take; None for any.
        gpu_memory: bytes of the GPUs that the service will search on; 0 where it searches on a CPU.

    Raises:
        NoSnapshot, CorruptSnapshot: there is nothing to go on from.
        BuildError: FAISS cannot build the index, it finds too little, or another build is running.
        EncoderError: the encoder cannot be loaded, or is not the one that made the embeddings.
    """
    with store.lock():
        current = store.open(store.published())
        count, dim = current.embeddings.shape
        options = change(current.manifest.options)
        check_index(options.index, dim)
        factory = resolve_factory(options.index, count, dim, memory_limit, gpu_memory)
        job = new_job(store.newest())
        with _discarded_on_failure(store.start(job.snapshot_id)) as folder:
            _share(current, folder)
            write_index(np.load(folder / EMBEDDINGS, mmap_mode="r"), factory, folder / INDEX, memory_limit)
            facts = {
                "id": job.snapshot_id,
                "created_at": job.begun_at,
                "options": options,
                "factory": factory,
                "tuning": tune_snapshot(folder, factory, options, lambda: _same(load(current.manifest), current)),
                "files": current.manifest.files | {INDEX: file_facts(folder / INDEX)},
            }
            manifest = current.manifest.model_copy(update=facts)
            write_manifest(folder, manifest)
            store.commit(folder)
        store.publish(manifest.id, verified=True)
        return manifest


def _share(current: Snapshot, folder: Path) -> None:
    """Give a folder the files of a snapshot, all but the index: no snapshot ever changes one, so that links will do."""
    for name in current.manifest.files.keys() - {INDEX}:
        try:
            os.link(current.folder / name, folder / name)
        except OSError:  # such as of a disk that has no links, or of files that are another user's
            shutil.copyfile(current.folder / name, folder / name)


def _same(encoder: Encoder, current: Snapshot) -> Encoder:
    made = current.manifest.encoder
    if encoder.spec.image != made.image:
        raise EncoderMismatch(
            f"{made.name} is no longer the model that made the embeddings: its image half is {encoder.spec.image[:12]} "
            f"now and was {made.image[:12]}. Give it back, or build anew."
        )
    return encoder


@contextmanager
def _discarded_on_failure(folder: Path) -> Iterator[Path]:
    """Leave nothing of a folder where what is done in it fails, or is interrupted."""
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
