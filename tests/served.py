"""The service as an operator runs it, in processes of its own, and a way to talk to one of its workers alone."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

_SECONDS = 120


@dataclass(frozen=True)
class Service:
    """A running service."""

    address: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.address.rpartition(":")[2])

    def workers(self) -> list[int]:
        """Return the ids of its worker processes, where it has several: the children of the process that forks them."""
        forks = (pid for pid in children(self.process.pid) if "forkserver" in _text(f"/proc/{pid}/cmdline"))
        return [worker for pid in forks for worker in children(pid)]

    @contextmanager
    def only(self, worker: int) -> Iterator[httpx2.Client]:
        """Stop all workers but one, give a client that therefore talks to that one, and let them go on."""
        others = [pid for pid in self.workers() if pid != worker]
        try:
            for pid in others:
                os.kill(pid, signal.SIGSTOP)
                wait_for(lambda pid=pid: ") T " in _text(f"/proc/{pid}/stat"))  # type: ignore[misc]
            with httpx2.Client(base_url=self.address, timeout=_SECONDS) as client:
                yield client
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)


@contextmanager
def serving(snapshots: Path, *flags: str, **environment: str) -> Iterator[Service]:
    """Run the service on a free port, until told to stop.

    Args:
        snapshots: what it serves.
        flags: more of its command line.
        environment: more of its environment.
    """
    command = [sys.executable, "-m", "service", "--snapshots", str(snapshots), "--port", "0", *flags]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **environment}
        ) as server,
    ):
        try:
            found = re.search(r"http://[\d.:]+", server.stdout.readline() if server.stdout else "")
            if found is None:
                log.seek(0)
                raise RuntimeError(f"the service did not start: {log.read()}")
            yield Service(found[0], server)
        finally:
            server.terminate()


def children(pid: int) -> list[int]:
    """Return the ids of the child processes of a process."""
    return [int(child) for child in _text(f"/proc/{pid}/task/{pid}/children").split()]


def resident(pid: int) -> int:
    """Return the memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def most_resident(pid: int) -> int:
    """Return the most memory that a process had so far, or since its `clear_refs` was last written to, in bytes."""
    return int(re.findall(r"VmHWM:\s+(\d+)", _text(f"/proc/{pid}/status"))[0]) * 2**10


def wait_for(condition: Callable[[], bool], seconds: float = _SECONDS) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen in time")
        time.sleep(0.02)


def _text(path: str) -> str:
    """Read a file of the kernel's; a process that has ended has none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
