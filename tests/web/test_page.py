"""How the page is served, and what it is made of."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Page

from service.shorthand import parse
from tests.web.visit import Visit

WEB = Path(str(files("service") / "web"))
# Of the page at `/`; that of the API has files of its own beside them.
OWN = sorted({path.relative_to(WEB).as_posix() for path in WEB.rglob("*.js")} - {"docs.js", "vendor/swagger-ui.js"})


@pytest.fixture
def html(client: TestClient) -> str:
    """Get the page."""
    return client.get("/").text


def test_the_page_allows_no_script_or_style_but_its_own_files(client: TestClient) -> None:
    for path in ("/", "/docs"):
        assert client.get(path).headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )


def test_the_page_has_nothing_inline(html: str) -> None:
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", html) == []
    assert [tag for tag in re.findall(r"<script[^>]*>", html) if "src=" not in tag] == []


def test_every_module_is_loaded_without_waiting_for_another(html: str) -> None:
    preloaded = re.findall(r'modulepreload" href="/web/\w+/([^"]+)"', html)
    assert sorted([*preloaded, "app.js", "theme.js"]) == OWN


def test_every_file_that_the_page_names_is_there_and_kept_for_ever(client: TestClient, html: str) -> None:
    names = re.findall(r'(?:href|src)="(/web/[^"]+)"', html)
    assert len(names) == len(set(names)) >= len(OWN)
    for name in names:
        answer = client.get(name)
        assert answer.status_code == 200, name
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_itself_is_asked_for_again_each_time_and_sent_only_if_it_changed(client: TestClient) -> None:
    first = client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_what_a_browser_can_unpack_is_packed(client: TestClient) -> None:
    packed = client.get("/", headers={"Accept-Encoding": "gzip"})
    plain = client.get("/", headers={"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.text == plain.text


@pytest.mark.parametrize("name", ["nothing.js", "../app.py", "%2e%2e/app.py", "vendor/README.md"])
def test_no_other_file_is_served(client: TestClient, html: str, name: str) -> None:
    version = re.findall(r"/web/(\w+)/", html)[0]
    assert client.get(f"/web/{version}/{name}").status_code == 404


def test_the_page_names_no_other_host() -> None:
    for path in WEB.rglob("*"):
        if path.suffix in {".js", ".css", ".html"} and "vendor" not in path.parts:
            assert re.findall(r"""["'(](?:https?:)?//\w""", path.read_text()) == [], path


def test_every_vendored_library_is_listed_with_its_licence() -> None:
    table = (WEB / "vendor" / "README.md").read_text()
    listed = set(re.findall(r"^\| `(\w[\w-]*\.js)`", table, re.MULTILINE))
    assert listed == {path.name for path in (WEB / "vendor").glob("*.js")}
    licences = set(re.findall(r"`(LICENSE\.[\w-]+)`", table))
    assert licences == {path.name for path in (WEB / "vendor").glob("LICENSE.*")}


def test_the_page_weighs_less_than_200_kb_without_pictures(visit: Visit, page: Page) -> None:
    visit.open()
    weight = page.evaluate(
        """() => performance.getEntries().filter((each) => each.decodedBodySize && !each.name.includes("/v1/"))
            .reduce((sum, each) => sum + each.decodedBodySize, 0)"""
    )
    assert 50_000 < weight < 200_000


def test_the_page_reads_the_shorthand_as_the_service_does(visit: Visit, page: Page) -> None:
    visit.open()
    app = page.locator('script[type="module"]').get_attribute("src") or ""
    module = app.replace("app.js", "shorthand.js")

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.sampled_from([*'ab1-+@:." ', " - ", " + ", "2:", '"x - y"', "@id1", "wörd"]), max_size=9))
    def same(pieces: list[str]) -> None:
        query = "".join(pieces)
        try:
            expected: object = parse(query)
        except ValueError:
            expected = None
        read = page.evaluate(
            """([module, query]) => import(module).then(({ parse }) => {
                try { return parse(query) } catch { return null }
            })""",
            [module, query],
        )
        assert read == expected

    same()
