"""What the READMEs claim, checked."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from indexer.__main__ import app as indexer_app
from indexer.plan import image_id
from indexer.settings import Settings
from service.settings import ServiceSettings
from tests.conftest import ADMIN_KEY

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ROOMS = ("indexer", "service", "tests", "docker")
ROWS = re.findall(r"^\| `KINDRED_(\w+)` \|([^|]*)\|", README, re.MULTILINE)
TABLE = {name: default.strip().strip("`") for name, default in ROWS}
CURLS = re.findall(r"^curl .*$", README, re.MULTILINE)


def test_the_settings_table_lists_exactly_the_settings() -> None:
    assert [name.lower() for name in TABLE] == list(ServiceSettings.model_fields)
    assert [name.lower() for name in TABLE][: list(TABLE).index("HOST")] == list(Settings.model_fields)


@pytest.mark.parametrize("name", TABLE)
def test_the_settings_table_tells_the_defaults(name: str) -> None:
    default = Settings().model_dump().get(name.lower(), ServiceSettings().model_dump()[name.lower()])
    assert TABLE[name] == ("" if default is None else "[]" if default == () else str(default))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^)make ([a-z]+)", README, re.MULTILINE))))
def test_every_make_target_named_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_make_alone_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: help (.*)$", makefile, re.MULTILINE)
    assert targets is not None
    assert [target for target in targets[1].split() if f"'make {target} " not in makefile] == []


def test_the_readme_names_every_route_and_no_other(client: TestClient) -> None:
    paths = set(client.get("/openapi.json").json()["paths"])
    section = README.split("## The API")[1].split("## Settings")[0]
    assert set(re.findall(r"(?:`|POST |GET |DELETE )(/[a-z]+[^` ]*)`", section)) - {"/docs", "/openapi.json"} == paths


@pytest.mark.parametrize("line", CURLS)
def test_every_curl_line_works_as_pasted(line: str, client: TestClient, source: Path) -> None:
    words = shlex.split(line.replace("$KINDRED_ADMIN_KEY", ADMIN_KEY))
    url = next(word for word in words if word.startswith("localhost:8000")).removeprefix("localhost:8000")
    value = {flag: [words[i + 1] for i, word in enumerate(words) if word == flag] for flag in ("-H", "-d", "-F")}
    headers = dict(header.split(": ", 1) for header in value["-H"])
    fields = dict(field.split("=", 1) for field in value["-F"])
    files = {"file": (source / "red" / "0.png").read_bytes()} if fields.pop("file", None) else None
    content = value["-d"][0] if value["-d"] else None
    response = client.post(url, headers=headers, content=content, data=fields or None, files=files)
    assert response.status_code in {200, 202}, response.text
    assert isinstance(response.json(), dict)
    if response.status_code == 202:
        client.delete(response.headers["location"], headers=headers)


@pytest.mark.parametrize("body", re.findall(r"^```json\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
def test_every_search_shown_is_answered(body: str, client: TestClient) -> None:
    response = client.post("/v1/search", json=json.loads(body.replace("b7e0a2f1c3d4e5f6", image_id("red/1.png"))))
    assert response.status_code == 200, response.text
    assert response.json()["results"]


def test_there_are_five_curl_lines() -> None:
    assert len(CURLS) == 5


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_readme_that_the_map_names(room: str) -> None:
    assert (ROOT / room / "README.md").is_file()
    assert f"{room}/README.md" in README


@pytest.mark.parametrize("room", ["indexer", "service"])
def test_a_rooms_map_lists_exactly_its_modules(room: str) -> None:
    text = (ROOT / room / "README.md").read_text()
    rows = "\n".join(line for line in text.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`([\w/]+\.py)`", rows))
    there = {path.relative_to(ROOT / room).as_posix() for path in (ROOT / room).rglob("*.py")}
    assert named == {path for path in there if not path.endswith(("__init__.py", "__main__.py"))}


def test_every_command_of_the_indexer_is_named_and_no_other() -> None:
    text = (ROOT / "indexer" / "README.md").read_text()
    named = set(re.findall(r"^python -m indexer (\w+)", text, re.MULTILINE))
    assert named == {command.callback.__name__ for command in indexer_app.registered_commands if command.callback}


def test_every_flag_named_in_the_readmes_exists() -> None:
    helps = "".join(
        CliRunner().invoke(indexer_app, [str(command.name or command.callback.__name__), "--help"]).output
        for command in indexer_app.registered_commands
        if command.callback
    )
    for flag in set(re.findall(r"`(--[a-z-]+)`", README + (ROOT / "indexer" / "README.md").read_text())):
        if flag != "--extra-index-url":
            assert flag in helps, flag


def test_the_extras_named_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\.\[(\w+)\]", README)) == {"cpu", "gpu"} <= extras.keys()
    assert [each for each in extras["cpu"] if "faiss" in each] == extras["cpu"]
    assert len([each for each in extras["gpu"] if "faiss" in each]) == 1


def test_the_openapi_document_has_an_example_for_every_json_body(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        body = operations.get("post", {}).get("requestBody")
        if body:
            name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
            assert schemas[name]["examples"], path
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= schemas.keys()
