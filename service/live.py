"""LiveSearcher: follows the published snapshot and swaps whole searchers."""

import asyncio
import os
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from typing import Literal

import structlog

from indexer.encoder import Encoder, EncoderName, EncoderSpec, accelerated, load_encoder, use_threads
from indexer.errors import EncoderMismatch, KindredError
from indexer.gpu_index import on_gpu
from indexer.snapshot import Snapshot
from indexer.store import SnapshotStore
from service.searcher import Searcher
from service.settings import ServiceSettings
from service.telemetry import Metrics

# An encoder that takes less for a text on one core loses more by waking others than it gains from them, and has little
# to gain from ONNX Runtime, for which it would be exported for up to a minute.
_SLOW_SECONDS = 0.01


class LiveSearcher:
    """Holds the searcher of the current snapshot.

    A request takes `searcher` once and keeps it to its end. A swap is one assignment; the old searcher, its files and
    its memory go with the last request that holds it.

    Attributes:
        searcher: of the served snapshot; None where there is none.
        refused: why the last published snapshot is not the served one; None where it is.
        leaving: whether the service was told to stop, and is not ready any more.
    """

    def __init__(self, store: SnapshotStore, settings: ServiceSettings, metrics: Metrics) -> None:
        self.searcher: Searcher | None = None
        self.refused: str | None = None
        self.leaving = False
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._seen: tuple[str | None, EncoderName | None] = (None, None)
        self._judged: Encoder | None = None
        self._lock = threading.Lock()

    async def follow(self) -> None:
        """Look for a newly published snapshot every `refresh_seconds`, until cancelled."""
        while True:
            await asyncio.to_thread(self.accelerate)
            await asyncio.sleep(self._settings.refresh_seconds)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Serve what is published, if it is sound; else say why in `refused` and go on as before."""
        with self._lock:
            wanted: tuple[str | None, EncoderName | None] = (None, None)
            try:
                wanted = (self._store.current(), self._store.text_encoder())
                if wanted == self._seen:
                    return
                if wanted[0] is not None:
                    self._serve(self._open(wanted[0], wanted[1]))
            except KindredError as error:
                self._refuse(str(error))
            except Exception as error:  # noqa: BLE001 - the follower must outlive whatever one snapshot does to it
                self._refuse(f"{type(error).__name__}: {error}")
                return  # not noted as seen: want of memory or of file handles may pass
            self._seen = wanted

    def accelerate(self) -> None:
        """Have ONNX Runtime take over from torch where the backend is left to us; if it cannot, torch goes on."""
        encoder = self.searcher.encoder if self.searcher else None
        if encoder is None or encoder is self._judged or self._settings.backend != "auto":
            return
        self._judged = encoder
        # Half precision is a GPU's.
        if encoder.spec.precision != "fp32" or not find_spec("onnxruntime") or not _is_slow(encoder):
            return
        try:
            faster = accelerated(encoder, self._settings.cache, threads=self._settings.threads)
        except Exception as error:  # noqa: BLE001 - an exporter and a runtime raise what they like; torch serves on
            structlog.get_logger().warning("ONNX Runtime cannot run the encoder; torch goes on", why=str(error))
            return
        with self._lock:
            if self.searcher and self.searcher.encoder is encoder:
                self.searcher = replace(self.searcher, encoder=faster)
                self._judged = faster
                structlog.get_logger().info("ONNX Runtime runs the encoder", encoder=str(faster.spec.name))

    def activate(self, snapshot_id: str) -> Searcher:
        """Publish a snapshot and serve it at once.

        Raises:
            NoSnapshot, CorruptSnapshot, EncoderError: it cannot be served; nothing has changed.
        """
        with self._lock:
            override = self._store.text_encoder()
            searcher = self._open(snapshot_id, override)
            self._store.publish(snapshot_id)
            self._serve(searcher)
            self._seen = (snapshot_id, override)
            return searcher

    def set_text_encoder(self, name: EncoderName | None) -> Searcher:
        """Encode queries with another encoder from now on, also after a restart; None goes back to the manifest's.

        Raises:
            EncoderError: it cannot be loaded.
            EncoderMismatch: its image half is not that of the served snapshot; nothing has changed.
        """
        with self._lock:
            if self.searcher is None:
                raise EncoderMismatch("No snapshot is being served, so no text encoder can be compared with it.")
            snapshot = self.searcher.snapshot
            encoder = self._load(name or snapshot.manifest.encoder.name, snapshot.manifest.encoder)
            if encoder.spec.image != snapshot.manifest.encoder.image:
                raise _mismatch(encoder.spec, snapshot.manifest.encoder)
            self._store.set_text_encoder(name)
            searcher = Searcher(snapshot, encoder)
            self._serve(searcher)
            self._seen = (snapshot.manifest.id, name)
            return searcher

    def _open(self, snapshot_id: str, override: EncoderName | None) -> Searcher:
        """Open a snapshot beside the one being served, and check that it answers."""
        if self.searcher and self.searcher.snapshot.manifest.id == snapshot_id:
            snapshot = self.searcher.snapshot
        else:
            snapshot = self._store.open(snapshot_id)
            snapshot.check_canaries()
        encoder = self._encoder(snapshot, override)
        # Last of all: the index that is served may have to make room.
        replaced = self.searcher.snapshot.index if self.searcher else None
        index = on_gpu(snapshot.embeddings, snapshot.index, self._settings.device, replaced)
        return Searcher(replace(snapshot, index=index), encoder)

    def _encoder(self, snapshot: Snapshot, override: EncoderName | None) -> Encoder:
        spec = snapshot.manifest.encoder
        if override:
            encoder = self._load(override, spec)
            if encoder.spec.image == spec.image:
                return encoder
            structlog.get_logger().warning("text encoder has another image half; not used", encoder=str(override))
        encoder = self._load(spec.name, spec)
        if encoder.spec.image != spec.image:
            raise _mismatch(encoder.spec, spec)
        if encoder.spec.text != spec.text:
            structlog.get_logger().warning("text half differs from the one at build time", encoder=str(spec.name))
        return encoder

    def _load(self, name: EncoderName, spec: EncoderSpec) -> Encoder:
        """Load an encoder, unless the one in use has this name and the wanted image half."""
        if self.searcher:
            used = self.searcher.encoder
            if used.spec.name == name and used.spec.image == spec.image:
                return used
        settings = self._settings
        threads = settings.threads or 1
        encoder = load_encoder(name, device=settings.device, threads=threads)
        if not settings.threads and _is_slow(encoder):
            threads = os.cpu_count() or 1
            use_threads(threads)
        if settings.backend.startswith("onnx"):
            precision: Literal["fp32", "int8"] = "int8" if settings.backend == "onnx-int8" else "fp32"
            return accelerated(encoder, settings.cache, threads=threads, precision=precision)
        return encoder

    def _serve(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self.refused = None
        manifest = searcher.snapshot.manifest
        self._metrics.swaps.inc()
        self._metrics.pictures.set(manifest.count)
        self._metrics.created.set(manifest.created_at.timestamp())
        structlog.get_logger().info("serving", snapshot=manifest.id, count=manifest.count)

    def _refuse(self, why: str) -> None:
        if why != self.refused:
            self._metrics.refusals.inc()
            structlog.get_logger().error("refused", why=why)
        self.refused = why


def _is_slow(encoder: Encoder) -> bool:
    seconds = []
    for _ in range(3):
        # Of this thread's work, not by the clock: a machine is busiest while services start.
        start = time.thread_time()
        encoder.encode_texts(["a photo of a cat"])
        seconds.append(time.thread_time() - start)
    return min(seconds) >= _SLOW_SECONDS


def _mismatch(found: EncoderSpec, wanted: EncoderSpec) -> EncoderMismatch:
    return EncoderMismatch(
        f"The image half of {found.name} ({found.image[:12]}) is not the one that made the embeddings "
        f"({wanted.image[:12]} of {wanted.name}). Give the model that the snapshot was built with, or reindex."
    )
