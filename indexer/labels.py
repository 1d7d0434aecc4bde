"""Labels: what the user says of each picture, by folder name or from a table. The one reader of tables."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from indexer.errors import BuildError

PARENT = "parent"


@dataclass(frozen=True)
class Description:
    """What is said of one picture."""

    label: str | None = None
    caption: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def captions(self) -> tuple[str, ...]:
        """Return every caption once: `caption`, then those of a column `captions`.

        That column holds a list of texts, or, as in CSV, a text with one caption per line.

        Raises:
            BuildError: it holds something else.
        """
        given = self.metadata.get("captions")
        if isinstance(given, str):
            given = given.split("\n")
        if not isinstance(given, list | None) or not all(isinstance(each, str) for each in given or []):
            raise BuildError(
                "The column 'captions' must hold a list of texts, or a text with one caption per line; "
                f"it holds {str(given)[:80]!r}."
            )
        stripped = (each.strip() for each in given or [])
        return tuple(dict.fromkeys(each for each in (self.caption, *stripped) if each))


def read_descriptions(table: Path, source: Path) -> Iterator[tuple[str, Description]]:
    """Yield the picture that each row of a table names, relative to `source` where it lies in it, and what it says.

    Raises:
        BuildError: the table cannot be read, or a row names no picture.
    """
    for number, row in read_rows(table):
        path, description = describe(row)
        if path is None:
            raise BuildError(f"{table}, row {number} has no column 'path' (or 'file'); it has: {', '.join(row)}.")
        if Path(path).is_absolute() and Path(path).is_relative_to(source):
            path = Path(path).relative_to(source).as_posix()
        yield str(PurePosixPath(path)), description


def describe(row: dict[str, Any]) -> tuple[str | None, Description]:
    """Split one row of a table into path and description; `file` and `text` are other names that tables use."""
    rest = dict(row)
    path = rest.pop("path", None) or rest.pop("file", None)
    label = rest.pop("label", None)
    caption = rest.pop("caption", None) or rest.pop("text", None)
    return path if isinstance(path, str) else None, Description(_text(label), _text(caption), rest)


def read_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a table with their numbers, from 1: cells by column, without those that are missing.

    Raises:
        BuildError: the table cannot be read.
    """
    if table.suffix not in _READERS:
        raise BuildError(f"Labels come from 'parent' or a table ending in .csv, .jsonl or .parquet, not from {table}.")
    try:
        with table.open("rb") as file:
            yield from parse_rows(file, str(table))
    except OSError as error:
        raise BuildError(f"The table {table} cannot be read: {error.strerror or error}.") from error


def parse_rows(file: BinaryIO, table: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of an open table as `read_rows` does; its name, by whose ending it is read, ends in `TABLES`.

    Raises:
        BuildError: the file is no such table.
        OSError: it cannot be read.
    """
    try:
        yield from _READERS[PurePosixPath(table).suffix](file, table)
    except UnicodeDecodeError as error:
        raise BuildError(f"The table {table} is not UTF-8: {error}.") from error
    except csv.Error as error:
        raise BuildError(f"The table {table} is no CSV: {error}.") from error


def lines(file: BinaryIO) -> Iterator[str]:
    """Yield the lines of an open text file as they are written, with their ends.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        yield from text


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Return the object that a JSON text holds.

    Raises:
        BuildError: it holds none, or a value that no answer of the service can hold; the sentence starts with `where`.
    """
    try:
        row = json.loads(text)
        _check_json(row)
    except (ValueError, RecursionError) as error:
        raise BuildError(f"{where} is no JSON: {error}.") from error
    if not isinstance(row, dict):
        raise BuildError(f"{where} is no JSON object.")
    return row


def _csv_rows(file: BinaryIO, _: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(csv.DictReader(lines(file)), start=1):
        # Columns beyond the header come under the key None; a short row's columns have the value None.
        yield number, {key: value for key, value in row.items() if key is not None and value not in {None, ""}}


def _jsonl_rows(file: BinaryIO, table: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines(file), start=1):
        if line.strip():
            yield number, parse_object(line, f"Row {number} of {table}")


def _parquet_rows(file: BinaryIO, table: str) -> Iterator[tuple[int, dict[str, Any]]]:
    from pyarrow import ArrowException, parquet  # noqa: PLC0415 - it is large, and the service reads no tables

    try:
        rows = (row for batch in parquet.ParquetFile(file).iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield number, _plain(row, f"Row {number} of {table}")
    except (ArrowException, OSError) as error:
        # Of some damage pyarrow speaks as an OSError.
        raise BuildError(f"The table {table} is no Parquet: {str(error).strip()}.") from error


def _plain(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row as JSON could have held it: without missing cells, and with times and decimals as text."""
    plain = {key: value if isinstance(value, _JSON) else str(value) for key, value in row.items() if value is not None}
    try:
        _check_json(plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise BuildError(f"{where} holds what JSON cannot: {error}.") from error
    return plain


def _check_json(value: Any) -> None:
    # What Python's JSON takes and no answer of the service can hold: NaN, infinity, halves of surrogate pairs.
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


# Bytes are no text: left as they are, they are refused rather than written out as b'...'.
_JSON = (str, int, float, list, dict, bytes)
_READERS: dict[str, Callable[[BinaryIO, str], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".csv": _csv_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
}
TABLES = tuple(_READERS)
"""The endings of tables."""
