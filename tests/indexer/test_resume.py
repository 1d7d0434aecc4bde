"""Runs that are killed go on as if they had not been, and no run overwrites another."""

import os
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from indexer.encoder import EncoderName
from indexer.errors import TrainingError
from indexer.finetune import checkpoint
from indexer.finetune.export import WEIGHTS
from indexer.finetune.recipes import Recipe
from indexer.samples import Samples
from tests import runs
from tests.models import new_model, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = runs.config(Recipe.MCIP_RE_A, schedule={"epochs": 12}, checkpoint_steps=4, ema=0.9, balanced=True)
KILLED = {"first": (0, LONG), "second": (1, LONG), "workers": (0, LONG.model_copy(update={"workers": 1}))}


@pytest.fixture(scope="module")
def uninterrupted(samples: Samples, model: EncoderName, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    runs.tune(LONG, model, samples, out)
    return out


@pytest.fixture(scope="module")
def killed(table: Path, model: EncoderName, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make runs in processes of their own, and kill each in the wanted stage, after some steps."""
    folder = tmp_path_factory.mktemp("killed")
    waiting = {name: stage for name, (stage, _) in KILLED.items()}
    told = [runs.Run(config=config, base=model, table=table, out=folder / name) for name, (_, config) in KILLED.items()]
    with runs.start(told, together=True) as child:
        assert child.stdout is not None
        numbers = dict(zip(KILLED, map(int, child.stdout.readline().split()), strict=True))
        deadline = time.monotonic() + 120
        while waiting:
            for name, stage in list(waiting.items()):
                reached = checkpoint.load(folder / name / "checkpoint.pt")
                if reached.stage == stage and reached.step > 6:
                    os.kill(numbers[name], signal.SIGKILL)
                    del waiting[name]
            assert time.monotonic() < deadline
            time.sleep(0.02)
    return folder


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # what DataLoader does, from Python 3.12 on
@pytest.mark.parametrize("name", KILLED)
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    killed: Path, uninterrupted: Path, samples: Samples, model: EncoderName, tmp_path: Path, name: str
) -> None:
    out, (stage, config) = tmp_path / "run", KILLED[name]
    shutil.copytree(killed / name, out)
    reached = checkpoint.load(out / "checkpoint.pt")
    assert (reached.stage, reached.step < 36, len(reached.losses)) == (stage, True, stage + 1)
    # What a kill in the midst of writing leaves behind.
    (out / "checkpoint.pt.part").write_bytes(b"half a checkpoint")
    (out / "model").mkdir()
    (out / "model" / f"{WEIGHTS}.part").write_bytes(b"half a model")
    runs.tune(config, model, samples, out)
    assert (out / "model" / WEIGHTS).read_bytes() == (uninterrupted / "model" / WEIGHTS).read_bytes()
    assert (out / "losses.jsonl").read_bytes() == (uninterrupted / "losses.jsonl").read_bytes()
    assert (out / "losses.svg").read_bytes() == (uninterrupted / "losses.svg").read_bytes()
    assert not (out / "checkpoint.pt").exists()


def test_checkpoints_are_taken_as_often_as_asked(killed: Path) -> None:
    for name in KILLED:
        assert checkpoint.load(killed / name / "checkpoint.pt").step % 4 == 0


def test_a_damaged_checkpoint_is_refused(killed: Path, samples: Samples, model: EncoderName, tmp_path: Path) -> None:
    shutil.copytree(killed / "first", tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt is damaged"):
        runs.tune(LONG, model, samples, tmp_path / "run")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_never_overwrites_another(
    killed: Path, uninterrupted: Path, samples: Samples, model: EncoderName, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    other = EncoderName(model=save_model(tmp_path / "other", new_model(9)))
    moved = samples.relabelled([b.label for _, b in pairwise([*samples, samples[0]])])
    refused = [
        (uninterrupted, LONG, model, samples, "holds a run that has ended"),
        (uninterrupted, runs.config(Recipe.GPR_FT), model, samples, "holds a run that has ended"),
        (foreign, LONG, model, samples, "is not empty and holds no run"),
        (killed / "first", LONG.model_copy(update={"seed": 1}), model, samples, "holds another run"),
        (killed / "first", LONG, other, samples, "holds another run"),
        (killed / "first", LONG, model, moved, "holds another run"),
    ]
    for out, config, base_name, data, said in refused:
        before = files(out)
        with pytest.raises(TrainingError, match=said):
            runs.tune(config, base_name, data, out)
        assert files(out) == before
