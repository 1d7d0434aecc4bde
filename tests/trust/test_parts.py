"""A part of a running service fails: what is left of it answers, as the table in service/README.md says."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from indexer.encoder import Encoder, EncoderName, load_encoder
from indexer.errors import NoGpu
from indexer.gpu_index import GpuIndex, on_gpu
from indexer.store import SnapshotStore
from service.app import create_app
from service.settings import ServiceSettings
from tests.conftest import build_snapshot
from tests.models import new_model, save_model
from tests.pictures import encode
from tests.served import Service, serving, wait_for
from tests.trust.figures import LONG, noted

LOCKS = """
import sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=rw", uri=True, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


def searched(client: httpx2.Client) -> str:
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


def test_uploads_want_no_room_on_a_disk(
    settings: ServiceSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    picture = encode(Image.fromarray(noise), "PNG")
    with TestClient(create_app(settings.model_copy(update={"max_body_bytes": 2**23}))) as client:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        answer = client.post("/v1/search", files={"file": picture})
    assert (len(picture) > 2**21, answer.status_code) == (True, 200), answer.text
    noted(promise="R26", figure="no temporary folder: a picture of 2 MB is uploaded and searched with")


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


def lost(folder: Path) -> None:
    """Take a folder away, and leave a file in its place: nobody can make anything in that, not even root."""
    shutil.rmtree(folder)
    folder.touch()


def metrics(service: Service) -> list[int]:
    """Search through every worker, and return the status of each one's metrics."""
    wait_for(lambda: len(service.workers()) == 2)
    statuses = []
    for worker in service.workers():
        with service.only(worker) as client:
            searched(client)
            statuses.append((told := client.get("/metrics")).status_code)
            assert told.is_success or told.json()["code"] == "metrics_unavailable"
    return statuses


@LONG
@pytest.mark.parametrize(
    ("what", "later"),
    [
        pytest.param(shutil.rmtree, [200, 503], id="deleted"),
        pytest.param(lost, [503, 503], id="no folder any more"),
    ],
)
def test_workers_whose_folder_of_metrics_is_gone_search_on_and_are_replaced(
    snapshots: Path, tmp_path: Path, what: Callable[[Path], None], later: list[int]
) -> None:
    (tmp_path / "tmp").mkdir()
    with serving(snapshots, "--workers=2", TMPDIR=str(tmp_path / "tmp")) as service:
        assert metrics(service) == [200, 200]
        (folder,) = (tmp_path / "tmp").glob("kindred-metrics-*")
        what(folder)
        assert metrics(service) == [503, 503]
        old = service.workers()[0]
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: old not in service.workers())
        # A new worker makes the folder anew where it can; of one that was there before, nothing is in it.
        assert sorted(metrics(service)) == later
    assert service.process.returncode == -signal.SIGTERM
    told = "folder of metrics gone under two workers: both search on, /metrics is 503, a worker that dies is replaced"
    noted(promise="R26", figure=told)


COUNTS = """
import os, sys
from pathlib import Path
from service.errors import MetricsUnavailable
from service.telemetry import Metrics, configure_logs, keep_files

folder, case = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), sys.argv[1]

def fill():
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass

configure_logs()
if case == "before":
    fill()
if case != "without":
    keep_files(folder)
metrics = Metrics(several=True)
if case != "before":
    fill()
for number in range(2_000):
    metrics.requests.labels("GET", f"/v1/{number}", "200").inc()
try:
    print(metrics.text().count(b"kindred_http_requests_total{"))
except MetricsUnavailable:
    print("unavailable")
"""


@pytest.mark.parametrize(
    ("case", "code", "told"),
    [
        pytest.param("after", 0, "2000", id="full later"),
        pytest.param("before", 0, "unavailable", id="full from the start"),
        pytest.param("without", -signal.SIGBUS, "", id="full later, and files with holes"),
    ],
)
def test_a_process_outlives_a_full_disk_under_its_metrics(tmp_path: Path, case: str, code: int, told: str) -> None:
    namespace = [str(shutil.which("unshare")), "-Urm", "sh", "-ec"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("the kernel permits no namespaces of one's own, so that no small disk can be mounted")
    mounted = f'mount -t tmpfs -o size=16m tmpfs {tmp_path} && exec {sys.executable} -c "$0" {case}'
    command, variables = [*namespace, mounted, COUNTS], {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    ran = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (code, told), ran.stderr
    if not code:
        noted(promise="R26", figure="disk of the metrics full: the process goes on, and /metrics tells all or is 503")


@LONG
@pytest.mark.parametrize("answers", [False, True], ids=["refuses", "never answers"])
def test_a_collector_of_traces_that_is_away_holds_up_nothing(snapshots: Path, answers: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as collector:
        endpoint = f"http://127.0.0.1:{collector.getsockname()[1]}/v1/traces"
        if not answers:
            collector.close()
        with TestClient(create_app(ServiceSettings(snapshots=snapshots, otlp_endpoint=endpoint))) as client:
            begun = time.monotonic()
            for _ in range(3_000):  # more than wait to be sent
                searched(client)
            taken, ended = time.monotonic() - begun, time.monotonic()
    closing = time.monotonic() - ended
    what = "accepts and never answers" if answers else "refuses"
    figure = f"collector of traces {what}: 3,000 searches in {taken:.0f} s, none failed; closed in {closing:.1f} s"
    noted(promise="R26", figure=figure)
