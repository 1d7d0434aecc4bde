"""Reindexer: runs `python -m indexer build` as a child process, one at a time, and tells how far it is.

A child, so that its memory and GPU context end with it, and so that a reindex is exactly what an operator would type.
What a job says goes into files, not into pipes: it outlives the process that started it, and every process of the
service can tell how far it is and stop it. What `_launch` and `cancel` write, and the child:

snapshots/.jobs/<id>/
  running      locked by the child for as long as it lives
  output       what it prints: lines of progress, then the result
  errors       what it says on standard error
  job.json     which process it is, since when; at last its exit code, where whoever started it still lives
  cancelled    somebody has cancelled it
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel

from indexer.durable import write_whole
from indexer.encoder import EncoderName
from indexer.errors import BuildRunning
from indexer.snapshot import BuildOptions
from indexer.store import SnapshotStore
from service.errors import JobNotFound

_JOBS = ".jobs"
_KEPT_JOBS = 100
_GRACE_SECONDS = 10
_LOOK_SECONDS = 0.05
_ID = re.compile(r"[0-9a-f]{32}")
# Of what a job has said, this much of the end is read, in bytes: it has the last progress, or the result.
_TAIL = 2**14


class JobState(StrEnum):
    """How a job stands."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Job:
    """One reindex, as it stood when it was looked at."""

    id: str
    started_at: datetime
    state: JobState
    finished_at: datetime | None = None
    error: str | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)


class _Record(BaseModel):
    """What `job.json` holds."""

    pid: int
    started_at: datetime
    code: int | None = None
    finished_at: datetime | None = None


class Reindexer:
    """Starts builds into one snapshot folder; any number of these may share it."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._folder = store.folder.resolve() / _JOBS
        self._latest: tuple[str, threading.Thread] | None = None

    def start(self, options: BuildOptions, name: EncoderName, within: Sequence[str] = ()) -> Job:
        """Start a build.

        Args:
            options: of the build.
            name: of the encoder.
            within: folders and URLs that the rows of tables may lead to, besides their own; anywhere where none is.

        Raises:
            BuildRunning: one is running, here or anywhere else over the same folder.
        """
        # Held until the job can be seen, so that of two starts one is refused. The child wants it only seconds later.
        with self._store.lock():
            if any(map(_running, self._folder.glob("*"))):
                raise BuildRunning("A reindex is running; wait for it or cancel it.")
            for old in sorted(self._folder.glob("*"), key=_changed)[: 1 - _KEPT_JOBS]:
                shutil.rmtree(old)
            folder = self._folder / uuid.uuid4().hex
            process, record = _launch(self._command(options, name, within), folder)
            watcher = threading.Thread(target=_watch, args=(folder, process, record), daemon=True)
            self._latest = (folder.name, watcher)
        watcher.start()
        return _read(folder)

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            JobNotFound: none of the latest jobs has this id.
        """
        unknown = JobNotFound(f"There is no job {job_id!r}.")
        if not _ID.fullmatch(job_id):
            raise unknown
        try:
            return _read(self._folder / job_id)
        except FileNotFoundError as error:
            raise unknown from error

    def cancel(self, job_id: str) -> Job:
        """Stop a job if it is running; the next one of the same options goes on from what it has finished.

        Raises:
            JobNotFound: none of the latest jobs has this id.
            BuildRunning: it runs where this process cannot stop it.
        """
        if self.get(job_id).state is JobState.RUNNING:
            _stop(self._folder / job_id)
        return self.get(job_id)

    def close(self) -> None:
        """Stop the job that was started here, if it is running."""
        if self._latest and self._latest[1].is_alive():
            self.cancel(self._latest[0])
            self._latest[1].join(_GRACE_SECONDS)

    def _command(self, options: BuildOptions, name: EncoderName, within: Sequence[str]) -> list[str]:
        command = [sys.executable, "-m", "indexer", "build", "--progress", "json", f"--model={name.model}"]
        command += [f"--snapshots={self._store.folder.resolve()}", f"--index={options.index}"]
        command += [f"--near-duplicates={options.near_duplicates or 0}", f"--target-recall={options.target_recall}"]
        command += ["--accept-low-recall"] if options.accept_low_recall else []
        if name.pretrained:
            command.append(f"--pretrained={name.pretrained}")
        if options.labels:
            command.append(f"--labels={options.labels}")
        return [*command, *(f"--within={root}" for root in within), "--", *options.sources]


def _launch(command: list[str], folder: Path) -> tuple[subprocess.Popen[bytes], _Record]:
    """Start a child that says everything into the files of a job, and holds the lock on one of them."""
    folder.mkdir(parents=True)
    with (
        (folder / "output").open("wb") as output,
        (folder / "errors").open("wb") as errors,
        (folder / "running").open("wb") as lock,
    ):
        # It belongs to the open file, which the child inherits: the lock lasts until both have closed it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(  # noqa: S603 - no shell; an argument cannot become a command
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, pass_fds=[lock.fileno()]
        )
    record = _Record(pid=process.pid, started_at=datetime.now(UTC))
    _write(folder, record)
    return process, record


def _watch(folder: Path, process: subprocess.Popen[bytes], record: _Record) -> None:
    """Wait for the end of a child, and note what only the process that started it is told."""
    code = process.wait()
    _write(folder, record.model_copy(update={"code": code, "finished_at": datetime.now(UTC)}))
    job = _read(folder)
    structlog.get_logger().info("reindex", job=job.id, state=job.state, error=job.error, **job.result)


def _stop(folder: Path) -> None:
    """End a child: it is asked to first, and killed if it does not.

    Raises:
        BuildRunning: it does not run on this machine, or not in this container.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        pid = _record(folder).pid
        if not _is(pid, folder):
            break
        (folder / "cancelled").touch()
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + _GRACE_SECONDS
        while _running(folder) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
    if _running(folder):
        raise BuildRunning(f"Job {folder.name} runs where it cannot be stopped from here; ask the service there.")


def _running(folder: Path) -> bool:
    """Return whether the child of a job lives, wherever it was started."""
    try:
        with (folder / "running").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _is(pid: int, folder: Path) -> bool:
    """Return whether a process is the child of a job: an id may have gone to another, or count in another container."""
    try:
        return Path(f"/proc/{pid}/fd/1").samefile(folder / "output")
    except OSError:
        return False


def _read(folder: Path) -> Job:
    running = _running(folder)  # first: once it is not, the files are complete
    record = _record(folder)
    said = [_json(line) for line in _tail(folder / "output")]
    job = Job(
        folder.name, record.started_at, JobState.RUNNING, progress=_last(said, "stage"), result=_last(said, "snapshot")
    )
    if running:
        return job
    ended = record.finished_at or datetime.fromtimestamp(
        max(_changed(folder / name) for name in ("output", "errors")), UTC
    )
    if job.result:
        return replace(job, state=JobState.SUCCEEDED, finished_at=ended)
    if (folder / "cancelled").exists():
        return replace(job, state=JobState.CANCELLED, finished_at=ended)
    return replace(job, state=JobState.FAILED, finished_at=ended, error=_error(_tail(folder / "errors"), record.code))


def _record(folder: Path) -> _Record:
    return _Record.model_validate_json((folder / "job.json").read_bytes())


def _write(folder: Path, record: _Record) -> None:
    write_whole(folder / "job.json", record.model_dump_json().encode())


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _tail(path: Path) -> list[str]:
    """Return the last lines of a file; the first of them may lack its beginning."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return file.read().decode(errors="replace").splitlines()


def _json(line: str) -> dict[str, Any]:
    """Read a line of progress; a library of the child may print something else in between."""
    try:
        facts = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _last(said: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return next((facts for facts in reversed(said) if key in facts), {})


def _error(lines: list[str], code: int | None) -> str:
    said = [line.strip() for line in lines if line.strip()]
    last = said[-1].removeprefix("error: ") if said else "it said nothing"
    if said and said[-1].startswith("error: "):
        return last
    return f"The build ended{'' if code is None else f' with exit code {code}'}: {last}"
