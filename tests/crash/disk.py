"""Builds on a disk that is full, or becomes so, and under a limit of file sizes.

`unshare -Urm python -m tests.crash.disk FOLDER MODEL CASES SEED` mounts disks of its own, for which an ordinary user
needs the namespaces of unshare(1), and prints what the cases came to, as JSON.
"""

import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from indexer.encoder import EncoderName, load_encoder
from indexer.errors import SnapshotError
from indexer.store import SnapshotStore
from tests.crash.checks import Encoding, differences, violations
from tests.crash.collection import Collection
from tests.crash.forks import Ending, Forks, Run
from tests.crash.kills import Job

_DISK_BYTES = 64 * 2**20
_SMALLEST = 512
_ATTEMPTS = 100


@dataclass
class Shortage:
    """What builds that were short of room have come to."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def add(self, name: str, ending: Ending, wrong: list[str]) -> None:
        """Note a case: how the build ended, and what was wrong."""
        self.cases += 1
        self.outcomes["room enough" if ending.code == 0 else "stopped with a reason" if ending.error else "failed"] += 1
        self.violations += [f"{name}: {line}" for line in wrong]


class Shortages:
    """Incremental builds that are short of room, then resumed with enough of it.

    Args:
        job: the build; the collection is changed once.
        encoding: the right vectors.
        folder: empty; for snapshots.
    """

    def __init__(self, job: Job, encoding: Encoding, folder: Path) -> None:
        self._job, self._encoding = job, encoding
        self._before, self._whole = folder / "before", folder / "whole"
        _succeed(job.forks.run(*job.arguments(self._before)))
        shutil.copytree(self._before, self._whole)
        job.collection.change(max(len(job.collection.entries) // 5, 1))
        _succeed(job.forks.run(*job.arguments(self._whole)))
        self.largest = max(path.stat().st_size for path in self._whole.rglob("*"))

    def full_disk(self, disk: Path, cases: int, rng: random.Random) -> Shortage:
        """Fill a disk, but for a few bytes, before a build or in its midst; `disk` is where one may be mounted."""
        told, snapshots, filler = Shortage(), disk / "snapshots", disk / "filler"
        for _ in range(cases):
            left = int(math.exp(rng.uniform(math.log(_SMALLEST), math.log(8 * self.largest))))
            moment = rng.choice([0.0, rng.uniform(0, 0.5)])
            with _mounted(disk):
                shutil.copytree(self._before, snapshots)
                run = self._job.forks.start(*self._job.arguments(snapshots))
                _fill(run, filler, left, moment)
                ending = run.end()
                wrong = self._stopped(snapshots, ending)
                filler.unlink(missing_ok=True)
                wrong += self._resumed(snapshots)
                told.add(f"{left} bytes left after {moment:.2f} s", ending, wrong)
        return told

    def limited_files(self, folder: Path, cases: int, rng: random.Random) -> Shortage:
        """Let no file grow beyond a size."""
        told = Shortage()
        for _ in range(cases):
            most = int(math.exp(rng.uniform(math.log(_SMALLEST), math.log(1.2 * self.largest))))
            snapshots = folder / f"limited-{most}"
            shutil.copytree(self._before, snapshots, dirs_exist_ok=True)
            ending = self._job.forks.run(*self._job.arguments(snapshots), most_bytes=most)
            wrong = self._stopped(snapshots, ending) + self._resumed(snapshots)
            told.add(f"files of {most} bytes", ending, wrong)
        return told

    def _stopped(self, snapshots: Path, ending: Ending) -> list[str]:
        """Tell what is wrong with the end of a build that was short of room, and with what it has left."""
        wrong = [] if ending.code == 0 or ending.error else [f"ended with {ending.code}: {ending.err[-2000:]!r}"]
        store = SnapshotStore(snapshots)
        try:
            store.open(store.published())
        except SnapshotError as error:
            return [*wrong, f"neither the old nor the new snapshot: {error}"]
        old = SnapshotStore(self._before).published()
        return wrong + (["failed, and published"] if ending.code and store.published() != old else [])

    def _resumed(self, snapshots: Path) -> list[str]:
        """Build again with room enough, and tell what is wrong."""
        ending = self._job.forks.run(*self._job.arguments(snapshots))
        if ending.code:
            return [f"with room enough again it ended with {ending.code}: {ending.err[-2000:]!r}"]
        return violations(snapshots, self._job.collection, self._encoding) + differences(snapshots, self._whole)


def full_disks(folder: Path, model: str, cases: int, seed: int) -> Shortage | None:
    """Run the cases that need disks in namespaces of their own; None where those are not permitted."""
    unshare = [str(shutil.which("unshare")), "-Urm"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        return None
    command = [*unshare, sys.executable, "-m", __name__, str(folder), model, str(cases), str(seed)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout)
    return Shortage(told["cases"], Counter(told["outcomes"]), told["violations"])


@contextmanager
def _mounted(disk: Path) -> Iterator[None]:
    disk.mkdir(exist_ok=True)
    subprocess.run([str(shutil.which("mount")), "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", disk], check=True)
    try:
        yield
    finally:
        subprocess.run([str(shutil.which("umount")), "--lazy", disk], check=True)


def _fill(run: Run, filler: Path, left: int, moment: float) -> None:
    """Stop a build after so many seconds, leave that many bytes on its disk, and let it go on."""
    if not run.wait(moment):
        run.stop()
        try:
            with filler.open("wb") as file:
                _take_all_but(left, file)
        finally:
            run.go_on()


def _take_all_but(left: int, file: BinaryIO) -> None:
    """Let a file take what is free on its disk, but for so many bytes."""
    for attempt in itertools.count(1):
        free = shutil.disk_usage(file.name).free
        try:
            os.posix_fallocate(file.fileno(), 0, max(free - left, 1))
        except OSError:
            # What was told to stop may have taken some more meanwhile; from then on it stands still.
            if attempt == _ATTEMPTS:
                raise
        else:
            return


def _succeed(ending: Ending) -> None:
    if ending.code:
        raise RuntimeError(f"a build that nothing befell ended with {ending.code}: {ending.err}")


def _main(folder: Path, model: str, cases: int, seed: int) -> None:
    folder.mkdir(parents=True)
    encoding = Encoding(load_encoder(EncoderName(model=model), device="cpu", threads=1))
    with Forks(folder / "said", model) as forks:
        job = Job(forks, Collection(folder / "pictures", 60, seed), model)
        told = Shortages(job, encoding, folder).full_disk(folder / "disk", cases, random.Random(seed))
    sys.stdout.write(json.dumps(vars(told)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
