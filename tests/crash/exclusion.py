"""Two writers in one folder of snapshots: the second is refused, and what a dead one leaves hinders nobody."""

import time
from pathlib import Path

from tests.crash.checks import Encoding, violations
from tests.crash.forks import Run
from tests.crash.kills import Job


def second_writers(job: Job, encoding: Encoding, snapshots: Path) -> list[str]:
    """Start a build and a prune while a build holds the lock, and a build after its death; return what went wrong."""
    wrong = []
    first = _holding(job, snapshots)
    for name, arguments in (("build", job.arguments(snapshots)), ("prune", ["prune", "--snapshots", snapshots])):
        second = job.forks.run(*arguments)
        if second.error is None or "Another build is running" not in second.error:
            wrong.append(f"a second writer ({name}) was not refused: it ended with {second.code}: {second.err}")
    first.go_on()
    if (ending := first.end()).code:
        wrong.append(f"the first build ended with {ending.code}: {ending.err}")
    wrong += violations(snapshots, job.collection, encoding)
    dead = _holding(job, snapshots)
    dead.kill()
    dead.end()
    if not (snapshots / ".lock").exists():
        wrong.append("the killed build left no lock, so this has shown nothing")
    if (ending := job.forks.run(*job.arguments(snapshots))).code:
        wrong.append(f"after the death of another, a build ended with {ending.code}: {ending.err}")
    return wrong + violations(snapshots, job.collection, encoding)


def _holding(job: Job, snapshots: Path) -> Run:
    """Start a build, and stop it in its tracks when it has the lock."""
    run = job.forks.start(*job.arguments(snapshots))
    deadline = time.monotonic() + 60
    while not (snapshots / ".work").exists():
        if time.monotonic() > deadline or run.wait(0):
            raise RuntimeError(f"the build never worked: {run.end().err}")
        time.sleep(0.001)
    run.stop()
    return run
