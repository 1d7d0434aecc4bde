"""What the servers are asked, and what they search: queries, drawn vectors, and the files that each server opens."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa

from indexer.catalog import ImageRecord
from indexer.encoder import DEMO, DEMO_FOLDER, EncoderName, load_encoder
from indexer.snapshot import EMBEDDINGS, BuildOptions
from indexer.store import SnapshotStore
from indexer.writer import SnapshotWriter
from tests.bench.closed_loop import ADDRESS
from tests.bench.photos import SMALL, take
from tests.snapshots import LIMITS, THUMBNAIL, unit_vectors

FEW_TEXTS = 100
"""Different texts, where they are repeated."""

_BATCH = 10_000
_PICTURES = 64
_DIGITS = 12  # of a request's number, in every request
_SUBJECTS = ("red star", "blue house", "small dog", "green bus", "yellow kite", "old castle", "black cat", "white boat")


class Kind(StrEnum):
    """What is asked."""

    TEXT = "texts, each another"
    REPEATED = f"texts, one of {FEW_TEXTS}"
    UPLOAD = "uploads"


@dataclass(frozen=True)
class Template:
    """A request, or a query, but for the number that makes it another than the others."""

    head: bytes
    tail: bytes = b""

    def numbered(self, number: int) -> bytes:
        """Return the whole."""
        return b"%b%0*d%b" % (self.head, _DIGITS, number, self.tail)

    def inside(self, head: bytes, tail: bytes) -> "Template":
        """Return a larger one."""
        return Template(head + self.head, self.tail + tail)

    def posted(self, path: str, content: str) -> "Template":
        """Return this body as a whole HTTP request."""
        size = len(self.head) + _DIGITS + len(self.tail)
        lines = [f"POST {path} HTTP/1.1", f"Host: {ADDRESS}", f"Content-Type: {content}", f"Content-Length: {size}"]
        return self.inside("\r\n".join([*lines, "", ""]).encode(), b"")


@dataclass(frozen=True)
class Bench:
    """One model and what is searched with it.

    Attributes:
        folder: of the files below; kept.
        name: of the model, with the path of its weights.
        config: folder that describes its architecture, where open_clip does not know it.
        count: pictures in the index, whose vectors are drawn.
        pictures: JPEG files to upload.
    """

    folder: Path
    name: EncoderName
    config: Path | None
    count: int
    pictures: Sequence[bytes] = field(repr=False)

    @classmethod
    def made(cls, folder: Path, model: str, weights: Path, count: int) -> "Bench":
        """Write the snapshot, and the same for clip-retrieval, unless they are there."""
        home = folder / f"{model}-{count}"
        pictures = [path.read_bytes() for path in sorted(take(folder, SMALL, _PICTURES).iterdir())]
        demo = model == DEMO
        name = EncoderName(model=model) if demo else EncoderName(model=model, pretrained=str(weights))
        bench = cls(home, name, DEMO_FOLDER if demo else None, count, pictures)
        if not (home / "peer").exists():
            shutil.rmtree(home, ignore_errors=True)
            bench._write_snapshot()
            bench._write_peer()
        return bench

    @property
    def snapshots(self) -> Path:
        """The folder of kindred's snapshot."""
        return self.folder / "snapshots"

    @property
    def snapshot(self) -> Path:
        """The folder of the snapshot itself."""
        return self.snapshots / SnapshotStore(self.snapshots).published()

    def queries(self, kind: Kind) -> list[Template]:
        """Return texts, or files: whatever follows the end of a JPEG is not looked at."""
        if kind == Kind.UPLOAD:
            # A length that base64 needs not pad, so that there, too, a number can follow.
            return [Template(picture + bytes(-len(picture) % 3)) for picture in self.pictures]
        return [Template(f"a photo of a {subject}, number ".encode()) for subject in _SUBJECTS]

    def _write_snapshot(self) -> None:
        spec = load_encoder(self.name, device="cpu", threads=0).spec
        vectors, store = unit_vectors(self.count, spec.dim), SnapshotStore(self.snapshots)
        with store.lock():
            building = store.start("1")
            with SnapshotWriter(building, spec.dim) as writer:
                for start in range(0, self.count, _BATCH):
                    rows = range(start, min(start + _BATCH, self.count))
                    writer.add(vectors[rows.start : rows.stop], [_record(row, writer) for row in rows])
                options = BuildOptions(sources=(str(self.folder),), near_duplicates=None)
                writer.finish("1", datetime.now(UTC), options, spec, LIMITS, "Flat")
            store.commit(building)
            store.publish("1")

    def _write_peer(self) -> None:
        """Write FAISS's own file of the same vectors, and the metadata that kindred answers with."""
        half = self.folder / "peer.half"
        (half / "metadata").mkdir(parents=True)
        vectors = np.load(self.snapshot / EMBEDDINGS)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        faiss.write_index(index, str(half / "image.index"))
        facts = [(f"{row:012d}.jpg", f"picture number {row}", f"label {row % 100}") for row in range(self.count)]
        table = pa.table(dict(zip(("path", "caption", "label"), zip(*facts, strict=True), strict=True)))
        with pa.OSFile(str(half / "metadata" / "0.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table)
        (half / "indices.json").write_text(json.dumps({"bench": str(self.folder / "peer")}))
        half.rename(self.folder / "peer")


def _record(row: int, writer: SnapshotWriter) -> ImageRecord:
    return ImageRecord(
        row=row,
        id=f"{row:016x}",
        path=f"{row:012d}.jpg",
        content_hash=f"{row:064x}",
        media_type="image/jpeg",
        width=SMALL.width,
        height=SMALL.height,
        thumbnail=writer.add_thumbnail(THUMBNAIL),
        label=f"label {row % 100}",
        caption=f"picture number {row}",
    )
