"""A real Chromium, and a real service over a small demo collection."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from indexer import demo
from indexer.encoder import DEMO, EncoderName, load_encoder
from tests.conftest import ADMIN_KEY, build_snapshot
from tests.served import serving
from tests.web.visit import Visit, browser_path

COUNT = 240


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a small demo collection, and label some of it wrongly, so that there is something to be unsure about."""
    folder = tmp_path_factory.mktemp("web") / "pictures"
    demo.write_collection(folder, count=COUNT)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for row in rows[::9]:
        row["label"] = "star"
    (folder / "labels.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def demo_snapshots(pictures: Path) -> Path:
    """Build a snapshot of it with the bundled model."""
    encoder = load_encoder(EncoderName(model=DEMO), device="cpu", threads=1)
    build_snapshot(pictures, pictures.parent / "snapshots", encoder, labels=str(pictures / "labels.jsonl"))
    return pictures.parent / "snapshots"


@pytest.fixture(scope="session")
def address(demo_snapshots: Path) -> Iterator[str]:
    """Serve it."""
    with serving(demo_snapshots, KINDRED_ADMIN_KEY=ADMIN_KEY, KINDRED_REFRESH_SECONDS="0.05") as service:
        yield service.address


@pytest.fixture(scope="session")
def truth(pictures: Path) -> list[dict[str, str]]:
    """Read what the table says of each picture."""
    return [json.loads(line) for line in (pictures / "labels.jsonl").read_text().splitlines()]


@pytest.fixture
def api(address: str) -> Iterator[httpx2.Client]:
    """Ask the service directly, for what the page should show."""
    with httpx2.Client(base_url=address, timeout=60) as client:
        yield client


# Of a module, not of the session: Playwright's event loop stands in the way of other tests' own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium."""
    with sync_playwright() as playwright:
        path = browser_path(playwright)
        if path is None:
            pytest.skip("there is no Chromium here: install one, or run `playwright install chromium`")
        chromium = playwright.chromium.launch(executable_path=path)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    """Visit the page; in the end, nothing may have gone wrong in the browser."""
    with Visit.begun(browser, address) as begun:
        yield begun


@pytest.fixture
def page(visit: Visit) -> Page:
    """Return the page, which is not yet open."""
    return visit.page


@pytest.fixture
def search(api: httpx2.Client) -> Callable[..., list[str]]:
    """Return a way to ask the service for the ids of the pictures that the page should show."""

    def ids(**request: object) -> list[str]:
        answer = api.post("/v1/search", json={"limit": 50, "collapse_duplicates": True, **request})
        return [hit["id"] for hit in answer.raise_for_status().json()["results"]]

    return ids
