"""Every call by which a command changes its folder of snapshots, cut short by a kill or an error, one at a time."""

import itertools
import re
import shutil
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from indexer.errors import SnapshotError
from indexer.store import SnapshotStore
from tests.crash.forks import Ending, Fault, Forks

ACTIONS = ("kill-before", "kill-after", "eio", "enospc")
DURABLE = frozenset({"fsync", "fdatasync", "rename"})
"""The calls on which it depends what a crash leaves."""
_DATA = frozenset({"write", "pwrite", "fwrite", "sendfile"})
_SAMPLED = 4
_CHANGING = re.compile(r"\d{8}T\d{6}-\d{6}|[0-9a-f]{16,}|\d+(?:\.\d+)? ?(?:bytes|s)\b")


class Point(NamedTuple):
    """A call: its number, what it is, the path it changes, and how many bytes it writes."""

    number: int
    call: str
    path: str
    size: int

    def __str__(self) -> str:
        return f"call {self.number} ({self.call} {self.path})"


@dataclass(frozen=True)
class Scenario:
    """A command whose every call is cut short.

    Attributes:
        name: of the scenario.
        before: the folder of snapshots as the command finds it; need not exist.
        arguments: from a folder of snapshots to the command line.
        check: from the folder of snapshots, after the command has succeeded, to what is wrong with it.
    """

    name: str
    before: Path
    arguments: Callable[[Path], Sequence[str | Path]]
    check: Callable[[Path], list[str]]


@dataclass
class Sweep:
    """What the cases of one scenario have come to."""

    name: str
    calls: int = 0
    points: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Cases by action and by how the command took it."""
    said: Counter[str] = field(default_factory=Counter)
    """The errors that users saw."""
    litter: Counter[str] = field(default_factory=Counter)
    """Files that nothing refers to, left when the command had succeeded at last."""
    violations: list[str] = field(default_factory=list)


def sweep(
    forks: Forks, scenario: Scenario, folder: Path, actions: Iterable[str], wanted: Callable[[list[Point]], list[Point]]
) -> Sweep:
    """Run a scenario once for every wanted point and every action, two at a time.

    Args:
        forks: with the shim loaded.
        scenario: what to run.
        folder: for its snapshots.
        actions: of the shim.
        wanted: picks from all points.
    """
    told, lock, slots = Sweep(scenario.name), threading.Lock(), itertools.count()
    here = threading.local()

    def case(point: Point, action: str) -> None:
        if not hasattr(here, "place"):
            here.place = folder / f"{scenario.name}-{next(slots)}"
        outcome = _Case(forks, scenario, here.place).run(point.number, action)
        with lock:
            told.outcomes[action, outcome.kind] += 1
            told.said.update([_CHANGING.sub("…", outcome.said)] if outcome.said else [])
            told.litter.update(outcome.litter)
            told.violations += [f"{scenario.name}: {action} at {point}: {wrong}" for wrong in outcome.violations]

    points = _Case(forks, scenario, folder / f"{scenario.name}-all").points()
    chosen = wanted(points)
    told.calls, told.points = len(points), len(chosen)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda both: case(*both), itertools.product(chosen, actions)))
    return told


def durable(points: list[Point]) -> list[Point]:
    """Pick the calls on which it depends what a crash leaves."""
    return [point for point in points if point.call in DURABLE]


def sampled(points: list[Point]) -> list[Point]:
    """Pick every call but those in the midst of many that write to one file."""
    chosen = [point for point in points if point.call not in _DATA]
    writes = defaultdict(list)
    for point in points:
        if point.call in _DATA:
            writes[point.path].append(point)
    for together in writes.values():
        last = len(together) - 1
        chosen += [together[i] for i in sorted({i * last // (_SAMPLED - 1) for i in range(_SAMPLED)})]
    return sorted(chosen)


@dataclass
class _Outcome:
    kind: str
    said: str | None = None
    litter: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


class _Case:
    """One run that is cut short, and the one after it."""

    def __init__(self, forks: Forks, scenario: Scenario, place: Path) -> None:
        self._forks, self._scenario = forks, scenario
        self._snapshots = place / "snapshots"
        self._log = place / "calls.log"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if scenario.before.exists():
            shutil.copytree(scenario.before, self._snapshots)
        self._known = {SnapshotStore(self._snapshots).current()}

    def points(self) -> list[Point]:
        """Return every point of a run that nothing befalls."""
        ending = self._run(Fault(self._snapshots, self._log))
        if wrong := [*self._ended(ending), *self._scenario.check(self._snapshots)]:
            raise RuntimeError(f"{self._scenario.name} fails where nothing befalls it: {wrong}")
        lines = (line.split(" ") for line in self._log.read_text().splitlines())
        return [Point(int(number), call, path, int(size)) for number, call, path, size in lines]

    def run(self, number: int, action: str) -> _Outcome:
        """Cut one run short, run again, and tell how all this went."""
        ending = self._run(Fault(self._snapshots, self._log, action, number))
        outcome = _Outcome(*_kind(ending))
        if outcome.kind == "wrong":
            outcome.violations.append(f"ended with {ending.code}, saying {ending.err.strip()[-2000:]!r}")
        outcome.violations += self._unreadable()
        again = self._run(None)
        outcome.violations += [
            f"then {wrong}" for wrong in [*self._ended(again), *self._scenario.check(self._snapshots)]
        ]
        outcome.litter = self._litter()
        return outcome

    def _run(self, fault: Fault | None) -> Ending:
        return self._forks.run(*self._scenario.arguments(self._snapshots), fault=fault)

    def _ended(self, ending: Ending) -> list[str]:
        return [f"it ended with {ending.code}: {ending.err.strip()[-2000:]}"] if ending.code else []

    def _unreadable(self) -> list[str]:
        """Open the current snapshot, as a service does after the crash."""
        store = SnapshotStore(self._snapshots)
        try:
            current = store.current()
            if current is not None:
                store.open(current)
        except SnapshotError as error:
            return [f"neither the old nor the new snapshot: {error}"]
        return ["no snapshot is current any more"] if current is None and None not in self._known else []

    def _litter(self) -> list[str]:
        expected = {"CURRENT", ".lock", *SnapshotStore(self._snapshots).ids()}
        names = {entry.name for entry in self._snapshots.iterdir()} - expected
        return [_CHANGING.sub("…", name) for name in names]


def _kind(ending: Ending) -> tuple[str, str | None]:
    if ending.killed:
        return "killed", None
    if ending.code == 0:
        return "absorbed", None
    return ("raised", ending.error) if ending.error else ("wrong", None)
