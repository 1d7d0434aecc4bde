"""The commands whose every call is cut short: builds from nothing, on, and again; rollback; prune."""

import shutil
from pathlib import Path

from indexer.errors import SnapshotError
from indexer.store import SnapshotStore
from tests.crash.checks import Encoding, differences, violations
from tests.crash.faults import Scenario
from tests.crash.kills import Job


class Scenarios:
    """Scenarios that share one collection.

    Args:
        job: the build; the collection is changed once.
        encoding: the right vectors.
        folder: empty; for the snapshots that the commands find.
    """

    def __init__(self, job: Job, encoding: Encoding, folder: Path) -> None:
        self._job, self._encoding, self._folder = job, encoding, folder

    def first(self) -> Scenario:
        """Build into a folder that does not exist."""
        whole = self._folder / "first"
        self._build(whole)
        return Scenario("first build", self._folder / "none", self._job.arguments, lambda s: self._built(s, whole))

    def resumed(self) -> Scenario:
        """Go on with a build that was killed when it had finished a shard."""
        whole, begun = self._folder / "first", self._folder / "begun"
        run = self._job.forks.start(*self._job.arguments(begun))
        while not run.wait(0.0005):
            if list((begun / ".work" / "shards").glob("*.parquet")):
                run.kill()
                break
        run.end()
        return Scenario("resumed build", begun, self._job.arguments, lambda s: self._built(s, whole))

    def next(self) -> Scenario:
        """Build again when the collection has changed."""
        before, whole = self._folder / "first", self._folder / "next"
        self._job.collection.change(2)
        shutil.copytree(before, whole)
        self._build(whole)
        return Scenario("next build", before, self._job.arguments, lambda s: self._built(s, whole))

    def rollback(self) -> Scenario:
        """Make the older one of two snapshots current; needs `next`."""
        before = self._folder / "next"
        old, _ = sorted(SnapshotStore(before).ids())
        return Scenario(
            "rollback", before, lambda s: ["rollback", "--to", old, "--snapshots", s], lambda s: _is(s, old)
        )

    def prune(self) -> Scenario:
        """Delete the older one of two snapshots; needs `next`."""
        before = self._folder / "next"
        _, new = sorted(SnapshotStore(before).ids())
        return Scenario(
            "prune", before, lambda s: ["prune", "--keep", "1", "--snapshots", s], lambda s: _is(s, new, alone=True)
        )

    def _build(self, snapshots: Path) -> None:
        ending = self._job.forks.run(*self._job.arguments(snapshots))
        if wrong := violations(snapshots, self._job.collection, self._encoding):
            raise RuntimeError(f"a build that nothing befell ended with {ending.code}: {ending.err}; {wrong}")

    def _built(self, snapshots: Path, whole: Path) -> list[str]:
        return violations(snapshots, self._job.collection, self._encoding) + differences(snapshots, whole)


def _is(snapshots: Path, wanted: str, *, alone: bool = False) -> list[str]:
    """Tell whether the wanted snapshot is current and sound, and if asked the only one."""
    store = SnapshotStore(snapshots)
    try:
        store.open(store.published())
    except SnapshotError as error:
        return [f"the current snapshot cannot be opened: {error}"]
    wrong = [] if store.current() == wanted else [f"{store.current()} is current, not {wanted}"]
    return wrong + ([f"there are {store.ids()}, not only {wanted}"] if alone and store.ids() != [wanted] else [])
