"""Labels: what the user says of each picture, by folder name or from a table."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from indexer.errors import BuildError

PARENT = "parent"


@dataclass(frozen=True)
class Description:
    """What is said of one picture."""

    label: str | None = None
    caption: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


Describe = Callable[[str], Description]
"""From a picture's path to its description."""


def load_labels(labels: str | None, source: Path) -> Describe:
    """Return where descriptions come from.

    Args:
        labels: `parent` (the name of the folder that a picture is in), a `.csv` or `.jsonl` table, or None.
        source: the collection; the paths of a table are relative to it, or absolute.

    Raises:
        BuildError: the table cannot be read, or names no picture of the collection.
    """
    if labels is None:
        return lambda _: Description()
    if labels == PARENT:
        return lambda path: Description(label=PurePosixPath(path).parent.name or None)
    table = _read_table(Path(labels), source)
    if not any(_is_picture(source, path) for path in table):
        example = next(iter(table), "none")
        raise BuildError(
            f"{labels} names no picture of {source}. Its paths must be relative to that folder, or absolute; "
            f"its first is {example!r}."
        )
    return lambda path: table.get(path, Description())


def _is_picture(source: Path, path: str) -> bool:
    try:
        return not Path(path).is_absolute() and (source / path).is_file()
    except OSError:  # such as a name that is too long for the file system
        return False


def _read_table(path: Path, source: Path) -> dict[str, Description]:
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix not in readers:
        raise BuildError(f"Labels come from 'parent' or a table ending in .csv or .jsonl, not from {path}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return dict(_described(row, source, f"{path}, row {number}") for number, row in readers[path.suffix](file))
    except OSError as error:
        raise BuildError(f"The labels {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BuildError(f"The labels {path} are not UTF-8: {error}.") from error
    except csv.Error as error:
        raise BuildError(f"The labels {path} are no CSV: {error}.") from error


def _csv_rows(file: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(csv.DictReader(file), start=1):
        # Columns beyond the header come under the key None; a short row's columns have the value None.
        yield number, {key: value for key, value in row.items() if key is not None and value not in {None, ""}}


def _jsonl_rows(file: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        try:
            row = json.loads(line) if line.strip() else None
            # What Python's JSON takes and no answer of the service can hold: NaN, infinity, halves of surrogate pairs.
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise BuildError(f"Row {number} of the labels is no JSON: {error}.") from error
        if isinstance(row, dict):
            yield number, row
        elif row is not None:
            raise BuildError(f"Row {number} of the labels is no JSON object.")


def _described(row: dict[str, Any], source: Path, where: str) -> tuple[str, Description]:
    """Split one row of a table into path and description; `file` and `text` are other names that tables use."""
    rest = dict(row)
    path = rest.pop("path", None) or rest.pop("file", None)
    if not isinstance(path, str):
        raise BuildError(f"{where} has no column 'path' (or 'file'); it has: {', '.join(row)}.")
    if Path(path).is_absolute() and Path(path).is_relative_to(source):
        path = Path(path).relative_to(source).as_posix()
    label = rest.pop("label", None)
    caption = rest.pop("caption", None) or rest.pop("text", None)
    return str(PurePosixPath(path)), Description(_text(label), _text(caption), rest)


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)
