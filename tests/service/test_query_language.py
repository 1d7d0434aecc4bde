"""POST /v1/search: weights, regions, examples, what is suppressed, cut-offs, pages, facets, batches, exports."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from indexer.encoder import Encoder
from indexer.images import decode
from indexer.plan import image_id
from indexer.snapshot import Snapshot
from indexer.store import SnapshotStore
from service.app import create_app
from service.settings import ServiceSettings
from tests.conftest import POLICY, build_snapshot
from tests.faults import FOREVER, FaultServer, resets

RED, BLUE = image_id("red/0.png"), image_id("blue/0.png")
Numbers = NDArray[np.float64]


@pytest.fixture
def snapshot(snapshots: Path) -> Snapshot:
    """Open what the service serves."""
    store = SnapshotStore(snapshots)
    return store.open(store.published())


def ids(snapshot: Snapshot) -> list[str]:
    return [image.id for image in snapshot.catalog.rows(range(len(snapshot)))]


def vector(snapshot: Snapshot, image: str) -> Numbers:
    row: Numbers = snapshot.embeddings[ids(snapshot).index(image)].astype(float)
    return row


def ranked(snapshot: Snapshot, scores: Numbers) -> list[tuple[str, float]]:
    """Rank all pictures by scores, best first, ties by id."""
    rounded = np.round(scores, 6).tolist()
    return sorted(zip(ids(snapshot), rounded, strict=True), key=lambda each: (-each[1], each[0]))


def unit(numbers: Numbers) -> Numbers:
    scaled: Numbers = numbers / np.linalg.norm(numbers)
    return scaled


def ask(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/search", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def check(answer: dict[str, Any], wanted: list[tuple[str, float]]) -> None:
    results = answer["results"]
    assert [result["score"] for result in results] == pytest.approx(
        [score for _, score in wanted[: len(results)]], abs=3e-6
    )
    assert [result["id"] for result in results[:5]] == [image for image, _ in wanted[:5]]


def test_weighted_parts_are_summed_and_scaled_to_the_sphere(
    client: TestClient, snapshot: Snapshot, encoder: Encoder
) -> None:
    body = {"query": [{"id": RED, "weight": 2}, {"text": "blue", "weight": 0.5}], "limit": 24}
    query = unit(2 * vector(snapshot, RED) + 0.5 * encoder.encode_texts(["blue"])[0].astype(float))
    check(ask(client, body), ranked(snapshot, snapshot.embeddings @ query))


@pytest.mark.parametrize("weight", [0.25, 1, 3])
def test_what_is_avoided_is_taken_away_as_far_as_the_query_has_it(
    client: TestClient, snapshot: Snapshot, weight: float
) -> None:
    body = {"query": [{"id": RED}, {"id": BLUE, "weight": -weight}], "limit": 24}
    wanted, avoided = vector(snapshot, RED), vector(snapshot, BLUE)
    assert wanted @ avoided > 0
    query = unit(wanted - weight * (wanted @ avoided) * avoided)
    answer = ask(client, body)
    check(answer, ranked(snapshot, snapshot.embeddings @ query))
    scores = {result["id"]: result["score"] for result in answer["results"]}
    assert weight != 1 or scores[BLUE] == pytest.approx(0, abs=2e-6)


def test_a_query_of_nothing_but_what_is_avoided_finds_the_farthest(client: TestClient, snapshot: Snapshot) -> None:
    check(
        ask(client, {"query": f"- @{RED}", "limit": 24}), ranked(snapshot, -snapshot.embeddings @ vector(snapshot, RED))
    )


def test_a_query_in_short_is_one_of_parts(client: TestClient) -> None:
    short = ask(client, {"query": f"2:a red star + @{BLUE} - a moon", "limit": 24})
    parts = [{"text": "a red star", "weight": 2}, {"id": BLUE}, {"text": "a moon", "weight": -1}]
    assert short["results"] == ask(client, {"query": parts, "limit": 24})["results"]


def test_an_upload_takes_a_query_in_short_besides(client: TestClient, source: Path) -> None:
    data = (source / "red" / "0.png").read_bytes()
    answer = client.post("/v1/search", files={"file": data}, data={"query": "- a moon", "limit": "24"}).json()
    parts = [{"image": base64.b64encode(data).decode()}, {"text": "a moon", "weight": -1}]
    assert answer["results"] == ask(client, {"query": parts, "limit": 24})["results"]


def test_a_vector_is_searched_for_whatever_its_length(client: TestClient, snapshot: Snapshot) -> None:
    for scale in (1.0, 1e-30, 1e300):
        query = vector(snapshot, BLUE)
        answer = ask(client, {"query": [{"vector": (query * scale).tolist()}], "limit": 24})
        check(answer, ranked(snapshot, snapshot.embeddings @ query))


def test_a_region_is_looked_at_as_if_it_were_the_picture(
    client: TestClient, snapshot: Snapshot, source: Path, encoder: Encoder
) -> None:
    data = (source / "green" / "3.png").read_bytes()
    rgb = decode(data, POLICY).rgb[10:30, 14:42]  # of 40 x 56
    query = encoder.encode_images([encoder.preprocess(rgb)])[0].astype(float)
    box = [0.25, 0.25, 0.75, 0.75]
    for picture in ({"image": base64.b64encode(data).decode()}, {"id": image_id("green/3.png")}):
        answer = ask(client, {"query": [{"region": {**picture, "box": box}}], "limit": 24})
        check(answer, ranked(snapshot, snapshot.embeddings @ query))
        assert answer["notes"] == []


def test_a_region_of_a_picture_whose_file_is_gone_is_one_of_its_thumbnail(client: TestClient, source: Path) -> None:
    (source / "green" / "3.png").unlink()
    body = {"query": [{"region": {"id": image_id("green/3.png"), "box": [0, 0, 1, 1]}}], "limit": 1}
    answer = ask(client, body)
    assert answer["results"][0]["label"] == "green"
    assert "its thumbnail was looked at" in answer["notes"][0]


@pytest.mark.parametrize("box", [[0.999, 0.999, 1, 1], [0, 0, 1e-9, 1e-9]])
def test_the_smallest_region_is_a_pixel(client: TestClient, box: list[float]) -> None:
    assert ask(client, {"query": [{"region": {"id": RED, "box": box}}]})["results"]


def test_examples_are_compared_one_by_one(client: TestClient, snapshot: Snapshot, encoder: Encoder) -> None:
    text = encoder.encode_texts(["a star"])[0]
    all_of, some = snapshot.embeddings @ vector(snapshot, RED), snapshot.embeddings @ text.astype(float)
    other, none = (
        snapshot.embeddings @ vector(snapshot, BLUE),
        snapshot.embeddings @ vector(snapshot, image_id("green/0.png")),
    )
    body = {
        "all_of": [{"id": RED}],
        "any_of": [{"text": "a star"}, {"id": BLUE}],
        "none_of": [{"id": image_id("green/0.png")}],
        "limit": 24,
    }
    check(ask(client, body), ranked(snapshot, np.minimum(all_of, np.maximum(some, other)) - none))
    check(
        ask(client, {"query": [{"id": BLUE}], "all_of": [{"id": RED}], "limit": 24}),
        ranked(snapshot, np.minimum(all_of, other)),
    )


def test_what_is_suppressed_is_taken_out_of_the_query(client: TestClient, snapshot: Snapshot, encoder: Encoder) -> None:
    learnt = snapshot.text_map
    texts = encoder.encode_texts(["red", "blue"]).astype(float)
    spoken = texts if learnt is None else texts @ learnt.T.astype(float)
    _, strengths, basis = np.linalg.svd(spoken, full_matrices=False)
    basis = basis[strengths > 0.3 * strengths[0]]
    query = vector(snapshot, RED)
    query = unit(query - basis.T @ (basis @ query))
    answer = ask(client, {"query": [{"id": RED}], "suppress": ["red", "blue"], "limit": 24})
    check(answer, ranked(snapshot, snapshot.embeddings @ query))


def test_a_query_of_nothing_but_what_is_suppressed_is_refused(client: TestClient, snapshot: Snapshot) -> None:
    if snapshot.text_map is not None:
        pytest.skip("this snapshot has learnt where texts show in pictures")
    response = client.post("/v1/search", json={"query": "a star", "suppress": ["a star"]})
    assert (response.status_code, response.json()["code"]) == (422, "bad_query")
    assert "Nothing is left of the query" in response.json()["detail"]


def test_cut_offs_hide_what_is_below_and_say_so_when_that_is_all(client: TestClient) -> None:
    scores = [result["score"] for result in ask(client, {"query": [{"id": RED}], "limit": 24})["results"]]
    least = (scores[7] + scores[8]) / 2
    answer = ask(client, {"query": [{"id": RED}], "limit": 24, "min_score": least})
    assert [result["score"] for result in answer["results"]] == scores[:8]
    assert (answer["hidden"]["cutoff"], answer["no_confident_match"], answer["next_cursor"]) == (16, False, None)
    nothing = ask(client, {"query": "a red star", "min_score": 1.0})
    assert (nothing["results"], nothing["no_confident_match"]) == ([], True)


def test_hidden_says_how_many_a_filter_leaves_out(client: TestClient) -> None:
    body = {"query": [{"id": RED}], "filter": {"must": [{"key": "label", "match": {"any": ["red", "blue"]}}]}}
    answer = ask(client, body)
    assert answer["hidden"] == {"filter": 8, "cutoff": 0, "duplicates": 0}
    nothing = ask(client, {"query": [{"id": RED}], "filter": {"must": [{"key": "label", "match": {"value": "pink"}}]}})
    assert (nothing["results"], nothing["hidden"]["filter"]) == ([], 24)
    # A filter that nothing matches is no matter of confidence.
    assert not nothing["no_confident_match"]


def test_facets_count_the_values_of_what_was_found(client: TestClient) -> None:
    body = {
        "query": [{"id": RED}],
        "limit": 2,
        "facets": ["label", "metadata.size"],
        "filter": {"must_not": [{"key": "metadata.size", "match": {"value": "0"}}]},
    }
    assert ask(client, body)["facets"] == {
        "label": [{"value": label, "count": 7} for label in ("blue", "green", "red")],
        "metadata.size": [{"value": str(number), "count": 3} for number in range(1, 8)],
    }


def test_groups_hold_as_many_as_asked_for(client: TestClient) -> None:
    answer = ask(client, {"query": [{"id": RED}], "group_by": "label", "group_size": 2})
    labels = [result["label"] for result in answer["results"]]
    assert sorted(labels) == ["blue", "blue", "green", "green", "red", "red"]
    every = [result["id"] for result in ask(client, {"query": [{"id": RED}], "limit": 24})["results"]]
    wanted = [image for image in every if image in {result["id"] for result in answer["results"]}]
    assert [result["id"] for result in answer["results"]] == wanted


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"diversity": 0.5},
        {"collapse_duplicates": True},
        {"collapse_duplicates": 0.97},
        {"group_by": "label", "group_size": 5},
        {"all_of": [{"text": "blue"}], "none_of": [{"text": "moon"}]},
        {"filter": {"must_not": [{"key": "label", "match": {"value": "red"}}]}, "facets": ["label"]},
    ],
)
def test_pages_follow_each_other_without_overlap_until_there_are_no_more(
    client: TestClient, more: dict[str, Any]
) -> None:
    body = {"query": [{"id": RED}, {"text": "a star"}], "limit": 5, **more}
    pages = [ask(client, body)]
    while pages[-1]["next_cursor"]:
        pages.append(ask(client, {**body, "cursor": pages[-1]["next_cursor"]}))
    shown = [result for page in pages for result in page["results"]]
    assert [result["rank"] for result in shown] == list(range(1, len(shown) + 1))
    assert len({result["id"] for result in shown}) == len(shown)
    whole = ask(client, {**body, "limit": 24})["results"]
    assert {result["id"] for result in whole} == {result["id"] for result in shown} or "collapse_duplicates" in more
    if "diversity" not in more:
        assert [result["id"] for result in whole] == [result["id"] for result in shown]
    assert all(len(page["results"]) == 5 for page in pages[:-1])


def test_a_cursor_of_another_request_or_none_at_all_is_refused(client: TestClient) -> None:
    body = {"query": [{"id": RED}], "limit": 5}
    cursor = ask(client, body)["next_cursor"]
    assert len(ask(client, {**body, "limit": 3, "cursor": cursor})["results"]) == 3
    response = client.post("/v1/search", json={"query": [{"id": BLUE}], "cursor": cursor})
    assert (response.status_code, "another request" in response.json()["detail"]) == (422, True)
    for wrong in ("", "nonsense", cursor[:-4], "!" * 10, base64.b64encode(b"{}").decode()):
        response = client.post("/v1/search", json={**body, "cursor": wrong})
        assert (response.status_code, "This is no cursor" in response.json()["detail"]) == (422, True)


def test_a_cursor_is_gone_once_another_snapshot_is_served(
    client: TestClient, app: Any, snapshots: Path, source: Path, encoder: Encoder
) -> None:
    body = {"query": [{"id": RED}], "limit": 5}
    cursor = ask(client, body)["next_cursor"]
    build_snapshot(source, snapshots, encoder)
    app.state.live.refresh()
    response = client.post("/v1/search", json={**body, "cursor": cursor})
    assert (response.status_code, response.json()["code"]) == (410, "cursor_expired")


def test_a_long_text_is_read_in_pieces_and_the_answer_says_so(
    client: TestClient, snapshot: Snapshot, encoder: Encoder
) -> None:
    text = ". ".join(f"A red star stands beside {number} green moons" for number in range(30))
    pieces = encoder.segments(text)
    assert len(pieces) > 1
    answer = ask(client, {"query": [{"text": text}], "limit": 24})
    query = unit(encoder.encode_texts(pieces).astype(float).sum(axis=0))
    check(answer, ranked(snapshot, snapshot.embeddings @ query))
    (note,) = answer["notes"]
    assert note.startswith("The text 'A red star stands beside 0 green...' is longer than the encoder reads at once")
    assert f"it was read in {len(pieces)} pieces" in note


def test_a_batch_has_a_status_for_each_search(client: TestClient) -> None:
    searches: list[dict[str, Any]] = [
        {"query": "a red star", "limit": 2},
        {"limit": 3},
        {"query": [{"id": "0000"}]},
        {"query": [{"id": RED}]},
    ]
    results = client.post("/v1/search/batch", json={"searches": searches}).json()["results"]
    assert [result["status"] for result in results] == [200, 422, 404, 200]
    assert results[0]["answer"]["results"] == ask(client, searches[0])["results"]
    assert results[3]["answer"]["results"] == ask(client, searches[3])["results"]
    assert results[1]["problem"]["errors"] == [{"pointer": "", "detail": "give query, all_of or any_of"}]
    assert results[2]["problem"]["code"] == "item_not_found"
    assert results[2]["problem"]["instance"] == "/v1/search/batch"


def test_an_export_is_a_line_for_each_result(client: TestClient, snapshot: Snapshot) -> None:
    body = {"query": "a red star", "limit": 20}
    response = client.post("/v1/search/export", json=body)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
    assert response.headers["x-snapshot"] == snapshot.manifest.id
    assert [json.loads(line) for line in response.text.splitlines()] == ask(client, body)["results"]
    refused = client.post("/v1/search/export", json={**body, "diversity": 0.5})
    assert refused.json()["errors"] == [
        {"pointer": "", "detail": "diversity is for a page of results, and not for an export"}
    ]


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ({}, "", "give query, all_of or any_of"),
        ({"none_of": [{"id": "a"}]}, "", "give query, all_of or any_of"),
        ({"query": "a + + b"}, "/query", "there is nothing"),
        ({"query": [{"region": {"id": "a"}}]}, "/query/0/region/box", "Field required"),
        ({"query": [{"region": {"id": "a", "box": [0.5, 0, 0.5, 1]}}]}, "/query/0/region/box", "the box is empty"),
        ({"query": [{"region": {"id": "a", "box": [0, 0, 2, 1]}}]}, "/query/0/region/box/2", "less than or equal to 1"),
        ({"query": [{"region": {"box": [0, 0, 1, 1]}}]}, "/query/0/region", "exactly one of image, image_url and id"),
        ({"query": [{"id": "a", "weight": 1000}]}, "/query/0/weight", "less than or equal to 100"),
        ({"query": [{"image_url": "file:///etc/passwd"}]}, "/query/0/image_url", "match pattern"),
        ({"query": "a", "facets": ["colour"]}, "/facets/0", "no field is called so"),
        ({"query": "a", "group_by": "metadata."}, "/group_by", "no field is called so"),
        ({"query": "a", "min_relevance": 2}, "/min_relevance", "less than or equal to 1"),
        ({"all_of": [{"text": "a", "weight": 1}]}, "/all_of/0/weight", "Extra inputs are not permitted"),
    ],
)
def test_a_search_that_says_nothing_clear_is_told_where_and_why(
    client: TestClient, body: dict[str, Any], pointer: str, detail: str
) -> None:
    response = client.post("/v1/search", json=body)
    assert response.status_code == 422
    errors = response.json()["errors"]
    assert any(error["pointer"] == pointer and detail in error["detail"] for error in errors), errors


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"query": [{"vector": [1, 2]}]}, "A vector has 2 numbers, and embeddings of this index"),
        ({"query": [{"image_url": "https://example.org/a.png"}]}, "This service fetches no pictures"),
        ({"query": [{"id": RED}, {"id": RED, "weight": -1}]}, "cancel each other out"),
        ({"query": [{"id": RED, "weight": 0}]}, "cancel each other out"),
    ],
)
def test_a_search_without_an_answer_says_why(client: TestClient, body: dict[str, Any], detail: str) -> None:
    response = client.post("/v1/search", json=body)
    assert (response.status_code, response.json()["code"]) == (422, "bad_query")
    assert detail in response.json()["detail"]


def test_a_vector_of_zeros_is_refused(client: TestClient, encoder: Encoder) -> None:
    response = client.post("/v1/search", json={"query": [{"vector": [0.0] * encoder.spec.dim}]})
    assert (response.status_code, response.json()["detail"]) == (422, "A vector of zeros points nowhere.")


def test_more_results_than_there_are_can_be_asked_for(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 200), "red").save(buffer, "PNG")
    body = {"query": [{"image": base64.b64encode(buffer.getvalue()).decode()}], "limit": 1000, "diversity": 1.0}
    answer = ask(client, body)
    assert (len(answer["results"]), answer["next_cursor"]) == (24, None)


def test_an_explanation_says_what_each_part_and_each_word_brings(
    client: TestClient, snapshot: Snapshot, encoder: Encoder
) -> None:
    body = {
        "query": [{"id": RED, "weight": 2}, {"text": "a red star", "weight": -1}],
        "any_of": [{"text": "blue"}],
        "suppress": ["a green moon"],
        "limit": 4,
        "explain": True,
    }
    texts = encoder.encode_texts(["a red star", "blue", "red star", "a star", "a red"]).astype(float)
    for result in ask(client, body)["results"]:
        picture = vector(snapshot, result["id"])
        parts = {each["part"]: each for each in result["explanation"]["parts"]}
        wanted = {
            "/query/0": vector(snapshot, RED) @ picture,
            "/query/1": texts[0] @ picture,
            "/any_of/0": texts[1] @ picture,
        }
        assert {place: part["score"] for place, part in parts.items()} == pytest.approx(wanted, abs=3e-6)
        assert parts["/any_of/0"]["share"] is None
        words = [(each["part"], each["word"]) for each in result["explanation"]["words"]]
        assert words == [("/query/1", "a"), ("/query/1", "red"), ("/query/1", "star")]
        effects = [each["effect"] for each in result["explanation"]["words"]]
        assert effects == pytest.approx([(texts[0] - shorter) @ picture for shorter in texts[2:]], abs=3e-6)


@pytest.mark.parametrize("more", [{}, {"suppress": ["a green moon", "a thing"]}])
def test_the_shares_of_parts_sum_up_to_the_score(client: TestClient, more: dict[str, Any]) -> None:
    query = [{"id": RED, "weight": 2}, {"text": "a red star", "weight": -1}, {"id": BLUE}]
    for result in ask(client, {"query": query, "explain": True, **more})["results"]:
        shares = [part["share"] for part in result["explanation"]["parts"]]
        assert sum(shares) == pytest.approx(result["score"], abs=5e-6)


def test_a_picture_is_fetched_from_the_hosts_that_are_allowed_and_no_others(
    settings: ServiceSettings, source: Path
) -> None:
    data = (source / "green" / "1.png").read_bytes()
    with FaultServer(data) as web:
        allowed = create_app(settings.model_copy(update={"query_hosts": (web.host,)}))
        with TestClient(allowed, raise_server_exceptions=False) as client:
            url = f"http://{web.host}/a.png"
            answer = ask(client, {"query": [{"image_url": url}], "limit": 1})
            assert answer["results"][0]["path"] == "green/1.png"
            regions = [{"region": {"image_url": url, "box": [0, 0, 1, 1]}}]
            assert ask(client, {"query": regions, "limit": 1})["results"][0]["path"] == "green/1.png"
            for other in (f"http://localhost:{web.port}/a.png", "http://169.254.169.254/latest/meta-data"):
                response = client.post("/v1/search", json={"query": [{"image_url": other}]})
                assert (response.status_code, response.json()["code"]) == (400, "forbidden_address"), response.text
            before = web.seen.total()
            broken = client.post("/v1/search", json={"query": [{"image_url": web.url(resets(0), FOREVER)}]})
            assert (broken.status_code, broken.json()["code"]) == (400, "unreachable")
            assert web.seen.total() == before + 1
