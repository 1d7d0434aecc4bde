"""axe-core on every view, in light and dark and on a phone: no serious or critical violation."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from tests.conftest import ADMIN_KEY
from tests.web.visit import Visit

Search = Callable[..., list[str]]

DEVICES: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}
# What is there once a view is.
VIEWS = {
    "/": ".tile",
    "/?q=a+star&like=0.5~{id}&like=-0.5~{id}~0.2,0.2,0.7,0.7": ".chip + .chip",
    "/?q=a+star&item={id}": "dialog dl",
    "/?q=a+star&item={id}&panel=classify": ".voters",
    "/?q=a+star&item={id}&panel=why": "dialog .panel p, dialog .bars",
    "/?q=a+star&item={id}&panel=part": ".surface .box",
    "/?view=map": ".spot",
    "/?view=admin": "tbody",
    "/?q=a+star&relevance=1": ".message",
    "/?like=1~upload.gone": ".message",
}


@pytest.fixture(scope="module", params=DEVICES)
def visitor(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Visit]:
    """Visit the page with a device, in possession of the admin key."""
    with Visit.begun(browser, address, **DEVICES[request.param]) as visit:
        visit.page.goto("/")
        visit.page.evaluate("key => sessionStorage.setItem('kindred-key', key)", ADMIN_KEY)
        visit.refusals = True  # an encoder without patches has no map of where
        yield visit


def violations(visit: Visit) -> list[str]:
    """Return what axe-core finds, worst things only."""
    found = Axe().run(visit.page).response["violations"]
    return [
        f"{each['id']}: {[node['html'] for node in each['nodes']]}"
        for each in found
        if each["impact"] in {"serious", "critical"}
    ]


@pytest.mark.parametrize("path", VIEWS)
def test_a_view_has_no_serious_violation_and_fits_the_screen(visitor: Visit, path: str, api_id: str) -> None:
    visitor.page.goto(path.format(id=api_id))
    expect(visitor.page.locator(VIEWS[path]).first).to_be_attached()
    assert violations(visitor) == []
    assert visitor.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_keys_have_no_serious_violation(visitor: Visit) -> None:
    visitor.page.goto("/")
    visitor.page.get_by_role("button", name="Keys").click()
    expect(visitor.page.get_by_role("dialog", name="Keys")).to_be_visible()
    assert violations(visitor) == []


@pytest.fixture
def api_id(search: Search) -> str:
    """Return the id of a picture."""
    return search(query="a star")[0]
