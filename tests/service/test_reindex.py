"""Jobs in their folder: what is told of them when processes have died, and who may be stopped."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.encoder import EncoderName
from indexer.errors import BuildRunning
from indexer.snapshot import BuildOptions
from indexer.store import SnapshotStore
from service.errors import JobNotFound
from service.reindex import Job, JobState, Reindexer
from tests.served import wait_for

STARTED = "2026-01-02T03:04:05Z"


@pytest.fixture
def store(snapshots: Path) -> SnapshotStore:
    """Open the folder of snapshots."""
    return SnapshotStore(snapshots)


@pytest.fixture
def reindexer(store: SnapshotStore) -> Iterator[Reindexer]:
    """Start builds into it, and leave none running."""
    reindexer = Reindexer(store)
    yield reindexer
    reindexer.close()


@pytest.fixture
def job(reindexer: Reindexer, source: Path, model: EncoderName) -> Job:
    """Start one."""
    return reindexer.start(BuildOptions(sources=(str(source),), labels="parent"), model)


def write_job(store: SnapshotStore, number: int, *, output: str = "", errors: str = "", pid: int = 1) -> Path:
    """Write what is left of a job whose starter has died."""
    folder = store.folder / ".jobs" / f"{number:032x}"
    folder.mkdir(parents=True)
    (folder / "running").touch()
    (folder / "output").write_text(output)
    (folder / "errors").write_text(errors)
    (folder / "job.json").write_text(json.dumps({"pid": pid, "started_at": STARTED}))
    return folder


def test_a_child_that_is_killed_has_failed_and_its_exit_code_is_told(
    reindexer: Reindexer, store: SnapshotStore, job: Job
) -> None:
    child = json.loads((store.folder / ".jobs" / job.id / "job.json").read_text())["pid"]
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: "-9" in str(reindexer.get(job.id).error))
    told = Reindexer(store).get(job.id)
    assert (told.state, told.error) == (JobState.FAILED, "The build ended with exit code -9: it said nothing")
    assert told.finished_at is not None
    assert told.finished_at > told.started_at


def test_one_folder_has_one_job_at_a_time_whoever_starts_it(
    store: SnapshotStore, job: Job, source: Path, model: EncoderName
) -> None:
    other = Reindexer(store)
    with pytest.raises(BuildRunning, match="A reindex is running; wait for it or cancel it"):
        other.start(BuildOptions(sources=(str(source),)), model)
    assert other.get(job.id).state is JobState.RUNNING
    assert other.cancel(job.id).state is JobState.CANCELLED


def test_closing_stops_a_job_that_was_started_here_and_no_other(
    reindexer: Reindexer, store: SnapshotStore, job: Job
) -> None:
    Reindexer(store).close()
    assert reindexer.get(job.id).state is JobState.RUNNING
    reindexer.close()
    assert reindexer.get(job.id).state is JobState.CANCELLED


def test_a_process_that_got_the_id_of_an_ended_child_is_left_alone(store: SnapshotStore) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        try:
            folder = write_job(store, 7, pid=stranger.pid)
            with (folder / "running").open() as held:
                fcntl.flock(held, fcntl.LOCK_EX)  # as a child in another container would
                with pytest.raises(BuildRunning, match="runs where it cannot be stopped from here"):
                    Reindexer(store).cancel(folder.name)
                assert Reindexer(store).get(folder.name).state is JobState.RUNNING
            assert Reindexer(store).cancel(folder.name).state is JobState.FAILED
            assert stranger.poll() is None
        finally:
            stranger.kill()


@pytest.mark.parametrize(
    ("output", "errors", "state", "error"),
    [
        ('{"stage": "encode", "done": 1, "total": 2}\n{"snap', "", JobState.FAILED, "The build ended: it said nothing"),
        ("", "a warning\nerror: There is no disk left.\n", JobState.FAILED, "There is no disk left."),
        ('{"snapshot": "x", "encoded": 2}\n', "a warning\n", JobState.SUCCEEDED, None),
    ],
)
def test_how_a_job_ended_is_told_by_its_files_where_nobody_watched(
    store: SnapshotStore, output: str, errors: str, state: JobState, error: str | None
) -> None:
    folder = write_job(store, 7, output=output, errors=errors)
    told = Reindexer(store).get(folder.name)
    assert (told.state, told.error) == (state, error)
    assert told.started_at.isoformat() == "2026-01-02T03:04:05+00:00"
    assert told.finished_at is not None
    assert abs(told.finished_at.timestamp() - time.time()) < 60


def test_of_a_long_talk_the_last_progress_is_told(store: SnapshotStore) -> None:
    lines = "".join(f'{{"stage": "encode", "done": {number}, "total": 100000}}\n' for number in range(100_000))
    folder = write_job(store, 7, output=lines)
    assert Reindexer(store).get(folder.name).progress == {"stage": "encode", "done": 99_999, "total": 100_000}


def test_the_hundred_latest_jobs_are_kept(
    reindexer: Reindexer, store: SnapshotStore, source: Path, model: EncoderName
) -> None:
    for number in range(100):
        os.utime(write_job(store, number), (number, number))
    new = reindexer.start(BuildOptions(sources=(str(source),)), model)
    kept = {path.name for path in (store.folder / ".jobs").iterdir()}
    assert kept == {new.id, *(f"{number:032x}" for number in range(1, 100))}


@pytest.mark.parametrize("name", ["", ".", "..", "../.jobs", "0" * 32, "x\0", "0" * 31 + "/"])
def test_a_name_that_is_no_job_is_not_found(store: SnapshotStore, name: str) -> None:
    (store.folder / ".jobs").mkdir()
    with pytest.raises(JobNotFound):
        Reindexer(store).get(name)


def test_the_snapshots_do_not_mind_the_jobs(store: SnapshotStore, snapshots: Path) -> None:
    folder = write_job(store, 7)
    shutil.copy(snapshots / store.published() / "manifest.json", store.folder / ".jobs" / "manifest.json")
    assert store.ids() == [store.published()]
    assert store.prune(0) == []
    assert folder.is_dir()
