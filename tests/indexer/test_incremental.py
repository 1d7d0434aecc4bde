"""A build does only what is left to do: after an earlier build, and after one that was interrupted."""

import hashlib
import os
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.build import BuildReport, Run, build, forecast
from indexer.encoder import Encoder
from indexer.encoding import LocalExecutor, Work
from indexer.errors import BuildError, BuildInterrupted, CorruptShard, Reason
from indexer.images import DecodePolicy
from indexer.plan import image_id
from indexer.progress import ProgressStyle, reporter
from indexer.shards import Shard, ShardFile
from indexer.snapshot import BuildOptions, Manifest, Snapshot
from indexer.store import SnapshotStore
from indexer.workers import Limits
from tests.conftest import POLICY, local_run

OLD = 1_700_000_000


def run_build(source: Path, snapshots: Path, encoder: Encoder, run: Run | None = None) -> BuildReport:
    options = BuildOptions(sources=(str(source),), labels="parent")
    shown = reporter(ProgressStyle.PLAIN)
    return build(options, SnapshotStore(snapshots), encoder, POLICY, run or local_run(encoder, shard_size=4), shown)


def opened(snapshots: Path) -> Snapshot:
    store = SnapshotStore(snapshots)
    return store.open(store.published())


def settled(source: Path) -> None:
    """Have every file look as if it was written long ago: the time of one just written is not trusted."""
    for path in source.rglob("*"):
        os.utime(path, (OLD, OLD))


def told(report: BuildReport) -> dict[str, int]:
    names = ("new", "changed", "moved", "unchanged", "deleted", "skipped")
    return {name: count for name in names if (count := getattr(report.plan, name))}


def hashes(manifest: Manifest) -> dict[str, str]:
    return {name: facts.sha256 for name, facts in manifest.files.items()}


class Stopping:
    """Runs a build's shards, and asks it to stop after the first."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.shards: list[str] = []

    def __call__(self, work: Work, shards: Iterable[Shard], stop: threading.Event) -> Iterator[ShardFile]:
        for file in self.run.executor(work, shards, stop):
            self.shards.append(file.shard_id)
            yield file
            stop.set()


def test_what_happened_to_each_picture_is_reported(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    settled(source)
    assert told(run_build(source, tmp_path / "s", encoder)) == {"new": 25}
    Image.new("RGB", (9, 9), "white").save(source / "red" / "white.png")
    shutil.copy(source / "red" / "1.png", source / "blue" / "1.png")
    (source / "green" / "1.png").rename(source / "red" / "moved.png")
    (source / "blue" / "0.png").unlink()
    os.utime(source / "red" / "2.png", (OLD + 5, OLD + 5))
    report = run_build(source, tmp_path / "s", encoder)
    assert told(report) == {"new": 1, "changed": 1, "moved": 1, "unchanged": 21, "deleted": 1, "skipped": 1}
    # The changed one has the content of another by now, and the table was known to be no picture.
    assert (report.encoded, report.reused, report.skipped) == (1, 23, Counter({Reason.NOT_AN_IMAGE: 1}))


def test_an_unchanged_picture_is_not_even_read(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    settled(source)
    run_build(source, tmp_path / "s", encoder)
    before = opened(tmp_path / "s")
    picture = source / "red" / "0.png"
    picture.write_bytes(bytes(picture.stat().st_size))
    os.utime(picture, (OLD, OLD))
    assert told(run_build(source, tmp_path / "s", encoder))["unchanged"] == 24
    np.testing.assert_array_equal(opened(tmp_path / "s").embeddings, before.embeddings)


def test_a_picture_written_just_now_is_read_again_whatever_its_time_says(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    picture = source / "red" / "0.png"
    run_build(source, tmp_path / "s", encoder)
    time = picture.stat().st_mtime_ns
    picture.write_bytes((source / "blue" / "0.png").read_bytes().ljust(picture.stat().st_size, b"\0"))
    os.utime(picture, ns=(time, time))
    run_build(source, tmp_path / "s", encoder)
    image = opened(tmp_path / "s").catalog.get(image_id("red/0.png"))
    assert image is not None
    assert image.content_hash == hashlib.sha256(picture.read_bytes()).hexdigest()


def test_a_bad_picture_is_known_until_it_is_asked_for_or_changes(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    (source / "red" / "page.jpg").write_text("<html>")
    settled(source)
    run_build(source, tmp_path / "s", encoder)
    assert told(run_build(source, tmp_path / "s", encoder)) == {"unchanged": 24, "skipped": 2}
    run = local_run(encoder)
    again = Run(run.executor, retry=frozenset({Reason.NOT_AN_IMAGE}))
    report = run_build(source, tmp_path / "s", encoder, again)
    assert told(report) == {"new": 2, "unchanged": 24}
    assert report.skipped == Counter({Reason.NOT_AN_IMAGE: 2})
    shutil.copy(source / "red" / "0.png", source / "red" / "page.jpg")
    assert run_build(source, tmp_path / "s", encoder).manifest.count == 25


def test_a_picture_that_takes_too_much_is_left_out_until_it_is_asked_for(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    Image.new("L", (10_000, 10_000)).save(source / "red" / "vast.png", compress_level=1)
    settled(source)
    options = BuildOptions(sources=(str(source / "red"),))
    policy = DecodePolicy(POLICY.max_bytes, 200_000_000)

    def run(memory: int, retry: frozenset[Reason] = frozenset()) -> BuildReport:
        executor = LocalExecutor(lambda _: [encoder], 2, Limits(cpu_seconds=60, wall_seconds=240, memory_bytes=memory))
        shown = reporter(ProgressStyle.PLAIN)
        return build(options, SnapshotStore(tmp_path / "s"), encoder, policy, Run(executor, retry=retry), shown)

    assert run(200 * 2**20).skipped == Counter({Reason.TOO_MUCH_MEMORY: 1})
    assert told(run(2 * 2**30)) == {"unchanged": 8, "skipped": 1}
    assert run(2 * 2**30, frozenset({Reason.TOO_MUCH_MEMORY})).manifest.count == 9


def test_an_interrupted_build_goes_on_and_comes_out_the_same_bit_for_bit(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    shutil.copy(source / "red" / "0.png", source / "blue" / "copy.png")
    settled(source)
    whole = run_build(source, tmp_path / "whole", encoder)
    done: list[str] = []
    report = None
    while report is None:
        stopping = Stopping(local_run(encoder, shard_size=4))
        with suppress(BuildInterrupted):
            report = run_build(source, tmp_path / "s", encoder, Run(stopping, shard_size=4))
        assert stopping.shards
        assert report or SnapshotStore(tmp_path / "s").current() is None
        done += stopping.shards
    assert len(done) == len(set(done)) == whole.plan.shards
    assert report.resumed > 0
    assert (report.encoded, report.reused) == (whole.encoded, whole.reused) == (24, 1)
    assert hashes(report.manifest) == hashes(whole.manifest)
    assert not (tmp_path / "s" / ".work").exists()


def test_a_picture_that_changes_during_an_interruption_is_seen(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    settled(source)
    stopping = Stopping(local_run(encoder, shard_size=4))
    with pytest.raises(BuildInterrupted, match="The same command goes on from there"):
        run_build(source, tmp_path / "s", encoder, Run(stopping, shard_size=4))
    for path in source.rglob("*.png"):
        Image.new("RGB", (40, 40), (len(path.name), int(path.stem) * 9, len(path.parent.name) * 20)).save(path)
    run_build(source, tmp_path / "s", encoder)
    snapshot = opened(tmp_path / "s")
    for image in snapshot.catalog.rows(range(24)):
        assert image.content_hash == hashlib.sha256((source / image.path).read_bytes()).hexdigest()


def test_unfinished_work_of_one_source_is_not_taken_for_that_of_another(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other)
    # Of the same names and sizes, and without stamps, since each is written just before its build.
    for path in source.rglob("*.png"):
        path.write_bytes(path.read_bytes().ljust(9_000, b"0"))
    stopping = Stopping(local_run(encoder, shard_size=4))
    with pytest.raises(BuildInterrupted):
        run_build(source, tmp_path / "s", encoder, Run(stopping, shard_size=4))
    for path in other.rglob("*.png"):
        path.write_bytes((source / "red" / "0.png").read_bytes()[:-1] + b"1")
    assert run_build(other, tmp_path / "s", encoder, local_run(encoder, shard_size=4)).resumed == 0
    snapshot = opened(tmp_path / "s")
    for image in snapshot.catalog.rows(range(len(snapshot))):
        assert image.content_hash == hashlib.sha256((other / image.path).read_bytes()).hexdigest()


def test_a_damaged_shard_is_done_again(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    settled(source)
    stopping = Stopping(local_run(encoder, shard_size=4))
    with pytest.raises(BuildInterrupted):
        run_build(source, tmp_path / "s", encoder, Run(stopping, shard_size=4))
    file = tmp_path / "s" / ".work" / "shards" / f"{stopping.shards[0]}.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptShard, match="Run the same command again"):
        run_build(source, tmp_path / "s", encoder)
    assert run_build(source, tmp_path / "s", encoder).manifest.count == 24


def test_a_forecast_changes_nothing(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    settled(source)
    options = BuildOptions(sources=(str(source),), labels="parent")
    store, shown = SnapshotStore(tmp_path / "s"), reporter(ProgressStyle.PLAIN)
    seen = forecast(options, store, encoder, POLICY, local_run(encoder, shard_size=4), shown)
    assert (seen.plan.new, seen.plan.work, seen.resumed, store.ids()) == (25, 25, 0, [])
    assert seen.seconds > 0
    report = run_build(source, tmp_path / "s", encoder)
    written = sum(facts.size for facts in report.manifest.files.values())
    assert written / 10 < seen.disk < written * 10
    again = forecast(options, store, encoder, POLICY, local_run(encoder, shard_size=4), shown)
    assert (again.plan.unchanged, again.plan.work, again.seconds) == (24, 0, 0)
    assert store.ids() == [report.manifest.id]


def test_a_build_that_has_published_needs_no_more_room(
    source: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, publish, others = SnapshotStore(tmp_path / "s"), SnapshotStore.publish, list[sqlite3.Connection]()

    def publish_and_fill(self: SnapshotStore, snapshot_id: str, *, verified: bool = False) -> None:
        publish(self, snapshot_id, verified=verified)
        # A database that another holds refuses to be written to, as one on a full disk does.
        others.append(sqlite3.connect(tmp_path / "s" / ".work" / "journal.sqlite", isolation_level=None))
        others[0].execute("BEGIN IMMEDIATE")

    monkeypatch.setattr(SnapshotStore, "publish", publish_and_fill)
    try:
        assert run_build(source, store.folder, encoder).manifest.id == store.published()
    finally:
        others[0].close()
    assert {path.name for path in store.folder.iterdir()} == {store.published(), "CURRENT", ".lock"}


def test_a_disk_that_would_not_hold_the_snapshot_is_named_before_a_picture_is_read(
    source: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000))
    with pytest.raises(BuildError, match=r"needs about [\d,]+ bytes and .* has 1,000 free"):
        run_build(source, tmp_path / "s", encoder)


def test_several_sources_make_one_snapshot(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    table = tmp_path / "more.jsonl"
    table.write_text(f'{{"path": "{source}/red/0.png", "key": "first", "label": "mine"}}\n')
    options = BuildOptions(sources=(str(source), f"again={source / 'blue'}", str(table)))
    store = SnapshotStore(tmp_path / "s")
    build(options, store, encoder, POLICY, local_run(encoder), reporter(ProgressStyle.PLAIN))
    snapshot = opened(tmp_path / "s")
    images = snapshot.catalog.rows(range(len(snapshot)))
    assert Counter(image.source for image in images) == {0: 24, 1: 8, 2: 1}
    assert (images[-1].path, images[-1].label) == ("first", "mine")
    named = snapshot.catalog.get(image_id("again/0.png"))
    assert named is not None
    assert snapshot.original(named, POLICY) == (source / "blue" / "0.png").read_bytes()
    assert snapshot.original(images[-1], POLICY) == (source / "red" / "0.png").read_bytes()
