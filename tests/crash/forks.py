"""Forks: command lines of the indexer, each run in a process that starts in a moment and may be killed.

A process that has imported everything and loaded the model (`server.py`) forks one child for each command; to do that
anew would take a hundred times as long as the build of a small collection.
"""

import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_ROOT = Path(__file__).parent.parent.parent
# Libraries that would start threads when they are imported, or sum in another order each time, do not.
_ENVIRONMENT = {
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")},
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "KINDRED_THREADS": "1",
    "KINDRED_BACKEND": "torch",
}


@dataclass(frozen=True)
class Fault:
    """What the shim does in a run: `action` (see faultshim.c) at call number `point`, counted from 1; 0 is never."""

    folder: Path
    log: Path
    action: str = "none"
    point: int = 0


@dataclass(frozen=True)
class Ending:
    """How a run ended: exit code or, if negative, signal; what it said; how many pictures it gave the encoder."""

    code: int
    out: str
    err: str
    encoded: int

    @property
    def killed(self) -> bool:
        """Whether it was killed."""
        return self.code == -signal.SIGKILL

    @property
    def error(self) -> str | None:
        """The reason of a run that ended with an error foreseen: one line, exit code 1."""
        lines = self.err.splitlines()
        told = [line for line in lines if line.startswith("error: ")]
        return told[0] if self.code == 1 and told == lines[-1:] and "Traceback" not in self.err else None


class Run:
    """A command that is running, with all its processes in one group."""

    def __init__(self, server: "Forks", pid: int, out: Path) -> None:
        self._server, self._out = server, out
        self.pid = pid
        self._watch = os.pidfd_open(pid)

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the command, and return whether it came in time."""
        return bool(select.select([self._watch], [], [], seconds)[0])

    def stop(self) -> None:
        """Have every process of the command stand still."""
        os.killpg(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let them go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill every process of the command at once."""
        os.killpg(self.pid, signal.SIGKILL)

    def end(self, seconds: float = 120) -> Ending:
        """Wait for the end of the command and of the processes that it left behind; those are killed.

        Raises:
            TimeoutError: it hangs.
        """
        if not self.wait(seconds):
            self.kill()
            raise TimeoutError(f"still running after {seconds} s; it has said: {self._said('err')}")
        code = self._server.ask({"reap": self.pid})
        os.close(self._watch)
        return Ending(code, self._said("out"), self._said("err"), sum(map(int, self._said("encoded").split())))

    def _said(self, stream: str) -> str:
        return (self._out / stream).read_text()


class Forks:
    """Runs commands of the indexer in forks of a process that is ready; a context manager.

    Args:
        folder: for what the commands say.
        model: the encoder of all builds.
        shim: the compiled faultshim.c, where faults are wanted.
    """

    def __init__(self, folder: Path, model: str, shim: Path | None = None) -> None:
        self._folder = folder
        self._started = itertools.count(1)
        self._lock = threading.Lock()
        environment = {**os.environ, **_ENVIRONMENT} | ({"LD_PRELOAD": str(shim)} if shim else {})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.server", model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env=environment,
        )
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def start(self, *arguments: str | Path, fault: Fault | None = None, most_bytes: int | None = None) -> Run:
        """Start `python -m indexer ARGUMENTS`; no file may become larger than `most_bytes`."""
        out = self._folder / f"run-{next(self._started)}"
        out.mkdir(parents=True)
        for stream in ("out", "err", "encoded"):
            (out / stream).touch()  # it may be killed before it does so itself
        told = (
            {key: str(value) if isinstance(value, Path) else value for key, value in asdict(fault).items()}
            if fault
            else None
        )
        pid = self.ask({"fork": list(map(str, arguments)), "out": str(out), "fault": told, "most_bytes": most_bytes})
        return Run(self, pid, out)

    def run(self, *arguments: str | Path, fault: Fault | None = None, most_bytes: int | None = None) -> Ending:
        """Run a command to its end."""
        return self.start(*arguments, fault=fault, most_bytes=most_bytes).end()

    def ask(self, request: dict[str, Any]) -> int:
        """Send a request to the forking process, and return its answer."""
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the forking process has ended; what it said is above")
        return int(line)
