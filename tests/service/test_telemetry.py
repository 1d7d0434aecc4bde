"""What the metrics are called, what they count, and what a client is told of the time."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from indexer.encoder import Encoder, gpu_memory
from tests.conftest import build_snapshot, draw_collection
from tests.served import serving, wait_for

QUERY = {"query": [{"text": "a red picture"}], "limit": 5}
# Prometheus's base units, and what has none.
UNITS = ("_seconds", "_bytes", "_ratio")
UNITLESS = {
    "kindred_http_requests",
    "kindred_http_refusals",
    "kindred_batch_size",
    "kindred_queue_depth",
    "kindred_text_cache",
    "kindred_index_pictures",
    "kindred_snapshot_swaps",
    "kindred_snapshot_refusals",
    "process_open_fds",
    "process_max_fds",
}
LABELS = {"method", "route", "status", "code", "stage", "outcome", "kind", "device", "worker", "le"}


def families(client: TestClient) -> dict[str, Metric]:
    return {metric.name: metric for metric in text_string_to_metric_families(client.get("/metrics").text)}


def value(client: TestClient, name: str, **labels: str) -> float:
    samples = (sample for metric in families(client).values() for sample in metric.samples)
    return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


@pytest.fixture
def used(client: TestClient) -> TestClient:
    """Ask for everything that makes a metric."""
    assert client.post("/v1/search", json=QUERY).status_code == 200
    assert client.post("/v1/search", json={"limit": 0}).status_code == 422
    return client


def test_metrics_are_named_after_the_conventions_of_prometheus(used: TestClient) -> None:
    for name, metric in families(used).items():
        if name.endswith("_created") or not metric.samples:
            continue
        assert re.fullmatch(r"(kindred|process)_[a-z_]+", name), name
        assert metric.documentation, name
        assert name in UNITLESS or name.endswith(UNITS), f"{name} has no base unit"
        ends = {sample.name.removeprefix(name) for sample in metric.samples}
        assert (ends <= {"_total", "_created"}) == (metric.type == "counter"), name
        assert {label for sample in metric.samples for label in sample.labels} <= LABELS, name


def test_promtool_finds_nothing_to_say_of_the_metrics(used: TestClient) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    text = used.get("/metrics").text
    # What the process collector and the creation times of prometheus-client are called is not ours.
    ours = "".join(line for line in text.splitlines(keepends=True) if "_created" not in line and "process_" not in line)
    checked = subprocess.run([promtool, "check", "metrics"], input=ours, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_paths_ids_and_queries_make_no_new_series(used: TestClient) -> None:
    def ask(number: int) -> None:
        used.get(f"/v1/items/{number:016x}")
        used.get(f"/nowhere/{number}")
        used.request(f"M{number}", "/v1/search")
        used.post("/v1/search", json={"query": [{"text": f"picture {number}"}]})

    def series() -> int:
        return sum(len(metric.samples) for metric in families(used).values())

    ask(0)
    series()  # which is a request too
    before = series()
    for number in range(1, 30):
        ask(number)
    assert series() == before


def test_refusals_are_counted_by_their_code(used: TestClient) -> None:
    assert value(used, "kindred_http_refusals_total", code="invalid_request") == 1
    used.get("/v1/items/0123456789abcdef")
    assert value(used, "kindred_http_refusals_total", code="item_not_found") == 1
    assert value(used, "kindred_http_refusals_total", code="none") == 0


def test_the_wait_for_each_stage_is_measured(used: TestClient) -> None:
    for stage in ("encode", "search"):
        assert value(used, "kindred_queue_wait_seconds_count", stage=stage) == 1
        assert value(used, "kindred_queue_wait_seconds_sum", stage=stage) < 60


def test_the_memory_of_the_process_is_told(client: TestClient) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    told = value(client, "process_resident_memory_bytes", worker=str(os.getpid()))
    assert told == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE"), rel=0.2)


def test_the_memory_of_gpus_is_told_where_torch_uses_them(used: TestClient) -> None:
    names = [name for name in families(used) if "gpu" in name]
    assert names == (["kindred_gpu_memory_free_bytes", "kindred_gpu_memory_size_bytes"] if gpu_memory() else [])


def test_a_client_is_told_what_the_stages_took(client: TestClient) -> None:
    answer = client.post("/v1/search", json=QUERY)
    told = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
    took = answer.json()["took_ms"]
    assert told.keys() == took.keys() == {"encode", "search", "total"}
    assert float(told["encode"]) == pytest.approx(took["encode"], abs=0.01)
    assert float(told["search"]) == pytest.approx(took["search"], abs=0.01)
    assert float(told["total"]) >= took["total"] - 0.01
    assert "server-timing" not in client.get("/livez").headers


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Path:
    """Build a snapshot to serve from processes."""
    folder = tmp_path_factory.mktemp("telemetry")
    draw_collection(folder / "pictures")
    build_snapshot(folder / "pictures", folder / "snapshots", encoder)
    return folder / "snapshots"


def test_the_memory_of_each_of_several_workers_is_told(served: Path) -> None:
    with serving(served, "--workers=2") as service:
        wait_for(lambda: len(service.workers()) == 2)
        told = []
        for worker in service.workers():
            with service.only(worker) as client:
                wait_for(lambda client=client: client.get("/readyz").status_code == 200)  # type: ignore[misc]
        for worker in service.workers():
            with service.only(worker) as client:
                text = client.get("/metrics").text
            told.append(set(re.findall(r'^process_resident_memory_bytes{worker="(\d+)"} [1-9]', text, re.MULTILINE)))
        assert told == [{str(worker) for worker in service.workers()}] * 2
