"""Progress of a build: a bar on a terminal, plain lines elsewhere, JSON lines for a program."""

import json
import sys
import time
from enum import StrEnum
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_PLAIN_SECONDS = 10.0
_JSON_SECONDS = 0.5


class ProgressStyle(StrEnum):
    """How progress is shown; `auto` is a bar on a terminal and plain lines elsewhere."""

    AUTO = "auto"
    BAR = "bar"
    PLAIN = "plain"
    JSON = "json"


class Reporter(Protocol):
    """Is told how far a build has come."""

    def update(self, stage: str, done: int, total: int) -> None:
        """Note that `done` of `total` pictures have passed `stage`."""
        ...

    def close(self) -> None:
        """Show nothing more."""
        ...


class _Clock:
    """Tells the rate of a stage, which begins when the last one was heard of."""

    def __init__(self) -> None:
        self._stage = ""
        self._start = self._heard = time.monotonic()

    def rate(self, stage: str, done: int) -> float:
        """Return how many pictures a second have passed a stage."""
        if stage != self._stage:
            self._stage, self._start = stage, self._heard
        self._heard = time.monotonic()
        return done / max(self._heard - self._start, 1e-9)


class BarReporter:
    """A bar with rate and time left."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        rate = TextColumn("{task.fields[rate]}")
        self._progress = Progress(*columns, rate, TimeRemainingColumn(), console=Console(stderr=True))
        self._task: TaskID | None = None
        self._clock = _Clock()

    def update(self, stage: str, done: int, total: int) -> None:
        """Move the bar."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(stage, total=total, rate="")
        rate = f"{self._clock.rate(stage, done):,.0f}/s"
        self._progress.update(self._task, description=stage, completed=done, total=total, rate=rate)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()


class LineReporter:
    """A line now and then: a sentence, or a JSON object."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._every = _JSON_SECONDS if as_json else _PLAIN_SECONDS
        self._clock = _Clock()
        self._last = time.monotonic()
        self._stage = ""

    def update(self, stage: str, done: int, total: int) -> None:
        """Print a line for a new stage, the end of one, and every so often in between."""
        now, rate = time.monotonic(), self._clock.rate(stage, done)
        if stage == self._stage and now - self._last < self._every and done < total:
            return
        self._stage, self._last = stage, now
        left = (total - done) / rate if rate else 0.0
        if self._as_json:
            facts = {"stage": stage, "done": done, "total": total, "rate": round(rate, 1), "seconds_left": round(left)}
            print(json.dumps(facts), flush=True)
        else:
            print(f"{stage}: {done:,} of {total:,}, {rate:,.0f}/s, {left:,.0f} s left", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is open."""


def reporter(style: ProgressStyle) -> Reporter:
    """Return the reporter of a style."""
    if style is ProgressStyle.AUTO:
        style = ProgressStyle.BAR if sys.stderr.isatty() else ProgressStyle.PLAIN
    if style is ProgressStyle.BAR:
        return BarReporter()
    return LineReporter(as_json=style is ProgressStyle.JSON)
