"""Requests per second and latency of kindred's service and of clip-retrieval's back end, side by side.

`python -m tests.bench.serving FOLDER` writes FOLDER/serving.md. All servers run at once and take their turns: the same
model, the same drawn vectors in an exact index, 10 results, over the loopback. The client shares the cores with each of
them alike. clip-retrieval is installed into an environment of its own unless it is there. A bare loop encodes and
searches in one process, without a server: what kindred takes longer at one connection is what its service costs.

FOLDER keeps pictures, weights, snapshots and exported models.
"""

import itertools
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer

from indexer.torch_runtime import torch
from tests.bench.closed_loop import Load, ask, measure, nothing
from tests.bench.contenders import PEER, peer_python
from tests.bench.indexing import weights
from tests.bench.serving_contenders import BareLoop, ClipRetrieval, Contender, Kindred, serving
from tests.bench.serving_material import FEW_TEXTS, Bench, Kind
from tests.bench.tables import grid, spread

CONNECTIONS = (1, 8, 64)
MOST = CONNECTIONS[-1]

_AGREEMENT = 0.9
_COMPARED = 8
_ASKED = (Kind.TEXT, Kind.UPLOAD)

KINDRED = Kindred("kindred", (("KINDRED_BACKEND", "onnx"),))
UNBATCHED = Kindred("kindred, max_batch 1", (*KINDRED.environment, ("KINDRED_MAX_BATCH", "1")))
TORCH = Kindred("kindred, torch", (("KINDRED_BACKEND", "torch"),))
WORKERS = Kindred("kindred, 2 workers", KINDRED.environment, ("--workers", "2"))
BARE = BareLoop("onnx")


@dataclass(frozen=True)
class Turn:
    """What one contender is asked to do in every round."""

    contender: Contender | BareLoop
    kind: Kind
    connections: int


@dataclass
class Table:
    """Everything measured on one model, in the order of the rounds."""

    title: str
    peers: Sequence[ClipRetrieval]
    loads: dict[Turn, list[Load]] = field(default_factory=lambda: defaultdict(list))

    def markdown(self) -> str:
        """Return a table for each kind of query, and what it comes to."""
        head = ("", "connections", "requests/s", "x clip-retrieval", "p50, ms", "p95, ms", "p99, ms", "errors")
        text = f"## {self.title}\n"
        for kind in Kind:
            turns = sorted((turn for turn in self.loads if turn.kind == kind), key=lambda turn: turn.connections)
            text += f"\n**{kind.capitalize()}**\n\n{grid(head, [self._row(turn) for turn in turns])}"
        return f"{text}\n{grid(('', *_ASKED), self._summary())}"

    def _row(self, turn: Turn) -> tuple[str, ...]:
        loads = self.loads[turn]
        ratio = "" if isinstance(turn.contender, BareLoop) else f"{self._rate(turn) / self._peer(turn):.2f}"
        rates, errors = spread([load.rate for load in loads]), sum(load.errors for load in loads)
        return (
            str(turn.contender),
            f"{turn.connections}",
            rates,
            ratio,
            *map(_ms, self._latencies(turn)),
            f"{errors}",
        )

    def _summary(self) -> list[tuple[str, ...]]:
        """Return what the goals are about, for each kind of query."""
        ours, alone = ([self._rate(Turn(each, kind, MOST)) for kind in _ASKED] for each in (KINDRED, UNBATCHED))
        peers = [self._peer(Turn(KINDRED, kind, MOST)) for kind in _ASKED]
        costs = [
            self._latencies(Turn(KINDRED, kind, 1))[0] - self._latencies(Turn(BARE, kind, 1))[0] for kind in _ASKED
        ]
        return [
            (f"x clip-retrieval at {MOST} connections", *_ratios(ours, peers)),
            (f"x without batching at {MOST} connections", *_ratios(ours, alone)),
            ("median over the bare loop's at 1 connection, ms", *map(_ms, costs)),
        ]

    def _rate(self, turn: Turn) -> float:
        return median(load.rate for load in self.loads[turn])

    def _peer(self, turn: Turn) -> float:
        """Return the rate of clip-retrieval's better setting; it has no cache, so that each text is new to it."""
        kind = Kind.TEXT if turn.kind == Kind.REPEATED else turn.kind
        return max(self._rate(Turn(peer, kind, turn.connections)) for peer in self.peers)

    def _latencies(self, turn: Turn) -> list[float]:
        """Return p50, p95 and p99 of all rounds together, in seconds."""
        seconds = [each for load in self.loads[turn] for each in load.latencies]
        return np.percentile(seconds, (50, 95, 99)).tolist() if seconds else [float("nan")] * 3


class Round:
    """The contenders, running."""

    def __init__(
        self, bench: Bench, contenders: Sequence[Contender | BareLoop], seconds: float, stack: ExitStack
    ) -> None:
        """Start all of them, which end with the stack."""
        self._bench = bench
        self._seconds = seconds
        loops = [each for each in contenders if isinstance(each, BareLoop)]
        servers = [each for each in contenders if not isinstance(each, BareLoop)]
        self._loops = {each: stack.enter_context(each.running(bench)) for each in loops}
        self._ports = {each: stack.enter_context(serving(each, bench)) for each in servers}
        self._numbers = itertools.count()  # of all requests, so that no cache has the answer

    def load(self, turn: Turn) -> Load:
        """Let one contender take its turn."""
        if isinstance(turn.contender, BareLoop):
            loop = self._loops[turn.contender]
            latencies = loop.measure(turn.kind, next(self._numbers), self._seconds)
            return Load(latencies, seconds=sum(latencies))
        port = self._ports[turn.contender]
        return measure(port, self._requests(turn.contender, turn.kind), turn.connections, self._seconds)

    def check(self, contenders: Sequence[Contender]) -> None:
        """See that all find the same pictures.

        Raises:
            RuntimeError: they do not.
        """
        for kind in _ASKED:
            first, *others = (self._found(contender, kind) for contender in contenders)
            for contender, other in zip(contenders[1:], others, strict=True):
                shares = [len(left & right) / len(left) for left, right in zip(first, other, strict=True)]
                if np.mean(shares) < _AGREEMENT:
                    raise RuntimeError(f"{contenders[0]} and {contender} share {shares} of what they find by {kind}.")

    def _found(self, contender: Contender, kind: Kind) -> list[set[int]]:
        templates = contender.templates(self._bench, kind)[:_COMPARED]
        return [contender.rows(ask(self._ports[contender], each.numbered(0))) for each in templates]

    def _requests(self, contender: Contender, kind: Kind) -> Iterator[bytes]:
        templates = contender.templates(self._bench, kind)
        for number in self._numbers:
            own = number % FEW_TEXTS if kind == Kind.REPEATED else number
            yield templates[own % len(templates)].numbered(own)


def main(
    folder: Annotated[Path, typer.Argument(help="Where pictures, weights, snapshots and the report go.")],
    model: Annotated[str, typer.Option(help="demo, ViT-B-32 (random weights), with commas.")] = "demo,ViT-B-32",
    count: Annotated[int, typer.Option(help="Pictures in the index.")] = 10_000,
    seconds: Annotated[float, typer.Option(help="Of each turn.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often each takes its turn.")] = 3,
    peer_venv: Annotated[Path, typer.Option(help="Environment with clip-retrieval.")] = Path(".demo/clip-retrieval"),
) -> None:
    """Measure, and write a report in Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    folder, python = folder.resolve(), peer_python(peer_venv.absolute())
    peers = [ClipRetrieval(python), ClipRetrieval(python, 1)]
    before = _load()
    benches = [Bench.made(folder, each, weights(folder), count) for each in model.split(",")]
    facts = f"{os.cpu_count()} cores, torch {torch.__version__}, {PEER}, {count:,} pictures; "
    tables = [_measured(bench, peers, seconds, rounds).markdown() for bench in benches]
    facts += f"load {before} before, {_load()} after; requests/s: lowest / median / highest of {rounds} rounds."
    text = "\n".join([facts, "", _itself(benches[0], seconds), *tables])
    print(text)
    (folder / "serving.md").write_text(text, encoding="utf-8")


def _turns(peers: Sequence[ClipRetrieval]) -> list[Turn]:
    """Return who does what in a round, so that those who are compared come one after the other."""
    parts: list[tuple[Contender | BareLoop, Sequence[Kind], Sequence[int]]] = [
        (KINDRED, tuple(Kind), CONNECTIONS),
        *((peer, _ASKED, CONNECTIONS) for peer in peers),
        (BARE, _ASKED, (1,)),
        (TORCH, _ASKED, (1, MOST)),
        (UNBATCHED, _ASKED, (MOST,)),
        (WORKERS, _ASKED, (MOST,)),
    ]
    return [
        Turn(contender, kind, connections)
        for kind, connections in itertools.product(Kind, CONNECTIONS)
        for contender, kinds, counts in parts
        if kind in kinds and connections in counts
    ]


def _measured(bench: Bench, peers: Sequence[ClipRetrieval], seconds: float, rounds: int) -> Table:
    table, turns = Table(bench.name.model, peers), _turns(peers)
    with ExitStack() as stack:
        running = Round(bench, list(dict.fromkeys(turn.contender for turn in turns)), seconds, stack)
        running.check([KINDRED, *peers])
        for turn in turns * rounds:
            table.loads[turn].append(running.load(turn))
            rates = spread([load.rate for load in table.loads[turn]])
            print(turn.contender, turn.kind, turn.connections, rates, _load(), file=sys.stderr, flush=True)
    return table


def _itself(bench: Bench, seconds: float) -> str:
    """Return what the client itself comes to, of requests of both sizes."""
    texts = []
    for kind, connections in itertools.product(_ASKED, (1, MOST)):
        load = nothing(KINDRED.templates(bench, kind)[0].numbered(0), connections, seconds)
        texts.append(f"{kind}, {connections} connections: {load.rate:,.0f}/s, {_ms(median(load.latencies))} ms")
    return f"The client alone, of a server that does nothing: {'; '.join(texts)}.\n"


def _ratios(ours: Sequence[float], others: Sequence[float]) -> list[str]:
    return [f"{one / other:.2f}" for one, other in zip(ours, others, strict=True)]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    typer.run(main)
