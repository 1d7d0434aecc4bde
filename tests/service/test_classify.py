"""POST /v1/classify and /v1/classify/zero-shot."""

import base64
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from indexer.encoder import Encoder
from indexer.plan import image_id
from indexer.store import SnapshotStore
from service.app import create_app
from service.settings import ServiceSettings
from tests.conftest import build_snapshot


def test_neighbours_vote_with_the_papers_weights(client: TestClient, snapshots: Path, encoder: Encoder) -> None:
    answer = client.post("/v1/classify", json={"text": "something green"}).json()
    folder = snapshots / SnapshotStore(snapshots).published()
    scores = np.load(folder / "embeddings.npy") @ encoder.encode_texts(["something green"])[0]
    nearest = np.argsort(-scores)[:21]
    # Rows are in the order of the paths: 8 blue, 8 green, 8 red.
    labels = np.array(["blue", "green", "red"])[nearest // 8]
    weights = np.exp(scores[nearest] / 0.1)
    wanted = {label: weights[labels == label].sum() / weights.sum() for label in set(labels)}
    assert {each["label"]: each["probability"] for each in answer["classes"]} == pytest.approx(wanted, abs=1e-4)
    assert answer["label"] == max(wanted, key=lambda label: wanted[label])
    assert len(answer["neighbors"]) == 21
    assert sum(each["probability"] for each in answer["classes"]) == pytest.approx(1)


def test_k_and_temperature_can_be_set(client: TestClient, source: Path) -> None:
    data = (source / "blue" / "6.png").read_bytes()
    upload = client.post("/v1/classify", files={"file": data}, data={"k": "1", "temperature": "0.5"}).json()
    coded = client.post(
        "/v1/classify", json={"image": base64.b64encode(data).decode(), "k": 1, "temperature": 0.5}
    ).json()
    for answer in (upload, coded):
        assert answer["classes"] == [{"label": "blue", "probability": 1.0}]
        assert [hit["path"] for hit in answer["neighbors"]] == ["blue/6.png"]


def test_a_picture_of_the_index_does_not_vote_for_itself(client: TestClient) -> None:
    own = image_id("red/1.png")
    answer = client.post("/v1/classify", json={"id": own, "k": 23}).json()
    assert len(answer["neighbors"]) == 23
    assert own not in {hit["id"] for hit in answer["neighbors"]}


def test_pictures_without_a_label_do_not_vote_and_do_not_count(
    source: Path, tmp_path: Path, encoder: Encoder, settings: ServiceSettings
) -> None:
    table = tmp_path / "few.csv"
    table.write_text("path,label\nblue/0.png,rare\nred/0.png,seldom\n")
    build_snapshot(source, settings.snapshots, encoder, labels=str(table))
    with TestClient(create_app(settings)) as client:
        answer = client.post("/v1/classify", json={"text": "anything", "k": 2}).json()
    assert {hit["path"] for hit in answer["neighbors"]} == {"blue/0.png", "red/0.png"}


def test_without_labels_there_is_nothing_to_vote_with(
    source: Path, encoder: Encoder, settings: ServiceSettings
) -> None:
    build_snapshot(source, settings.snapshots, encoder, labels=None)
    with TestClient(create_app(settings)) as client:
        response = client.post("/v1/classify", json={"text": "anything"})
    assert (response.status_code, response.json()["code"]) == (409, "no_labels")


@pytest.mark.parametrize(
    ("more", "pointer"),
    [({"k": 0}, "/k"), ({"k": 1001}, "/k"), ({"temperature": 0}, "/temperature"), ({"labels": ["a"]}, "/labels")],
)
def test_settings_out_of_range_are_refused(client: TestClient, more: dict[str, object], pointer: str) -> None:
    response = client.post("/v1/classify", json={"text": "x", **more})
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]


def test_zero_shot_is_the_softmax_over_the_mean_of_the_prompts(client: TestClient, encoder: Encoder) -> None:
    prompts = {"star": ["a star", "a red star"], "heart": ["a heart"], "moon": ["the moon", "a moon", "moons"]}
    answer = client.post("/v1/classify/zero-shot", json={"text": "a yellow star", "labels": prompts}).json()
    query = encoder.encode_texts(["a yellow star"])[0]
    logits = []
    for texts in prompts.values():
        mean = encoder.encode_texts(texts).mean(axis=0)
        logits.append(encoder.logit_scale * float(query @ mean / np.linalg.norm(mean)))
    weights = np.exp(logits) / np.exp(logits).sum()
    found = {each["label"]: each["probability"] for each in answer["classes"]}
    assert found == pytest.approx(dict(zip(prompts, weights, strict=True)), abs=1e-4)
    assert answer["label"] == answer["classes"][0]["label"]


def test_a_bare_label_is_described_as_a_photo(client: TestClient) -> None:
    bare = client.post("/v1/classify/zero-shot", json={"id": image_id("red/1.png"), "labels": ["star", "fish"]}).json()
    spelt = client.post(
        "/v1/classify/zero-shot",
        json={
            "id": image_id("red/1.png"),
            "labels": {"star": ["a photo of a star"], "fish": ["a photo of a fish"]},
        },
    ).json()
    assert bare["classes"] == spelt["classes"]


@pytest.mark.parametrize("labels", [[], {}, {"a": []}, [""], "star", [" "]])
def test_labels_that_say_nothing_are_refused(client: TestClient, labels: object) -> None:
    response = client.post("/v1/classify/zero-shot", json={"text": "x", "labels": labels})
    assert response.status_code == 422
