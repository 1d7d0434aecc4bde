"""POST /v1/embeddings, as OpenAI's clients call it."""

import base64
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from indexer.encoder import Encoder
from indexer.plan import image_id


def test_texts_and_pictures_are_encoded_in_order(client: TestClient, encoder: Encoder, source: Path) -> None:
    picture = "data:image/png;base64," + base64.b64encode((source / "red" / "0.png").read_bytes()).decode()
    answer = client.post("/v1/embeddings", json={"model": "any", "input": ["a cat", picture, "a dog"]}).json()
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    assert {each["object"] for each in answer["data"]} == {"embedding"}
    cat, red, dog = (each["embedding"] for each in answer["data"])
    np.testing.assert_allclose([cat, dog], encoder.encode_texts(["a cat", "a dog"]), atol=1e-6)
    best = client.post("/v1/search", json={"query": [{"id": image_id("red/0.png")}], "limit": 1}).json()["results"][0]
    assert best["score"] == 1.0
    assert np.linalg.norm(red) == pytest.approx(1, abs=1e-6)
    assert answer["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    assert answer["object"] == "list"


def test_base64_is_little_endian_float32(client: TestClient) -> None:
    numbers = client.post("/v1/embeddings", json={"input": "a cat"}).json()["data"][0]["embedding"]
    coded = client.post("/v1/embeddings", json={"input": "a cat", "encoding_format": "base64"}).json()
    decoded = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(decoded, numbers, atol=1e-7)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"input": []}, "at least 1 item"),
        ({"input": ""}, "blank"),
        ({"input": ["fine", " "]}, "blank"),
        ({"input": [1, 2]}, "give a text or a list of texts"),
        ({"input": "x", "dimensions": 8}, "This encoder has 16 dimensions, not 8."),
        ({"input": "data:image/png;base64,???"}, "not base64"),
    ],
)
def test_what_cannot_be_encoded_is_refused(client: TestClient, body: dict[str, object], detail: str) -> None:
    response = client.post("/v1/embeddings", json=body)
    assert response.status_code == 422
    assert detail in response.json()["detail"]


def test_a_data_uri_that_is_no_picture_is_refused(client: TestClient) -> None:
    response = client.post("/v1/embeddings", json={"input": "data:image/png;base64,aGVsbG8="})
    assert (response.status_code, response.json()["code"]) == (415, "not_an_image")
