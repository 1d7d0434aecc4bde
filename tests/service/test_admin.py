"""The admin routes: who may use them, and a reindex from request to new snapshot."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from PIL import Image

from indexer.store import SnapshotStore
from service import admin as admin_routes
from service.app import create_app
from service.settings import ServiceSettings
from tests.conftest import ADMIN_KEY

ROUTES = [
    (method, route.path.replace("{", "").replace("}", ""))
    for route in admin_routes.router.routes
    if isinstance(route, APIRoute)
    for method in route.methods or ()
]


def finished(client: TestClient, location: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while True:
        job: dict[str, Any] = client.get(location).json()
        if job["state"] != "running":
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.1)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong-key-0123456789abcdef",
        f"Basic {ADMIN_KEY}",
        ADMIN_KEY,
        f"Bearer {ADMIN_KEY}x",
        f"Bearer {ADMIN_KEY[:-1]}",
        "Bearer ünïcödé",
    ],
)
def test_every_admin_route_is_closed_without_the_key(
    client: TestClient, method: str, path: str, header: str | None
) -> None:
    headers = [] if header is None else [(b"Authorization", header.encode())]
    response = client.request(method, path, headers=headers)
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert response.headers["content-type"] == "application/problem+json"


def test_there_are_seven_admin_routes() -> None:
    assert len(ROUTES) == 7


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_key_configured_there_are_no_admin_routes(settings: ServiceSettings, method: str, path: str) -> None:
    open_settings = settings.model_copy(update={"admin_key": None})
    with TestClient(create_app(open_settings)) as client:
        assert client.request(method, path, headers={"Authorization": "Bearer "}).status_code == 404


def test_a_short_key_is_refused_at_start() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        ServiceSettings.model_validate({"admin_key": "short"})


def test_a_reindex_builds_publishes_and_is_served(
    admin: TestClient, app: FastAPI, source: Path, snapshots: Path
) -> None:
    before = admin.get("/v1/index").json()["snapshot"]
    Image.new("RGB", (30, 30), "white").save(source / "red" / "white.png")
    (source / "red" / "empty.png").touch()
    started = admin.post("/admin/v1/reindex")
    assert (started.status_code, started.json()["state"]) == (202, "running")
    location = started.headers["location"]
    assert location == f"/admin/v1/jobs/{started.json()['id']}"
    second = admin.post("/admin/v1/reindex", json={})
    assert (second.status_code, second.json()["code"]) == (409, "build_running")
    job = finished(admin, location)
    assert (job["state"], job["error"]) == ("succeeded", None)
    assert (job["encoded"], job["reused"], job["skipped"]) == (1, 24, {"empty": 1})
    assert (job["stage"], job["done"], job["total"]) == ("publish", 25, 25)
    assert job["snapshot"] == SnapshotStore(snapshots).published() != before
    deadline = time.monotonic() + 2
    while admin.get("/v1/index").json()["snapshot"] != job["snapshot"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # The new snapshot was asked for in the same words: the table of captions still describes the pictures.
    assert app.state.live.searcher.snapshot.catalog.label_counts() == {"blue": 8, "green": 8, "red": 8}


def test_a_cancelled_reindex_changes_nothing(admin: TestClient, snapshots: Path) -> None:
    before = SnapshotStore(snapshots).published()
    location = admin.post("/admin/v1/reindex").headers["location"]
    assert admin.delete(location).status_code == 200
    assert finished(admin, location)["state"] == "cancelled"
    assert SnapshotStore(snapshots).ids() == [before]
    assert admin.delete(location).json()["state"] == "cancelled"


def test_a_reindex_that_fails_says_why(admin: TestClient, snapshots: Path) -> None:
    before = SnapshotStore(snapshots).published()
    job = finished(admin, admin.post("/admin/v1/reindex", json={"index": "NoSuch"}).headers["location"])
    assert (job["state"], job["snapshot"]) == ("failed", None)
    assert job["error"].startswith("FAISS knows no index 'NoSuch' of 16 dimensions")
    assert SnapshotStore(snapshots).published() == before


def test_a_reindex_is_refused_while_somebody_else_builds(admin: TestClient, snapshots: Path) -> None:
    with SnapshotStore(snapshots).lock():
        response = admin.post("/admin/v1/reindex")
    assert (response.status_code, response.json()["code"]) == (409, "build_running")


@pytest.mark.parametrize(
    "body",
    [{"sources": ["/etc"]}, {"labels": "/etc/labels.csv"}, {"sources": ["{inside}/../.."]}, {"sources": ["s3://b/x"]}],
)
def test_a_reindex_reads_registered_folders_only(admin: TestClient, source: Path, body: dict[str, Any]) -> None:
    named = json.loads(json.dumps(body).replace("{inside}", str(source)))
    response = admin.post("/admin/v1/reindex", json=named)
    assert (response.status_code, response.json()["code"]) == (403, "source_forbidden")


def test_an_unknown_job_is_not_found(admin: TestClient) -> None:
    assert admin.get("/admin/v1/jobs/nope").status_code == 404
    assert admin.delete("/admin/v1/jobs/nope").status_code == 404


def test_a_first_reindex_needs_a_source(tmp_path: Path) -> None:
    settings = ServiceSettings.model_validate({"snapshots": tmp_path / "none", "admin_key": ADMIN_KEY})
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as client:
        assert client.post("/admin/v1/reindex").status_code == 503
        assert client.post("/admin/v1/reindex", json={"sources": [str(tmp_path)]}).status_code == 403
