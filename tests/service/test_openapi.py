"""The API's own document: which key each operation needs, and nothing of the collection."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service import keys
from service.app import create_app
from service.keys import Scope
from service.settings import ServiceSettings
from tests.conftest import ADMIN_KEY

PROBES = {"/livez", "/readyz"}
# Header by scheme.
HEADERS = {"key": ("Authorization", "Bearer {}"), "apiKey": ("api-key", "{}")}


def document_of(folder: Path, **more: Any) -> dict[str, Any]:
    settings = ServiceSettings.model_validate({"snapshots": folder, **more})
    with TestClient(create_app(settings)) as client:
        document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Return the method, the path and the description of every operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def closed(document: dict[str, Any]) -> set[str]:
    return {path for _, path, operation in operations(document) if operation["security"]}


def test_every_operation_names_the_key_that_lets_in_and_those_without_need_none(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    held = {scope: keys.create(file, scope, (scope,), None) for scope in Scope}
    settings = ServiceSettings.model_validate({"snapshots": tmp_path, "keys": file})
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        document = client.get("/openapi.json").json()
        assert set(document["components"]["securitySchemes"]) == set(HEADERS)
        for method, path, operation in operations(document):
            assert (client.request(method, path).status_code == 401) == bool(operation["security"]), path
            assert [list(each) for each in operation["security"]] in ([], [[scheme] for scheme in HEADERS])
            for each in operation["security"]:
                ((scheme, (scope,)),) = each.items()
                name, value = HEADERS[scheme]
                answer = client.request(method, path, headers={name: value.format(held[Scope(scope)])})
                assert answer.status_code not in {401, 403}, path
                assert "4XX" in operation["responses"], path
        assert {path for _, path, _ in operations(document)} - closed(document) == PROBES


@pytest.mark.parametrize("admin_key", [None, ADMIN_KEY])
def test_without_a_file_of_keys_no_more_than_the_admin_routes_need_one(tmp_path: Path, admin_key: str | None) -> None:
    document = document_of(tmp_path, admin_key=admin_key)
    admin = {path for path in document["paths"] if path.startswith("/admin/")}
    assert closed(document) == admin
    assert bool(admin) == (admin_key is not None)
    for scheme in document["components"]["securitySchemes"].values():
        assert "only where the operator has set" in scheme["description"]


def test_the_document_is_the_same_whatever_is_served(tmp_path: Path, snapshots: Path) -> None:
    (tmp_path / "empty").mkdir()
    served = document_of(snapshots, roots=[str(tmp_path)], query_hosts=["pictures.example"])
    assert served == document_of(tmp_path / "empty")


def test_operations_are_grouped_by_what_they_are_about(tmp_path: Path) -> None:
    groups: dict[str, set[str]] = {}
    for _, path, operation in operations(document_of(tmp_path, admin_key=ADMIN_KEY)):
        (group,) = operation["tags"]
        groups.setdefault(group, set()).add(path.removeprefix("/v1").split("/")[1])
    assert groups.pop("probes") == {"livez", "readyz", "metrics"}
    assert groups == {name: {name} for name in ("search", "classify", "embeddings", "index", "items", "map", "admin")}
