"""The child process that forks the workers of all DecodePools, and what a worker does.

It runs one thread and loads the libraries once, so that it can fork a worker that has them in milliseconds.
"""

import copy
import ctypes
import importlib
import math
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from indexer.errors import KindredError

_FORK = multiprocessing.get_context("fork")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Made while there is memory to make it.
_OUT_OF_MEMORY = ForkingPickler.dumps((False, MemoryError()))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one item may cost.

    Attributes:
        cpu_seconds: CPU time; rounded up to the next whole second of the worker's.
        wall_seconds: time by the clock.
        memory_bytes: address space beyond what a fresh worker has mapped; kept to on Linux only.
    """

    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int


def serve(fd: int, libraries: Sequence[str]) -> None:
    """Fork workers on request until the other end of the socket `fd` is closed; then kill them.

    A request is two pipes: one for the worker's task, items and answers, one on which the pool is told its exit code.

    Args:
        fd: number of a socket.
        libraries: modules that are imported first, once for all workers.
    """
    # Read when the libraries are loaded: there is a worker for every core already, and threads do not survive a fork.
    os.putenv("OMP_NUM_THREADS", "1")
    control = socket.socket(fileno=fd)
    for library in libraries:
        importlib.import_module(library)
    workers: list[tuple[ForkProcess, Connection]] = []
    while True:
        watched = [end for process, fate in workers for end in (process.sentinel, fate)]
        if control in wait([control, *watched]):
            _, fds, *_ = socket.recv_fds(control, 1, 2)
            if not fds:
                for process, fate in workers:
                    _end(process, fate)
                return
            workers.append((_fork(Connection(fds[0])), Connection(fds[1])))
        for process, fate in workers.copy():
            # What the pool sends, or the end of its end, asks for the end of the worker.
            if not process.is_alive() or fate.poll():
                workers.remove((process, fate))
                _end(process, fate)


def _fork(items: Connection) -> ForkProcess:
    process = _FORK.Process(target=_work, args=(items,))
    with items:
        process.start()
    return process


def _end(process: ForkProcess, fate: Connection) -> None:
    """End a worker, if it has not ended, and tell the pool how it did."""
    process.kill()
    process.join()
    with fate, suppress(OSError):
        fate.send(process.exitcode)
    process.close()


def _work(items: Connection) -> None:
    """Be a worker: be told the task, then answer each item with whether it succeeded, and its result or exception."""
    with suppress(EOFError, ConnectionError):
        task, limits = items.recv()
        _keep_to(limits)
        items.send(None)  # ready
        while True:
            item = items.recv()
            _set_limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + limits.cpu_seconds))
            items.send_bytes(_answer(task, item))


def _keep_to(limits: Limits) -> None:
    _set_limit(resource.RLIMIT_CORE, 0)  # a dump for each bad picture would fill the disk
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # should the fork server be killed
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _set_limit(resource.RLIMIT_AS, mapped + limits.memory_bytes)


def _set_limit(which: int, soft: int) -> None:
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _answer(task: Callable[[Any], Any], item: object) -> memoryview:
    try:
        return ForkingPickler.dumps((True, task(item)))
    except MemoryError:
        pass  # answered below, where what the task had allocated is free again
    except Exception as error:  # noqa: BLE001 - whatever it is, the pool hands it on
        return _telling(error)
    return _OUT_OF_MEMORY


def _telling(error: Exception) -> memoryview:
    trace = "".join(traceback.format_exception(error))
    if not isinstance(error, KindredError):
        error.add_note(f"In a worker:\n{trace}")
    try:
        # Copying fails where unpickling would: if the class cannot be called with the exception's args.
        return ForkingPickler.dumps((False, copy.copy(error)))
    except Exception:  # noqa: BLE001 - anything may go wrong in a foreign class
        return ForkingPickler.dumps((False, RuntimeError(f"An exception that cannot be pickled:\n{trace}")))
