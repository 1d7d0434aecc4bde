"""POST /v1/search: what comes back, and what is refused."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from indexer.encoder import Encoder
from indexer.plan import image_id
from indexer.store import SnapshotStore


def expected(snapshots: Path, vector: np.ndarray[Any, Any], limit: int) -> list[tuple[str, float]]:
    """Rank the snapshot's embeddings in numpy: best first, ties by id."""
    store = SnapshotStore(snapshots)
    folder = snapshots / store.published()
    embeddings = np.load(folder / "embeddings.npy")
    ids = [image.id for image in store.open(store.published()).catalog.rows(range(len(embeddings)))]
    scores = np.round((embeddings @ vector).astype(float), 6)
    return sorted(zip(ids, scores, strict=True), key=lambda each: (-each[1], each[0]))[:limit]


def ranking(answer: dict[str, Any]) -> list[tuple[str, float]]:
    return [(result["id"], result["score"]) for result in answer["results"]]


def test_a_text_finds_what_numpy_finds(client: TestClient, snapshots: Path, encoder: Encoder) -> None:
    answer = client.post("/v1/search", json={"query": [{"text": "a red star"}], "limit": 7}).json()
    wanted = expected(snapshots, encoder.encode_texts(["a red star"])[0], 7)
    assert [each[0] for each in ranking(answer)] == [each[0] for each in wanted]
    assert [each[1] for each in ranking(answer)] == pytest.approx([each[1] for each in wanted], abs=2e-6)


def test_an_answer_has_the_documented_shape(client: TestClient, snapshots: Path) -> None:
    answer = client.post("/v1/search", json={"query": [{"id": image_id("red/5.png")}], "limit": 1}).json()
    took = answer.pop("took_ms")
    assert set(took) == {"search", "total"}
    assert 0 <= took["search"] <= took["total"]
    assert answer == {
        "results": [
            {
                "id": image_id("red/5.png"),
                "rank": 1,
                "score": 1.0,
                "label": "red",
                "caption": "a red picture",
                "path": "red/5.png",
                "metadata": {"size": "5"},
                "thumbnail": f"/v1/items/{image_id('red/5.png')}/thumbnail",
                "relevance": answer["results"][0]["relevance"],
                "duplicates": 0,
                "explanation": None,
            }
        ],
        "next_cursor": answer["next_cursor"],
        "no_confident_match": False,
        "hidden": {"filter": 0, "cutoff": 0, "duplicates": 0},
        "facets": {},
        "notes": [],
        "index": {
            "snapshot": SnapshotStore(snapshots).published(),
            "model": answer["index"]["model"],
            "count": 24,
        },
    }


@pytest.mark.parametrize(
    "send",
    [
        lambda client, data: client.post("/v1/search", files={"file": data}, data={"limit": "3"}),
        lambda client, data: client.post(
            "/v1/search", json={"query": [{"image": base64.b64encode(data).decode()}], "limit": 3}
        ),
        lambda client, data: client.post(
            "/v1/search",
            json={"query": [{"image": "data:image/png;base64," + base64.b64encode(data).decode()}], "limit": 3},
        ),
    ],
    ids=["upload", "base64", "data URI"],
)
def test_a_picture_of_the_index_finds_itself_first(
    send: Callable[[TestClient, bytes], Any], client: TestClient, source: Path
) -> None:
    for path in ("red/0.png", "green/7.png", "blue/4.png"):
        first = send(client, (source / path).read_bytes()).json()["results"][0]
        assert (first["path"], first["score"]) == (path, pytest.approx(1.0, abs=1e-3))


def test_the_same_pixels_in_another_file_format_find_the_picture(
    client: TestClient, source: Path, tmp_path: Path
) -> None:
    with Image.open(source / "green" / "2.png") as image:
        image.save(tmp_path / "same.bmp")
    answer = client.post("/v1/search", files={"file": (tmp_path / "same.bmp").read_bytes()}).json()
    assert (answer["results"][0]["path"], answer["results"][0]["score"]) == ("green/2.png", pytest.approx(1, abs=1e-3))


def test_several_parts_count_equally(client: TestClient, snapshots: Path, encoder: Encoder) -> None:
    ids = [image_id("red/0.png"), image_id("blue/0.png")]
    answer = client.post("/v1/search", json={"query": [{"id": ids[0]}, {"id": ids[1]}, {"text": "blue"}]}).json()
    store = SnapshotStore(snapshots)
    snapshot = store.open(store.published())
    images = [snapshot.catalog.get(each) for each in ids]
    vectors = [snapshot.vector(image) for image in images if image] + [encoder.encode_texts(["blue"])[0]]
    mean = np.mean(vectors, axis=0)
    wanted = expected(snapshots, mean / np.linalg.norm(mean), 10)
    assert [each[0] for each in ranking(answer)] == [each[0] for each in wanted]


def test_ten_results_are_returned_unless_told_otherwise_and_never_more_than_there_are(client: TestClient) -> None:
    assert len(client.post("/v1/search", json={"query": [{"text": "x"}]}).json()["results"]) == 10
    answer = client.post("/v1/search", json={"query": [{"text": "x"}], "limit": 1000}).json()
    assert [result["rank"] for result in answer["results"]] == list(range(1, 25))


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ({}, "", "give query, all_of or any_of"),
        ({"query": []}, "", "give query, all_of or any_of"),
        ({"query": [{}]}, "/query/0", "give exactly one of image, image_url, id, text, vector and region"),
        ({"query": [{"text": "a", "id": "b"}]}, "/query/0", "give exactly one of image, image_url, id, text"),
        ({"query": [{"text": " "}]}, "/query/0/text", "the text is blank"),
        ({"query": [{"text": "x" * 10_001}]}, "/query/0/text", "at most 10000 characters"),
        ({"query": [{"image": "no base64!"}]}, "/query/0/image", "not base64"),
        ({"query": [{"image": "ünïcödé"}]}, "/query/0/image", "not base64"),
        ({"query": [{"text": "a"}], "limit": 0}, "/limit", "greater than or equal to 1"),
        ({"query": [{"text": "a"}], "limit": 1001}, "/limit", "less than or equal to 1000"),
        ({"query": [{"text": "a"}], "num_images": 3}, "/num_images", "Extra inputs are not permitted"),
        ({"query": [{"text": "a", "wait": 1}]}, "/query/0/wait", "Extra inputs are not permitted"),
        ([], "", "should be an object"),
    ],
)
def test_a_query_that_says_nothing_clear_is_told_where_and_why(
    client: TestClient, body: Any, pointer: str, detail: str
) -> None:
    response = client.post("/v1/search", json=body)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    errors = response.json()["errors"]
    assert any(error["pointer"] == pointer and detail in error["detail"] for error in errors), errors


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 422, "invalid_request"),
        (b"\xff\xfe", "application/json", 422, "invalid_request"),
        (b'{"query":[{"text":"\\ud800"}]}', "application/json", 422, "invalid_request"),
        (b"[" * 100_000, "application/json", 422, "invalid_request"),
        (b"query=a", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"{}", "", 415, "unsupported_media_type"),
        (b"nonsense", "multipart/form-data", 400, "bad_request"),
        (b"nonsense", "multipart/form-data; boundary=x", 400, "bad_request"),
        (b"x" * 1_000_001, "application/json", 413, "body_too_large"),
    ],
)
def test_a_body_that_cannot_be_read_is_the_callers_mistake(
    client: TestClient, content: bytes, kind: str, status: int, code: str
) -> None:
    response = client.post("/v1/search", content=content, headers={"Content-Type": kind})
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"


def test_a_body_without_a_length_is_cut_off_at_the_limit(client: TestClient) -> None:
    chunks = (b"x" * 100_000 for _ in range(20))
    response = client.post("/v1/search", content=chunks, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.headers["content-type"]) == (413, "application/problem+json")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "empty"),
        (b"<html></html>", 415, "not_an_image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, 415, "not_an_image"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + b"\0" * 50, 415, "not_an_image"),
    ],
)
def test_an_upload_that_is_no_picture_is_named_so(client: TestClient, data: bytes, status: int, code: str) -> None:
    response = client.post("/v1/search", files={"file": ("x.jpg", data)})
    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("files", "data", "pointer"),
    [
        ({"picture": b"x"}, {}, "/picture"),
        ({"file": b"x"}, {"limit": "many"}, "/limit"),
        ({"file": b"x"}, {"k": "3"}, "/k"),
        ({"limit": b"x"}, {}, "/query/0"),
    ],
)
def test_a_form_with_other_fields_is_told_which(
    client: TestClient, files: dict[str, bytes], data: dict[str, str], pointer: str
) -> None:
    response = client.post("/v1/search", files=files, data=data)
    assert response.status_code == 422
    assert pointer in {error["pointer"] for error in response.json()["errors"]}


def test_an_unknown_id_is_not_found(client: TestClient) -> None:
    response = client.post("/v1/search", json={"query": [{"id": "0000000000000000"}]})
    assert response.status_code == 404
    assert response.json() == {
        "type": "urn:kindred:problem:item_not_found",
        "title": "Not Found",
        "status": 404,
        "detail": "The current snapshot has no picture '0000000000000000'.",
        "instance": "/v1/search",
        "code": "item_not_found",
        "request_id": response.headers["x-request-id"],
    }


def test_a_good_picture_is_answered_after_a_bad_one(client: TestClient, source: Path) -> None:
    whole = (source / "red" / "0.png").read_bytes()
    for _ in range(3):
        assert client.post("/v1/search", files={"file": whole[:200]}).status_code == 400
        assert client.post("/v1/search", files={"file": whole}).json()["results"][0]["path"] == "red/0.png"


def test_no_part_of_the_bad_corpus_gets_worse_than_a_refusal(client: TestClient, real_data: Path) -> None:
    answers = []
    for path in sorted(path for path in (real_data / "bad").rglob("*") if path.is_file()):
        response = client.post("/v1/search", files={"file": path.read_bytes()}, data={"limit": "1"})
        answers.append(response.status_code)
        assert response.status_code in {200, 400, 413, 415}, f"{path}: {response.text}"
        assert response.status_code == 200 or response.json()["detail"], path
    assert len(answers) > 1_000
    assert answers.count(200) > 200


def test_naughty_strings_are_only_text(client: TestClient, real_data: Path) -> None:
    strings = json.loads((real_data / "bad" / "text" / "blns_blns.json").read_text())
    for text in strings:
        response = client.post("/v1/search", json={"query": [{"text": text}], "limit": 1})
        assert response.status_code == (200 if text.strip() else 422), text
