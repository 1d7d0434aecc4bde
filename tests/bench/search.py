"""Queries per second at equal recall: the index that `auto` chooses, and what others would use, side by side.

`python -m tests.bench.search FOLDER`: vectors as `vectors.py` draws them, queries of pictures and of texts apart. Each
index is built once and kept in FOLDER. For each kind of query and each target the quickest setting is chosen that
reaches it, on the queries that are then timed. The contenders take turns, each turn in a process of its own; medians of
the turns are told. A query given singly takes one thread; all 256 at once take one thread and then two.

With `--growth`, only ours, at 10,000, 100,000 and 1,000,000 vectors.
"""

import json
import os
import subprocess
import sys
import venv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from indexer.index_policy import AUTO, resolve_factory
from tests.bench.search_engine import KINDS, TARGETS
from tests.bench.tables import grid
from tests.bench.vectors import DIM, make

OURS, PEERS = "kindred", ("hnswlib", "usearch", "FAISS HNSW32", "autofaiss")
# autofaiss wants a NumPy that later pyarrows refuse.
PACKAGES = ("faiss-cpu==1.15.1", "hnswlib==0.8.0", "usearch==2.26.6", "autofaiss==2.18.0", "pyarrow==20.0.0")

_ROOT = Path(__file__).parents[2]
_GROWTH = (10_000, 100_000, 1_000_000)
_COSTS = ("bytes a vector", "built, s", "built, CPU s", "peak memory, MB")
# How queries are given and in how many threads.
_MANNERS = {"singly, 1 thread": (1, "single"), "at once, 1 thread": (1, "batch"), "at once, 2 threads": (2, "batch")}


@dataclass
class Contender:
    """One index over the vectors of a folder.

    Attributes:
        name: `kindred` or that of a peer.
        program: the command that runs a task, less the task.
        folder: of the vectors.
        rates: queries per second, by kind, target and manner, one for each turn.
    """

    name: str
    program: Sequence[str]
    folder: Path
    rates: dict[tuple[str, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def built(self) -> dict[str, Any]:
        """Return what building cost; the index is built at the first call."""
        return self._kept("build")

    def chosen(self) -> dict[str, Any]:
        """Return recall and setting of each kind and target; chosen at the first call."""
        return self._kept("choose")

    def take_turn(self) -> None:
        """Measure once, in one thread and in two."""
        settings = {
            kind: {target: point["setting"] for target, point in points.items()}
            for kind, points in self.chosen().items()
        }
        for threads in (1, 2):
            told = self._told("measure", {"threads": threads, "settings": settings})
            for kind, target, manner in cells():
                if target in told[kind] and _MANNERS[manner][0] == threads:
                    self.rates[kind, target, manner].append(told[kind][target][_MANNERS[manner][1]])
        print(self.name, f"load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)

    def rate(self, cell: tuple[str, str, str]) -> float:
        """Return the median queries per second; 0 where the target is not reached."""
        return median(self.rates[cell]) if self.rates[cell] else 0.0

    def _kept(self, task: str) -> dict[str, Any]:
        path = self.folder / f"{self.name}-{task}.json"
        if not path.exists():
            path.write_text(json.dumps(self._told(task, {})), encoding="utf-8")
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kept

    def _told(self, task: str, given: dict[str, Any]) -> dict[str, Any]:
        command = [*self.program, self.name, task, str(self.folder), json.dumps(given)]
        lines = subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        told: dict[str, Any] = json.loads(lines[-1])
        return told


def cells() -> Iterator[tuple[str, str, str]]:
    """Return each kind of query, target of recall and manner of asking."""
    return ((kind, str(target), manner) for kind in KINDS for target in TARGETS for manner in _MANNERS)


def main(
    folder: Annotated[Path, typer.Argument(help="Where vectors, indexes and the report go; 12 GB for a million.")],
    count: Annotated[int, typer.Option(help="Vectors.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 5,
    peer_venv: Annotated[Path, typer.Option(help="Environment with the peers; made if needed.")] = Path(
        ".demo/search-peers"
    ),
    *,
    growth: Annotated[bool, typer.Option("--growth", help="Measure how ours grows, and no peers.")] = False,
) -> None:
    """Measure, and write a table in Markdown."""
    folder = folder.resolve()
    if growth:
        # The smaller ones first, so that each folder's vectors are the first of the next one's.
        rows = [_turns([_ours(folder, size)], rounds)[0] for size in _GROWTH]
        report, path = _growth_table(rows), folder / "growth.md"
    else:
        program = [str(peer_python(peer_venv.absolute())), "-m", "tests.bench.search_peers"]
        ours = _ours(folder, count)
        peers = [Contender(name, program, ours.folder) for name in PEERS]
        report, path = _tables(_turns([ours, *peers], rounds), count), folder / "search.md"
    path.write_text(report, encoding="utf-8")
    print(report)


def peer_python(home: Path) -> Path:
    """Return the Python of an environment with the peers, made now unless it is there."""
    python = home / "bin" / "python"
    if not list(home.glob("lib/*/site-packages/autofaiss")):
        venv.create(home, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", *PACKAGES], check=True)
    return python


def _ours(folder: Path, count: int) -> Contender:
    place = folder / str(count)
    make(place, count)
    return Contender(OURS, [sys.executable, "-m", "tests.bench.search_ours"], place)


def _turns(contenders: list[Contender], rounds: int) -> list[Contender]:
    for contender in contenders:
        contender.built()
        contender.chosen()
    for _ in range(rounds):
        for contender in contenders:
            contender.take_turn()
    return contenders


def _tables(contenders: list[Contender], count: int) -> str:
    ours, *peers = contenders
    text = f"{count:,} x {DIM}, {os.cpu_count()} cores; {OURS} is {resolve_factory(AUTO, count, DIM)}\n\n"
    text += grid(("", *_COSTS), map(_cost, contenders))
    for kind in KINDS:
        for target in map(str, TARGETS):
            held = [(kind, target, manner) for manner in _MANNERS]
            best = [max(peer.rate(cell) for peer in peers) for cell in held]
            rows = [_speed(one, held) for one in contenders]
            rows.append((f"{OURS} / best peer", "", *map(_ratio, map(ours.rate, held), best)))
            text += f"\n{grid((f'{kind}, {target}', 'recall', *_MANNERS), rows)}"
    return text


def _cost(contender: Contender) -> tuple[str, ...]:
    return (contender.name, *(f"{figure:,.0f}" for figure in _costs(contender)))


def _costs(contender: Contender) -> tuple[float, ...]:
    cost = contender.built()
    return (cost["bytes"], cost["seconds"], cost["cpu_seconds"], cost["peak_bytes"] / 1e6)


def _speed(contender: Contender, held: list[tuple[str, str, str]]) -> tuple[str, ...]:
    kind, target, _ = held[0]
    point = contender.chosen()[kind].get(target)
    if point is None:
        return (contender.name, "not reached", *("" for _ in held))
    return (contender.name, f"{point['recall']:.3f}", *(f"{contender.rate(cell):,.0f}" for cell in held))


def _ratio(ours: float, best: float) -> str:
    return f"{ours / best:.2f}" if best else "no peer reaches it"


def _growth_table(sizes: list[Contender]) -> str:
    shown = [(kind, str(TARGETS[-1]), manner) for kind in KINDS for manner in _MANNERS]
    rows = [
        (f"{size:,}", *(f"{figure:,.0f}" for figure in (*_costs(one), *map(one.rate, shown))))
        for size, one in zip(_GROWTH, sizes, strict=True)
    ]
    return grid(("vectors", *_COSTS, *(f"{kind}, {manner}" for kind, _, manner in shown)), rows)


if __name__ == "__main__":
    typer.run(main)
