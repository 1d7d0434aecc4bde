"""Filters and exact searches over HTTP: as JSON and in forms, and what is told of a filter that is none."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from indexer.encoder import Encoder
from indexer.plan import image_id
from indexer.store import SnapshotStore
from service.app import create_app
from service.settings import ServiceSettings
from tests.conftest import build_snapshot

RED = {"key": "label", "match": {"value": "red"}}
SMALL = {"key": "metadata.size", "match": {"any": ["0", "1"]}}


def found(client: TestClient, **request: Any) -> list[str]:
    """Search for a text, and return the paths found."""
    response = client.post("/v1/search", json={"query": [{"text": "a star"}], "limit": 24, **request})
    assert response.status_code == 200, response.text
    return [result["path"] for result in response.json()["results"]]


@pytest.mark.parametrize(
    ("wanted", "keeps"),
    [
        ({"must": [RED]}, lambda label, _: label == "red"),
        ({"must": RED, "must_not": SMALL}, lambda label, number: label == "red" and number > 1),
        ({"should": [RED, SMALL]}, lambda label, number: label == "red" or number < 2),
        ({"must": [{"key": "path", "match": {"value": "green/3.png"}}]}, lambda *what: what == ("green", 3)),
        ({"must": [{"key": "width", "range": {"gt": 56}}]}, lambda *_: False),
        ({}, lambda *_: True),
        (None, lambda *_: True),
    ],
)
def test_a_filtered_search_is_the_whole_ranking_without_what_the_filter_refuses(
    client: TestClient, wanted: Any, keeps: Any
) -> None:
    ranking = found(client)
    kept = [path for path in ranking if keeps(path.split("/")[0], int(path[-5]))]
    for exact in (False, True):
        assert found(client, filter=wanted, exact=exact) == kept
        assert found(client, filter=wanted, exact=exact, limit=3) == kept[:3]


@pytest.mark.parametrize("index", ["Flat", "SQ8", "HNSW8", "IVF2,Flat", "IVF2,PQ4x4fs,RFlat"])
def test_as_many_results_come_as_match_whatever_the_index(
    source: Path, encoder: Encoder, settings: ServiceSettings, index: str
) -> None:
    options = {"labels": str(source / "table.csv"), "index": index}
    build_snapshot(source, settings.snapshots, encoder, **options)
    with TestClient(create_app(settings)) as client:
        assert sorted(found(client, filter={"must": [RED, SMALL]}, limit=2)) == ["red/0.png", "red/1.png"]
        assert client.get("/v1/index").json()["factory"] == index


def test_a_form_holds_a_filter_as_json(client: TestClient, source: Path) -> None:
    picture = (source / "blue" / "0.png").read_bytes()
    form = {"filter": json.dumps({"must": [RED]}), "exact": "true", "limit": "3"}
    results = client.post("/v1/search", files={"file": picture}, data=form).json()["results"]
    assert [result["label"] for result in results] == ["red"] * 3
    voters = client.post("/v1/classify", files={"file": picture}, data={"filter": json.dumps({"must": [RED]})}).json()
    assert voters["classes"] == [{"label": "red", "probability": 1.0}]


def test_only_pictures_that_match_vote(client: TestClient) -> None:
    request = {"id": image_id("red/0.png"), "filter": {"must_not": [{"key": "metadata.size", "match": {"value": "3"}}]}}
    answer = client.post("/v1/classify", json=request).json()
    voters = {hit["path"] for hit in answer["neighbors"]}
    assert len(voters) == 20
    assert not voters & {"red/0.png", "red/3.png", "green/3.png", "blue/3.png"}


def test_where_no_picture_with_a_label_matches_nothing_can_vote(client: TestClient) -> None:
    request = {"text": "a star", "filter": {"must": [{"key": "label", "match": {"value": "none"}}]}}
    response = client.post("/v1/classify", json=request)
    assert (response.status_code, response.json()["code"]) == (409, "no_labels")


@pytest.mark.parametrize("path", ["/v1/search", "/v1/classify"])
@pytest.mark.parametrize(
    ("wanted", "pointer", "detail"),
    [
        ({"must": [{"key": "colour", "exists": True}]}, "/filter/must/0/key", "there are id, path, label"),
        ({"must": [{"key": "label", "match": {"value": {}}}]}, "/filter/must/0/match/value", "give a text, a number"),
        ({"must": [{"key": "width", "range": {"gt": "wide"}}]}, "/filter/must/0/range/gt", "give a number, or a date"),
        ({"should": [{"key": "label"}]}, "/filter/should/0", "a key goes with exactly one of"),
        ({"where": "1=1"}, "/filter/where", "Extra inputs are not permitted"),
        ("label = 'red'", "/filter", "not JSON: "),
        ([], "/filter", "should be an object"),
    ],
)
def test_a_filter_that_is_none_is_told_where_and_why(
    client: TestClient, path: str, wanted: Any, pointer: str, detail: str
) -> None:
    query = {"query": [{"text": "x"}]} if path == "/v1/search" else {"text": "x"}
    response = client.post(path, json={**query, "filter": wanted})
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    (error,) = response.json()["errors"]
    assert error["pointer"] == pointer
    assert detail in error["detail"]


@pytest.mark.parametrize("levels", [10, 100, 10_000])
def test_a_filter_that_is_too_deep_is_refused(client: TestClient, levels: int) -> None:
    wanted = '{"must":[' * levels + "]}" * levels
    body = f'{{"query":[{{"text":"x"}}],"filter":{wanted}}}'
    assert client.post("/v1/search", content=body, headers={"Content-Type": "application/json"}).status_code == 422
    assert client.post("/v1/search", files={"file": b"x"}, data={"filter": wanted}).status_code == 422


@pytest.mark.parametrize("text", ["{", "", "NaN", '{"must":[{"key":"label","match":{"value":"\\ud800"}}]}'])
def test_a_forms_filter_that_is_no_json_is_refused(client: TestClient, text: str) -> None:
    response = client.post("/v1/search", files={"file": b"x"}, data={"filter": text})
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json()["errors"]] == ["/filter"]


def test_an_approximate_index_tells_its_tuning_and_an_exact_one_has_none(client: TestClient, snapshots: Path) -> None:
    store = SnapshotStore(snapshots)
    tuning = store.open(store.published()).manifest.tuning
    assert client.get("/v1/index").json()["tuning"] == (tuning and tuning.model_dump(mode="json"))


def test_the_openapi_document_describes_filters(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert {"Filter", "Condition", "Match", "Range", "MinShould"} <= schemas.keys()
    search = document["paths"]["/v1/search"]["post"]["requestBody"]["content"]
    assert {"file", "query", "limit", "filter", "exact"} <= search["multipart/form-data"]["schema"]["properties"].keys()
    references = {part.split('"')[0] for part in json.dumps(document).split('"$ref": "')[1:]}
    names = {reference.removeprefix("#/components/schemas/") for reference in references}
    assert names <= schemas.keys()
    assert "except" in schemas["Match"]["properties"]


def test_naughty_strings_are_only_values(client: TestClient, real_data: Path) -> None:
    strings = json.loads((real_data / "bad" / "text" / "blns_blns.json").read_text())
    for text in strings:
        asked = [{"key": key, "match": {"value": text}} for key in ("label", "path", "metadata.size.unit")]
        assert found(client, filter={"should": asked}) == []
