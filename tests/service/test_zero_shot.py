"""POST /v1/classify/zero-shot: labels in words, the words that spoke for them, and pictures that are none of them."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from indexer import demo
from indexer.encoder import DEMO, Encoder, EncoderName, load_encoder
from indexer.plan import image_id
from indexer.snapshot import Snapshot
from service.app import create_app
from service.describe import joined
from service.settings import ServiceSettings
from tests.conftest import build_snapshot

RED = {"id": image_id("red/1.png")}
HEN = ["two legs", "a red comb", "often kept on farms"]


def ask(client: TestClient, **body: Any) -> Any:
    """Classify, and return the answer."""
    response = client.post("/v1/classify/zero-shot", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def logits(answer: Any) -> dict[str, float]:
    """Return the logarithm of each label's probability: its scaled score, up to a constant of the answer."""
    return {each["label"]: float(np.log(each["probability"])) for each in answer["classes"]}


@pytest.mark.parametrize(
    ("descriptor", "text"),
    [
        ("two legs", "hen, which has two legs"),
        ("a red comb", "hen, which is a red comb"),
        ("An orange beak", "hen, which is An orange beak"),
        ("antlers", "hen, which has antlers"),
        ("used for eggs", "hen, which is used for eggs"),
        ("users", "hen, which has users"),
        ("has wings", "hen, which has wings"),
        ("often on a farm", "hen, which often on a farm"),
        ("typically brown", "hen, which typically brown"),
        ("may be white", "hen, which may be white"),
        ("can fly a little", "hen, which can fly a little"),
        ("canine teeth", "hen, which has canine teeth"),
        (" hasty feet ", "hen, which has hasty feet"),
        ("a", "hen, which is a"),
    ],
)
def test_a_descriptor_is_joined_to_its_label_by_its_first_word(descriptor: str, text: str) -> None:
    assert joined("hen", descriptor) == text


def test_the_score_of_a_described_label_is_the_mean_over_its_descriptors(
    client: TestClient, encoder: Encoder, snapshots: Path
) -> None:
    descriptors = {"hen": HEN, "fish": ["fins", "used as food"]}
    answer = ask(client, **RED, labels=["hen", "fish", "star"], descriptors=descriptors)
    texts = {
        "hen": ["hen, which has two legs", "hen, which is a red comb", "hen, which often kept on farms"],
        "fish": ["fish, which has fins", "fish, which is used as food"],
        "star": ["a photo of a star"],
    }
    picture = client.post("/v1/search", json={"query": [RED], "limit": 1}).json()["results"][0]
    assert picture["id"] == RED["id"]
    vector = embedding(snapshots, RED["id"])
    scores = {label: float((encoder.encode_texts(own) @ vector).mean()) for label, own in texts.items()}
    found = logits(answer)
    for label, other in (("hen", "fish"), ("hen", "star")):
        wanted = encoder.logit_scale * (scores[label] - scores[other])
        assert found[label] - found[other] == pytest.approx(wanted, abs=1e-3)
    first, second = (each["label"] for each in answer["classes"][:2])
    told = [(each["label"], each["text"], each["score"]) for each in answer["evidence"]]
    wanted_evidence = [
        (label, text, float(score))
        for label in (first, second)
        for score, text in sorted(
            zip((encoder.encode_texts(texts[label]) @ vector).tolist(), texts[label], strict=True), reverse=True
        )
    ]
    assert [each[:2] for each in told] == [each[:2] for each in wanted_evidence]
    assert [each[2] for each in told] == pytest.approx([each[2] for each in wanted_evidence], abs=1e-5)
    for label in (first, second):
        assert np.mean([score for own, _, score in told if own == label]) == pytest.approx(scores[label], abs=1e-5)


def embedding(snapshots: Path, item: str) -> NDArray[np.float32]:
    """Return the stored vector of a picture."""
    (folder,) = (path for path in snapshots.iterdir() if path.is_dir() and not path.name.startswith("."))
    snapshot = Snapshot.open(folder)
    image = snapshot.catalog.get(item)
    assert image is not None
    return snapshot.vector(image)


def test_the_order_of_descriptors_and_labels_does_not_matter(client: TestClient) -> None:
    first = ask(client, **RED, labels=["hen", "fish"], descriptors={"hen": HEN, "fish": ["fins"]})
    second = ask(client, **RED, labels=["fish", "hen"], descriptors={"fish": ["fins"], "hen": HEN[::-1]})
    assert first["classes"] == second["classes"]
    assert first["evidence"] == second["evidence"]


def test_one_descriptor_more_changes_only_its_own_label(client: TestClient) -> None:
    labels = ["hen", "fish", "star"]
    before = logits(ask(client, **RED, labels=labels, descriptors={"hen": HEN}))
    after = logits(ask(client, **RED, labels=labels, descriptors={"hen": [*HEN, "a keyboard of eighty-eight keys"]}))
    assert after["fish"] - after["star"] == pytest.approx(before["fish"] - before["star"], abs=1e-5)
    assert after["hen"] - after["star"] != pytest.approx(before["hen"] - before["star"], abs=1e-3)


def test_labels_without_descriptors_are_what_they_are_without_any(client: TestClient) -> None:
    plain = ask(client, **RED, labels=["star", "fish"])
    assert ask(client, **RED, labels=["star", "fish"], descriptors={"star": []})["classes"] == plain["classes"]
    assert [each["text"] for each in plain["evidence"]] == [
        f"a photo of a {each['label']}" for each in plain["classes"]
    ]


def test_descriptors_as_long_as_they_may_be_are_read_in_parts(client: TestClient) -> None:
    answer = ask(client, **RED, labels=["star", "fish"], descriptors={"fish": ["fins " * 2_000]})
    assert "is longer than the encoder reads at once" in answer["notes"][0]


@pytest.mark.parametrize(
    ("more", "detail"),
    [
        ({"descriptors": {"hem": ["two legs"]}}, "descriptors of 'hem', which is none of the labels"),
        ({"descriptors": {"hen": [" "]}}, "the text is blank"),
        ({"descriptors": {"hen": ["x"] * 101}}, "at most 100"),
        ({"false_rejects": 0}, "greater than 0"),
        ({"false_rejects": 1}, "less than 1"),
    ],
)
def test_what_describes_no_label_is_refused(client: TestClient, more: dict[str, Any], detail: str) -> None:
    response = client.post("/v1/classify/zero-shot", json={**RED, "labels": ["hen", "fish"], **more})
    assert response.status_code == 422
    assert detail in response.json()["detail"]


# None of these


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Encoder]]:
    """Serve 200 drawn pictures: 20 of each of ten kinds."""
    folder = tmp_path_factory.mktemp("drawn")
    encoder = load_encoder(EncoderName(model=DEMO), device="cpu", threads=1)
    demo.write_collection(folder / "pictures", count=200)
    build_snapshot(folder / "pictures", folder / "s", encoder, labels=str(folder / "pictures" / "metadata.jsonl"))
    with TestClient(create_app(ServiceSettings(snapshots=folder / "s"))) as client:
        yield client, encoder


def snapshot_of(client: TestClient) -> tuple[Snapshot, NDArray[np.str_], list[str]]:
    """Return what is served, the label of each row, and the id of each row."""
    snapshot = client.app.state.live.searcher.snapshot  # type: ignore[attr-defined]
    images = snapshot.catalog.rows(range(len(snapshot)))
    return snapshot, np.array([image.label for image in images]), [image.id for image in images]


def best(snapshot: Snapshot, encoder: Encoder, labels: Sequence[str]) -> NDArray[np.float64]:
    """Return each picture's score for the best of some labels."""
    texts = encoder.encode_texts([f"a photo of a {label.lower()}" for label in labels]).astype(np.float64)
    scores: NDArray[np.float64] = (snapshot.embeddings @ texts.T).max(axis=1)
    return scores


def test_a_picture_under_the_quantile_of_the_labels_own_pictures_is_none_of_them(
    drawn: tuple[TestClient, Encoder],
) -> None:
    client, encoder = drawn
    snapshot, kinds, ids = snapshot_of(client)
    labels = sorted(set(kinds.tolist()))[:3]
    scores = best(snapshot, encoder, labels)
    own = np.flatnonzero(np.isin(kinds, labels))
    rejected = []
    for row in range(0, 200, 4):
        # The label's case does not matter.
        answer = ask(client, id=ids[row], labels=[label.upper() for label in labels], none_of_these=True)
        threshold = np.quantile(scores[own[own != row]], 0.05)
        assert answer["abstained"] == (scores[row] < threshold)
        assert (answer["label"] is None) == answer["abstained"] == (answer["reason"] is not None)
        assert len(answer["classes"]) == 3
        if answer["abstained"]:
            told = [float(number) for number in re.findall(r"-?\d\.\d{4}", answer["reason"])]
            assert told == pytest.approx([scores[row], threshold], abs=1e-4)
            assert f"{len(own) - (row in own)} pictures of the index that have one of" in answer["reason"]
            rejected.append(kinds[row])
    assert rejected
    assert sum(kind not in labels for kind in rejected) > len(rejected) / 2


def test_false_rejects_say_how_many_of_the_labels_own_pictures_may_be_turned_away(
    drawn: tuple[TestClient, Encoder],
) -> None:
    client, _ = drawn
    _, kinds, ids = snapshot_of(client)
    labels = sorted(set(kinds.tolist()))[:3]
    own = np.flatnonzero(np.isin(kinds, labels))

    def turned_away(share: float) -> int:
        bodies = [{"id": ids[row], "labels": labels, "none_of_these": True, "false_rejects": share} for row in own]
        return sum(ask(client, **body)["abstained"] for body in bodies)

    assert turned_away(0.01) <= 2
    assert turned_away(0.5) == pytest.approx(0.5 * len(own), abs=2)


def test_with_few_pictures_of_the_labels_any_picture_is_compared_with(drawn: tuple[TestClient, Encoder]) -> None:
    client, encoder = drawn
    snapshot, _, ids = snapshot_of(client)
    labels = ["a platypus", "a comet"]
    scores = best(snapshot, encoder, labels)
    row = int(scores.argmin())
    answer = ask(client, id=ids[row], labels=labels, none_of_these=True)
    assert (answer["label"], answer["abstained"]) == (None, True)
    assert "5 % of 199 pictures of the index have a best score under" in answer["reason"]
    assert "fewer than 20 have one of these labels" in answer["reason"]
    assert not ask(client, id=ids[int(scores.argmax())], labels=labels, none_of_these=True)["abstained"]


def test_without_asking_nothing_is_rejected(drawn: tuple[TestClient, Encoder]) -> None:
    client, encoder = drawn
    snapshot, _, ids = snapshot_of(client)
    row = int(best(snapshot, encoder, ["a comet"]).argmin())
    answer = ask(client, id=ids[row], labels=["a comet"])
    assert (answer["label"], answer["abstained"], answer["reason"]) == ("a comet", False, None)


def test_of_a_text_it_cannot_be_said_that_it_is_none_of_these(client: TestClient) -> None:
    body = {"text": "a star", "labels": ["a", "b"], "none_of_these": True}
    response = client.post("/v1/classify/zero-shot", json=body)
    assert response.status_code == 422
    assert "tells nothing of a text" in response.json()["detail"]
