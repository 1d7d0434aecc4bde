"""TableSource: pictures named by a list or a table, wherever they lie."""

import os
import posixpath
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from indexer.errors import BuildError, ImageError, Reason
from indexer.images import DecodePolicy, ImageFile, read
from indexer.labels import TABLES, Description, describe, lines, parse_rows
from indexer.sources.fetch import FetchPolicy, fetch, is_http
from indexer.sources.folder import size_and_stamp
from indexer.sources.remote import is_url, lies_within, opened, read_url
from indexer.sources.source import Item

LIST = ".txt"
ENDINGS = (LIST, *TABLES)
"""The endings of lists and tables."""

_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""Schemes that a row may name: those of stores whose address the operator sets. Of others the row would set it."""


@dataclass(frozen=True)
class TableSource:
    """A list (`.txt`: a path or URL per line) or table (.csv, .jsonl, .parquet), by path or URL.

    The column `path`, `file` or `url` says where a picture lies: relative to the folder of the table, absolute, an
    http(s) URL, or an object (`s3://...`). `key` names it; else a path below the table's folder is its own name, as is
    any other path or URL. All other columns are what is said of it.
    """

    table: str
    fetch: FetchPolicy

    @property
    def remote(self) -> bool:
        """A row may lead to another machine; which, only reading the table would tell."""
        return is_url(self.table) or bool(self.fetch.hosts)

    def items(self) -> Iterator[Item]:
        """List every row, in the order of the table. Whether its picture exists is for `read` to say.

        Raises:
            BuildError: the table cannot be read, or a row names no picture.
        """
        with self._open() as file:
            try:
                for number, row in _listed(file) if self.table.endswith(LIST) else parse_rows(file, self.table):
                    yield self._item(number, row)
            except OSError as error:
                raise BuildError(f"{self.table} cannot be read: {error.strerror or error}.") from error
            except UnicodeDecodeError as error:
                raise BuildError(f"{self.table} is not UTF-8: {error}.") from error

    def read(self, place: str, policy: DecodePolicy) -> bytes:
        """Return the bytes of the picture that a row names.

        Raises:
            ImageError: it is gone, too large, may not be read from where it lies, or stays unreachable.
        """
        if "\0" in place:
            raise ImageError(Reason.BAD_NAME, f"No path has a NUL in it: {place!r}.")
        if is_http(place):
            return fetch(place, self.fetch, policy.max_bytes)
        if is_url(place):
            if place.partition("://")[0].lower() not in _STORES:
                detail = f"A row may name a path, an http(s) URL or an object ({', '.join(_STORES)}), not {place!r}."
                raise ImageError(Reason.FORBIDDEN_ADDRESS, detail)
            self._check_reach(place)
            return read_url(place, policy)
        if is_url(self.table):
            return read_url(self.table.rpartition("/")[0], policy, self._beside(place))
        folder = Path(self.table).parent
        if not Path(place).is_absolute():
            return read(ImageFile(place, folder / place), folder, policy)
        self._check_reach(place)
        return read(ImageFile(place, Path(place)), Path(place).parent, policy)

    def _check_reach(self, place: str) -> None:
        """See that what a row names lies where the rows of this table may lead."""
        if self.fetch.within and not lies_within(place, (*self.fetch.within, str(Path(self.table).parent))):
            detail = f"{place} lies in none of the folders that this build may read: {', '.join(self.fetch.within)}."
            raise ImageError(Reason.OUTSIDE_SOURCE, detail)

    def _beside(self, path: str) -> str:
        """Return the path below the folder of a remote table that a row names."""
        relative = posixpath.normpath(path)
        if relative.startswith(("/", "..")):
            raise ImageError(Reason.OUTSIDE_SOURCE, f"{path!r} leads out of the folder of {self.table}.")
        return relative

    def _open(self) -> AbstractContextManager[BinaryIO]:
        if is_url(self.table):
            return opened(self.table)
        try:
            return Path(self.table).open("rb")
        except OSError as error:
            raise BuildError(f"{self.table} cannot be read: {error.strerror}.") from error

    def _item(self, number: int, row: dict[str, Any]) -> Item:
        key, place, description = _row(row)
        if place is None:
            has = ", ".join(row) or "nothing"
            raise BuildError(f"{self.table}, row {number} has no column 'path', 'file' or 'url'; it has: {has}.")
        if is_url(place) or is_url(self.table):
            name = place if is_url(place) else str(PurePosixPath(place))
            return Item(key or name, place, description=description)
        folder = Path(self.table).parent
        path = os.path.relpath(place, folder) if Path(place).is_relative_to(folder) else place
        return Item(key or str(PurePosixPath(path)), place, *size_and_stamp(folder / place), description)


def _row(row: dict[str, Any]) -> tuple[str | None, str | None, Description]:
    """Split a row into key, path or URL, and description."""
    place, description = describe(row)
    rest = dict(description.metadata)
    if place is None:
        url = rest.pop("url", None)
        place = url if isinstance(url, str) else None
    key = rest.pop("key", None)
    return None if key in {None, ""} else str(key), place, replace(description, metadata=rest)


def _listed(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines of a list as rows, without blank ones and comments."""
    for number, line in enumerate(lines(file), start=1):
        if line.strip() and not line.startswith("#"):
            yield number, {"path": line.rstrip("\r\n")}
