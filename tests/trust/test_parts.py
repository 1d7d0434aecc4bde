"""A part of a running service fails: what is left of it answers, as the table in service/README.md says."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from indexer.encoder import Encoder, EncoderName, load_encoder
from indexer.errors import NoGpu
from indexer.gpu_index import GpuIndex, on_gpu
from indexer.store import SnapshotStore
from tests.conftest import build_snapshot
from tests.models import new_model, save_model
from tests.trust.figures import noted

LOCKS = """
import sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=rw", uri=True, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


def searched(client: TestClient) -> str:
    """Search, and return the snapshot that answered."""
    answer = client.post("/v1/search", json={"query": "a red picture"})
    assert (answer.status_code, len(answer.json()["results"]) > 0) == (200, True), answer.text
    assert client.get("/readyz").status_code == 200
    return str(answer.json()["index"]["snapshot"])


def without(path: Path) -> None:
    """Take a file away, and leave a folder in its place: nobody can read that, not even root."""
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["catalog.sqlite", "thumbnails.bin", "index.faiss", "manifest.json"])
def test_a_part_that_cannot_be_read_at_a_reload_leaves_the_last_good_snapshot(
    client: TestClient, source: Path, snapshots: Path, encoder: Encoder, name: str
) -> None:
    good = searched(client)
    live = client.app.state.live  # type: ignore[attr-defined]
    with live._lock:
        bad = build_snapshot(source, snapshots, encoder).manifest.id
        without(snapshots / bad / name)
    live.refresh()
    assert searched(client) == good
    assert name in live.refused or bad in live.refused
    SnapshotStore(snapshots).publish(good)
    live.refresh()
    assert live.refused is None
    noted(promise="R26", figure=f"{name} unreadable at a reload: refused, the last good one answers")


def test_a_catalogue_that_another_process_has_locked_is_read_all_the_same(
    client: TestClient, source: Path, snapshots: Path, encoder: Encoder
) -> None:
    live = client.app.state.live  # type: ignore[attr-defined]
    with live._lock:
        new = build_snapshot(source, snapshots, encoder).manifest.id
        catalogue = snapshots / new / "catalog.sqlite"
        catalogue.chmod(0o644)
        command = [sys.executable, "-c", LOCKS, str(catalogue)]
        locker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with locker:
        assert locker.stdout
        assert locker.stdout.readline() == "locked\n"
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            sqlite3.connect(catalogue, timeout=0, isolation_level=None).execute("BEGIN EXCLUSIVE")
        live.refresh()
        assert (searched(client), live.refused) == (new, None)
        locker.kill()
    noted(promise="R26", figure="catalogue locked by another process at a reload: served, since it never changes")


def test_a_snapshot_whose_model_is_gone_is_refused_and_the_last_good_one_answers(
    client: TestClient, source: Path, snapshots: Path, tmp_path: Path
) -> None:
    good = searched(client)
    name = EncoderName(model=save_model(tmp_path / "other", new_model(5)))
    other = load_encoder(name, device="cpu", threads=1)
    live = client.app.state.live  # type: ignore[attr-defined]
    with live._lock:
        build_snapshot(source, snapshots, other)
        shutil.rmtree(tmp_path / "other")
    live.refresh()
    assert searched(client) == good
    assert str(tmp_path / "other") in live.refused
    noted(promise="R26", figure="model gone at a reload: refused by name, the last good one answers")


DISAPPEAR: dict[str, Callable[[Path], object]] = {
    "every file of the served snapshot is deleted": shutil.rmtree,
    "its folder is moved away": lambda folder: folder.rename(folder.with_name("moved")),
}


@pytest.mark.parametrize("what", DISAPPEAR)
def test_what_is_served_stays_readable_when_its_files_are_gone(client: TestClient, snapshots: Path, what: str) -> None:
    good = searched(client)
    item = client.post("/v1/search", json={"query": "a red picture"}).json()["results"][0]
    DISAPPEAR[what](snapshots / good)
    assert searched(client) == good
    assert client.get(f"/v1/items/{item['id']}/thumbnail").headers["content-type"] == "image/jpeg"
    assert client.get(f"/v1/items/{item['id']}").status_code == 200
    noted(promise="R26", figure=f"{what}: searches, items and thumbnails go on")


def test_originals_that_are_gone_are_told_and_searches_go_on(client: TestClient, source: Path) -> None:
    item = client.post("/v1/search", json={"query": "a red picture"}).json()["results"][0]
    shutil.rmtree(source)
    assert client.get(f"/v1/items/{item['id']}/image").status_code == 410
    assert client.get(f"/v1/items/{item['id']}/thumbnail").status_code == 200
    searched(client)
    noted(promise="R26", figure="folder of originals gone: 410 for the files, thumbnails and searches go on")


@pytest.mark.parametrize("failure", [RuntimeError("cudaMalloc error out of memory"), MemoryError(), AssertionError()])
def test_a_gpu_without_memory_leaves_the_search_to_the_cpu(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def full(*_: object) -> None:
        raise failure

    monkeypatch.setattr(GpuIndex, "__init__", full)
    store = SnapshotStore(snapshots)
    snapshot = store.open(store.published())
    assert on_gpu(snapshot.embeddings, snapshot.index, "auto", gpus=[]) is snapshot.index
    with pytest.raises(NoGpu, match="The device is to be cuda"):
        on_gpu(snapshot.embeddings, snapshot.index, "cuda", gpus=[])
    noted(promise="R26", figure=f"GPU fails with {type(failure).__name__}: the CPU searches")
