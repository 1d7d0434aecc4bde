"""The swap programme: clients query a real server while snapshot after snapshot is swapped in under them.

`python -m tests.swaps PICTURES` (or `make swaps`) reindexes through the admin route, as an administrator does; the test
suite publishes from its own process, which takes seconds instead of minutes. Each generation gives every picture the
caption `generation N`, so that an answer mixed from two snapshots cannot go unseen.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests import served

ADMIN_KEY = "swap-key-0123456789abcdef"
CLIENTS = 4


@dataclass
class Tally:
    """What the clients saw."""

    answers: Counter[str] = field(default_factory=Counter)
    """Answers by snapshot."""
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@contextmanager
def serving(snapshots: Path) -> Iterator[str]:
    """Run the service as an operator does, on a free port, and give its address."""
    with served.serving(snapshots, KINDRED_ADMIN_KEY=ADMIN_KEY) as service:
        yield service.address


def write_table(source: Path, table: Path, generation: int) -> None:
    """Caption every picture of a collection with a generation."""
    paths = (path.relative_to(source) for path in sorted(source.rglob("*")) if path.suffix in {".png", ".jpg", ".webp"})
    rows = [f"{path.as_posix()},{path.parent.name},generation {generation}" for path in paths]
    table.write_text("\n".join(["path,label,caption", *rows]) + "\n")


def swap_under_load(address: str, generations: int, reindex: Callable[[int], str]) -> Tally:
    """Query with several clients while `reindex(generation)` publishes, and wait until each one is served."""
    tally = Tally()
    captions: dict[str, str] = {}
    answered: list[tuple[str, set[str]]] = []
    stop = threading.Event()
    clients = [threading.Thread(target=_query, args=(address, tally, answered, stop)) for _ in range(CLIENTS)]
    with httpx2.Client(base_url=address, timeout=30) as watcher:
        captions[watcher.get("/v1/index").json()["snapshot"]] = "generation 0"
        for client in clients:
            client.start()
        try:
            for generation in range(1, generations + 1):
                snapshot = reindex(generation)
                captions[snapshot] = f"generation {generation}"
                deadline = time.monotonic() + 30
                while watcher.get("/v1/index").json()["snapshot"] != snapshot:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"snapshot {snapshot} was published but is not served")
                    time.sleep(0.02)
        finally:
            stop.set()
            for client in clients:
                client.join()
    for snapshot, found in answered:
        if found != {captions.get(snapshot)}:
            tally.failures.append(f"an answer of snapshot {snapshot} ({captions.get(snapshot)}) has hits of {found}")
    return tally


def _query(address: str, tally: Tally, answered: list[tuple[str, set[str]]], stop: threading.Event) -> None:
    with httpx2.Client(base_url=address, timeout=30) as client:
        while not stop.is_set():
            start = time.perf_counter()
            try:
                response = client.post("/v1/search", json={"query": [{"text": "a red star"}], "limit": 20})
            except httpx2.HTTPError as error:
                tally.failures.append(repr(error))
                continue
            tally.seconds.append(time.perf_counter() - start)
            if response.status_code != httpx2.codes.OK:
                tally.failures.append(response.text)
                continue
            answer = response.json()
            snapshot = answer["index"]["snapshot"]
            tally.answers[snapshot] += 1
            answered.append((snapshot, {result["caption"] for result in answer["results"]}))


def _by_admin_route(address: str, source: Path, table: Path) -> Callable[[int], str]:
    client = httpx2.Client(base_url=address, timeout=30, headers={"Authorization": f"Bearer {ADMIN_KEY}"})

    def reindex(generation: int) -> str:
        write_table(source, table, generation)
        job = client.post("/admin/v1/reindex").raise_for_status()
        while True:
            state = client.get(job.headers["location"]).raise_for_status().json()
            if state["state"] == "succeeded":
                return str(state["snapshot"])
            if state["state"] != "running":
                raise RuntimeError(f"the reindex {state['state']}: {state['error']}")
            time.sleep(0.1)

    return reindex


def main(source: Path, generations: int = 20) -> None:
    """Run the programme through the admin route and print its figures."""
    with tempfile.TemporaryDirectory() as folder:
        snapshots, table = Path(folder, "snapshots"), Path(folder, "table.csv")
        write_table(source, table, 0)
        build = [sys.executable, "-m", "indexer", "build", str(source), "--snapshots", str(snapshots)]
        subprocess.run([*build, "--labels", str(table)], check=True)
        with serving(snapshots) as address:
            tally = swap_under_load(address, generations, _by_admin_route(address, source, table))
    seconds = sorted(tally.seconds)
    print(
        f"{generations} swaps, {CLIENTS} clients, {tally.answers.total()} answers from {len(tally.answers)} snapshots"
    )
    print(f"{len(tally.failures)} failed or mixed answers", *tally.failures[:5], sep="\n  ")
    print(
        f"latency p50 {seconds[len(seconds) // 2] * 1000:.1f} ms, p99 {seconds[len(seconds) * 99 // 100] * 1000:.1f} ms"
    )
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
