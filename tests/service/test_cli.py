"""`kindred`: searching from the terminal, by a service and without one."""

import base64
import importlib
import json
import os
import pty
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from typer.testing import CliRunner

from indexer.plan import image_id
from service import cli
from service.schemas.search import Hidden
from tests.service.conftest import Library
from tests.service.scripted import Reply, scripted
from tests.service.test_picture_grid import response

RED = image_id("red/1.png")
COMMAND = [sys.executable, "-m", "service.cli"]


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def run(*words: str | Path) -> tuple[int, str, str]:
    """Run the command in this process; return its exit code, output and errors."""
    result = CliRunner().invoke(cli.app, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def answer_of(words: tuple[str | Path, ...]) -> Any:
    code, out, _ = run(*words, "--json")
    assert code == 0
    answer = json.loads(out)
    del answer["took_ms"]
    return answer


def posted(library: Library, route: str, **body: Any) -> Any:
    answer = httpx2.post(f"{library.address}/v1/{route}", json=body, timeout=60).json()
    del answer["took_ms"]
    return answer


def on_a_terminal(*words: str | Path, **environment: str) -> str:
    """Run the command in a terminal; return what it wrote there."""
    leader, follower = pty.openpty()
    terminal = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "100"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KITTY", "TERM", "TMUX", "LC_"))}
    with subprocess.Popen([*COMMAND, *map(str, words)], stdout=follower, env={**kept, **terminal, **environment}):
        os.close(follower)
        written = b""
        while True:
            try:
                piece = os.read(leader, 65_536)
            except OSError:  # the command has ended
                break
            if not piece:
                break
            written += piece
    os.close(leader)
    return written.decode()


def test_the_command_is_installed_by_its_name() -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["kindred"].partition(":")
    assert getattr(importlib.import_module(module), name) is cli.main


def test_a_folder_is_searched_without_a_service_and_nothing_else_is_said(library: Library) -> None:
    words = ["search", "--id", RED, "--snapshots", str(library.snapshots), "--limit", "3"]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    heading, first, *rest = done.stdout.splitlines()
    assert heading.split() == ["rank", "relevance", "score", "label", "caption", "path"]
    assert re.fullmatch(r" *1 .*1\.000  red    a red picture  red/1\.png *", first)
    assert len(rest) == 2
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("place", ["--url", "--snapshots"])
def test_json_is_the_answer_of_the_api(library: Library, place: str) -> None:
    where: tuple[str | Path, ...] = (place, library.address if place == "--url" else library.snapshots)
    wanted = {"must": [{"key": "label", "match": {"value": "red"}}]}
    words = ("search", f"2:a picture + @{RED} - a thing", "--limit", "4", "--filter", json.dumps(wanted), *where)
    parts = [{"text": "a picture", "weight": 2}, {"id": RED}, {"text": "a thing", "weight": -1}]
    assert answer_of(words) == posted(library, "search", query=parts, limit=4, filter=wanted)


def test_every_option_reaches_the_search(library: Library) -> None:
    options = {"diversity": 0.5, "suppress": ["red", "a blue thing"], "exact": True, "explain": True}
    flags = ("--diversity", "0.5", "--suppress", "red", "--suppress", "a blue thing", "--exact", "--explain")
    words = ("search", "a picture", *flags, "--url", library.address)
    assert answer_of(words) == posted(library, "search", query="a picture", **options)


def test_a_picture_and_a_text_make_one_query(library: Library) -> None:
    path = library.pictures / "red" / "1.png"
    found = answer_of(("search", "--image", path, "--url", library.address))
    assert (found["results"][0]["id"], found["results"][0]["score"]) == (RED, 1.0)
    both = answer_of(("search", "2:a thing", "--image", path, "--id", RED, "--url", library.address))
    picture = base64.b64encode(path.read_bytes()).decode()
    parts = [{"image": picture}, {"id": RED}, {"text": "a thing", "weight": 2}]
    assert both == posted(library, "search", query=parts)


def test_a_picture_is_classified(library: Library) -> None:
    path = library.pictures / "red" / "1.png"
    assert answer_of(("classify", path, "--k", "5", "--url", library.address))["label"] == "red"
    code, out, _ = run("classify", path, "--k", "5", "--url", library.address)
    assert code == 0
    assert out.split()[:2] == ["probability", "label"]
    assert out.split()[3] == "red"


def test_a_cut_off_that_nothing_passes_is_said_to_be_the_reason() -> None:
    answer = response(no_confident_match=True, hidden=Hidden(filter=0, cutoff=11, duplicates=0), notes=["Cut in two."])
    with scripted([Reply(200, answer.model_dump_json().encode())]) as server:
        code, out, err = run("search", "a dog", "--min-relevance", "0.5", "--url", server.address)
    assert json.loads(server.bodies[0])["min_relevance"] == 0.5
    assert (code, out) == (0, "")
    assert err == "Cut in two.\nNo confident match: 11 of the nearest pictures are below the cut-off.\n"


def test_a_filter_that_matches_nothing_is_said_to_be_the_reason(library: Library) -> None:
    wanted = json.dumps({"must": {"key": "label", "match": {"value": "pink"}}})
    code, out, err = run("search", "a picture", "--filter", wanted, "--url", library.address)
    assert (code, out, err) == (0, "", "No picture was found; the filter leaves out 24 of 24.\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("search",), "Give a text, --image or --id"),
        (("search", "x", "--url", "http://localhost", "--snapshots", "s"), "not both"),
        (("search", "x", "--filter", "{"), "not JSON"),
        (("search", "--image", "nowhere.png"), "nowhere.png"),
        (("search", "x", "--limit", "0"), "--limit"),
        (("search", "x", "--diversity", "2"), "--diversity"),
        (("find", "x"), "find"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(words: tuple[str, ...], sentence: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert sentence in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("a dog", "--snapshots", "nowhere"), "Nothing has been published in nowhere yet"),
        (("a dog", "--url", "localhost"), "'localhost' is no address of a service"),
        (("a dog + ", "--url", "http://localhost"), "after '+' there is nothing"),
    ],
)
def test_an_error_is_one_line_and_no_traceback(
    words: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["kindred", "search", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert str(caught.value.code).startswith("error: ")
    assert sentence in str(caught.value.code)
    assert "\n" not in str(caught.value.code)


def test_what_the_service_refuses_is_told_in_its_words(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kindred", "search", "--id", "nope", "--url", library.address])
    with pytest.raises(SystemExit, match=r"error: .*'nope'"):
        cli.main()


def test_the_help_names_the_commands_and_their_options() -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert re.findall(r"^  (search|classify) ", out, re.MULTILINE) == ["search", "classify"]
    _, out, _ = run("search", "--help")
    options = ("image", "id", "limit", "filter", "min-relevance", "diversity", "suppress", "exact", "explain", "json")
    assert [name for name in (*options, "snapshots", "url", "no-thumbnails") if f"--{name}" not in out] == []


def test_a_terminal_with_colours_shows_pictures_and_one_that_draws_gets_them(library: Library) -> None:
    words = ("search", "--id", RED, "--url", library.address, "--limit", "2")
    blocks = on_a_terminal(*words)
    assert "▀" in blocks
    assert "red/1.png" in blocks
    assert "\x1b_Ga=T,f=100,q=2,c=40,r=10," in on_a_terminal(*words, KITTY_WINDOW_ID="1")
    assert "▀" not in on_a_terminal(*words, "--no-thumbnails")
    assert "▀" not in on_a_terminal(*words, NO_COLOR="1")
