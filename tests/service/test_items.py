"""GET /v1/items, GET /v1/index and the probes."""

import hashlib
import io
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from indexer.encoder import DEMO_NOTICE, EncoderName
from indexer.plan import image_id
from indexer.store import SnapshotStore
from service.app import create_app
from service.settings import ServiceSettings

RED = image_id("red/1.png")


def test_an_item_tells_all_that_is_known(client: TestClient, source: Path) -> None:
    assert client.get(f"/v1/items/{RED}").json() == {
        "id": RED,
        "label": "red",
        "caption": "a red picture",
        "path": "red/1.png",
        "metadata": {"size": "1"},
        "thumbnail": f"/v1/items/{RED}/thumbnail",
        "image": f"/v1/items/{RED}/image",
        "width": 56,
        "height": 40,
        "media_type": "image/png",
        "content_hash": hashlib.sha256((source / "red" / "1.png").read_bytes()).hexdigest(),
    }


def test_the_image_is_the_file_and_the_thumbnail_a_jpeg_of_it(client: TestClient, source: Path) -> None:
    image = client.get(f"/v1/items/{RED}/image")
    assert (image.content, image.headers["content-type"]) == ((source / "red" / "1.png").read_bytes(), "image/png")
    thumbnail = client.get(f"/v1/items/{RED}/thumbnail")
    assert thumbnail.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(thumbnail.content)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (56, 40))


def test_a_cache_keeps_a_picture_for_the_key_that_it_was_fetched_with(client: TestClient) -> None:
    for kind in ("image", "thumbnail"):
        headers = client.get(f"/v1/items/{RED}/{kind}").headers
        assert headers["cache-control"] == "private, max-age=3600"
        assert set(headers["vary"].lower().split(", ")) == {"authorization", "api-key"}


def test_a_browser_may_not_take_a_picture_for_a_page(client: TestClient) -> None:
    for kind in ("image", "thumbnail"):
        headers = client.get(f"/v1/items/{RED}/{kind}").headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "default-src 'none'; sandbox"


def test_a_file_that_has_changed_or_gone_is_not_served(client: TestClient, source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_text("secret")
    (source / "red" / "1.png").unlink()
    gone = client.get(f"/v1/items/{RED}/image")
    (source / "red" / "1.png").symlink_to(secret)
    outside = client.get(f"/v1/items/{RED}/image")
    (source / "red" / "1.png").unlink()
    (source / "red" / "1.png").symlink_to(source / "table.csv")
    changed = client.get(f"/v1/items/{RED}/image")
    for response, detail in (
        (gone, "cannot be read"),
        (outside, "leads out of the collection"),
        (changed, "has changed since it was indexed"),
    ):
        assert (response.status_code, response.json()["code"]) == (410, "item_gone")
        assert detail in response.json()["detail"]
    assert client.get(f"/v1/items/{RED}/thumbnail").status_code == 200


@pytest.mark.parametrize("item", ["nope", "..%2f..%2fetc%2fpasswd", "%00", "' OR 1=1 --", "0" * 5000])
@pytest.mark.parametrize("part", ["", "/thumbnail", "/image"])
def test_an_id_that_is_none_is_not_found(client: TestClient, item: str, part: str) -> None:
    response = client.get(f"/v1/items/{item}{part}")
    assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")


def test_the_index_describes_the_snapshot_and_its_encoder(
    client: TestClient, snapshots: Path, model: EncoderName
) -> None:
    manifest = SnapshotStore(snapshots).manifest(SnapshotStore(snapshots).published())
    answer = client.get("/v1/index").json()
    assert answer["encoder"] == manifest.encoder.model_dump()
    assert answer["encoder"]["name"] == model.model_dump()
    wanted = {"snapshot": manifest.id, "count": 24, "labels": 3, "factory": "Flat", "dim": 16, "skipped": {}}
    assert {key: answer[key] for key in wanted} == wanted
    assert (answer["notice"], answer["refused"]) == (None, None)


def test_the_notice_of_the_demo_model_names_the_setting_that_brings_a_real_one() -> None:
    assert "only drawn things" in DEMO_NOTICE
    assert "KINDRED_MODEL" in DEMO_NOTICE


def test_a_service_without_a_snapshot_lives_but_is_not_ready(tmp_path: Path) -> None:
    with TestClient(create_app(ServiceSettings(snapshots=tmp_path / "none"))) as client:
        assert client.get("/livez").json() == {"status": "ok", "reason": None}
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "no snapshot has been published")
        search = client.post("/v1/search", json={"query": [{"text": "x"}]})
        assert (search.status_code, search.json()["code"], search.headers["retry-after"]) == (503, "not_ready", "1")


def test_metrics_count_requests_by_route_not_by_path(client: TestClient) -> None:
    client.get(f"/v1/items/{RED}")
    client.get("/v1/items/unknown")
    client.get("/no/such/path")
    text = client.get("/metrics").text
    assert 'kindred_http_requests_total{method="GET",route="/v1/items/{item_id}",status="200"} 1.0' in text
    assert 'kindred_http_requests_total{method="GET",route="/v1/items/{item_id}",status="404"} 1.0' in text
    assert 'kindred_http_requests_total{method="other",route="none",status="404"} 1.0' in text
    assert "kindred_index_pictures 24.0" in text


@pytest.mark.parametrize(("given", "kept"), [("abc-123", True), ("x" * 65, False), ("a b", False)])
def test_a_request_keeps_its_id_if_it_has_a_sound_one(client: TestClient, given: str, kept: bool) -> None:
    answered = client.get("/livez", headers={"X-Request-ID": given}).headers["x-request-id"]
    assert (answered == given) is kept
