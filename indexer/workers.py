"""DecodePool: a task done on many items in worker processes, which an item may crash, hang or bloat at its own cost.

    this process     a thread per worker hands it an item and waits for the answer, no longer than the wall limit
    fork server      one child for all pools: loads libraries once, forks workers in milliseconds, tells how each ended
    workers          do the task on one item after another, within limits of memory and CPU time

Why not a library: pebble's ProcessPool tells how a worker died, but one killed while idle breaks the whole pool; and
multiprocessing's forkserver imports the main script again in every worker, which takes seconds.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from indexer.errors import ImageError, Reason
from indexer.fork_server import Limits

__all__ = ["DecodePool", "Limits", "fork_server"]

T = TypeVar("T")
R = TypeVar("R")

_LIBRARIES = ("indexer.preparing", "indexer.preprocessing", "imagehash", "scipy.fftpack", "simplejpeg")
_SERVER = "import sys; sys.path[:] = {path!r}; from indexer.fork_server import serve; serve({fd}, {libraries})"


@cache
def fork_server() -> socket.socket:
    """Return the way to the process that forks workers, after starting it, which takes seconds of its own time.

    It ends when this process does, however that happens. A fork of this process may use it too.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        code = _SERVER.format(path=sys.path, fd=theirs.fileno(), libraries=_LIBRARIES)
        # A session of its own, because Ctrl-C goes to the whole process group of this one.
        server = subprocess.Popen(  # noqa: S603 - this interpreter, our code
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
        )
    atexit.register(_end, os.getpid(), ours, server)
    return ours


def _end(owner: int, ours: socket.socket, server: "subprocess.Popen[bytes]") -> None:
    ours.close()
    if os.getpid() == owner:
        server.kill()
        server.wait()


class DecodePool(Generic[T, R]):
    """Processes that do one task on many items, whatever an item does to them.

    An item that costs its worker (by a signal, an exit or a limit) is tried once more, by a fresh one; if it costs that
    too, it is refused. So no item is refused for what those before it did to their worker.

    Workers run one thread each. Ctrl-C does not reach them, and they outlive neither `close` nor this process, however
    it ends. A context manager: leaving it closes the pool.
    """

    def __init__(self, task: Callable[[T], R], workers: int, limits: Limits) -> None:
        """Start the processes, and return before they are ready.

        Args:
            task: picklable, and not of `__main__`. What it imports beyond the libraries of pictures, each worker
                imports anew.
            workers: how many items are worked on at a time, at least 1.
            limits: what one item may cost.
        """
        self._jobs: SimpleQueue[tuple[T, Future[R]] | None] = SimpleQueue()
        self._lock = Lock()
        self._closed = False
        told = bytes(ForkingPickler.dumps((task, limits)))
        fork_server()
        self._seats: list[_Seat[T, R]] = [_Seat(told, limits) for _ in range(workers)]
        self._threads = [Thread(target=self._supervise, args=(seat,), daemon=True) for seat in self._seats]
        for thread in self._threads:
            thread.start()

    def submit(self, item: T) -> Future[R]:
        """Do the task on an item; safe to call from several threads.

        The future raises what the task raised, with the worker's traceback in a note, or
            ImageError: the item was refused, for KILLED_WORKER, TOO_SLOW or TOO_MUCH_MEMORY.
            BrokenExecutor: no worker can be started.

        Raises:
            RuntimeError: the pool is closed.
        """
        future: Future[R] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("The pool is closed.")
            self._jobs.put((item, future))
        return future

    def close(self) -> None:
        """End the workers at once, and cancel what is not done."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for _ in self._threads:
                self._jobs.put(None)
        for seat in self._seats:
            seat.close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _supervise(self, seat: "_Seat[T, R]") -> None:
        """Have one item after another done, until the pool is closed."""
        while (job := self._jobs.get()) is not None:
            item, future = job
            deliver: Callable[[], object] = future.cancel
            if not self._closed and not future.cancelled():
                try:
                    deliver = partial(future.set_result, seat.do(item))
                except Exception as error:  # noqa: BLE001 - whatever it is, the future hands it on
                    deliver = partial(future.set_exception, error)
            if self._closed:
                future.cancel()
            # Not before it is done: a future that is running cannot be cancelled.
            if future.set_running_or_notify_cancel():
                deliver()
        seat.clear()


class _Seat(Generic[T, R]):
    """A place for one worker at a time; a fresh one takes the place of one that an item has cost."""

    def __init__(self, told: bytes, limits: Limits) -> None:
        self._told = told
        self._limits = limits
        self._lock = Lock()
        self._closed = False
        self._worker: _Worker | None = None

    def do(self, item: T) -> R:
        """Return the task's result, or raise what the future shall."""
        try:
            succeeded, outcome = self._attempt(item)
        except ImageError:
            succeeded, outcome = self._attempt(item)
        if not succeeded:
            raise outcome
        result: R = outcome
        return result

    def _attempt(self, item: T) -> tuple[bool, Any]:
        worker = self._worker
        if worker is None or worker.has_ended():
            worker = self._replace()
        try:
            return worker.do(item, self._limits)
        except Exception:
            self.clear()
            raise

    def _replace(self) -> "_Worker":
        self.clear()
        try:
            worker = _Worker.request()
            with self._lock:
                if self._closed:
                    worker.end()
                self._worker = worker
            worker.prepare(self._told)
        except (EOFError, OSError):
            self.clear()
            raise BrokenExecutor("No worker can be started; the error output says why.") from None
        return worker

    def close(self) -> None:
        """Break off what the worker does, from another thread; there will be no other."""
        with self._lock:
            self._closed = True
            if self._worker is not None:
                self._worker.hang_up()

    def clear(self) -> None:
        """End the worker, if there is one."""
        with self._lock:
            if self._worker is not None:
                self._worker.end()
                self._worker = None


@dataclass(frozen=True, slots=True)
class _Worker:
    """A worker as this process holds it.

    Attributes:
        items: items go out, answers come back; it ends when the worker does.
        fate: the fork server tells the worker's exit code; it kills the worker when this is written to or closed.
    """

    items: Connection
    fate: Connection

    @classmethod
    def request(cls) -> Self:
        """Ask the fork server for a worker."""
        items, its_items = Pipe()
        fate, its_fate = Pipe()
        with its_items, its_fate:
            # One byte and its descriptors go as one, whichever thread or fork of this process sends next.
            socket.send_fds(fork_server(), [b"+"], [its_items.fileno(), its_fate.fileno()])
        return cls(items, fate)

    def prepare(self, told: bytes) -> None:
        """Tell the task and the limits, and wait until it is ready."""
        self.items.send_bytes(told)
        self.items.recv()

    def has_ended(self) -> bool:
        return self.fate.poll()

    def hang_up(self) -> None:
        """Let the thread that waits for an answer find the pipe ended; closing it would not wake it."""
        with socket.socket(fileno=os.dup(self.items.fileno())) as items, suppress(OSError):
            items.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self.items.close()
        self.fate.close()

    def do(self, item: object, limits: Limits) -> tuple[bool, Any]:
        """Return whether the task succeeded, and its result or exception.

        Raises:
            ImageError: the item has cost this worker.
        """
        try:
            self.items.send(item)
            if not self.items.poll(limits.wall_seconds):
                raise ImageError(Reason.TOO_SLOW, f"It took longer than {limits.wall_seconds:g} s.")
            succeeded, outcome = self.items.recv()
        except (EOFError, OSError):
            raise _refusal(self._exit_code(), limits) from None
        if isinstance(outcome, MemoryError):
            memory = f"{limits.memory_bytes / 2**20:,.0f} MB"
            raise ImageError(Reason.TOO_MUCH_MEMORY, f"It took more than {memory} of memory.")
        return succeeded, outcome

    def _exit_code(self) -> int:
        with suppress(OSError):  # the worker has ended, and the server has said how
            self.fate.send(None)
        try:
            code: int = self.fate.recv()
        except (EOFError, OSError):
            raise BrokenExecutor("The process that starts the workers has ended.") from None
        return code


def _refusal(exit_code: int, limits: Limits) -> ImageError:
    if exit_code == -signal.SIGXCPU:
        return ImageError(Reason.TOO_SLOW, f"It took more than {limits.cpu_seconds:g} s of CPU time.")
    how = f"by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"with exit code {exit_code}"
    return ImageError(Reason.KILLED_WORKER, f"It ended two workers, the second {how}.")
