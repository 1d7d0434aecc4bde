"""Memory of putting a snapshot together, by its size; and how soon a large catalogue answers.

`python -m tests.bench.scale FOLDER` (or `make scale-bench`): shards of synthetic pictures are assembled into a snapshot
by the code that a build ends with, which is then committed and opened; each size in a process of its own, whose memory
is read from the kernel every 20 ms. Anonymous memory is what a process needs for itself; the peak of all resident
memory has in it the mapped files, which the kernel drops when memory is short.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from indexer.assemble import assemble
from indexer.catalog import Catalog, CatalogWriter, ImageRecord
from indexer.encoder import EncoderName, EncoderSpec
from indexer.images import DecodePolicy
from indexer.plan import Plan, image_id
from indexer.settings import Settings
from indexer.shards import EncodedPicture, PictureFacts, Row, ShardFolder, read_shard_file, write_shard
from indexer.snapshot import NEAR_DUPLICATES, BuildOptions
from indexer.sources.source import Item
from indexer.store import SnapshotStore
from indexer.writer import SnapshotWriter
from tests.bench.tables import grid
from tests.snapshots import search

DIM = 512

_SHARD = 512
_THUMBNAIL = 2**10
_SAMPLE_SECONDS = 0.02
_LOOKUPS = 1_000
_BATCH = 10_000
_WIDTH, _HEIGHT = 500, 375

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

Folder = Annotated[Path, typer.Argument(help="Where scratch files go; 9 kB a row.")]
Count = Annotated[int, typer.Argument()]
Group = Annotated[bool, typer.Option(help="Whether near-duplicates are grouped.")]


class Memory:
    """The memory of this process, in MiB, highest anonymous and highest resident."""

    def __init__(self) -> None:
        self.anonymous = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look every 20 ms while the work inside goes on."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(_SAMPLE_SECONDS):
                self.anonymous = max(self.anonymous, status("RssAnon"))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def status(field: str) -> float:
    """Return what the kernel says of this process's memory, in MiB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) / 2**10 if found else 0.0


@app.command()
def compare(
    folder: Folder,
    rows: Annotated[str, typer.Option(help="Sizes of snapshots, with commas.")] = "10000,100000,1000000",
    catalog: Annotated[int, typer.Option(help="Rows of the catalogue that is opened; 0 for none.")] = 10_000_000,
    group: Group = True,
    out: Annotated[Path | None, typer.Option(help="File for the report.")] = None,
) -> None:
    """Measure every size, and print a report in Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = () if group else ("--no-group",)
    text = _table([_child("snapshot", folder, count, *flags) for count in map(int, rows.split(","))])
    if catalog:
        written = _child("write-catalog", folder, catalog)
        text += f"\n{_table([written | _child('open-catalog', folder, catalog)])}"
        _file(folder).unlink()
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


@app.command()
def snapshot(folder: Folder, count: Count, group: Group = True) -> None:
    """Assemble, commit and open a snapshot of so many rows, and print what it took as JSON."""
    store, memory = SnapshotStore(folder / "snapshots"), Memory()
    before = status("RssAnon")
    with memory.watched():
        snapshot_id, seconds = _assembled(store, count, NEAR_DUPLICATES if group else None)
        start = time.perf_counter()
        opened = store.open(snapshot_id)
        found = search(opened, np.array(opened.embeddings[count // 2]), 10)
        seconds |= {"open and search": time.perf_counter() - start}
    if found[0].image.row != count // 2:
        raise RuntimeError(f"Row {count // 2} of {count} was not found.")
    _tell(count, {"anonymous before": before, "anonymous": memory.anonymous, "resident": status("VmHWM")}, seconds)
    shutil.rmtree(store.folder)


@app.command("write-catalog")
def write_catalog(folder: Folder, count: Count) -> None:
    """Write a catalogue of so many rows, and print what it took as JSON."""
    memory, start = Memory(), time.perf_counter()
    _file(folder).unlink(missing_ok=True)
    with memory.watched():
        writer = CatalogWriter(_file(folder))
        for first in range(0, count, _BATCH):
            writer.add([_record(row) for row in range(first, min(first + _BATCH, count))])
        writer.finish()
    _tell(count, {"anonymous, writing": memory.anonymous}, {"write": time.perf_counter() - start})


@app.command("open-catalog")
def open_catalog(folder: Folder, count: Count) -> None:
    """Open that catalogue and look pictures up, each of `_LOOKUPS` by id and ten at a time by row; print as JSON."""
    before, rows = status("RssAnon"), np.random.default_rng(0).integers(0, count, (_LOOKUPS, 10))
    seconds = {}
    start = time.perf_counter()
    catalog = Catalog.open(_file(folder))
    seconds["open"] = time.perf_counter() - start
    seconds["length"] = _timed(lambda: len(catalog))
    seconds["first lookup"] = _timed(lambda: catalog.get(image_id(_key(count // 2))))
    seconds["1,000 by id"] = _timed(lambda: [catalog.get(image_id(_key(int(row)))) for row in rows[:, 0]])
    seconds["1,000 x 10 by row"] = _timed(lambda: [catalog.rows(each) for each in rows.tolist()])
    seconds["label counts"] = _timed(catalog.label_counts)
    memory = {"anonymous before": before, "anonymous, looking up": status("RssAnon"), "resident": status("VmHWM")}
    _tell(count, memory, seconds)


def _assembled(store: SnapshotStore, count: int, similarity: float | None) -> tuple[str, dict[str, float]]:
    """Do what a build does once all shards are there; return the snapshot and the seconds of each step."""
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[step], start = now - start, now

    spec = EncoderSpec(name=EncoderName(model="synthetic"), dim=DIM, image="0" * 64, text="0" * 64)
    options, limits = BuildOptions(sources=("/synthetic",), near_duplicates=similarity), DecodePolicy.of(Settings())
    with store.lock(), Plan(store.work() / "plan.sqlite") as plan:
        plan.add(0, (Item(_key(row), _key(row), _THUMBNAIL, f"{row}") for row in range(count)), labels=None)
        plan.cut(_SHARD, "")
        lap("plan")
        hashes, files = [], ShardFolder(store.work() / "shards")
        for number in range(1, plan.counts().shards + 1):
            shard = plan.shard(number)
            hashes.append(write_shard(files, shard.id, [_encoded(item.key) for item in shard.items]).sha256)
        lap("shards")

        def read(number: int) -> list[Row]:
            return read_shard_file(files, plan.shard_id(number), hashes[number - 1])

        building = store.start("1")
        with SnapshotWriter(building, DIM) as writer:
            assemble(plan, read, None, writer, lambda _: None)
            lap("assemble")
            writer.finish("1", datetime.now(UTC), options, spec, limits, "Flat")
            lap("group and index")
        store.commit(building)
        lap("commit")
    return "1", seconds


def _encoded(key: str) -> EncodedPicture:
    row = int(key[:-4])
    vector = np.random.default_rng(row).standard_normal(DIM, np.float32)
    facts = PictureFacts(
        content_hash=f"{row:064x}",
        size=_THUMBNAIL,
        media_type="image/jpeg",
        width=_WIDTH,
        height=_HEIGHT,
        perceptual_hash=int(image_id(key), 16),
        thumbnail=row.to_bytes(8) * (_THUMBNAIL // 8),
    )
    return EncodedPicture(key, facts, vector / np.linalg.norm(vector), encoded=True)


def _record(row: int) -> ImageRecord:
    return ImageRecord(
        row=row,
        id=image_id(_key(row)),
        path=_key(row),
        content_hash=image_id(_key(row)) * 4,
        media_type="image/jpeg",
        width=_WIDTH,
        height=_HEIGHT,
        thumbnail=(row * _THUMBNAIL, _THUMBNAIL),
        label=f"label {row % 1_000}",
        caption=f"synthetic picture number {row}",
        size=_THUMBNAIL,
        stamp=f"{row}",
        perceptual_hash=int(image_id(_key(row)), 16),
    )


def _key(row: int) -> str:
    return f"{row:012d}.jpg"


def _file(folder: Path) -> Path:
    return folder / "catalog.sqlite"


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _tell(count: int, memory: dict[str, float], seconds: dict[str, float]) -> None:
    named = {f"{name}, MiB": round(value, 1) for name, value in memory.items()}
    print(json.dumps({"rows": count, **named, **{f"{name}, s": round(value, 4) for name, value in seconds.items()}}))


def _child(command: str, folder: Path, count: int, *flags: str) -> dict[str, Any]:
    program = [sys.executable, "-m", "tests.bench.scale", command, str(folder), str(count), *flags]
    told: dict[str, Any] = json.loads(subprocess.run(program, check=True, stdout=subprocess.PIPE).stdout)
    print(told, f"load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return told


def _table(rows: list[dict[str, Any]]) -> str:
    return grid(list(rows[0]), ([f"{value:,}" for value in row.values()] for row in rows))


if __name__ == "__main__":
    app()
