"""POST /v1/items/{item_id}/similarity-map: which part of a picture is like a query."""

import io
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from indexer.encoder import DEMO, Encoder, EncoderName, Patches, load_encoder
from indexer.images import decode
from indexer.plan import image_id
from service.app import create_app
from service.settings import ServiceSettings
from service.similarity_map import similarity_map
from tests.conftest import POLICY, build_snapshot
from tests.snapshots import unit

RED = image_id("red/1.png")


def pixels(png: bytes) -> np.ndarray[tuple[int, int, int], np.dtype[np.int64]]:
    """Return the pixels of a map, shape (height, width, 4)."""
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "RGBA")
        return np.asarray(image).astype(np.int64)


def patches_of(scores: list[list[float]], box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> Patches:
    """Return patches with such cosines to the first axis."""
    cosines = np.array(scores)
    return Patches(np.stack([cosines, np.sqrt(1 - cosines**2)], axis=-1).astype(np.float32), box)


AXIS = np.array([1, 0], np.float32)


def test_each_patch_is_as_opaque_as_it_is_similar() -> None:
    found = pixels(similarity_map(patches_of([[0.1, 0.2], [0.3, 0.5]]), AXIS, 64, 32))
    assert found.shape == (32, 64, 4)
    # The middles of the four patches lie between pixels 15 and 16, 47 and 48; 7 and 8, 23 and 24.
    strength = [found[row, column, 3] / 255 for row in (7, 24) for column in (15, 48)]
    assert strength == pytest.approx([0, 0.25, 0.5, 1], abs=0.05)
    assert found[24, 48].tolist() == [255, 0, 0, 255]


@pytest.mark.parametrize(("size", "side"), [((1024, 512), (256, 128)), ((100, 400), (64, 256)), ((30, 20), (30, 20))])
def test_a_map_has_the_aspect_of_the_picture(size: tuple[int, int], side: tuple[int, int]) -> None:
    assert pixels(similarity_map(patches_of([[0, 1]]), AXIS, *size)).shape[:2] == side[::-1]


def test_what_no_patch_covers_is_clear() -> None:
    found = pixels(similarity_map(patches_of([[0.2, 0.9]], (0.25, 0.0, 0.75, 0.5)), AXIS, 80, 80))
    covered = np.zeros((80, 80), bool)
    covered[:40, 20:60] = True
    assert not found[~covered, 3].any()
    assert found[20, 59, 3] == 255
    past = pixels(similarity_map(patches_of([[0.9, 0.2]], (-0.5, 0, 1.5, 1)), AXIS, 80, 80))
    assert past[40, 0, 3] > 250


def test_where_all_patches_are_alike_nothing_is_shown() -> None:
    assert not pixels(similarity_map(patches_of([[0.3, 0.3], [0.3, 0.3]]), AXIS, 8, 8))[..., 3].any()


def test_the_map_is_strongest_where_the_most_similar_patch_is(
    client: TestClient, source: Path, encoder: Encoder
) -> None:
    response = client.post(f"/v1/items/{RED}/similarity-map", json={"query": "2:a red star + a moon"})
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    star, moon = encoder.encode_texts(["a red star", "a moon"]).astype(np.float64)
    (query,) = unit((2 * star + moon)[None])
    patches = encoder.patches(decode((source / "red" / "1.png").read_bytes(), POLICY).rgb)
    assert patches is not None
    row, column = np.unravel_index((patches.vectors @ query).argmax(), (4, 4))
    found = pixels(response.content)
    # Of a picture of 56 x 40, the middle 40 x 40 are looked at.
    assert found.shape == (40, 56, 4)
    y, x = np.unravel_index(found[..., 3].argmax(), (40, 56))
    assert (y // 10, (x - 8) // 10) == (row, column)
    assert not found[:, :8, 3].any()


def test_where_the_file_is_gone_the_thumbnail_is_looked_at(client: TestClient, source: Path) -> None:
    (source / "red" / "1.png").unlink()
    response = client.post(f"/v1/items/{RED}/similarity-map", json={"query": [{"text": "a star"}]})
    assert pixels(response.content).shape == (40, 56, 4)


def test_a_picture_can_be_compared_with_a_picture(client: TestClient) -> None:
    maps = [
        client.post(f"/v1/items/{RED}/similarity-map", json={"query": [{"id": image_id(f"{label}/1.png")}]}).content
        for label in ("red", "blue")
    ]
    assert maps[0] != maps[1]


@pytest.mark.parametrize(
    ("item", "body", "status"),
    [("nope", {"query": "x"}, 404), (RED, {"query": []}, 422), (RED, {}, 422), (RED, {"query": "x", "k": 1}, 422)],
)
def test_what_has_no_map_is_refused(client: TestClient, item: str, body: dict[str, object], status: int) -> None:
    response = client.post(f"/v1/items/{item}/similarity-map", json=body)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")


def test_the_demo_model_sees_no_patches_and_says_so(source: Path, tmp_path: Path) -> None:
    demo = load_encoder(EncoderName(model=DEMO), device="cpu", threads=1)
    build_snapshot(source, tmp_path / "s", demo)
    with TestClient(create_app(ServiceSettings(snapshots=tmp_path / "s"))) as client:
        response = client.post(f"/v1/items/{RED}/similarity-map", json={"query": "a star"})
    assert (response.status_code, response.json()["code"]) == (422, "bad_query")
    assert "only vision transformers of open_clip do" in response.json()["detail"]
