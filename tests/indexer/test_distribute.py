"""A build on the machines of a Ray cluster: the one of a single machine, whatever becomes of the others."""

import importlib.util
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from indexer.build import BuildReport, Run, build
from indexer.distribute import RayExecutor
from indexer.encoder import Encoder, EncoderName
from indexer.encoding import Work
from indexer.errors import BuildError, BuildInterrupted, EncoderMismatch, Reason
from indexer.node import Errand, MappedRows, Node, can_read
from indexer.preparing import Preparer
from indexer.progress import ProgressStyle, reporter
from indexer.shards import Shard, ShardFile, ShardFolder, WorkItem
from indexer.snapshot import BuildOptions, Snapshot
from indexer.sources.folder import FolderSource
from indexer.store import SnapshotStore
from tests.conftest import LIMITS, POLICY, local_run
from tests.nodes import load_held, load_mean, started_cluster

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (kindred[ray])")

SHARD_SIZE = 6


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start the head of a cluster."""
    with started_cluster() as cluster:
        yield cluster


@pytest.fixture
def nodes(cluster: Any) -> list[Any]:
    """Return two nodes of that cluster, of one core each."""
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1)
    return list(cluster.worker_nodes)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Draw 60 pictures, one of them twice, and put an empty and a damaged file beside them."""
    random = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    for number in range(60):
        path = folder / f"{number % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    shutil.copy(folder / "0" / "0.png", folder / "3" / "copy.png")
    (folder / "1" / "empty.png").touch()
    (folder / "2" / "half.png").write_bytes((folder / "2" / "2.png").read_bytes()[:2000])
    for path in folder.rglob("*.png"):
        os.utime(path, (10**9, 10**9))  # the time of change of a file just written is not trusted
    return folder


def run_build(collection: Path, snapshots: Path, encoder: Encoder, run: Run) -> BuildReport:
    options = BuildOptions(sources=(str(collection),), labels="parent")
    return build(options, SnapshotStore(snapshots), encoder, POLICY, run, reporter(ProgressStyle.PLAIN))


def hashes(report: BuildReport) -> dict[str, str]:
    return {name: facts.sha256 for name, facts in report.manifest.files.items()}


def until(found: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_ray
def test_a_build_that_loses_a_node_and_gains_another_is_that_of_one_machine(
    cluster: Any,
    nodes: list[Any],
    collection: Path,
    tmp_path: Path,
    model: EncoderName,
    encoder: Encoder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    (watched / "held").touch()

    load = partial(load_held, model, watched)
    executor = RayExecutor(encoder.spec, load, LIMITS, workers=1, threads=1, address=cluster.address)
    run = Run(executor, shard_size=SHARD_SIZE)
    # Ray adds nodes in the main thread only.
    with ThreadPoolExecutor(1) as thread:
        building = thread.submit(run_build, collection, tmp_path / "many", encoder, run)
        try:
            until(lambda: all((watched / node.node_id).exists() for node in nodes))
            cluster.remove_node(nodes[0], allow_graceful=False)
            late = cluster.add_node(num_cpus=1)
            until((watched / late.node_id).exists)
        finally:
            (watched / "held").unlink()
        report = building.result()
    out, err = capsys.readouterr()
    assert out == ""
    assert "encode: 63 of 63" in err
    assert report.plan.shards > 6
    assert (report.encoded, report.skipped) == (60, {Reason.EMPTY: 1, Reason.UNREADABLE: 1})
    expected = run_build(collection, tmp_path / "one", encoder, local_run(encoder, SHARD_SIZE))
    assert hashes(report) == hashes(expected)
    processes = [Path("/proc") / path.read_text() for path in watched.iterdir()]
    assert len(processes) == 3
    until(lambda: not any(process.exists() for process in processes))


@needs_ray
def test_told_to_stop_it_finishes_what_is_in_hand_and_begins_nothing(
    cluster: Any, nodes: list[Any], collection: Path, tmp_path: Path, encoder: Encoder
) -> None:
    load = partial(load_mean, encoder.spec)
    executor = RayExecutor(encoder.spec, load, LIMITS, workers=1, address=cluster.address)
    drawn: list[str] = []
    finished: list[str] = []

    def draw(shards: Iterable[Shard]) -> Iterator[Shard]:
        for shard in shards:
            drawn.append(shard.id)
            yield shard

    def stopped_after_the_first(work: Work, shards: Iterable[Shard], stop: threading.Event) -> Iterator[ShardFile]:
        for done in executor(work, draw(shards), stop):
            stop.set()
            finished.append(done.shard_id)
            yield done

    with pytest.raises(BuildInterrupted):
        run_build(collection, tmp_path / "many", encoder, Run(stopped_after_the_first, shard_size=SHARD_SIZE))
    assert set(finished) == set(drawn[:-1])  # one is drawn ahead
    assert 1 <= len(finished) <= 2 * len(nodes)


@needs_ray
def test_pictures_that_no_encoder_survives_end_the_build_and_are_named(
    cluster: Any, nodes: list[Any], collection: Path, tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    load = partial(load_mean, encoder.spec, dies=True)
    executor = RayExecutor(encoder.spec, load, LIMITS, workers=1, address=cluster.address)
    with pytest.raises(BuildError, match=r"3 encoders .* were given the pictures from 0/0.png to 3/copy.png.* died"):
        run_build(collection, tmp_path / "many", encoder, Run(executor, shard_size=1000))
    assert len(caplog.records) == 3
    assert nodes


@needs_ray
def test_a_node_with_another_encoder_ends_the_build(
    cluster: Any, nodes: list[Any], collection: Path, tmp_path: Path, encoder: Encoder
) -> None:
    load = partial(load_mean, encoder.spec.model_copy(update={"image": "f" * 64}))
    executor = RayExecutor(encoder.spec, load, LIMITS, workers=1, address=cluster.address)
    with pytest.raises(EncoderMismatch, match=rf"image is {'f' * 64}, not {encoder.spec.image}.*the same files"):
        run_build(collection, tmp_path / "many", encoder, Run(executor, shard_size=SHARD_SIZE))
    assert nodes


@needs_ray
def test_where_no_cluster_is_it_says_how_to_start_one(collection: Path, tmp_path: Path, encoder: Encoder) -> None:
    executor = RayExecutor(encoder.spec, partial(load_mean, encoder.spec), LIMITS, address="nowhere")
    with pytest.raises(BuildError, match=r"No Ray cluster can be joined at nowhere; `ray start --head` starts one"):
        run_build(collection, tmp_path / "many", encoder, Run(executor))


def test_without_ray_it_says_how_to_install_it(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BuildError, match=r"pip install 'kindred\[ray\]'"):
        RayExecutor(encoder.spec, partial(load_mean, encoder.spec), LIMITS)


@pytest.fixture
def errand(encoder: Encoder, snapshots: Path, source: Path, tmp_path: Path) -> Errand:
    """Describe a build on top of an earlier snapshot."""
    store = SnapshotStore(snapshots)
    finished = ShardFolder(tmp_path)
    finished.write("probe", b"seen")
    return Errand(
        spec=encoder.spec,
        load=partial(load_mean, encoder.spec),
        threads=1,
        limits=LIMITS,
        workers=1,
        preparer=Preparer([FolderSource(source)], POLICY, encoder.preprocess, None),
        store=finished,
        probe=b"seen",
        earlier=store.folder / store.published(),
    )


def test_a_node_that_does_not_see_finished_work_says_so(errand: Errand, tmp_path: Path) -> None:
    for store in (ShardFolder(tmp_path / "elsewhere"), errand.store):
        node = Node(replace(errand, store=store, probe=b"another build's"), "10.0.0.2", 1)
        with pytest.raises(
            BuildError, match=r"10\.0\.0\.2 .* does not see where this machine keeps finished work .*share"
        ):
            node.open()


def test_a_node_that_does_not_see_the_earlier_snapshot_says_so(errand: Errand, tmp_path: Path) -> None:
    node = Node(replace(errand, earlier=tmp_path / "elsewhere"), "10.0.0.2", 1)
    with pytest.raises(BuildError, match=r"10\.0\.0\.2 .* does not see the snapshot .*elsewhere.*No such file"):
        node.open()


def test_a_node_that_cannot_read_a_picture_that_the_build_can_says_so(errand: Errand, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shard = Shard("0", (WorkItem("red/0.png", 0, "red/0.png"),))
    assert can_read(errand.preparer, shard)
    unmounted = Preparer([FolderSource(tmp_path / "empty")], POLICY, lambda _: np.zeros((3, 8, 8), np.uint8), None)
    with pytest.raises(BuildError, match=r"10\.0\.0\.2 .* cannot read red/0\.png, as this machine can"):
        Node(replace(errand, preparer=unmounted), "10.0.0.2", 1).encode(shard, readable=True)


def test_a_node_reads_of_the_earlier_snapshot_what_it_holds(errand: Errand) -> None:
    assert errand.earlier
    earlier = Snapshot.open(errand.earlier)
    seen = MappedRows.open(errand.earlier)
    for image in earlier.catalog.rows([0, 13, 23]):
        np.testing.assert_array_equal(seen.vector(image), earlier.vector(image))
        assert seen.thumbnail(image) == earlier.thumbnail(image)
