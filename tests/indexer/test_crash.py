"""Builds that are killed, or whose disk fails them, lose nothing; the whole programme is `make crash-test`."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.encoder import Encoder, EncoderName
from tests.crash.checks import Encoding
from tests.crash.collection import Collection
from tests.crash.disk import Shortages
from tests.crash.exclusion import second_writers
from tests.crash.faults import durable, sweep
from tests.crash.forks import Forks
from tests.crash.kills import Job, kill_at_random
from tests.crash.scenarios import Scenarios
from tests.crash.shim import compile_shim

OPTIONS = ("--shard-size", "4", "--near-duplicates", "0")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory, model: EncoderName, shim: Path | None) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("said"), model.model, shim) as forks:
        yield forks


@pytest.fixture
def job(forks: Forks, model: EncoderName, tmp_path: Path) -> Job:
    return Job(forks, Collection(tmp_path / "pictures", 24, 0), model.model, OPTIONS)


@pytest.fixture
def encoding(encoder: Encoder) -> Encoding:
    return Encoding(encoder)


def test_builds_killed_at_random_lose_double_and_tear_nothing(job: Job, encoding: Encoding, tmp_path: Path) -> None:
    tally = kill_at_random(job, encoding, tmp_path, kills=15, seed=0)
    assert tally.violations == []
    assert tally.kills == 15
    assert tally.opened > 0


def test_a_build_killed_or_failed_at_any_sync_or_rename_is_made_good(
    forks: Forks, shim: Path | None, model: EncoderName, encoding: Encoding, tmp_path: Path
) -> None:
    if shim is None:
        pytest.skip("there is no C compiler (cc)")
    job = Job(forks, Collection(tmp_path / "pictures", 6, 0), model.model, OPTIONS)
    told = sweep(forks, Scenarios(job, encoding, tmp_path).first(), tmp_path, ("kill-after", "eio"), durable)
    assert told.violations == []
    assert told.points > 20
    assert {action for action, _ in told.outcomes} == {"kill-after", "eio"}


def test_a_second_writer_is_refused_and_a_dead_one_hinders_nobody(job: Job, encoding: Encoding, tmp_path: Path) -> None:
    assert second_writers(job, encoding, tmp_path / "snapshots") == []


def test_a_limit_of_file_sizes_ends_a_build_with_a_reason(job: Job, encoding: Encoding, tmp_path: Path) -> None:
    told = Shortages(job, encoding, tmp_path).limited_files(tmp_path, 4, random.Random(0))
    assert told.violations == []
    assert told.outcomes["stopped with a reason"] > 0
