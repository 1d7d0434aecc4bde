"""FolderSource: every file below a folder."""

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import BuildError, Reason
from indexer.images import DecodePolicy, ImageFile, is_utf8, read, scan
from indexer.sources.source import Item, Refusal

_TICK = 2 * 10**9
"""The coarsest clock of a file system in use (FAT), in nanoseconds."""


@dataclass(frozen=True)
class FolderSource:
    """A folder on this machine, in the order of `images.scan`; a picture's key is its path below the folder."""

    root: Path

    @property
    def remote(self) -> bool:
        """Files are not waited for."""
        return False

    def items(self) -> Iterator[Item]:
        """List every file.

        Raises:
            BuildError: the folder does not exist.
        """
        if not self.root.is_dir():
            raise BuildError(f"The folder {self.root} does not exist.")
        for file in scan(self.root):
            if is_utf8(file.path):
                yield Item(file.path, file.path, *size_and_stamp(file.location))
            else:
                refusal = Refusal(Reason.BAD_NAME, f"The file name is not UTF-8: {os.fsencode(file.path)!r}.")
                key = printable(file.path)
                yield Item(key, key, refusal=refusal)

    def read(self, place: str, policy: DecodePolicy) -> bytes:
        """Return the bytes of a file.

        Raises:
            ImageError: it is gone, too large, a link that leads out of the folder, or cannot be read.
        """
        return read(ImageFile(place, self.root / place), self.root, policy)


def size_and_stamp(location: Path) -> tuple[int | None, str | None]:
    """Return the size of a file and, where it can be trusted, its time of change; nothing of what is no file.

    A file that changed just now may change again within the same tick of the clock and keep its stamp ("racily clean",
    Documentation/technical/racy-git.txt of git), so it has none yet; nor has one from the future.
    """
    try:
        found = location.stat()
    except (OSError, ValueError):  # a path with a NUL is a ValueError
        return None, None
    if not stat.S_ISREG(found.st_mode):
        return None, None
    settled = found.st_mtime_ns < time.time_ns() - _TICK
    return found.st_size, str(found.st_mtime_ns) if settled else None


def printable(name: str) -> str:
    """Return a name that is no UTF-8 as text that can be written down, its stray bytes by their numbers."""
    return name.encode(errors="backslashreplace").decode()
