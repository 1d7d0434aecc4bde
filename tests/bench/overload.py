"""More requests than the service can answer, and what becomes of them.

`python -m tests.bench.overload SNAPSHOTS --pictures FOLDER` serves a snapshot from one core, and sends requests from
another one, at the times of a Poisson process, whatever becomes of those before them. The capacity is what is answered
when half as many again come as a closed loop of 64 connections comes to, where clients that were answered together ask
again together, which makes for large batches. The loads are multiples of the capacity. A latency counts from the time
that a request was meant to be sent. A load that the generator could not send in time is not reported.
"""

import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from indexer.encoder import DEMO, EncoderName
from tests.bench.closed_loop import ask, measure, serving_nothing
from tests.bench.open_loop import Outcome, offer
from tests.bench.serving_contenders import Kindred
from tests.bench.serving_material import Bench, Kind, Template
from tests.bench.tables import grid
from tests.served import Service, most_resident, resident, serving

CONNECTIONS = 64
NORMAL = 0.8
SATURATING = 1.5

_HEAD = (
    "load",
    "offered/s",
    "200/s",
    "x capacity",
    "refused",
    "wrong",
    "200: p50, p99, ms",
    "p99 x that at 0.8",
    "503: p50, p99, ms",
    "connections",
    "RSS before, most, after, MiB",
    "normal after, s",
)
_LIVEZ = b"GET /livez HTTP/1.1\r\nHost: bench\r\n\r\n"
_MOST_RATE = 64_000
_OFFERED = 0.98
_LATE_SECONDS = 0.05
_AFTER_SECONDS = 10
_WINDOW_SECONDS = 0.5
_PICTURES = 64


@dataclass
class Overload:
    """One kind of request, asked of a running service.

    Attributes:
        service: answers.
        kind: of request.
        templates: of all such requests.
        seconds: of each load.
        seed: of the times.
    """

    service: Service
    kind: Kind
    templates: Sequence[Template]
    seconds: float
    seed: int

    def __post_init__(self) -> None:
        self._port = self.service.port
        self._requests = self._numbered()

    def table(self, loads: Sequence[float]) -> str:
        """Measure the capacity, then each load, and return a table in Markdown."""
        ask(self._port, next(self._requests))
        closed = measure(self._port, self._requests, CONNECTIONS, self.seconds)
        capacity = self._offered(SATURATING * closed.rate).goodput
        p50, p99 = np.percentile(closed.latencies, (50, 99))
        text = f"**{self.kind.capitalize()}**: {closed.rate:,.0f}/s at {CONNECTIONS} connections in a closed loop, "
        text += f"p50 {_ms(p50)}, p99 {_ms(p99)} ms; {capacity:,.0f}/s of those that come at random: the capacity.\n\n"
        normal = self._offered(NORMAL * capacity)
        rows = [self._row(load, capacity, normal) for load in loads]
        return f"{text}{grid(_HEAD, rows)}"

    def _row(self, load: float, capacity: float, normal: Outcome) -> tuple[str, ...]:
        pid = self.service.process.pid
        before = resident(pid)
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # begins to count the most anew
        outcome = self._offered(load * capacity)
        if not in_time(outcome):
            late = np.percentile(outcome.late, 99)
            told = f"{outcome.offered:,} of {outcome.intended:,} sent in time, p99 {_ms(late)} ms late: not measured"
            return f"{load:g}", told, *[""] * (len(_HEAD) - 2)
        memory = (size // 2**20 for size in (before, most_resident(pid), resident(pid)))
        bound = 2 * _percentile(normal.answered, 99)
        again = normal_after(self._offered(NORMAL * capacity, _AFTER_SECONDS), bound)
        row = (
            f"{load:g}",
            f"{outcome.offered / outcome.seconds:,.0f}",
            f"{outcome.goodput:,.0f}",
            f"{outcome.goodput / capacity:.2f}",
            f"{len(outcome.refused) / outcome.intended:.1%}",
            ", ".join(f"{what} ({count})" for what, count in outcome.others.items()) or "0",
            _latencies(outcome.answered),
            f"{2 * _percentile(outcome.answered, 99) / bound:.1f}",
            _latencies(outcome.refused),
            f"{outcome.connections:,}",
            ", ".join(map(str, memory)),
            again,
        )
        print(self.kind, *row, sep=" | ", file=sys.stderr, flush=True)
        return row

    def _offered(self, rate: float, seconds: float | None = None) -> Outcome:
        return offer(self._port, self._requests, rate, seconds or self.seconds, self.seed)

    def _numbered(self) -> Iterator[bytes]:
        for number in itertools.count():
            yield self.templates[number % len(self.templates)].numbered(number)


def main(
    snapshots: Annotated[Path, typer.Argument(help="What is served.")],
    pictures: Annotated[Path, typer.Option(help="Folder of pictures to upload.")],
    seconds: Annotated[float, typer.Option(help="Of each load.")] = 30.0,
    loads: Annotated[str, typer.Option(help="Multiples of the capacity, with commas.")] = "0.8,2,5,10",
    kind: Annotated[str, typer.Option(help="text, upload, with commas.")] = "text,upload",
    seed: Annotated[int, typer.Option(help="Of the times.")] = 14,
) -> None:
    """Measure, and print tables in Markdown."""
    files = sorted(path for path in pictures.rglob("*") if path.suffix in {".jpg", ".png"})[:_PICTURES]
    bench = Bench(snapshots, EncoderName(model=DEMO), None, 0, [file.read_bytes() for file in files])
    print(
        f"`{' '.join(['python -m tests.bench.overload', *sys.argv[1:]])}`, seed {seed}, load {os.getloadavg()[0]:.1f}\n"
    )
    ours, theirs, *_ = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {ours})
    with ExitStack() as stack:
        with starting_on(theirs):
            nothing = stack.enter_context(serving_nothing())
            service = stack.enter_context(serving(snapshots, KINDRED_THREADS="1"))
        print(calibrated(nothing, service.port, seed), flush=True)
        for each in (Kind[name.upper()] for name in kind.split(",")):
            overload = Overload(service, each, Kindred("").templates(bench, each), seconds, seed)
            print(overload.table([float(load) for load in loads.split(",")]), flush=True)


@contextmanager
def starting_on(core: int) -> Iterator[None]:
    """Start processes that stay on a core: each begins where the one is that starts it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def calibrated(nothing: int, port: int, seed: int) -> str:
    """Return what the generator can send to a server that does nothing, and what the service answers of its least."""
    rates = itertools.takewhile(lambda rate: rate <= _MOST_RATE, (2_000 * 2**step for step in itertools.count()))
    sent = [rate for rate in rates if in_time(offer(nothing, itertools.repeat(_LIVEZ), rate, 2.0, seed))]
    rate = measure(port, itertools.repeat(_LIVEZ), CONNECTIONS, 2.0).rate
    return (
        f"The generator sends {max(sent, default=0):,}/s in time; GET /livez is answered {rate:,.0f} times a second.\n"
    )


def in_time(outcome: Outcome) -> bool:
    """Return whether a load was sent as it was meant to be."""
    late = float(np.percentile(outcome.late, 99))
    return outcome.offered >= _OFFERED * outcome.intended and late <= _LATE_SECONDS


def normal_after(outcome: Outcome, bound: float) -> str:
    """Return after how many seconds 99 % of those that were to be sent in each half second were answered in time."""
    ended = [(due, latency <= bound) for due, latency in outcome.answered]
    ended += [(due, False) for due, _ in outcome.refused]
    good, number = (
        Counter(int(due / _WINDOW_SECONDS) for due, well in ended if well or every) for every in (False, True)
    )
    slow = [window for window in number if good[window] < 0.99 * number[window]]
    seconds = (max(slow, default=-1) + 1) * _WINDOW_SECONDS
    return f"{seconds:g}" if seconds < outcome.seconds else f"over {outcome.seconds:g}"


def _percentile(ended: Sequence[tuple[float, float]], share: float) -> float:
    return float(np.percentile([latency for _, latency in ended], share)) if ended else float("nan")


def _latencies(ended: Sequence[tuple[float, float]]) -> str:
    return f"{_ms(_percentile(ended, 50))}, {_ms(_percentile(ended, 99))}" if ended else ""


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"


if __name__ == "__main__":
    typer.run(main)
