"""GET /v1/items: pictures in the order of the index, page by page, and how many have each value of a key."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.encoder import Encoder
from indexer.plan import image_id
from service.app import create_app
from service.settings import ServiceSettings
from tests.conftest import build_snapshot, draw_collection
from tests.served import wait_for

# Rows are in the order of the paths.
PATHS = [f"{label}/{number}.png" for label in ("blue", "green", "red") for number in range(8)]
NOT_BLUE = {"must_not": [{"key": "label", "match": {"value": "blue"}}]}


def browse(client: TestClient, **parameters: Any) -> Any:
    """Ask for a page; a filter is written as JSON."""
    if "filter" in parameters:
        parameters["filter"] = json.dumps(parameters["filter"])
    response = client.get("/v1/items", params=parameters)
    assert response.status_code == 200, response.text
    return response.json()


def pages(client: TestClient, **parameters: Any) -> list[Any]:
    """Ask for page after page, to the last."""
    found = [browse(client, **parameters)]
    while found[-1]["next_cursor"] is not None:
        found.append(browse(client, **parameters, cursor=found[-1]["next_cursor"]))
    return found


def test_without_parameters_all_pictures_are_listed_in_the_order_of_the_index(client: TestClient) -> None:
    answer = browse(client)
    assert [item["path"] for item in answer["items"]] == PATHS
    assert (answer["total"], answer["facets"], answer["next_cursor"]) == (24, {}, None)
    assert answer["index"] == client.post("/v1/search", json={"query": "x"}).json()["index"]


def test_an_item_of_a_page_says_what_the_item_itself_says(client: TestClient) -> None:
    (item,) = browse(client, limit=1)["items"]
    told = client.get(f"/v1/items/{item['id']}").json()
    assert item == {key: told[key] for key in item}
    assert item["id"] == image_id("blue/0.png")


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Iterator[TestClient]:
    """Talk to one service in all examples of a property."""
    folder = tmp_path_factory.mktemp("steady")
    draw_collection(folder / "pictures")
    build_snapshot(folder / "pictures", folder / "snapshots", encoder)
    with TestClient(create_app(ServiceSettings(snapshots=folder / "snapshots"))) as client:
        yield client


@given(limit=st.integers(1, 30), filtered=st.booleans())
@settings(max_examples=20)
def test_pages_never_overlap_and_leave_nothing_out(steady: TestClient, limit: int, filtered: bool) -> None:
    found = pages(steady, limit=limit, **({"filter": NOT_BLUE} if filtered else {}))
    wanted = PATHS[8:] if filtered else PATHS
    assert [item["path"] for page in found for item in page["items"]] == wanted
    assert [len(page["items"]) for page in found[:-1]] == [limit] * (len(found) - 1)
    assert {page["total"] for page in found} == {len(wanted)}


def test_a_filter_that_matches_nothing_gives_an_empty_page(client: TestClient) -> None:
    wanted = {"must": [{"key": "label", "match": {"value": "violet"}}]}
    answer = browse(client, filter=wanted, facets="label")
    assert (answer["items"], answer["total"], answer["next_cursor"]) == ([], 0, None)
    assert answer["facets"] == {"label": []}


def test_facets_count_all_matching_pictures_not_those_of_the_page(client: TestClient) -> None:
    answer = browse(client, limit=1, facets="label,metadata.size,width")
    assert answer["facets"] == {
        "label": [{"value": label, "count": 8} for label in ("blue", "green", "red")],
        "metadata.size": [{"value": str(size), "count": 3} for size in range(8)],
        "width": [{"value": 56.0, "count": 24}],
    }
    few = browse(client, filter={"must": [{"key": "metadata.size", "match": {"any": ["0", "3"]}}]}, facets="label")
    assert {each["count"] for each in few["facets"]["label"]} == {2}


def test_keys_may_be_joined_by_commas_or_repeated_and_quoted_ones_may_have_commas(client: TestClient) -> None:
    joined = client.get("/v1/items?facets=label,caption").json()
    repeated = client.get("/v1/items?facets=label&facets=caption").json()
    assert joined["facets"] == repeated["facets"]
    assert client.get('/v1/items?facets=metadata."a,b",label').json()["facets"].keys() == {'metadata."a,b"', "label"}


def test_no_more_than_the_hundred_most_frequent_values_are_told(
    source: Path, encoder: Encoder, app: FastAPI, snapshots: Path, tmp_path: Path
) -> None:
    rows = [{"path": path, "tags": [n for n in range(150) if n % 24 <= row]} for row, path in enumerate(PATHS)]
    table = tmp_path / "tags.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    build_snapshot(source, snapshots, encoder, labels=str(table))
    with TestClient(app) as client:
        found = browse(client, facets="metadata.tags")["facets"]["metadata.tags"]
    counts = Counter(tag for row in rows for tag in row["tags"])
    wanted = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:100]
    assert [(each["value"], each["count"]) for each in found] == wanted


@pytest.mark.parametrize(
    ("parameters", "pointer", "detail"),
    [
        ({"filter": "{"}, "/filter", "Invalid JSON"),
        ({"filter": "[]"}, "/filter", "dictionary"),
        ({"filter": '{"must": [{"key": "nope", "exists": true}]}'}, "/filter/must/0/key", "no field is called so"),
        ({"filter": '{"must": [{"key": "width", "range": {"gte": NaN}}]}'}, "/filter/must/0/range/gte", "finite"),
        ({"facets": "label,nope"}, "/facets/1", "no field is called so"),
        ({"facets": ",".join(["label"] * 9)}, "/facets", "at most 8"),
        ({"limit": 0}, "/limit", "greater than or equal to 1"),
        ({"limit": 1001}, "/limit", "less than or equal to 1000"),
        ({"page": 2}, "/page", "not permitted"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(
    client: TestClient, parameters: dict[str, Any], pointer: str, detail: str
) -> None:
    response = client.get("/v1/items", params=parameters)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    (error,) = response.json()["errors"]
    assert error["pointer"] == pointer
    assert detail in error["detail"]


def test_a_cursor_belongs_to_its_filter(client: TestClient) -> None:
    cursor = browse(client, limit=5, filter=NOT_BLUE)["next_cursor"]
    response = client.get("/v1/items", params={"cursor": cursor})
    assert (response.status_code, response.json()["code"]) == (422, "bad_query")
    # Of another size the next page may be.
    assert len(browse(client, limit=3, filter=NOT_BLUE, cursor=cursor)["items"]) == 3


@pytest.mark.parametrize("cursor", ["x", "", "eJw", "0" * 2_000])
def test_a_cursor_that_is_none_is_refused(client: TestClient, cursor: str) -> None:
    response = client.get("/v1/items", params={"cursor": cursor})
    assert (response.status_code, response.json()["code"]) == (422, "bad_query")


def test_a_cursor_of_an_earlier_snapshot_is_gone(
    client: TestClient, source: Path, snapshots: Path, encoder: Encoder
) -> None:
    first = browse(client, limit=5)
    (source / "red" / "7.png").unlink()
    build_snapshot(source, snapshots, encoder)
    wait_for(lambda: browse(client)["index"] != first["index"])
    response = client.get("/v1/items", params={"cursor": first["next_cursor"]})
    assert (response.status_code, response.json()["code"]) == (410, "cursor_expired")
    assert "first page" in response.json()["detail"]
