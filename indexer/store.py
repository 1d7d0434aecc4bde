"""SnapshotStore: a folder of snapshots, and the one that is current.

snapshots/
  CURRENT                        id of the current snapshot and SHA-256 of its manifest; replaced, never written
  TEXT_ENCODER                   encoder for queries, where an administrator has put another in (optional)
  .lock                          held by the one build, or prune, that may run
  .work/                         what an interrupted build goes on from: see `journal.py`
  .building-<id>/                a snapshot being put together; nobody reads it
  .jobs/                         what the service was told to build: see `service/reindex.py`
  20260101T120000-012345/        a snapshot, named by when it was built (UTC); nothing in it ever changes
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from indexer.durable import sweep, sync, write_whole
from indexer.encoder import EncoderName
from indexer.errors import BuildRunning, CorruptSnapshot, NoSnapshot
from indexer.snapshot import MANIFEST, Manifest, Snapshot, file_facts, read_manifest

_CURRENT = "CURRENT"
_TEXT_ENCODER = "TEXT_ENCODER"
_BUILDING = ".building-"
_WORK = ".work"
_TIME = re.compile(r"\d{8}T\d{6}-\d{6}")


class SnapshotStore:
    """The snapshots of one collection."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ids(self) -> list[str]:
        """Return the ids of all complete snapshots, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path.parent.name for path in self.folder.glob(f"[!.]*/{MANIFEST}")), reverse=True)

    def newest(self) -> str | None:
        """Return the newest id that is named by a time, or None where there is none."""
        return next((snapshot_id for snapshot_id in self.ids() if _TIME.fullmatch(snapshot_id)), None)

    def current(self) -> str | None:
        """Return the id of the current snapshot, or None where nothing has been published."""
        pointer = self._pointer()
        return pointer[0] if pointer else None

    def published(self) -> str:
        """Return the id of the current snapshot.

        Raises:
            NoSnapshot: nothing has been published.
        """
        current = self.current()
        if current is None:
            raise NoSnapshot(f"Nothing has been published in {self.folder} yet; run `python -m indexer build` first.")
        return current

    def manifest(self, snapshot_id: str) -> Manifest:
        """Return the manifest of a snapshot.

        Raises:
            NoSnapshot: there is none with this id.
            CorruptSnapshot: it cannot be read, or is not the one that was published.
        """
        if snapshot_id not in self.ids():
            raise NoSnapshot(f"There is no snapshot {snapshot_id!r} in {self.folder}; there are: {self.ids()}.")
        path = self.folder / snapshot_id
        try:
            pointer = self._pointer()
        except CorruptSnapshot:
            # Publishing anew repairs a pointer that cannot be read, so it may not stand in the way of that.
            pointer = None
        if pointer and pointer[0] == snapshot_id and file_facts(path / MANIFEST).sha256 != pointer[1]:
            raise CorruptSnapshot(f"{path / MANIFEST} is not the manifest that was published.")
        manifest = read_manifest(path)
        if manifest.id != snapshot_id:
            raise CorruptSnapshot(f"{path} holds the manifest of snapshot {manifest.id}.")
        return manifest

    def open(self, snapshot_id: str) -> Snapshot:
        """Open a snapshot after verifying it.

        Raises:
            NoSnapshot: there is none with this id.
            CorruptSnapshot: it is damaged.
        """
        self.manifest(snapshot_id)
        return Snapshot.open(self.folder / snapshot_id)

    def publish(self, snapshot_id: str, *, verified: bool = False) -> None:
        """Make a snapshot current, after verifying it, unless it has just been opened."""
        if not verified:
            self.open(snapshot_id).check_canaries()
        manifest_hash = file_facts(self.folder / snapshot_id / MANIFEST).sha256
        write_whole(self.folder / _CURRENT, f"{snapshot_id} {manifest_hash}\n".encode())

    def previous(self) -> str:
        """Return the id of the newest snapshot that is older than the current one.

        Raises:
            NoSnapshot: there is none.
        """
        current = self.published()
        older = [snapshot_id for snapshot_id in self.ids() if snapshot_id < current]
        if not older:
            raise NoSnapshot(f"There is no snapshot in {self.folder} older than the current one ({current}).")
        return older[0]

    def prune(self, keep: int) -> list[str]:
        """Delete all but the current and the newest `keep` snapshots, and return the ids of those deleted."""
        with self.lock():
            doomed = [snapshot_id for snapshot_id in self.ids()[keep:] if snapshot_id != self.current()]
            for snapshot_id in doomed:
                # Renamed first: a prune that is killed leaves nothing that looks like a snapshot.
                trash = self.folder / f"{_BUILDING}{snapshot_id}"
                (self.folder / snapshot_id).rename(trash)
                shutil.rmtree(trash)
            return doomed

    def text_encoder(self) -> EncoderName | None:
        """Return the encoder that an administrator has put in for queries, if any.

        Raises:
            CorruptSnapshot: the file that names it cannot be understood.
        """
        path = self.folder / _TEXT_ENCODER
        try:
            return EncoderName.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise CorruptSnapshot(f"{path} does not name an encoder: {error}") from error

    def set_text_encoder(self, name: EncoderName | None) -> None:
        """Have queries encoded by another encoder of the same image half; None goes back to the manifest's."""
        if name is None:
            (self.folder / _TEXT_ENCODER).unlink(missing_ok=True)
        else:
            write_whole(self.folder / _TEXT_ENCODER, f"{name.model_dump_json()}\n".encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder's lock; the operating system frees it should the process die.

        Raises:
            BuildRunning: another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", blocking=False):
                yield
        except Timeout as error:
            raise BuildRunning(f"Another build is running in {self.folder}; wait for it or stop it.") from error

    def work(self) -> Path:
        """Return the folder of finished work that is not in a snapshot yet. Needs the lock."""
        folder = self.folder / _WORK
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        return folder

    def start(self, snapshot_id: str) -> Path:
        """Return an empty folder to put a snapshot together in, without what dead builds left. Needs the lock."""
        sweep(self.folder)
        for path in self.folder.glob(f"{_BUILDING}*"):
            shutil.rmtree(path)
        folder = self.folder / f"{_BUILDING}{snapshot_id}"
        folder.mkdir()
        return folder

    def commit(self, building: Path) -> str:
        """Verify a folder from `start`, its manifest written, give it its final name, and return its id.

        Raises:
            CorruptSnapshot: it cannot be opened; FAISS, for one, says nothing of a full disk.
        """
        Snapshot.open(building).check_canaries()
        snapshot_id = building.name.removeprefix(_BUILDING)
        for path in building.iterdir():
            path.chmod(0o444)
            sync(path)
        sync(building)
        building.rename(self.folder / snapshot_id)
        sync(self.folder)
        return snapshot_id

    def _pointer(self) -> tuple[str, str] | None:
        try:
            snapshot_id, manifest_hash = (self.folder / _CURRENT).read_text().split()
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CorruptSnapshot(f"{self.folder / _CURRENT} is not 'id hash'; publish or roll back anew.") from error
        return snapshot_id, manifest_hash
