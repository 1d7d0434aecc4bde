"""The store: what is published, what is kept, and who may write."""

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from indexer.encoder import EncoderName
from indexer.errors import BuildRunning, CorruptSnapshot, NoSnapshot
from indexer.snapshot import MANIFEST
from indexer.store import SnapshotStore
from tests.snapshots import THUMBNAIL, replace, search, unit_vectors, write_snapshot

HOLD_THE_LOCK = """
import sys
from pathlib import Path
from indexer.store import SnapshotStore

with SnapshotStore(Path(sys.argv[1])).lock():
    print("ready", flush=True)
    sys.stdin.read()
"""

HALF_A_BUILD = """
import sys
from pathlib import Path
from indexer.store import SnapshotStore
from indexer.writer import SnapshotWriter
from tests.snapshots import unit_vectors

store = SnapshotStore(Path(sys.argv[1]))
with store.lock():
    writer = SnapshotWriter(store.start("20990101T000000-000000"), 16)
    writer.add(unit_vectors(0, 16), [])
    print("ready", flush=True)
    sys.stdin.read()
"""

ALL_OF_A_BUILD_BUT_ITS_NAME = """
import sys
from pathlib import Path
from indexer.store import SnapshotStore
from tests.snapshots import unit_vectors, write_snapshot

class Stopped(SnapshotStore):
    def commit(self, building):
        print("ready", flush=True)
        sys.stdin.read()

write_snapshot(Stopped(Path(sys.argv[1])), unit_vectors(9, 16), snapshot_id="20990101T000000-000000")
"""


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """Name a folder that is not there yet."""
    return SnapshotStore(tmp_path / "snapshots")


@contextmanager
def running(program: str, store: SnapshotStore) -> Iterator[subprocess.Popen[str]]:
    """Run another Python until it says that it is ready; kill it in the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(store.folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def write(store: SnapshotStore, number: int, *, publish: bool = True) -> str:
    """Write a small snapshot whose id ends in a number."""
    snapshot_id = f"20260101T000000-{number:06}"
    return write_snapshot(store, unit_vectors(9, 16, seed=number), snapshot_id=snapshot_id, publish=publish)


# Publishing


def test_a_store_without_a_folder_is_empty(store: SnapshotStore) -> None:
    assert store.ids() == []
    assert store.current() is None
    assert store.text_encoder() is None
    assert not store.folder.exists()


def test_what_is_not_published_is_said_in_a_sentence(store: SnapshotStore) -> None:
    with pytest.raises(NoSnapshot, match=r"^Nothing has been published in .*snapshots yet; run .*\.$"):
        store.published()


def test_a_published_snapshot_is_current(store: SnapshotStore) -> None:
    first = write(store, 1)
    assert (store.current(), store.published()) == (first, first)
    second = write(store, 2)
    assert store.current() == second
    assert store.ids() == [second, first]


def test_a_snapshot_is_complete_before_it_is_published(store: SnapshotStore) -> None:
    first, second = write(store, 1), write(store, 2, publish=False)
    assert (store.ids(), store.current()) == ([second, first], first)


@pytest.mark.parametrize("name", ["20990101T000000-000000", "", ".", "..", "../snapshots", "CURRENT", ".building-x"])
def test_an_unknown_snapshot_is_not_opened_or_published(store: SnapshotStore, name: str) -> None:
    first = write(store, 1)
    for action in (store.manifest, store.open, store.publish):
        with pytest.raises(NoSnapshot, match="There is no snapshot"):
            action(name)
    assert store.current() == first


@pytest.mark.parametrize(
    "name", [MANIFEST, "embeddings.npy", "index.faiss", "catalog.sqlite", "thumbnails.bin", "text_map.npy"]
)
def test_publishing_a_damaged_snapshot_leaves_the_old_one_current(store: SnapshotStore, name: str) -> None:
    first, second = write(store, 1), write(store, 2, publish=False)
    path = store.folder / second / name
    replace(path, path.read_bytes()[:-10])
    with pytest.raises(CorruptSnapshot):
        store.publish(second)
    assert store.current() == first
    assert len(store.open(first)) == 9


def test_an_edited_manifest_of_the_current_snapshot_is_corrupt(store: SnapshotStore) -> None:
    first = write(store, 1)
    path = store.folder / first / MANIFEST
    manifest = json.loads(path.read_bytes())
    manifest["options"]["source"] = "/etc"
    replace(path, json.dumps(manifest).encode())
    for action in (store.manifest, store.open, store.publish):
        with pytest.raises(CorruptSnapshot, match="is not the manifest that was published"):
            action(first)


def test_files_of_a_snapshot_may_not_be_written(store: SnapshotStore) -> None:
    folder = store.folder / write(store, 1)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}


@pytest.mark.parametrize("garbage", [b"", b"\n", b"one", b"one two three", b"\xff\xfe\0"])
def test_a_pointer_of_garbage_is_corrupt(store: SnapshotStore, garbage: bytes) -> None:
    first = write(store, 1)
    (store.folder / "CURRENT").write_bytes(garbage)
    for action in (store.current, store.published, store.previous, lambda: store.prune(0)):
        with pytest.raises(CorruptSnapshot, match="CURRENT"):
            action()
    assert store.ids() == [first]


@pytest.mark.parametrize("garbage", [b"", b"one two three", b"\xff\xfe\0"])
def test_publishing_anew_repairs_a_pointer_of_garbage(store: SnapshotStore, garbage: bytes) -> None:
    first = write(store, 1)
    (store.folder / "CURRENT").write_bytes(garbage)
    store.publish(first)
    assert store.current() == first


def test_a_pointer_to_a_snapshot_that_is_gone_is_no_snapshot(store: SnapshotStore) -> None:
    first, second = write(store, 1), write(store, 2)
    shutil.rmtree(store.folder / second)
    with pytest.raises(NoSnapshot, match=second):
        store.open(store.published())
    store.publish(store.previous())
    assert store.current() == first


# Rolling back


def test_each_rollback_goes_one_snapshot_further_back(store: SnapshotStore) -> None:
    ids = [write(store, number) for number in (1, 2, 3)]
    assert store.previous() == ids[1]
    store.publish(ids[1])
    assert store.previous() == ids[0]
    store.publish(ids[0])
    with pytest.raises(NoSnapshot, match=r"no snapshot in .* older than the current one"):
        store.previous()
    assert store.current() == ids[0]


def test_without_a_current_snapshot_there_is_no_previous(store: SnapshotStore) -> None:
    write(store, 1, publish=False)
    with pytest.raises(NoSnapshot, match="Nothing has been published"):
        store.previous()


# Pruning


def test_prune_keeps_the_current_and_the_newest(store: SnapshotStore) -> None:
    ids = [write(store, number) for number in range(5)]
    store.publish(ids[1])
    assert store.prune(2) == [ids[2], ids[0]]
    assert store.ids() == [ids[4], ids[3], ids[1]]
    assert store.current() == ids[1]
    assert store.prune(2) == []
    assert not list(store.folder.glob(".building-*"))


def test_prune_of_all_keeps_the_current(store: SnapshotStore) -> None:
    ids = [write(store, number) for number in range(3)]
    assert sorted(store.prune(0)) == ids[:2]
    assert len(store.open(store.published())) == 9


def test_an_open_snapshot_is_readable_after_it_is_pruned(store: SnapshotStore) -> None:
    first = write(store, 1)
    snapshot = store.open(first)
    write(store, 2)
    assert store.prune(1) == [first]
    vectors = unit_vectors(9, 16, seed=1)
    hits = search(snapshot, vectors[4], 9)
    assert (hits[0].image.row, hits[0].score, len(hits)) == (4, 1.0, 9)
    assert snapshot.thumbnail(hits[0].image) == THUMBNAIL
    assert (snapshot.vector(hits[0].image) == vectors[4]).all()


# Building


def test_a_second_lock_is_refused_and_a_later_one_is_not(store: SnapshotStore) -> None:
    with store.lock(), pytest.raises(BuildRunning, match="Another build is running in"), store.lock():
        pass
    with store.lock():
        pass


def test_the_lock_is_free_after_a_build_that_failed(store: SnapshotStore) -> None:
    with pytest.raises(ZeroDivisionError), store.lock():
        raise ZeroDivisionError
    with store.lock():
        pass


def test_the_lock_of_another_process_is_respected_until_it_is_killed(store: SnapshotStore) -> None:
    write(store, 1)
    with running(HOLD_THE_LOCK, store) as other:
        with pytest.raises(BuildRunning), store.lock():
            pass
        with pytest.raises(BuildRunning):
            store.prune(0)
        assert len(store.open(store.published())) == 9
        other.kill()
        other.wait()
        with store.lock():
            pass


@pytest.mark.parametrize("program", [HALF_A_BUILD, ALL_OF_A_BUILD_BUT_ITS_NAME])
def test_a_killed_build_leaves_nothing_that_counts_and_the_next_removes_it(store: SnapshotStore, program: str) -> None:
    first = write(store, 1)
    with running(program, store) as other:
        assert store.ids() == [first]
        other.kill()
        other.wait()
    assert [path.name for path in store.folder.glob(".building-*")] == [".building-20990101T000000-000000"]
    assert (store.ids(), store.current()) == ([first], first)
    second = write(store, 2)
    assert (store.ids(), store.current()) == ([second, first], second)
    assert not list(store.folder.glob(".building-*"))


def test_start_makes_an_empty_folder_that_is_no_snapshot(store: SnapshotStore) -> None:
    with store.lock():
        folder = store.start("20260101T000000-000001")
    assert list(folder.iterdir()) == []
    (folder / MANIFEST).touch()
    assert store.ids() == []


def test_a_folder_that_cannot_be_opened_never_becomes_a_snapshot(store: SnapshotStore) -> None:
    with store.lock():
        folder = store.start("20260101T000000-000001")
        (folder / MANIFEST).write_text("{}")
        with pytest.raises(CorruptSnapshot):
            store.commit(folder)
    assert store.ids() == []


def test_nothing_but_snapshots_and_the_pointer_is_left(store: SnapshotStore) -> None:
    first = write(store, 1)
    store.set_text_encoder(EncoderName(model="demo"))
    assert {path.name for path in store.folder.iterdir()} - {".lock"} == {first, "CURRENT", "TEXT_ENCODER"}


# The text encoder


@pytest.mark.parametrize(
    "name",
    [
        EncoderName(model="demo"),
        EncoderName(model="ViT-B-32", pretrained="/w.pt"),
        EncoderName(model="local-dir:/ü 日"),
    ],
)
def test_a_text_encoder_is_read_as_it_was_put_in(store: SnapshotStore, name: EncoderName) -> None:
    write(store, 1)
    store.set_text_encoder(name)
    assert store.text_encoder() == name
    store.set_text_encoder(None)
    assert store.text_encoder() is None
    store.set_text_encoder(None)


@pytest.mark.parametrize("garbage", [b"", b"demo", b"{}", b'{"model": "demo", "more": 1}', b"\xff"])
def test_a_text_encoder_of_garbage_is_corrupt(store: SnapshotStore, garbage: bytes) -> None:
    write(store, 1)
    (store.folder / "TEXT_ENCODER").write_bytes(garbage)
    with pytest.raises(CorruptSnapshot, match="TEXT_ENCODER does not name an encoder"):
        store.text_encoder()


def test_many_may_put_in_a_text_encoder_at_once_and_one_of_them_wins(store: SnapshotStore) -> None:
    store.folder.mkdir()
    names = [EncoderName(model=f"model-{number}" * 100) for number in range(8)]

    def put_in(number: int) -> EncoderName | None:
        store.set_text_encoder(names[number % 8])
        return store.text_encoder()

    with ThreadPoolExecutor(8) as pool:
        assert all(name in names for name in pool.map(put_in, range(400)))
    assert [path.name for path in store.folder.iterdir()] == ["TEXT_ENCODER"]
