"""A task that some items crash, hang or bloat: what worker processes are tested with."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ImageError, Reason

HOUR = 3600


class UnexpectedError(Exception):
    """A bug."""


class OddError(Exception):
    """An exception that pickle cannot make again: its args are not what its class is called with."""

    def __init__(self, name: str, age: int) -> None:
        super().__init__(f"{name} is {age}")


@dataclass(frozen=True)
class Work:
    """An item: a number, and the harm to do, by the name of a function below."""

    number: int
    harm: str | None = None


@dataclass(frozen=True)
class Poison:
    """The task: does an item's harm, then returns a picture of its number.

    Each start of an item is first written to a file, where it stays whatever happens next.
    """

    tally: Path

    def __call__(self, work: Work) -> NDArray[np.uint8]:
        """Do the harm, and return the picture."""
        with self.tally.open("ab", buffering=0) as file:
            file.write(f"{work.number} {os.getpid()}\n".encode())
        if work.harm == "dies_once" and self.starts(work.number) == 1:
            segfaults()
        elif work.harm in HARMS:
            HARMS[work.harm]()
        return picture(work.number)

    def log(self) -> list[tuple[int, int]]:
        """Return the number and the process of each start so far."""
        return [(int(number), int(process)) for number, process in map(str.split, self.tally.read_text().splitlines())]

    def starts(self, number: int) -> int:
        """Return how often an item was started."""
        return [started for started, _ in self.log()].count(number)


def picture(number: int) -> NDArray[np.uint8]:
    """Return as many bytes as a picture has, with the number's eight again and again."""
    return np.resize(np.frombuffer(number.to_bytes(8, "big"), np.uint8), (3, 224, 224))


def segfaults() -> None:
    """Read where nothing is."""
    ctypes.string_at(0)


def is_killed() -> None:
    """End as if by the kernel, for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def exits() -> None:
    """End as some C libraries do on an error."""
    os._exit(3)


def raises_exit() -> None:
    """End as Python programs do."""
    sys.exit(4)


def spins() -> None:
    """Use the processor for ever."""
    while True:
        pass


def works() -> None:
    """Use the processor for 0.3 s."""
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass


def sleeps() -> None:
    """Wait for ever, or so."""
    time.sleep(HOUR)


def sleeps_deaf() -> None:
    """Wait for ever, having closed every file: what comes over the pipes is not heard, nor can be said."""
    os.closerange(3, 256)
    time.sleep(HOUR)


def grows() -> None:
    """Allocate without end."""
    kept = []
    while True:
        kept.append(bytearray(2**16))


def takes_much() -> None:
    """Allocate 384 MiB, and give them back."""
    bytearray(3 * 2**27)


def refuses() -> None:
    """Refuse the picture, as decoding does."""
    raise ImageError(Reason.NOT_AN_IMAGE, "This is no picture.")


def fails() -> None:
    """Raise what nobody foresaw."""
    raise UnexpectedError("seven", 7)


def fails_oddly() -> None:
    """Raise what cannot be unpickled."""
    raise OddError("Ada", 36)


HARMS: dict[str, Callable[[], None]] = {
    harm.__name__: harm
    for harm in (
        *(segfaults, is_killed, exits, raises_exit, spins, works, sleeps, sleeps_deaf, grows, takes_much),
        *(refuses, fails, fails_oddly),
    )
}


def process_id(_: object) -> int:
    """Return whose process this is."""
    return os.getpid()


def threads(_: object) -> int:
    """Return how many threads the process runs, after numpy has had work for many."""
    square = np.ones((512, 512), np.float32)
    assert (square @ square).sum() == 512**3
    return len(list(Path("/proc/self/task").iterdir()))


def unpicklable(_: object) -> object:
    """Return what cannot be pickled."""
    return lambda: None
