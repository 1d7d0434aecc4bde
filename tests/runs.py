"""Small fine-tuning runs: in this process, in a child, or in several that torchrun starts.

`python -m tests.runs RUN …` makes runs one after another, each told as JSON; with `--together`, all at once, each in a
process that can be killed.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel
from safetensors.numpy import load_file

from indexer.encoder import EncoderName
from indexer.finetune.export import WEIGHTS
from indexer.finetune.recipes import Recipe, RunConfig
from indexer.finetune.run import TrainingData, finetune
from indexer.progress import ProgressStyle, reporter
from indexer.samples import Samples, load_samples
from indexer.torch_runtime import torch
from tests.pictures import POLICY

# Large enough to change every weight in a few steps; AdamW's divisor is kept from blowing up what rounding leaves.
SCHEDULE = {"epochs": 3, "batch": 8, "learning_rate": 1e-3, "eps": 1e-3}


class Run(BaseModel):
    """A run as a child process is told it."""

    config: RunConfig
    base: EncoderName
    table: Path
    out: Path

    def make(self) -> EncoderName | None:
        """Tune the model."""
        # One thread sums in one order, in every process.
        torch.set_num_threads(1)
        return tune(self.config, self.base, load_samples(self.table, None, POLICY), self.out)


def tune(
    config: RunConfig, base: EncoderName, samples: Samples, out: Path, pairs: Samples | None = None
) -> EncoderName | None:
    """Tune a model on samples, those of `pairs` for Re-A."""
    data = TrainingData(samples, samples if pairs is None else pairs, {})
    return finetune(config, base, data, out, "cpu", reporter(ProgressStyle.PLAIN))


def config(recipe: Recipe, *, schedule: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    """Return settings under which a small model learns a little, and soon; `schedule` changes each stage's."""
    stage = {**SCHEDULE, **(schedule or {})}
    return RunConfig.model_validate({"recipe": recipe, **dict.fromkeys(("image", "text", "both"), stage), **settings})


def write_pictures(folder: Path, captions: int = 2) -> Path:
    """Write 24 noisy pictures of three labels, and a table that gives each as many captions as asked."""
    rng = np.random.default_rng(0)
    rows = []
    for label, colour in (("red", (220, 30, 30)), ("green", (30, 180, 40)), ("blue", (40, 60, 210))):
        (folder / label).mkdir(parents=True)
        for number in range(8):
            pixels = np.clip(np.array(colour) + rng.integers(-60, 60, (32, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
            said = [f"{label} picture number {number}", f"a {label} picture"][:captions]
            rows.append(json.dumps({"path": f"{label}/{number}.png", "label": label, "captions": said}))
    table = folder / "table.jsonl"
    table.write_text("\n".join(rows) + "\n")
    return table


def start(runs: list[Run], *, torchrun: int = 0, together: bool = False) -> subprocess.Popen[str]:
    """Start a child that makes runs, with as many processes of torchrun's as asked; all that it says is piped."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(torchrun)] if torchrun else []
    options = ["--together"] if together else []
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "tests.runs", *options, *(run.model_dump_json() for run in runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def weights(out: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights that a run has exported."""
    found: dict[str, np.ndarray[Any, Any]] = load_file(out / "model" / WEIGHTS)
    return found


def same(ours: dict[str, np.ndarray[Any, Any]], theirs: dict[str, np.ndarray[Any, Any]]) -> set[str]:
    """Return the names of the weights that are equal bit for bit."""
    assert ours.keys() == theirs.keys()
    return {name for name, value in ours.items() if value.tobytes() == theirs[name].tobytes()}


def losses(out: Path) -> list[dict[str, Any]]:
    """Return what a run has written of its losses, step by step."""
    return [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]


def _make_together(runs: list[Run]) -> None:
    """Make each run in a process of its own, and tell their numbers; they are forked to import torch but once."""
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=run.make) for run in runs]
    for child in children:
        child.start()
    sys.stdout.write(" ".join(str(child.pid) for child in children) + "\n")
    sys.stdout.flush()
    for child in children:
        child.join()


if __name__ == "__main__":
    together = sys.argv[1] == "--together"
    told = [Run.model_validate_json(argument) for argument in sys.argv[1 + together :]]
    if together:
        _make_together(told)
    else:
        for each in told:
            each.make()
