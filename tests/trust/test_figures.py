"""The page of figures keeps what did not run, replaces what did, and sorts by the number of the promise."""

import json
from pathlib import Path

import pytest

from tests.trust.figures import COLLECTED, SIZE, Row, noted, sized, updated

OLD = Row("R6", "an old thing", "tests/a.py::test_old", "9 of 9", "CI", "0", "2026-01-01")
NEW = Row("R16", "a | new\nthing", "tests/a.py::test_new", "10 of 10", "middle", "", "2026-02-02")


def lines(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("| R") and "see " not in line]


def test_rows_are_sorted_by_number_and_kept_until_they_are_measured_again() -> None:
    first = updated("", [NEW, OLD])
    assert [line.split(" | ")[0] for line in lines(first)] == ["| R6", "| R16"]
    assert updated(first, []) == first
    again = Row("R6", "an old thing", "tests/a.py::test_old", "8 of 9", "full", "1", "2026-03-03")
    second = lines(updated(first, [again]))
    assert second[0] == "| R6 | an old thing | tests/a.py::test_old | 8 of 9 | full | 1 | 2026-03-03 |"
    assert second[1:] == lines(first)[1:]


def test_a_figure_is_noted_with_its_test_only_where_figures_are_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(COLLECTED, raising=False)
    noted(promise="R6", figure="lost")
    monkeypatch.setenv(COLLECTED, str(tmp_path / "figures"))
    monkeypatch.setenv(SIZE, "middle")
    noted(promise="R6", figure="kept", seed=4)
    (row,) = map(json.loads, (tmp_path / "figures").read_text().splitlines())
    assert (row["promise"], row["figure"], row["seed"], row["size"]) == ("R6", "kept", "4", "middle")
    assert row["test"].startswith("tests/trust/test_figures.py::test_a_figure_is_noted")
    assert row["done"].startswith("a figure is noted with its test")


def test_a_size_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE, "huge")
    with pytest.raises(ValueError, match="TRUST is 'huge'; it can be CI, middle, full"):
        sized(1, 2, 3)
