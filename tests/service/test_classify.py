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

# Rows are in the order of the paths.
PATHS = [f"{label}/{number}.png" for label in ("blue", "green", "red") for number in range(8)]


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


# Confidence


def share_and_line(client: TestClient, snapshots: Path, body: dict[str, str]) -> tuple[float, list[list[float]]]:
    """Return the winner's share of the vote, and the line that the build learnt."""
    manifest = SnapshotStore(snapshots).manifest(SnapshotStore(snapshots).published())
    assert manifest.relevance is not None
    assert manifest.relevance.votes is not None
    share = client.post("/v1/classify", json=body).json()["classes"][0]["probability"]
    return share, [list(knot) for knot in manifest.relevance.votes.knots]


@pytest.mark.parametrize("path", ["blue/0.png", "green/3.png", "red/7.png"])
def test_confidence_is_what_the_build_learnt_of_such_a_share(client: TestClient, snapshots: Path, path: str) -> None:
    body = {"id": image_id(path)}
    share, line = share_and_line(client, snapshots, body)
    answer = client.post("/v1/classify", json=body).json()
    assert answer["confidence"] == pytest.approx(np.interp(share, *np.array(line).T), abs=5e-5)
    assert (answer["label"], answer["abstained"]) == (answer["classes"][0]["label"], False)


def test_under_the_least_confidence_no_label_is_given_but_all_that_was_found(
    source: Path, tmp_path: Path, encoder: Encoder, settings: ServiceSettings
) -> None:
    # Labels that have nothing to do with what the pictures show are hard to guess.
    table = tmp_path / "odd.csv"
    table.write_text("path,label\n" + "".join(f"{path},{number % 2}\n" for number, path in enumerate(PATHS)))
    build_snapshot(source, settings.snapshots, encoder, labels=str(table))
    body = {"text": "something green"}
    with TestClient(create_app(settings)) as client:
        sure = client.post("/v1/classify", json=body).json()
        unsure = client.post("/v1/classify", json={**body, "min_confidence": sure["confidence"] + 1e-4}).json()
        same = client.post("/v1/classify", json={**body, "min_confidence": sure["confidence"]}).json()
    assert 0 <= sure["confidence"] < 1
    assert (unsure["label"], unsure["abstained"]) == (None, True)
    assert unsure["confidence"] == sure["confidence"]
    assert (unsure["classes"], unsure["neighbors"]) == (sure["classes"], sure["neighbors"])
    assert (same["label"], same["abstained"]) == (sure["label"], False)


def test_neighbours_are_told_how_relevant_their_scores_are(client: TestClient, snapshots: Path) -> None:
    manifest = SnapshotStore(snapshots).manifest(SnapshotStore(snapshots).published())
    assert manifest.relevance is not None
    assert manifest.relevance.image is not None
    answer = client.post("/v1/classify", json={"id": image_id("red/1.png")}).json()
    told = [(hit["rank"], hit["relevance"]) for hit in answer["neighbors"]]
    line = np.array(manifest.relevance.image.knots).T
    wanted = [(rank, np.interp(hit["score"], *line)) for rank, hit in enumerate(answer["neighbors"], start=1)]
    assert told == [(rank, pytest.approx(relevance, abs=5e-5)) for rank, relevance in wanted]


def test_an_index_with_few_labels_knows_no_confidence_and_abstains_from_nothing(
    source: Path, tmp_path: Path, encoder: Encoder, settings: ServiceSettings
) -> None:
    table = tmp_path / "few.csv"
    table.write_text("path,label\nblue/0.png,rare\nred/0.png,seldom\n")
    build_snapshot(source, settings.snapshots, encoder, labels=str(table))
    with TestClient(create_app(settings)) as client:
        answer = client.post("/v1/classify", json={"text": "anything"}).json()
        refused = client.post("/v1/classify", json={"text": "anything", "min_confidence": 0.5})
    assert (answer["confidence"], answer["abstained"]) == (None, False)
    assert answer["label"] in {"rare", "seldom"}
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_query")
    assert "build it from labelled pictures" in refused.json()["detail"]


def test_a_region_of_a_picture_of_the_index_is_not_voted_on_by_that_picture(client: TestClient) -> None:
    own = image_id("red/1.png")
    answer = client.post("/v1/classify", json={"region": {"id": own, "box": [0, 0, 0.5, 1]}, "k": 23}).json()
    assert len(answer["neighbors"]) == 23
    assert own not in {hit["id"] for hit in answer["neighbors"]}


def test_a_long_text_is_read_in_parts_and_the_answer_says_so(client: TestClient) -> None:
    answer = client.post("/v1/classify", json={"text": "a green thing that is long. " * 20}).json()
    assert "is longer than the encoder reads at once" in answer["notes"][0]
    assert client.post("/v1/classify", json={"text": "short"}).json()["notes"] == []


def test_without_labels_there_is_nothing_to_vote_with(
    source: Path, encoder: Encoder, settings: ServiceSettings
) -> None:
    build_snapshot(source, settings.snapshots, encoder, labels=None)
    with TestClient(create_app(settings)) as client:
        response = client.post("/v1/classify", json={"text": "anything"})
    assert (response.status_code, response.json()["code"]) == (409, "no_labels")


@pytest.mark.parametrize(
    ("more", "pointer"),
    [
        ({"k": 0}, "/k"),
        ({"k": 1001}, "/k"),
        ({"temperature": 0}, "/temperature"),
        ({"min_confidence": 2}, "/min_confidence"),
        ({"labels": ["a"]}, "/labels"),
    ],
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
