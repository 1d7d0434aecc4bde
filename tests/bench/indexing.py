"""Pictures per second of `python -m indexer build` and of clip-retrieval's inference, side by side.

`python -m tests.bench.indexing FOLDER` (or `make indexing-bench`): the same pictures, the same ViT-B-32 with the same
random weights, all cores, in turns. Both clocks start when the model is loaded and stop when the last embedding is on
disk. clip-retrieval is installed into an environment of its own unless it is there. FOLDER keeps pictures and weights.

The limit is the encoder alone on pictures that are ready in memory, fed in the best way that was found. What a picture
costs in each stage is measured apart, one picture after the other, in processor time.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from safetensors.torch import save_file

from indexer.torch_runtime import open_clip, torch
from tests.bench.contenders import MODEL, PEER, ClipRetrieval, Contender, Kindred, Outcome, agreement, peer_python
from tests.bench.photos import LARGE, SMALL, mix, take
from tests.bench.tables import grid, spread

# Pictures a call, and calls at a time, which share the cores.
_FEEDS = [f"{batch}x{callers}" for callers in sorted({1, os.cpu_count() or 1}) for batch in (4, 16, 64)]


@dataclass
class Table:
    """Everything measured on one set of pictures."""

    title: str
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    published: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    walls: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    limits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    agreement: float = 1.0

    def note(self, name: str, outcome: Outcome) -> None:
        """Take the outcome of a run."""
        self.rates[name].append(outcome.encoded)
        self.walls[name].append(outcome.wall)
        if outcome.published is not None:
            self.published[name].append(outcome.published)

    def markdown(self) -> str:
        """Return the tables of contenders and of stages."""
        best = max((name for name in self.rates if name not in self.limits), key=lambda name: median(self.rates[name]))
        head = ("", "pictures/s", f"x {best}", "encoder alone", "of the limit", "published/s", "wall, s")
        rows = [self._row(name, median(self.rates[best])) for name in self.rates]
        text = f"{self.title}; least centred cosine of the two sides {self.agreement:.4f}\n\n{grid(head, rows)}"
        for name, costs in self.costs.items():
            total = sum(costs.values())
            shares = [(stage, f"{1e3 * cost:.2f}", f"{100 * cost / total:.1f} %") for stage, cost in costs.items()]
            text += f"\n{grid((name, 'ms of one core', 'share'), [*shares, ('all', f'{1e3 * total:.2f}', '')])}"
        return text

    def _row(self, name: str, peer: float) -> tuple[str, ...]:
        rate = median(self.rates[name])
        limit = median(self.limits[name]) if name in self.limits else None
        return (
            name,
            spread(self.rates[name]),
            f"{rate / peer:.2f}",
            spread(self.limits.get(name, [])),
            f"{100 * rate / limit:.0f} %" if limit else "",
            spread(self.published.get(name, [])),
            spread(self.walls[name]),
        )


@dataclass(frozen=True)
class Bench:
    """What all sets have in common: where files go, the shared weights, who takes part."""

    folder: Path
    weights: Path
    contenders: Sequence[Contender]
    rounds: int
    feeds: dict[Contender, Sequence[str]] = field(default_factory=dict)

    def measure(self, pictures: Path) -> Table:
        """Measure every contender on a folder of pictures, in turns."""
        table = Table(f"**{pictures.name}**: {_facts(pictures)}")
        for _ in range(self.rounds):
            outcomes: dict[type[Contender], Outcome] = {}
            for contender in self.contenders:
                if isinstance(contender, Kindred):
                    table.limits[str(contender)].append(self._limit(contender))
                outcomes[type(contender)] = contender.run(pictures, self.weights, self.folder / "scratch")
                table.note(str(contender), outcomes[type(contender)])
                print(contender, table.rates[str(contender)], _load(), file=sys.stderr, flush=True)
            table.agreement = min(table.agreement, agreement(outcomes[Kindred], outcomes[ClipRetrieval]))
        for contender in self.contenders:
            if isinstance(contender, Kindred):
                table.costs[str(contender)] = self._stages(contender, "costs", str(pictures))
        return table

    def _limit(self, contender: Kindred) -> float:
        """Return what the encoder alone reaches; the first time the best way to feed it is looked for."""
        feeds = self.feeds.get(contender, _FEEDS)
        rates = self._stages(contender, "limit", "--feeds", ",".join(feeds))
        self.feeds[contender] = [max(rates, key=lambda each: rates[each])]
        return max(rates.values())

    def _stages(self, contender: Kindred, *arguments: str) -> dict[str, float]:
        program = [sys.executable, "-m", "tests.bench.stages", *arguments]
        program += ["--model", MODEL, "--pretrained", str(self.weights)]
        environment = {**os.environ, "KINDRED_BACKEND": contender.backend}
        told = subprocess.run(program, env=environment, check=True, stdout=subprocess.PIPE).stdout
        found: dict[str, float] = json.loads(told)
        return found


def main(
    folder: Annotated[Path, typer.Argument(help="Where pictures, weights and scratch files go.")],
    pictures: Annotated[Path | None, typer.Option(help="A folder of real pictures, instead of drawn ones.")] = None,
    small: Annotated[int, typer.Option(help="How many of 500 x 375; 0 for none.")] = 512,
    large: Annotated[int, typer.Option(help="How many of 12 megapixels; 0 for none.")] = 64,
    mixed: Annotated[bool, typer.Option("--mixed", help="Both in one folder as well.")] = False,
    backends: Annotated[str, typer.Option(help="Of kindred, with commas.")] = "torch,onnx",
    peers: Annotated[
        str, typer.Option(help="Settings of clip-retrieval: batch x workers; p: OpenMP passive.")
    ] = "256x4,32x2",
    peer_venv: Annotated[Path, typer.Option(help="Environment with clip-retrieval.")] = Path(".demo/clip-retrieval"),
    rounds: Annotated[int, typer.Option(min=1, help="How often each takes its turn.")] = 3,
    out: Annotated[Path | None, typer.Option(help="File for the report.")] = None,
) -> None:
    """Measure, and print a report in Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    folder, python = folder.resolve(), peer_python(peer_venv.absolute())
    contenders: list[Contender] = [Kindred(each) for each in backends.split(",")]
    contenders += [_peer(python, each) for each in peers.split(",")]
    bench = Bench(folder, weights(folder), contenders, rounds)
    before = _load()
    tables = [bench.measure(each).markdown() for each in _sets(folder, pictures, small, large, mixed)]
    machine = f"{os.cpu_count()} cores, torch {torch.__version__}, {PEER}; load {before} before, {_load()} after"
    text = "\n".join([f"{machine}; lowest / median / highest of {rounds}.\n", *tables])
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


def _sets(folder: Path, pictures: Path | None, small: int, large: int, mixed: bool) -> list[Path]:
    if pictures is not None:
        return [pictures.resolve()]
    drawn = [take(folder, camera, count) for camera, count in ((SMALL, small), (LARGE, large)) if count]
    return [*drawn, *([mix(folder, drawn)] if mixed else [])]


def weights(folder: Path) -> Path:
    """Return the random weights that both sides load."""
    path = folder / f"{MODEL}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        state = open_clip.create_model(MODEL).state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def _peer(python: Path, settings: str) -> ClipRetrieval:
    batch, workers = settings.removesuffix("p").split("x")
    return ClipRetrieval(python, int(batch), int(workers), passive=settings.endswith("p"))


def _facts(pictures: Path) -> str:
    sizes = [path.stat().st_size for path in pictures.iterdir()]
    return f"{len(sizes):,} pictures of {sum(sizes) / len(sizes) / 1e3:,.0f} kB"


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    typer.run(main)
