"""Progress: lines that people and programs can read, the last one always among them."""

import json
import re

import pytest

from indexer.progress import BarReporter, LineReporter, ProgressStyle, Reporter, reporter

PLAIN = re.compile(r"(\w+): ([\d,]+) of ([\d,]+), ([\d,]+)/s, ([\d,]+) s left")


def run(report: Reporter, total: int) -> None:
    """Report a build of two stages, all within a moment."""
    for done in range(1, total + 1):
        report.update("encode", done, total)
    report.update("index", total, total)
    report.close()


def test_plain_lines_are_sentences_on_the_error_stream(capsys: pytest.CaptureFixture[str]) -> None:
    run(reporter(ProgressStyle.PLAIN), 12_345)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [PLAIN.fullmatch(line) for line in err.splitlines()]
    assert [line.group(1, 2, 3) for line in lines if line] == [
        ("encode", "1", "12,345"),
        ("encode", "12,345", "12,345"),
        ("index", "12,345", "12,345"),
    ]


def test_json_lines_are_objects_on_the_output_stream(capsys: pytest.CaptureFixture[str]) -> None:
    run(reporter(ProgressStyle.JSON), 100)
    out, err = capsys.readouterr()
    assert err == ""
    lines = [json.loads(line) for line in out.splitlines()]
    assert all(set(line) == {"stage", "done", "total", "rate", "seconds_left"} for line in lines)
    assert [(line["stage"], line["done"], line["total"]) for line in lines] == [
        ("encode", 1, 100),
        ("encode", 100, 100),
        ("index", 100, 100),
    ]
    assert lines[-1]["seconds_left"] == 0


@pytest.mark.parametrize("style", [ProgressStyle.PLAIN, ProgressStyle.JSON])
def test_a_build_of_one_picture_shows_its_end(style: ProgressStyle, capsys: pytest.CaptureFixture[str]) -> None:
    run(reporter(style), 1)
    assert len("".join(capsys.readouterr()).splitlines()) == 2


@pytest.mark.parametrize("style", [ProgressStyle.PLAIN, ProgressStyle.JSON])
def test_a_stage_that_has_done_nothing_yet_is_shown(style: ProgressStyle, capsys: pytest.CaptureFixture[str]) -> None:
    report = reporter(style)
    report.update("encode", 0, 10)
    report.close()
    assert "encode" in "".join(capsys.readouterr())


def test_a_line_is_shown_now_and_then_in_between(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    report = LineReporter(as_json=True)
    for done in range(1, 101):
        now += 0.1
        report.update("encode", done, 100)
    shown = [json.loads(line)["done"] for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == 1
    assert shown[-1] == 100
    assert 15 <= len(shown) <= 25  # every half second of ten


def test_the_rate_and_the_time_left_are_those_of_the_clock(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    report = LineReporter(as_json=True)
    now = 104.0
    report.update("encode", 20, 100)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rate"], facts["seconds_left"]) == (5.0, 16)


def test_the_rate_of_a_later_stage_is_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    report = LineReporter(as_json=True)
    for stage, done, now in (("encode", 10, 50.0), ("train", 1, 52.0), ("train", 4, 58.0)):  # noqa: B007 - read by the clock
        report.update(stage, done, 10)
    facts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(fact["rate"], fact["seconds_left"]) for fact in facts] == [(0.2, 0), (0.5, 18), (0.5, 12)]


def test_auto_is_plain_where_nobody_watches() -> None:
    assert isinstance(reporter(ProgressStyle.AUTO), LineReporter)


def test_a_bar_ends_at_its_total(capsys: pytest.CaptureFixture[str]) -> None:
    report = reporter(ProgressStyle.BAR)
    assert isinstance(report, BarReporter)
    run(report, 50)
    assert "50/50" in capsys.readouterr().err


def test_a_bar_that_never_moved_closes(capsys: pytest.CaptureFixture[str]) -> None:
    reporter(ProgressStyle.BAR).close()
    assert capsys.readouterr().out == ""
