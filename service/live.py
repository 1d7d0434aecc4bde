"""LiveSearcher: follows the published snapshot and swaps whole searchers."""

import asyncio
import threading

import structlog

from indexer.encoder import Encoder, EncoderName, EncoderSpec, load_encoder
from indexer.errors import EncoderMismatch, KindredError
from indexer.snapshot import Snapshot
from indexer.store import SnapshotStore
from service.searcher import Searcher
from service.settings import ServiceSettings
from service.telemetry import Metrics


class LiveSearcher:
    """Holds the searcher of the current snapshot.

    A request takes `searcher` once and keeps it to its end. A swap is one assignment; the old searcher, its files and
    its memory go with the last request that holds it.
    """

    def __init__(self, store: SnapshotStore, settings: ServiceSettings, metrics: Metrics) -> None:
        self.searcher: Searcher | None = None
        self.refused: str | None = None
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._seen: tuple[str | None, EncoderName | None] = (None, None)
        self._lock = threading.Lock()

    async def follow(self) -> None:
        """Look for a newly published snapshot every `refresh_seconds`, until cancelled."""
        while True:
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
        return Searcher(snapshot, self._encoder(snapshot, override))

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
        return load_encoder(name, device=self._settings.device, threads=self._settings.threads)

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


def _mismatch(found: EncoderSpec, wanted: EncoderSpec) -> EncoderMismatch:
    return EncoderMismatch(
        f"The image half of {found.name} ({found.image[:12]}) is not the one that made the embeddings "
        f"({wanted.image[:12]} of {wanted.name}). Give the model that the snapshot was built with, or reindex."
    )
