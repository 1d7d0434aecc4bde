"""What must hold of a folder of snapshots, whatever has happened to the builds in it."""

import io
import threading
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from indexer.encoder import Encoder
from indexer.errors import NoSnapshot, SnapshotError
from indexer.snapshot import SKIPPED, Manifest, Snapshot
from indexer.store import SnapshotStore
from tests.crash.collection import Collection, Entry
from tests.snapshots import search

# Batches of other sizes add in another order.
_SAME_VECTOR = 1e-5
# Mean difference of 8-bit values; JPEG leaves about 5 of the drawn patches, and two pictures differ by 85.
_SAME_PICTURE = 20


class Encoding:
    """Pictures encoded one by one, by their content; the vectors that snapshots must hold."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[str, NDArray[np.float32]] = {}

    def __call__(self, entry: Entry) -> NDArray[np.float32]:
        """Return the embedding of a picture, shape (dim,)."""
        if entry.digest not in self._known:
            image = Image.open(io.BytesIO(entry.data)).convert("RGB")
            self._known[entry.digest] = self._encoder.encode_images([self._encoder.preprocess(image)])[0]
        return self._known[entry.digest]


def violations(snapshots: Path, collection: Collection, encoding: Encoding) -> list[str]:
    """Return what is wrong with the current snapshot as an index of a collection, a line for each."""
    try:
        store = SnapshotStore(snapshots)
        snapshot = store.open(store.published())
        snapshot.check_canaries()
    except SnapshotError as error:
        return [f"the current snapshot cannot be opened: {error}"]
    records = snapshot.catalog.rows(range(len(snapshot)))
    times = Counter(record.path for record in records)
    wrong = [f"lost: {path}" for path in collection.pictures.keys() - times.keys()]
    wrong += [f"phantom: {path}" for path in times.keys() - collection.pictures.keys()]
    wrong += [f"doubled: {path}, {count} times" for path, count in times.items() if count > 1]
    if not len(records) == len(snapshot.embeddings) == len(snapshot.index) == snapshot.manifest.count:
        wrong.append("catalogue, embeddings, index and manifest differ in length")
    for record in records:
        entry = collection.pictures.get(record.path)
        if entry is not None:
            if (record.content_hash, record.label, record.caption) != (entry.digest, entry.label, entry.caption):
                wrong.append(f"torn: {record.path} is described as another")
            if np.abs(snapshot.embeddings[record.row] - encoding(entry)).max() > _SAME_VECTOR:
                wrong.append(f"torn: {record.path} has the vector of another")
            if not _shows(snapshot.thumbnail(record), entry):
                wrong.append(f"torn: {record.path} has the thumbnail of another")
    return wrong + _not_found(snapshot) + _wrongly_skipped(snapshot, collection)


def differences(ours: Path, theirs: Path) -> list[str]:
    """Return how two folders differ in their current snapshots, apart from its id and the time."""
    try:
        first, second = (_manifest(folder) for folder in (ours, theirs))
    except SnapshotError as error:
        return [f"there is nothing to compare: {error}"]
    names = first.files.keys() | second.files.keys()
    wrong = [
        f"not the bytes of an uninterrupted build: {name}"
        for name in names
        if first.files.get(name) != second.files.get(name)
    ]
    rest = [manifest.model_dump(exclude={"id", "created_at", "files"}) for manifest in (first, second)]
    return wrong + [f"not as in an uninterrupted build: {key}" for key in rest[0] if rest[0][key] != rest[1][key]]


class Reader(threading.Thread):
    """Opens the current snapshot over and over, as a service does; `violations` tells when that was not possible."""

    def __init__(self, snapshots: Path) -> None:
        super().__init__()
        self._store = SnapshotStore(snapshots)
        self._over = threading.Event()
        self.violations: list[str] = []
        self.opened: Counter[str] = Counter()

    def run(self) -> None:
        """Read until `stop`."""
        newest = ""
        while not self._over.wait(0.05):
            try:
                current = self._store.published()
                self._store.open(current)
            except NoSnapshot as error:
                if newest:
                    self.violations.append(f"neither the old nor the new snapshot: {error}")
            except SnapshotError as error:
                self.violations.append(f"neither the old nor the new snapshot: {error}")
            else:
                self.opened[current] += 1
                if current < newest:
                    self.violations.append(f"back from snapshot {newest} to {current}")
                newest = current

    def stop(self) -> None:
        """Read no more."""
        self._over.set()
        self.join()


def _manifest(folder: Path) -> Manifest:
    store = SnapshotStore(folder)
    return store.manifest(store.published())


def _shows(thumbnail: bytes, entry: Entry) -> bool:
    """Tell whether a thumbnail shows a picture; small pictures keep their size."""
    small, image = (Image.open(io.BytesIO(data)).convert("RGB") for data in (thumbnail, entry.data))
    if small.size != image.size:
        return False
    return float(np.abs(np.asarray(small, np.float32) - np.asarray(image, np.float32)).mean()) < _SAME_PICTURE


def _not_found(snapshot: Snapshot) -> list[str]:
    """Search for every picture by its own vector, among at most as many as have the same content."""
    wrong = []
    for record in snapshot.catalog.rows(range(len(snapshot))):
        hits = search(snapshot, snapshot.vector(record), 8)
        if record.content_hash not in {hit.image.content_hash for hit in hits}:
            wrong.append(f"the index does not find {record.path}")
    return wrong


def _wrongly_skipped(snapshot: Snapshot, collection: Collection) -> list[str]:
    skips = parquet.read_table(snapshot.folder / SKIPPED).to_pylist()
    found = Counter((skip["key"], skip["reason"]) for skip in skips)
    expected = Counter((path, str(reason)) for path, reason in collection.broken.items())
    wrong = [f"wrongly skipped: {skip}" for skip in found - expected]
    return wrong + [f"missing from the skipped: {skip}" for skip in expected - found]
