"""Following the published snapshot: swaps, refusals, rollback and the swap of the text half."""

import base64
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from indexer.encoder import Encoder, EncoderName, load_encoder
from indexer.store import SnapshotStore
from service import live
from service.app import create_app
from service.settings import ServiceSettings
from tests import swaps
from tests.conftest import build_snapshot
from tests.models import new_model, save_model


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def served(client: TestClient) -> str:
    return str(client.get("/v1/index").json()["snapshot"])


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)


def test_no_answer_fails_or_is_mixed_while_twenty_snapshots_are_swapped_in(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    table, snapshots = tmp_path / "generations.csv", tmp_path / "snapshots"

    def publish(generation: int) -> str:
        swaps.write_table(source, table, generation)
        return build_snapshot(source, snapshots, encoder, labels=str(table)).manifest.id

    publish(0)
    with swaps.serving(snapshots) as address:
        tally = swaps.swap_under_load(address, 20, publish)
    assert tally.failures == []
    assert len(tally.answers) == 21
    assert tally.answers.total() > 100


def test_a_newly_published_snapshot_is_followed(
    client: TestClient, source: Path, snapshots: Path, encoder: Encoder
) -> None:
    shutil.copy(source / "red" / "0.png", source / "red" / "new.png")
    published = build_snapshot(source, snapshots, encoder).manifest.id
    wait_for(lambda: served(client) == published, 2.0 + 0.05)
    assert client.get("/v1/index").json()["count"] == 25


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.npy",
        "index.faiss",
        "catalog.sqlite",
        "thumbnails.bin",
        "skipped.parquet",
        "text_map.npy",
        "manifest.json",
    ],
)
def test_a_damaged_snapshot_is_refused_and_the_last_good_one_serves_on(
    client: TestClient, source: Path, snapshots: Path, encoder: Encoder, name: str
) -> None:
    good = served(client)
    store = SnapshotStore(snapshots)
    client.app.state.live._lock.acquire()  # type: ignore[attr-defined]
    try:
        bad = build_snapshot(source, snapshots, encoder).manifest.id
        damage(snapshots / bad / name)
    finally:
        client.app.state.live._lock.release()  # type: ignore[attr-defined]
    wait_for(lambda: client.get("/v1/index").json()["refused"] is not None)
    answer = client.get("/v1/index").json()
    assert answer["snapshot"] == good
    assert name in answer["refused"]
    assert client.post("/v1/search", json={"query": [{"text": "x"}]}).status_code == 200
    assert client.get("/readyz").status_code == 200
    assert "kindred_snapshot_refusals_total 1.0" in client.get("/metrics").text
    store.publish(good)
    wait_for(lambda: client.get("/v1/index").json()["refused"] is None)


def test_a_pointer_that_says_nonsense_is_refused(client: TestClient, snapshots: Path) -> None:
    good = served(client)
    (snapshots / "CURRENT").write_text("nonsense")
    wait_for(lambda: "CURRENT" in str(client.get("/v1/index").json()["refused"]))
    assert served(client) == good


def test_a_model_that_has_changed_on_disk_is_refused(source: Path, tmp_path: Path) -> None:
    name = EncoderName(model=save_model(tmp_path / "model", new_model(1)))
    build_snapshot(source, tmp_path / "s", load_encoder(name, device="cpu", threads=1))
    shutil.rmtree(tmp_path / "model")
    save_model(tmp_path / "model", new_model(2))
    with TestClient(create_app(ServiceSettings(snapshots=tmp_path / "s"))) as client:
        ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "is not the one that made the embeddings" in ready.json()["reason"]


def test_a_model_that_is_gone_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    name = EncoderName(model=save_model(tmp_path / "model", new_model(1)))
    build_snapshot(source, tmp_path / "s", load_encoder(name, device="cpu", threads=1))
    shutil.rmtree(tmp_path / "model")
    with TestClient(create_app(ServiceSettings(snapshots=tmp_path / "s"))) as client:
        assert f"{tmp_path}/model" in client.get("/readyz").json()["reason"]


def test_a_snapshot_of_another_model_is_swapped_in_with_its_encoder(
    client: TestClient, source: Path, snapshots: Path, tmp_path: Path
) -> None:
    name = EncoderName(model=save_model(tmp_path / "other", new_model(7)))
    other = load_encoder(name, device="cpu", threads=1)
    published = build_snapshot(source, snapshots, other).manifest.id
    wait_for(lambda: served(client) == published)
    vector = client.post("/v1/embeddings", json={"input": "a cat"}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(vector, other.encode_texts(["a cat"])[0], atol=1e-6)


def test_an_earlier_snapshot_can_be_activated_again(
    admin: TestClient, source: Path, snapshots: Path, encoder: Encoder
) -> None:
    first = served(admin)
    second = build_snapshot(source, snapshots, encoder).manifest.id
    wait_for(lambda: served(admin) == second)
    answer = admin.post(f"/admin/v1/snapshots/{first}/activate")
    assert (answer.status_code, answer.json()["snapshot"], served(admin)) == (200, first, first)
    assert SnapshotStore(snapshots).published() == first
    listed = admin.get("/admin/v1/snapshots").json()
    assert [(each["id"], each["current"]) for each in listed] == [(second, False), (first, True)]


def test_a_damaged_or_unknown_snapshot_cannot_be_activated(
    admin: TestClient, source: Path, snapshots: Path, encoder: Encoder
) -> None:
    first = served(admin)
    second = build_snapshot(source, snapshots, encoder).manifest.id
    wait_for(lambda: served(admin) == second)
    damage(snapshots / first / "index.faiss")
    response = admin.post(f"/admin/v1/snapshots/{first}/activate")
    assert (response.status_code, response.json()["code"]) == (409, "corrupt_snapshot")
    response = admin.post("/admin/v1/snapshots/20200101T000000-000000/activate")
    assert (response.status_code, response.json()["code"]) == (404, "no_snapshot")
    assert (served(admin), SnapshotStore(snapshots).published()) == (second, second)


@pytest.fixture
def realigned(tmp_path: Path) -> EncoderName:
    """Make a model with the image half of `model` and another text half."""
    model = new_model(0)
    other = new_model(11)
    image = {key: value for key, value in model.state_dict().items() if key.startswith("visual.")}
    other.load_state_dict({**other.state_dict(), **image})
    return EncoderName(model=save_model(tmp_path / "realigned", other))


def test_the_text_half_can_be_swapped_while_serving_and_stays_after_a_restart(
    admin: TestClient, settings: ServiceSettings, realigned: EncoderName, source: Path
) -> None:
    before = admin.get("/v1/index").json()["encoder"]
    response = admin.post("/admin/v1/text-encoder", json={"model": realigned.model})
    assert response.status_code == 200
    after = admin.get("/v1/index").json()["encoder"]
    assert (after["image"], after["text"] == before["text"]) == (before["image"], False)
    wanted = load_encoder(realigned, device="cpu", threads=1).encode_texts(["a cat"])[0]
    with TestClient(create_app(settings)) as restarted:
        for client in (admin, restarted):
            vector = client.post("/v1/embeddings", json={"input": "a cat"}).json()["data"][0]["embedding"]
            np.testing.assert_allclose(vector, wanted, atol=1e-6)
    upload = admin.post("/v1/search", files={"file": (source / "red" / "3.png").read_bytes()}).json()
    assert (upload["results"][0]["path"], upload["results"][0]["score"]) == ("red/3.png", pytest.approx(1, abs=1e-3))
    assert admin.delete("/admin/v1/text-encoder").json()["encoder"] == before


def test_what_was_learnt_of_texts_does_not_hold_for_another_text_half(
    admin: TestClient, realigned: EncoderName, source: Path
) -> None:
    def relevance(**asked: str) -> float | None:
        answer = admin.post("/v1/search", json={"query": [asked], "limit": 1}).json()
        found: float | None = answer["results"][0]["relevance"]
        return found

    upload = base64.b64encode((source / "red" / "3.png").read_bytes()).decode()
    before = relevance(image=upload)
    assert relevance(text="red") is not None
    admin.post("/admin/v1/text-encoder", json={"model": realigned.model})
    assert relevance(text="red") is None
    assert relevance(image=upload) == before is not None
    refused = admin.post("/v1/search", json={"query": "red", "min_relevance": 0.5})
    assert (refused.status_code, "min_relevance cannot be used" in refused.json()["detail"]) == (422, True)


def test_a_text_half_with_another_image_half_is_refused(admin: TestClient, tmp_path: Path) -> None:
    before = admin.get("/v1/index").json()
    other = save_model(tmp_path / "other", new_model(5))
    response = admin.post("/admin/v1/text-encoder", json={"model": other})
    assert (response.status_code, response.json()["code"]) == (409, "encoder_mismatch")
    missing = admin.post("/admin/v1/text-encoder", json={"model": "local-dir:/no/such"})
    assert (missing.status_code, missing.json()["code"]) == (422, "encoder_error")
    assert admin.get("/v1/index").json() == before


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep what one test has exported for the next."""
    return tmp_path_factory.mktemp("cache")


def runtime(client: TestClient) -> str:
    return type(client.app.state.live.searcher.encoder).__name__  # type: ignore[attr-defined]


def embedded(client: TestClient, source: Path) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    picture = "data:image/png;base64," + base64.b64encode((source / "red" / "0.png").read_bytes()).decode()
    answer = client.post("/v1/embeddings", json={"input": ["a cat", "two birds", picture]}).json()
    return np.array([each["embedding"] for each in answer["data"]])


@pytest.mark.parametrize(
    ("backend", "precision", "cosine"),
    [("torch", "fp32", 1 - 1e-6), ("onnx", "fp32", 0.9999), ("onnx-int8", "int8", 0.9)],
)
def test_the_backend_that_is_asked_for_encodes_from_the_start(
    client: TestClient,
    settings: ServiceSettings,
    source: Path,
    cache: Path,
    backend: str,
    precision: str,
    cosine: float,
) -> None:
    changed = settings.model_copy(update={"backend": backend, "cache": cache})
    before = client.get("/v1/index").json()["encoder"]
    with TestClient(create_app(changed)) as other:
        assert runtime(other) == ("OpenClipEncoder" if backend == "torch" else "OnnxEncoder")
        assert other.get("/v1/index").json()["encoder"] == {**before, "precision": precision}
        cosines = np.sum(embedded(other, source) * embedded(client, source), axis=1)
    assert cosines.min() >= cosine


def test_torch_serves_at_once_and_onnx_runtime_takes_over_when_it_is_ready(
    settings: ServiceSettings, source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_SLOW_SECONDS", 0.0)
    with TestClient(create_app(settings.model_copy(update={"cache": cache}))) as client:
        first = embedded(client, source)
        described = client.get("/v1/index").json()
        wait_for(lambda: runtime(client) == "OnnxEncoder", 120)
        assert np.sum(embedded(client, source) * first, axis=1).min() >= 0.9999
        assert client.get("/v1/index").json() == described
        assert "kindred_snapshot_swaps_total 1.0" in client.get("/metrics").text


def test_where_onnx_runtime_cannot_be_had_torch_goes_on_unless_it_was_asked_for(
    settings: ServiceSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "_SLOW_SECONDS", 0.0)
    (tmp_path / "file").touch()
    with TestClient(create_app(settings.model_copy(update={"cache": tmp_path / "file"}))) as client:
        wait_for(lambda: "torch goes on" in capfd.readouterr().out, 120)
        assert client.post("/v1/search", json={"query": [{"text": "x"}]}).status_code == 200
        assert runtime(client) == "OpenClipEncoder"
    with TestClient(create_app(settings.model_copy(update={"cache": tmp_path / "file", "backend": "onnx"}))) as client:
        ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "cannot be written" in ready.json()["reason"]
