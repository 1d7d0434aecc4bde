"""Reindexer: runs `python -m indexer build` as a child process, one at a time, and tells how far it is.

A child, so that its memory and GPU context end with it, and so that a reindex is exactly what an operator would type.
"""

import json
import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import structlog

from indexer.encoder import EncoderName
from indexer.errors import BuildRunning
from indexer.snapshot import BuildOptions
from indexer.store import SnapshotStore
from service.errors import JobNotFound

_KEPT_JOBS = 100
_GRACE_SECONDS = 10


class JobState(StrEnum):
    """How a job stands."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass
class Job:
    """One reindex. Written by the thread that watches its process, read by requests."""

    id: str
    started_at: datetime
    state: JobState = JobState.RUNNING
    cancelled: bool = False
    finished_at: datetime | None = None
    error: str | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)


class Reindexer:
    """Starts builds into one snapshot folder."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._jobs: dict[str, Job] = {}
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def start(self, options: BuildOptions, name: EncoderName) -> Job:
        """Start a build.

        Raises:
            BuildRunning: one is running, here or anywhere else over the same folder.
        """
        with self._lock:
            if self._process is not None:
                raise BuildRunning("A reindex is running; wait for it or cancel it.")
            with self._store.lock():
                pass  # free; should a build elsewhere take it now, the child will report that
            job = Job(uuid.uuid4().hex, datetime.now(UTC))
            self._process = subprocess.Popen(  # noqa: S603 - no shell; an argument cannot become a command
                self._command(options, name),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            self._jobs[job.id] = job
            while len(self._jobs) > _KEPT_JOBS:
                del self._jobs[next(iter(self._jobs))]
        threading.Thread(target=self._watch, args=(job, self._process), daemon=True).start()
        return job

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            JobNotFound: none of the latest jobs has this id.
        """
        if job_id not in self._jobs:
            raise JobNotFound(f"There is no job {job_id!r}.")
        return self._jobs[job_id]

    def cancel(self, job_id: str) -> Job:
        """Stop a job if it is running; the next one of the same options goes on from what it has finished.

        Raises:
            JobNotFound: none of the latest jobs has this id.
        """
        job = self.get(job_id)
        with self._lock:
            process = self._process
            if job.state is not JobState.RUNNING or process is None:
                return job
            job.cancelled = True
        _stop(process)
        return job

    def close(self) -> None:
        """Stop the running job, if any."""
        for job in list(self._jobs.values()):
            self.cancel(job.id)

    def _command(self, options: BuildOptions, name: EncoderName) -> list[str]:
        command = [sys.executable, "-m", "indexer", "build", "--progress", "json", f"--model={name.model}"]
        command += [f"--snapshots={self._store.folder.resolve()}", f"--index={options.index}"]
        command.append(f"--near-duplicates={options.near_duplicates or 0}")
        if name.pretrained:
            command.append(f"--pretrained={name.pretrained}")
        if options.labels:
            command.append(f"--labels={options.labels}")
        return [*command, "--", *options.sources]

    def _watch(self, job: Job, process: subprocess.Popen[str]) -> None:
        """Follow a child's output to its end."""
        errors: list[str] = []
        with process:
            # In a thread of its own: a child that fills one pipe while we read the other would wait for ever.
            reader = threading.Thread(target=lambda: errors.extend(process.stderr or []), daemon=True)
            reader.start()
            for line in process.stdout or []:
                facts = _json(line)
                (job.result if "snapshot" in facts else job.progress).update(facts)
            reader.join()
        code = process.returncode
        with self._lock:
            if job.result:
                job.state = JobState.SUCCEEDED
            else:
                job.state = JobState.CANCELLED if job.cancelled else JobState.FAILED
                job.error = None if job.cancelled else _error(errors, code)
            job.finished_at = datetime.now(UTC)
            self._process = None
        structlog.get_logger().info("reindex", job=job.id, state=job.state, error=job.error, **job.result)


def _json(line: str) -> dict[str, Any]:
    """Read a line of progress; a library of the child may print something else in between."""
    try:
        facts = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _error(lines: list[str], code: int) -> str:
    said = [line.strip() for line in lines if line.strip()]
    last = said[-1].removeprefix("error: ") if said else "it said nothing"
    return last if said and said[-1].startswith("error: ") else f"The build ended with exit code {code}: {last}"


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
