"""Files that are there as a whole or not at all, whatever happens in between."""

import os
import secrets
import time
from pathlib import Path

# Seconds after which nobody can be writing a small file any more.
_ABANDONED = 3_600


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, or replace one; it is safe on disk when this returns, and a reader sees the old one or the new."""
    # Neither threads nor process ids tell writers apart: in containers that share a folder, each is process 1.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder."""
    for path in folder.glob(f".*.{'[0-9a-f]' * 16}"):
        if path.stat().st_mtime < time.time() - _ABANDONED:
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
