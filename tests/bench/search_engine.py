"""How any index of the search benchmark is built, set and timed: a task of one index is a process of its own.

`python -m tests.bench.search_ours INDEX build|choose|measure FOLDER '{...}'`, and `search_peers` in the same way in a
Python that has the peers and not kindred, prints one line of JSON last.
"""

import json
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Setting = dict[str, Any]

K = 10
KINDS = ("image", "text")
TARGETS = (0.95, 0.98)

# More than this is recalled by a search that is wider than needed.
_ENOUGH = 0.99
_ROUND_SECONDS = 2.0


class Engine(Protocol):
    """One kind of index."""

    def build(self, pictures: Vectors, path: Path) -> None:
        """Build an index over unit rows, shape (n, dim), and write it into a file."""
        ...

    def open(self, path: Path, threads: int) -> None:
        """Open a built index, to be searched in so many threads."""
        ...

    def search(self, vectors: Vectors, setting: Setting) -> Rows:
        """Return the `K` nearest rows to each of n, shape (n, K)."""
        ...

    def settings(self, vectors: Vectors, neighbours: Rows) -> Iterator[Setting]:
        """Return settings that can be chosen, from the quickest on, for queries with these true neighbours."""
        ...


def run(engine: Engine, name: str, task: str, folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Do one task with an index that is kept in a folder of vectors.

    Args:
        engine: the kind of index.
        name: under which the index is kept.
        task: `build`; `choose`, the quickest setting of each kind and target; or `measure`, the queries per second.
        folder: with `pictures.npy`, `image.npy` and the like.
        given: for `measure`, `threads` and the `settings` by kind and target.
    """
    path = folder / f"{name}.index"
    if task == "build":
        return _build(engine, np.load(folder / "pictures.npy", mmap_mode="r"), path)
    engine.open(path, given.get("threads", 1))
    queries = {kind: (np.load(folder / f"{kind}.npy"), np.load(folder / f"{kind}-neighbours.npy")) for kind in KINDS}
    if task == "choose":
        return {kind: _choose(engine, *queries[kind]) for kind in KINDS}
    return {
        kind: {target: _measure(engine, queries[kind][0], setting) for target, setting in chosen.items()}
        for kind, chosen in given["settings"].items()
    }


def main(engines: dict[str, type[Engine]], arguments: list[str]) -> None:
    """Run the task that the command line names, and print what came of it."""
    name, task, folder, given = arguments
    print(json.dumps(run(engines[name](), name, task, Path(folder), json.loads(given))))


def _build(engine: Engine, pictures: Vectors, path: Path) -> dict[str, Any]:
    wall, cpu = time.monotonic(), time.process_time()
    engine.build(pictures, path)
    return {
        "seconds": time.monotonic() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "bytes": path.stat().st_size / len(pictures),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _choose(engine: Engine, vectors: Vectors, neighbours: Rows) -> dict[str, Any]:
    """Return the quickest setting that reaches each target, its recall with it; no setting where none does."""
    tried = []
    for setting in engine.settings(vectors, neighbours):
        begun = time.perf_counter()
        rows = np.concatenate([engine.search(vector[None], setting) for vector in vectors])
        tried.append((time.perf_counter() - begun, _recall(rows, neighbours), setting))
        if tried[-1][1] >= _ENOUGH:
            break
    reaching = {target: [one for one in tried if one[1] >= target] for target in TARGETS}
    quickest = {target: min(ones, key=lambda one: one[0]) for target, ones in reaching.items() if ones}
    return {str(target): {"recall": one[1], "setting": one[2]} for target, one in quickest.items()}


def _measure(engine: Engine, vectors: Vectors, setting: Setting) -> dict[str, float]:
    """Return queries per second, given singly and all at once: the medians of some repetitions."""
    return {
        "single": _rate(lambda: [engine.search(vector[None], setting) for vector in vectors], len(vectors)),
        "batch": _rate(lambda: engine.search(vectors, setting), len(vectors)),
    }


def _rate(searches: Any, count: int) -> float:
    searches()
    times: list[float] = []
    while not times or sum(times) < _ROUND_SECONDS:
        begun = time.perf_counter()
        searches()
        times.append(time.perf_counter() - begun)
    return count / statistics.median(times)


def _recall(rows: Rows, neighbours: Rows) -> float:
    found = sum(len(np.intersect1d(left, right)) for left, right in zip(rows, neighbours, strict=True))
    return found / neighbours.size
