"""Several processes that answer as one: what dies is replaced, and all of them tell the same."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from indexer.encoder import Encoder
from indexer.store import SnapshotStore
from tests.conftest import ADMIN_KEY, build_snapshot, draw_collection
from tests.models import new_model, save_model
from tests.served import Service, serving, wait_for

KEY = {"Authorization": f"Bearer {ADMIN_KEY}"}
QUERY = {"query": [{"text": "a red picture"}], "limit": 5}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Path:
    """Build a snapshot of a drawn collection."""
    folder = tmp_path_factory.mktemp("workers")
    draw_collection(folder / "pictures")
    build_snapshot(folder / "pictures", folder / "snapshots", encoder)
    return folder


@pytest.fixture(scope="module")
def service(place: Path) -> Iterator[Service]:
    """Serve it with two workers."""
    with serving(place / "snapshots", "--workers=2", KINDRED_ADMIN_KEY=ADMIN_KEY) as service:
        yield service


@pytest.fixture
def pair(service: Service) -> list[int]:
    """Wait for two workers that answer, as one may just have been replaced."""
    wait_for(lambda: len(service.workers()) == 2)
    for worker in service.workers():
        ask(service, worker, "GET", "/livez")
    return service.workers()


def ask(service: Service, worker: int, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Send a request to one worker, while no other can answer."""
    with service.only(worker) as client:
        response = client.request(method, path, json=body, headers=KEY)
    return response.text if path == "/metrics" else response.json()


def ended(service: Service, worker: int, job: str) -> dict[str, Any]:
    seen: list[dict[str, Any]] = []

    def look() -> bool:
        seen.append(ask(service, worker, "GET", f"/admin/v1/jobs/{job}"))
        return bool(seen[-1]["state"] != "running")

    wait_for(look, 120)
    return seen[-1]


def counted(metrics: str, name: str) -> float:
    """Return the sum of a metric's samples."""
    return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(name))


def test_every_worker_gives_the_same_answer(service: Service, pair: list[int]) -> None:
    first, second = (ask(service, worker, "POST", "/v1/search", QUERY) for worker in pair)
    assert len(first["results"]) == 5
    assert (first["results"], first["index"]) == (second["results"], second["index"])


def test_a_worker_that_dies_is_replaced_and_nobody_notices(service: Service, pair: list[int]) -> None:
    os.kill(pair[0], signal.SIGKILL)

    def replaced() -> bool:
        assert httpx2.post(f"{service.address}/v1/search", json=QUERY, timeout=60).status_code == 200
        return len(service.workers()) == 2 and pair[0] not in service.workers()

    wait_for(replaced)
    (new,) = set(service.workers()) - set(pair)
    assert len(ask(service, new, "POST", "/v1/search", QUERY)["results"]) == 5


def test_each_worker_gives_the_metrics_of_all(service: Service, pair: list[int]) -> None:
    name = 'kindred_http_requests_total{method="GET",route="/v1/index"'
    before = counted(ask(service, pair[0], "GET", "/metrics"), name)
    for worker in (pair[0], pair[1], pair[1]):
        ask(service, worker, "GET", "/v1/index")
    texts = [ask(service, worker, "GET", "/metrics") for worker in pair]
    assert [counted(text, name) - before for text in texts] == [3, 3]
    for text in texts:
        assert "kindred_index_pictures 24.0" in text.splitlines()
    os.kill(pair[0], signal.SIGKILL)
    wait_for(lambda: pair[0] not in service.workers())
    assert counted(ask(service, pair[1], "GET", "/metrics"), name) - before == 3


def test_an_activated_snapshot_is_served_by_all_workers_within_seconds(
    service: Service, pair: list[int], place: Path, encoder: Encoder
) -> None:
    first = SnapshotStore(place / "snapshots").published()
    second = build_snapshot(place / "pictures", place / "snapshots", encoder).manifest.id
    for wanted in (second, first):
        assert ask(service, pair[0], "POST", f"/admin/v1/snapshots/{wanted}/activate")["snapshot"] == wanted
        wait_for(lambda wanted=wanted: ask(service, pair[1], "GET", "/v1/index")["snapshot"] == wanted, 5)  # type: ignore[misc]


def test_a_text_half_that_is_put_in_through_one_worker_is_used_by_all(
    service: Service, pair: list[int], tmp_path: Path
) -> None:
    model, other = new_model(0), new_model(11)
    image = {key: value for key, value in model.state_dict().items() if key.startswith("visual.")}
    other.load_state_dict({**other.state_dict(), **image})
    before = ask(service, pair[1], "GET", "/v1/index")["encoder"]["text"]
    realigned = {"model": save_model(tmp_path / "realigned", other)}
    put_in = ask(service, pair[0], "POST", "/admin/v1/text-encoder", realigned)["encoder"]["text"]
    assert put_in != before
    wait_for(lambda: ask(service, pair[1], "GET", "/v1/index")["encoder"]["text"] == put_in, 10)
    ask(service, pair[1], "DELETE", "/admin/v1/text-encoder")
    wait_for(lambda: ask(service, pair[0], "GET", "/v1/index")["encoder"]["text"] == before, 10)


def test_a_reindex_is_seen_and_cancelled_through_another_worker(service: Service, pair: list[int]) -> None:
    job = ask(service, pair[0], "POST", "/admin/v1/reindex")["id"]
    assert ask(service, pair[1], "GET", f"/admin/v1/jobs/{job}")["state"] == "running"
    assert ask(service, pair[1], "POST", "/admin/v1/reindex")["code"] == "build_running"
    assert ask(service, pair[1], "DELETE", f"/admin/v1/jobs/{job}")["state"] == "cancelled"
    assert ask(service, pair[0], "GET", f"/admin/v1/jobs/{job}")["state"] == "cancelled"


def test_a_reindex_outlives_the_worker_that_started_it(service: Service, pair: list[int], place: Path) -> None:
    job = ask(service, pair[0], "POST", "/admin/v1/reindex")["id"]
    os.kill(pair[0], signal.SIGKILL)
    wait_for(lambda: pair[0] not in service.workers())
    told = ended(service, pair[1], job)
    assert (told["state"], told["error"], told["reused"]) == ("succeeded", None, 24)
    assert told["snapshot"] == SnapshotStore(place / "snapshots").published()


def test_what_is_under_way_when_the_service_is_stopped_is_finished(place: Path) -> None:
    body = json.dumps(QUERY).encode()
    with serving(place / "snapshots", "--workers=2") as service:
        address = urlsplit(service.address)
        with socket.create_connection((address.hostname, address.port), 60) as connection:
            connection.sendall(b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            connection.sendall(b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body[:9]))
            service.process.terminate()
            wait_for(lambda: len(service.workers()) == 1)  # the one that waits for the rest
            connection.sendall(body[9:])
            answer = connection.makefile("rb").read()
        assert service.process.wait(30) == -signal.SIGTERM
        assert service.process.stdout is not None
        assert "kindred serves" not in service.process.stdout.read()  # which was said once, at the start
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert len(json.loads(answer.split(b"\r\n\r\n", 1)[1])["results"]) == 5


def test_workers_end_with_their_supervisor(place: Path, tmp_path: Path) -> None:
    # It cannot clear up what it keeps of metrics.
    with serving(place / "snapshots", "--workers=2", TMPDIR=str(tmp_path)) as service:
        wait_for(lambda: len(service.workers()) == 2)
        workers = service.workers()
        service.process.kill()
        wait_for(lambda: not any(Path(f"/proc/{worker}/exe").exists() for worker in workers))
