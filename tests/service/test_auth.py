"""Who may ask: a key for every route that is not free, with the scope of that route, and nothing that gives it away."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.routing import BaseRoute, Route

from service import keys
from service.app import create_app
from service.keys import BadKeyFile, Scope
from service.settings import ServiceSettings
from service.telemetry import configure_logs
from tests.conftest import ADMIN_KEY
from tests.served import wait_for
from tests.trust.figures import noted

FREE = {"/", "/docs", "/livez", "/readyz", "/openapi.json"}
UNKNOWN = f"kindred_{'0' * 12}_{'A' * 43}"


@dataclass(frozen=True)
class Keyed:
    """A service that asks for keys, over an empty folder, and keys of every kind."""

    app: FastAPI
    client: TestClient
    file: Path
    good: dict[Scope, str]
    bad: dict[str, str | None]

    def status(self, method: str, path: str, key: str | None) -> int:
        return self.client.request(method, path, headers=bearer(key)).status_code


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """Run that service."""
    folder = tmp_path_factory.mktemp("keyed")
    file = folder / "keys.json"
    good = {scope: keys.create(file, scope, (scope,), timedelta(days=1)) for scope in Scope}
    everything = tuple(Scope)
    expired, revoked = (keys.create(file, name, everything, timedelta(days=1)) for name in ("expired", "revoked"))
    keys.revoke(file, revoked.split("_")[1])
    content = json.loads(file.read_text())
    content["keys"][-1]["expires"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    file.write_text(json.dumps(content))
    bad = {"none": None, "malformed": "kindred_x", "unknown": UNKNOWN, "expired": expired, "revoked": revoked}
    settings = ServiceSettings.model_validate({"snapshots": folder / "none", "keys": file, "admin_key": ADMIN_KEY})
    app = create_app(settings)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Keyed(app, client, file, good, bad)


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def routes(found: Iterable[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Return the method and the path of every route, with its parameters named for themselves."""
    for route in found:
        if isinstance(route, Route):
            for method in sorted(route.methods or ()):
                yield method, route.path.replace("{", "").replace("}", "").replace(":path", "")
        else:
            yield from routes(route.original_router.routes)  # type: ignore[attr-defined]


def is_free(path: str) -> bool:
    return path in FREE or path.startswith("/web/")


def scope_of(path: str) -> Scope:
    if path == "/metrics":
        return Scope.METRICS
    return Scope.ADMIN if path.startswith("/admin/") else Scope.SEARCH


def test_every_route_is_closed_without_the_right_key_and_open_with_it(keyed: Keyed) -> None:
    matrix = list(routes(keyed.app.routes))
    assert {path.split("/")[1] for _, path in matrix if not is_free(path)} == {"v1", "admin", "metrics"}
    assert len(matrix) > 25
    for method, path in matrix:
        wrong = [key for scope, key in keyed.good.items() if scope != scope_of(path)]
        refused = [keyed.status(method, path, key) for key in keyed.bad.values()]
        mistaken = [keyed.status(method, path, key) for key in wrong]
        right = [keyed.status(method, path, key) for key in (keyed.good[scope_of(path)], ADMIN_KEY)]
        if is_free(path):
            assert not {*refused, *mistaken, *right} & {401, 403}, path
        else:
            assert (refused, mistaken) == ([401] * 5, [403] * 2), path
            assert not set(right) & {401, 403}, path
    closed = sum(not is_free(path) for _, path in matrix)
    figure = f"{closed} closed routes and methods, {len(keyed.bad)} kinds of bad keys and 2 wrong scopes each: all "
    noted(promise="R19", figure=figure + f"401 or 403; {len(matrix) - closed} free; the right scope and admin pass")


def test_every_unusable_key_gets_the_same_answer(keyed: Keyed) -> None:
    answers = [keyed.client.get("/v1/index", headers=bearer(key)) for key in keyed.bad.values()]
    bodies = [{**answer.json(), "request_id": ""} for answer in answers]
    assert bodies == [bodies[0]] * 5
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}
    assert bodies[0]["code"] == "unauthorized"


def test_a_key_may_come_in_the_header_api_key(keyed: Keyed) -> None:
    for given, status in ((keyed.good[Scope.METRICS], 200), (UNKNOWN, 401), ("ünï", 401)):
        headers = [(b"api-key", given.encode())]
        assert keyed.client.get("/metrics", headers=headers).status_code == status


@pytest.mark.parametrize("host", ["x/livez?", "x/livez#", "x/web/?", "livez", "/", "x@y/", ""])
def test_a_host_header_opens_nothing(keyed: Keyed, host: str) -> None:
    for path in ("/v1/index", "/admin/v1/snapshots", "/metrics"):
        assert keyed.client.get(path, headers={"Host": host}).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/index/", "//v1/index", "/V1/index", "/v1%2Findex", "/livez/", "/livez/../v1/index", "/readyz;/v1/index"),
        *("/nothing", "/metrics/", "/docsx", "/docs/x", "/admin", "/%2e/v1/index", "/web", "/webx/y"),
    ],
)
def test_a_path_written_otherwise_shows_nothing(keyed: Keyed, path: str) -> None:
    response = keyed.client.get(path, follow_redirects=False)
    assert response.status_code == (404 if path == "/web" else 401)


def test_a_new_route_is_for_administrators(keyed: Keyed) -> None:
    app = create_app(keyed.app.state.settings)
    app.add_api_route("/new", lambda: "new")
    app.add_route("/plain", lambda _: None)  # type: ignore[arg-type, return-value]
    app.mount("/mounted", FastAPI())
    with TestClient(app) as client:
        for path in ("/new", "/plain", "/mounted/docs"):
            for key, status in ((None, 401), (keyed.good[Scope.SEARCH], 403)):
                assert client.get(path, headers=bearer(key)).status_code == status
        assert client.get("/new", headers=bearer(keyed.good[Scope.ADMIN])).status_code == 200


def test_a_key_revoked_while_the_service_runs_is_refused_soon_and_a_new_one_is_let_in(keyed: Keyed) -> None:
    old = keys.create(keyed.file, "old", (Scope.METRICS,), None)
    wait_for(lambda: keyed.status("GET", "/metrics", old) == 200, 5)
    keys.revoke(keyed.file, old.split("_")[1])
    wait_for(lambda: keyed.status("GET", "/metrics", old) == 401, 5)


def test_a_broken_file_leaves_the_last_good_keys_and_is_logged(
    keyed: Keyed, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs()
    good = keyed.file.read_text()
    logged = []
    try:
        for broken in ("{", None):
            keyed.file.unlink() if broken is None else keyed.file.write_text(broken)

            def told() -> bool:
                assert keyed.status("GET", "/metrics", keyed.good[Scope.METRICS]) == 200
                logged.append(capsys.readouterr().err)
                return "keys kept as they were" in logged[-1]

            wait_for(told, 5)
    finally:
        structlog.reset_defaults()
        keyed.file.write_text(good)
    assert keyed.status("GET", "/metrics", None) == 401


def test_a_service_does_not_start_without_the_file_it_is_told_of(tmp_path: Path) -> None:
    settings = ServiceSettings.model_validate({"snapshots": tmp_path, "keys": tmp_path / "none.json"})
    with pytest.raises(BadKeyFile, match=r"none\.json"), TestClient(create_app(settings)):
        pass


def test_the_log_names_keys_by_their_ids_and_no_secret_is_anywhere(
    keyed: Keyed, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs()
    told = []
    try:
        for key in (*keyed.good.values(), keyed.bad["expired"], keyed.bad["revoked"], UNKNOWN, ADMIN_KEY):
            for method, path in routes(keyed.app.routes):
                answer = keyed.client.request(method, path, headers={**bearer(key), "api-key": str(key)})
                told.append(f"{answer.headers}{answer.text}")
    finally:
        structlog.reset_defaults()
    log = capsys.readouterr().err
    everything = log + "".join(told)
    for key in (*keyed.good.values(), keyed.bad["expired"], keyed.bad["revoked"], ADMIN_KEY):
        assert str(key).split("_", 2)[-1] not in everything
    lines = [json.loads(line) for line in log.splitlines()]
    named = {line.get("key") for line in lines if line["path"] == "/metrics"}
    assert named == {None, "admin", *(key.split("_")[1] for key in keyed.good.values())}
    noted(promise="R19", figure=f"{len(lines)} log lines and {len(told)} answers with no secret of 6 keys in them")


def test_without_a_file_of_keys_searching_is_open_and_the_admin_routes_have_their_key(tmp_path: Path) -> None:
    settings = ServiceSettings.model_validate({"snapshots": tmp_path, "admin_key": ADMIN_KEY})
    with TestClient(create_app(settings)) as client:
        statuses = [client.get(path).status_code for path in ("/metrics", "/docs", "/v1/index", "/admin/v1/snapshots")]
        assert statuses == [200, 200, 503, 401]
        assert client.get("/admin/v1/snapshots", headers=bearer(ADMIN_KEY)).status_code == 200
