"""Builds killed at random moments, and resumed until they publish."""

import json
import math
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from indexer.store import SnapshotStore
from tests.crash.checks import Encoding, Reader, differences, violations
from tests.crash.collection import Collection
from tests.crash.forks import Ending, Forks

_KILLS_A_ROUND = 12


@dataclass
class Tally:
    """What a programme of kills has come to; `encoded` counts pictures, once for each time that one was encoded."""

    kills: int = 0
    rounds: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    encoded: int = 0
    encoded_uninterrupted: int = 0
    most_again: int = 0
    """Most pictures that one round encoded again, for each of its kills."""
    opened: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Job:
    """The build that is run over and over, in different folders of snapshots."""

    forks: Forks
    collection: Collection
    model: str
    options: tuple[str, ...] = ()

    def arguments(self, snapshots: Path) -> list[str | Path]:
        """Return the command line."""
        what: list[str | Path] = [
            "build",
            self.collection.folder,
            "--labels",
            self.collection.table,
            "--model",
            self.model,
        ]
        return [*what, "--snapshots", snapshots, "--progress", "json", *self.options]


def kill_at_random(job: Job, encoding: Encoding, folder: Path, kills: int, seed: int) -> Tally:
    """Kill builds until `kills` have died; the collection changes after each that was published.

    Args:
        job: the build.
        encoding: the right vectors.
        folder: empty; for the snapshots.
        kills: how many.
        seed: of the moments, and of the changes.
    """
    rng, tally, start = random.Random(seed), Tally(), time.monotonic()
    snapshots, twin = folder / "snapshots", folder / "uninterrupted"
    reader = Reader(snapshots)
    reader.start()
    try:
        while tally.kills < kills:
            if tally.rounds:
                job.collection.change(5)
            shutil.rmtree(twin, ignore_errors=True)
            if snapshots.exists():
                shutil.copytree(snapshots, twin)
            _round(job, encoding, (snapshots, twin), min(kills - tally.kills, _KILLS_A_ROUND), rng, tally)
            SnapshotStore(snapshots).prune(2)
    finally:
        reader.stop()
    tally.violations += reader.violations
    tally.opened = reader.opened.total()
    tally.seconds = time.monotonic() - start
    return tally


def _round(
    job: Job, encoding: Encoding, folders: tuple[Path, Path], most: int, rng: random.Random, tally: Tally
) -> None:
    """Build once without a kill, and once with up to `most`, and compare."""
    snapshots, twin = folders
    start = time.monotonic()
    whole = job.forks.run(*job.arguments(twin))
    length = time.monotonic() - start
    _expect(whole, 0, "an uninterrupted build", tally)
    encoded = kills = 0
    while True:
        run = job.forks.start(*job.arguments(snapshots))
        # Half of them evenly; half rather early, where a long build spends little time and much is begun.
        moment = rng.choice([rng.uniform(0, length), math.exp(rng.uniform(math.log(length / 50), math.log(length)))])
        if kills < most and not run.wait(moment):
            run.kill()
        ending = run.end()
        encoded += ending.encoded
        if not ending.killed:
            _expect(ending, 0, "a resumed build", tally)
            break
        kills += 1
        tally.moments[stage(ending, snapshots)] += 1
    wrong = violations(snapshots, job.collection, encoding) + differences(snapshots, twin)
    wrong += violations(twin, job.collection, encoding)
    tally.violations += [f"round {tally.rounds}, after {kills} kills: {violation}" for violation in wrong]
    tally.kills += kills
    tally.rounds += 1
    tally.encoded += encoded
    tally.encoded_uninterrupted += whole.encoded
    tally.most_again = max(tally.most_again, math.ceil((encoded - whole.encoded) / max(kills, 1)))


def stage(ending: Ending, snapshots: Path) -> str:
    """Tell how far a killed build had come, by what it last said of its progress."""
    lines = [line for line in ending.out.splitlines() if line.endswith("}")]
    said = str(json.loads(lines[-1]).get("stage", "done")) if lines else "start"
    shards = len(list((snapshots / ".work" / "shards").glob("*.parquet")))
    return f"{said}, {shards} shards" if said == "encode" else said


def _expect(ending: Ending, code: int, what: str, tally: Tally) -> None:
    if ending.code != code:
        tally.violations.append(f"{what} ended with {ending.code}: {ending.err.strip()}")
