"""The map: pictures on a grid whose neighbours look alike."""

from itertools import permutations

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service import layout
from service.layout import Grid, sorted_grid


def vectors(count: int, dim: int = 16, kinds: int = 0, seed: int = 0) -> NDArray[np.float32]:
    """Draw vectors of length 1, around `kinds` directions if there are any."""
    random = np.random.default_rng(seed)
    drawn = random.normal(size=(count, dim))
    if kinds:
        drawn = 0.3 * drawn + 2 * random.normal(size=(kinds, dim))[random.integers(kinds, size=count)]
    unit: NDArray[np.float32] = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit


def likeness(given: NDArray[np.float32], grid: Grid) -> tuple[float, float]:
    """Return the mean cosine of neighbours on the grid, and of all pairs."""
    place = np.stack([grid.cells // grid.columns, grid.cells % grid.columns], axis=1)
    apart = np.abs(place[:, None] - place[None]).max(axis=-1)
    cosines = given @ given.T
    return float(cosines[apart == 1].mean()), float(cosines[apart > 0].mean())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 80), st.integers(1, 5), st.integers(0, 1_000))
def test_every_picture_has_a_cell_of_its_own(count: int, dim: int, seed: int) -> None:
    grid = sorted_grid(vectors(count, dim, seed=seed))
    assert len(set(grid.cells.tolist())) == count
    assert set(grid.cells.tolist()) <= set(range(grid.columns * grid.rows))
    assert 0 <= grid.columns * grid.rows - count < grid.columns


def test_neighbours_are_much_more_alike_than_chance() -> None:
    given_ = vectors(200, dim=32, kinds=10)
    near, all_ = likeness(given_, sorted_grid(given_))
    assert all_ < 0.2
    assert near > 0.6


def test_equal_pictures_are_laid_out_all_the_same() -> None:
    assert max(sorted_grid(np.tile(vectors(1), (7, 1))).cells.tolist()) < 8


def test_the_same_pictures_give_the_same_grid() -> None:
    first, second = sorted_grid(vectors(90, kinds=4)), sorted_grid(vectors(90, kinds=4))
    assert first.cells.tolist() == second.cells.tolist()


def test_points_are_assigned_at_the_least_cost_of_all() -> None:
    random = np.random.default_rng(1)
    points, cells = random.normal(size=(5, 3)), random.normal(size=(6, 3))
    chosen = layout._assigned(points, cells)
    cost = ((points[:, None] - cells[None]) ** 2).sum(axis=-1)
    least = min(sum(cost[i, j] for i, j in enumerate(each)) for each in permutations(range(6), 5))
    assert cost[np.arange(5), chosen].sum() == pytest.approx(least)


def test_the_map_of_a_collection_shows_all_of_it_if_there_is_room(client: TestClient) -> None:
    answer = client.post("/v1/map", json={}).json()
    assert len({item["id"] for item in answer["items"]}) == 24
    assert len({(item["row"], item["column"]) for item in answer["items"]}) == 24
    assert (answer["columns"], answer["rows"]) == (6, 4)


def test_a_sample_is_spread_over_the_collection(client: TestClient) -> None:
    answer = client.post("/v1/map", json={"limit": 3}).json()
    assert sorted(item["label"] for item in answer["items"]) == ["blue", "green", "red"]


def test_the_map_of_a_filter_shows_what_it_matches(client: TestClient) -> None:
    red = {"must": [{"key": "label", "match": {"value": "red"}}]}
    assert {item["label"] for item in client.post("/v1/map", json={"filter": red}).json()["items"]} == {"red"}
    none = {"must": [{"key": "label", "match": {"value": "violet"}}]}
    assert client.post("/v1/map", json={"filter": none}).json()["items"] == []


def test_the_map_of_certain_pictures_shows_each_once(client: TestClient) -> None:
    ids = [item["id"] for item in client.get("/v1/items", params={"limit": 5}).json()["items"]]
    answer = client.post("/v1/map", json={"ids": [*ids, ids[0]]}).json()
    assert sorted(item["id"] for item in answer["items"]) == sorted(ids)


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({"ids": ["no such picture"]}, 404, "no such picture"),
        ({"ids": ["a"], "filter": {}}, 422, "either ids or a filter"),
        ({"limit": 1_001}, 422, "/limit"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(
    client: TestClient, request_: dict[str, object], status: int, said: str
) -> None:
    answer = client.post("/v1/map", json=request_)
    assert answer.status_code == status
    assert said in answer.json()["detail"]
