"""The page of figures, `tests/RELIABILITY.md`: what is promised, the test that shows it, and what it last measured.

Any test calls `noted` with its figure. Under `make trust` these are collected; elsewhere they are dropped. Rows of
tests that did not run keep what they had.
"""

import json
import os
import re
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "tests" / "RELIABILITY.md"

SIZE = "TRUST"
"""The environment variable with the size of a run: `CI` where it is not set, `middle` or `full`."""
COLLECTED = "TRUST_FIGURES"
"""The environment variable with the file that figures are collected in."""

_SIZES = ("CI", "middle", "full")
_HEAD = """# Reliability: promises and figures

Written by `make trust`; do not edit. Each row is a test. `make test` runs them at the size CI, but for those that
start and stop services, fill disks or flood a service, which take minutes (R4, R5, R14, R15, R16, R22, and parts of
others). `make trust` runs all of them longer, and `TRUST=full make trust` at the size of a release, which takes
hours. A figure is what the test counted when it last ran under `make trust`, on the machine of that day.

| promise | what is done | test | last figure | size | seed | date |
| --- | --- | --- | --- | --- | --- | --- |
"""
# What is measured by other programmes.
_CITED = (
    ("R1", "kill -9 while indexing, then resume", "tests/indexer/test_crash.py", "see indexer/README.md", "crash-test"),
    ("R2", "every failing call of a build", "tests/indexer/test_crash.py", "see indexer/README.md", "crash-test"),
    ("R9", "tasks that crash, hang or bloat", "tests/indexer/test_workers.py", "see the test", "CI"),
    ("R10", "faults of servers and object stores", "tests/indexer/sources/test_fetch.py", "see the test", "CI"),
    ("R11", "a second writer", "tests/indexer/test_crash.py", "see indexer/README.md", "crash-test"),
    ("R17", "forbidden addresses", "tests/indexer/sources/test_ssrf.py", "see the test", "CI"),
    ("R21", "the API against its own document", "tests/test_schema.py", "see tests/README.md", "schema-test"),
)


LONG = pytest.mark.skipif(os.environ.get(SIZE, "CI") == "CI", reason="starts and stops services: make trust")
"""Of tests that take a minute and more at any size."""


@dataclass(frozen=True)
class Row:
    """One row of the page."""

    promise: str
    done: str
    test: str
    figure: str
    size: str
    seed: str
    date: str


def size() -> str:
    """Return the size of this run."""
    chosen = os.environ.get(SIZE, "CI")
    if chosen not in _SIZES:
        raise ValueError(f"{SIZE} is {chosen!r}; it can be {', '.join(_SIZES)}.")
    return chosen


def sized(ci: int, middle: int, full: int) -> int:
    """Return how many cases a test shall do, after the size of this run."""
    return {"CI": ci, "middle": middle, "full": full}[size()]


def noted(*, promise: str, figure: str, seed: int | None = None) -> None:
    """Write down what the running test measured.

    Args:
        promise: the number of what is promised, such as `R6`.
        figure: what was counted, in words.
        seed: of what was drawn at random; None where nothing was.
    """
    collected = os.environ.get(COLLECTED)
    if not collected:
        return
    test = os.environ["PYTEST_CURRENT_TEST"].rsplit(" ", 1)[0]
    done = re.sub(r"\[.*", "", test.split("::")[-1]).removeprefix("test_").replace("_", " ")
    shown = "" if seed is None else str(seed)
    row = Row(promise, done, test, figure, size(), shown, datetime.now(UTC).date().isoformat())
    with Path(collected).open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def updated(page: str, measured: list[Row]) -> str:
    """Return the page with new rows in the place of those of the same promise and test, sorted by promise."""
    rows = {(row.promise, row.test): row for row in (Row(*each, "", "") for each in _CITED)}
    rows |= {(row.promise, row.test): row for row in (*_rows(page), *measured)}
    lines = sorted(rows.values(), key=lambda row: (int(row.promise[1:]), row.test))
    return _HEAD + "".join(f"| {' | '.join(_cell(text) for text in astuple(row))} |\n" for row in lines)


def _rows(page: str) -> list[Row]:
    cells = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in page.splitlines() if re.match(r"\| R\d+ \|", line)]
    return [Row(*(text.strip().replace(r"\|", "|") for text in row)) for row in cells]


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
