"""Every error that kindred raises on purpose.

* KindredError
  x ImageError              one picture cannot be used; carries a reason code, costs only itself
  x EncoderError            a model cannot be loaded
    + EncoderMismatch       it loads, but is not the one that made the embeddings
  x SnapshotError
    + NoSnapshot            nothing has been published, or no snapshot has that id
    + CorruptSnapshot       a file is missing, changed, or disagrees with another
  x BuildError              a build cannot start or finish
    + BuildRunning          another build holds the lock of the snapshot folder
    + BuildInterrupted      it was told to stop; the same command goes on from there
    + CorruptShard          a file of its finished work is gone or changed
  x NoGpu                   a GPU was demanded for searching, and none can be had
  x TrainingError           a model cannot be trained: settings or data do not allow it
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """Why one picture was refused."""

    EMPTY = "empty"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"
    NOT_AN_IMAGE = "not_an_image"
    UNREADABLE = "unreadable"
    UNSUPPORTED_MODE = "unsupported_mode"
    BAD_NAME = "bad_name"
    OUTSIDE_SOURCE = "outside_source"
    CHANGED = "changed"
    UNREACHABLE = "unreachable"
    FORBIDDEN_ADDRESS = "forbidden_address"
    TOO_MUCH_MEMORY = "too_much_memory"
    TOO_SLOW = "too_slow"
    KILLED_WORKER = "killed_worker"


class KindredError(Exception):
    """Base of every error that kindred raises on purpose; its text is a sentence for the user."""


class ImageError(KindredError):
    """One picture cannot be used."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Self], tuple[Reason, str]]:
        # Exceptions are unpickled from their args, which here are the detail alone; worker processes raise these.
        return type(self), (self.reason, str(self))


class EncoderError(KindredError):
    """A model cannot be loaded."""


class EncoderMismatch(EncoderError):
    """The loaded model is not the one that made the embeddings."""


class SnapshotError(KindredError):
    """A snapshot cannot be used."""


class NoSnapshot(SnapshotError):
    """Nothing has been published, or no snapshot has the wanted id."""


class CorruptSnapshot(SnapshotError):
    """A file of the snapshot is missing, changed, or disagrees with another."""


class BuildError(KindredError):
    """A build cannot start or finish."""


class BuildRunning(BuildError):
    """Another build holds the lock of the snapshot folder."""


class BuildInterrupted(BuildError):
    """A build was told to stop. What it has finished is kept: the same command goes on from there."""


class CorruptShard(BuildError):
    """A file of finished work is gone, or has changed since it was written."""


class NoGpu(KindredError):
    """A GPU was demanded for searching, and none can be had, or not with this snapshot."""


class TrainingError(KindredError):
    """A model cannot be trained: its settings or its data do not allow it."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End a command with exit code 1 and one line on standard error, not a traceback, where an error was foreseen."""
    try:
        yield
    except (KindredError, OSError) as error:  # of a disk that is full or failing, say
        sys.exit(f"error: {error}")
