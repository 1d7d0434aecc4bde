"""A disk that fills up during a build: a reason, the old snapshot as it was, and a resume once there is room."""

import random
from pathlib import Path

import pytest

from indexer.encoder import Encoder, EncoderName
from tests.crash.checks import Encoding
from tests.crash.collection import Collection
from tests.crash.disk import Shortages, full_disks
from tests.crash.forks import Forks
from tests.crash.kills import Job
from tests.trust.figures import LONG, noted, sized

pytestmark = LONG

SEED = 5


def test_a_build_on_a_disk_that_fills_up_stops_with_a_reason_and_resumes(model: EncoderName, tmp_path: Path) -> None:
    told = full_disks(tmp_path / "disks", model.model, sized(10, 20, 200), SEED)
    if told is None:
        pytest.skip("the kernel permits no namespaces of one's own, so that no small disk can be mounted")
    assert told.violations == []
    assert told.outcomes["stopped with a reason"] > 0
    assert told.outcomes["failed"] == 0
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(told.outcomes.items()))
    noted(promise="R5", figure=f"{told.cases} sizes of what was left on a tmpfs: {outcomes}; all resumed", seed=SEED)


def test_a_build_whose_files_may_not_grow_stops_with_a_reason_and_resumes(
    model: EncoderName, encoder: Encoder, tmp_path: Path
) -> None:
    with Forks(tmp_path / "said", model.model) as forks:
        job = Job(forks, Collection(tmp_path / "pictures", 24, SEED), model.model, ("--near-duplicates", "0"))
        shortages = Shortages(job, Encoding(encoder), tmp_path)
        told = shortages.limited_files(tmp_path, sized(4, 10, 200), random.Random(SEED))
    assert told.violations == []
    assert told.outcomes["failed"] == 0
    figure = f"{told.cases} limits of file sizes: {told.outcomes['stopped with a reason']} stopped with a reason"
    noted(promise="R5", figure=figure + "; all resumed", seed=SEED)
