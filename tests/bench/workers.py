"""What each worker of the service adds to its memory.

`python -m tests.bench.workers FOLDER` serves a synthetic snapshot, whose index is exact, with 1, 2 and 3 workers. Each
worker is asked by itself, so that all of the index goes through each; then the kernel is asked what each process holds:
the proportional set size (PSS) shares a page out among the processes that have it mapped, so that its sum is what the
service takes. A snapshot of `_FEW` pictures tells what interpreter, libraries and the encoder, a small one, take. From
two workers on there is a process besides that they are forked from, so it is the third that tells what one more takes.
"""

import re
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from indexer.encoder import EncoderName, load_encoder
from indexer.snapshot import MANIFEST
from indexer.store import SnapshotStore
from tests.models import CONFIG, new_model, save_model
from tests.served import Service, children, serving, wait_for
from tests.snapshots import replace, write_snapshot

DIM = 512
_FEW = 1_000
_QUERIES = 20
_WORKERS = (1, 2, 3)


def main(
    folder: Annotated[Path, typer.Argument(help="Where scratch files go; 5 kB a picture.")],
    count: Annotated[int, typer.Option(help="Pictures of the snapshot.")] = 300_000,
) -> None:
    """Measure, and print a table in Markdown."""
    config = {**CONFIG, "embed_dim": DIM}
    print("| pictures | snapshot, MiB | workers | PSS of all, MiB | of it anonymous | each worker alone (USS) |")
    print("|---|---|---|---|---|---|")
    extra: list[float] = []
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        model = EncoderName(model=save_model(Path(scratch, "model"), new_model(0, config), config))
        for rows in (_FEW, count):
            snapshots = Path(scratch, f"{rows}", "snapshots")
            size = write(snapshots, rows, model)
            totals = [measure(snapshots, rows, size, workers) for workers in _WORKERS]
            extra.append(totals[-1] - totals[-2])
    own, all_in_all = extra
    print(
        f"\nThe third worker takes {all_in_all:.0f} MiB, {all_in_all / size:.1%} of the snapshot; "
        f"with {_FEW:,} pictures {own:.0f} MiB."
    )


def write(snapshots: Path, count: int, model: EncoderName) -> float:
    """Publish a snapshot of random directions, and return its size in MiB."""
    store = SnapshotStore(snapshots)
    vectors = np.random.default_rng(0).standard_normal((count, DIM), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    snapshot_id = write_snapshot(store, vectors, publish=False)
    # As if that model had made them: the service compares.
    spec = load_encoder(model, device="cpu", threads=1).spec
    manifest = store.manifest(snapshot_id).model_copy(update={"encoder": spec})
    replace(snapshots / snapshot_id / MANIFEST, manifest.model_dump_json().encode())
    store.publish(snapshot_id)
    return sum(file.stat().st_size for file in (snapshots / snapshot_id).iterdir()) / 2**20


def measure(snapshots: Path, count: int, size: float, workers: int) -> float:
    """Serve a snapshot with so many workers, print a row, and return the service's memory in MiB."""
    with serving(snapshots, f"--workers={workers}") as service:
        processes = [service.process.pid]
        if workers > 1:
            wait_for(lambda: len(service.workers()) == workers)
            processes += [*children(service.process.pid), *service.workers()]
        answering = service.workers() or processes
        for worker in answering:
            _ask(service, worker)
        pss, anonymous = (sum(_memory(pid, field) for pid in processes) for field in ("Pss", "Pss_Anon"))
        own = [_memory(pid, "Private_Clean") + _memory(pid, "Private_Dirty") for pid in answering]
    told = ", ".join(f"{each:,.0f}" for each in own)
    print(f"| {count:,} | {size:,.0f} | {workers} | {pss:,.0f} | {anonymous:,.0f} | {told} |", flush=True)
    return pss


def _ask(service: Service, worker: int) -> None:
    """Have one worker search often enough that each of its threads has done so."""
    with service.only(worker) as client:
        for number in range(_QUERIES):
            client.post("/v1/search", json={"query": [{"text": f"picture {number}"}], "limit": 100}).raise_for_status()


def _memory(pid: int, field: str) -> float:
    """Return what the kernel says of a process's memory, in MiB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) / 2**10 if found else 0.0


if __name__ == "__main__":
    typer.run(main)
