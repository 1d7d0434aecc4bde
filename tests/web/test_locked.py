"""The page of a service that asks for keys: what a visitor is asked, sees and is told."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from typer.testing import CliRunner

from service import cli
from tests.served import serving, wait_for
from tests.web.test_access import violations
from tests.web.visit import Visit

UNKNOWN = f"kindred_{'0' * 12}_{'A' * 43}"


def run_keys(file: Path, *words: str) -> str:
    """Run `kindred keys` as an operator does."""
    done = CliRunner().invoke(cli.app, ["keys", *words, "--file", str(file)])
    assert done.exit_code == 0, done.output
    return done.output.strip()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Name a file of keys."""
    return tmp_path_factory.mktemp("locked") / "keys.json"


@pytest.fixture(scope="module")
def key(file: Path) -> str:
    """Make a key that may search."""
    return run_keys(file, "create", "--name", "a visitor", "--scope", "search")


@pytest.fixture(scope="module")
def locked(demo_snapshots: Path, file: Path, key: str) -> Iterator[str]:
    """Serve to those who have a key of the file."""
    assert key
    with serving(demo_snapshots, KINDRED_KEYS=str(file)) as service:
        yield service.address


@pytest.fixture
def wait_until(locked: str) -> Callable[[str, int], None]:
    """Return a way to wait until the service lets a key in, or no more: it looks at its file once a second."""

    def answered(key: str) -> int:
        return httpx2.get(f"{locked}/v1/index", headers={"api-key": key}).status_code

    return lambda key, status: wait_for(lambda: answered(key) == status, 5)


@pytest.fixture
def visit(browser: Browser, locked: str) -> Iterator[Visit]:
    """Visit that page; in the end, nothing may have gone wrong but what was refused for want of a key."""
    with Visit.begun(browser, locked) as visit:
        visit.refusals = True
        refused: list[int] = []
        visit.page.on("response", lambda answer: refused.append(answer.status) if not answer.ok else None)
        yield visit
    assert set(refused) <= {304, 401, 403}


@pytest.fixture
def page(visit: Visit) -> Page:
    """Return the page, which is not yet open."""
    return visit.page


def dialog(page: Page) -> Locator:
    return page.get_by_role("dialog", name="This service asks for a key")


def enter(page: Page, key: str, path: str = "/") -> None:
    """Open the page at a path, and enter a key when asked for it."""
    page.goto(path)
    dialog(page).get_by_label("Key").fill(key)
    page.keyboard.press("Enter")
    expect(dialog(page)).to_be_hidden()


def expect_pictures(pictures: Locator, count: int) -> None:
    """Wait until the page has so many pictures, each of several pixels and each from memory."""
    told = "all => all.map((each) => each.src.startsWith('blob:') && each.complete && each.naturalWidth > 1)"
    # Looked for anew each time: results may give way to the next meanwhile, and never show what they were about to.
    wait_for(lambda: pictures.evaluate_all(told) == [True] * count, 20)


def test_a_visitor_is_asked_for_a_key_is_told_of_a_bad_one_and_sees_all_with_a_good_one(page: Page, key: str) -> None:
    page.goto("/?q=a+star")
    expect(dialog(page)).to_be_visible()
    expect(page.locator(".tile-open img")).to_have_count(0)
    field = dialog(page).get_by_label("Key")
    expect(field).to_be_focused()
    for wrong in (UNKNOWN, "Ärger"):
        field.fill(wrong)
        page.keyboard.press("Enter")
        expect(dialog(page).get_by_role("alert")).to_have_text(
            "This key is not good. It may be mistyped, expired or revoked."
        )
    field.fill("“pasted with its quotation marks”")
    page.keyboard.press("Enter")
    assert field.evaluate("each => each.validity.patternMismatch")
    field.fill(f" {key} ")
    page.keyboard.press("Enter")
    expect(dialog(page)).to_be_hidden()
    expect_pictures(page.locator(".tile-open img[loading=eager]"), 50)
    expect(page.get_by_role("group", name="Label").get_by_role("checkbox").first).to_be_visible()
    assert page.evaluate("[sessionStorage['kindred-key'], localStorage.length]") == [key, 0]


def test_every_picture_of_the_page_shows_with_a_key(visit: Visit, page: Page, pictures: Path, key: str) -> None:
    enter(page, key)
    expect_pictures(page.locator(".tile-open img"), 50)
    page.locator(".tile-open").nth(2).click()
    expect_pictures(page.locator(".large"), 1)
    page.get_by_role("tab", name="Classify").click()
    expect_pictures(page.locator(".voters img"), 21)
    page.get_by_role("button", name="Search a part").click()
    expect_pictures(page.locator(".surface img"), 1)
    page.get_by_role("dialog").get_by_role("button", name="More like this").click()
    visit.settle()
    expect_pictures(page.locator(".chip img"), 1)
    expect_pictures(page.locator(".tile-open img"), 50)
    page.locator("header input[type=file]").set_input_files(next(pictures.rglob("*.jpg")))
    visit.settle()
    expect_pictures(page.locator(".chip img"), 1)
    page.goto("/?view=map")
    expect_pictures(page.locator(".spot img").first, 1)


def test_pictures_out_of_sight_are_fetched_when_they_come_near(page: Page, key: str) -> None:
    enter(page, key)
    expect(page.locator(".tile")).to_have_count(50)
    page.get_by_role("button", name="Load more").dispatch_event("click")  # where it is: to scroll there loads more too
    last = page.locator(".tile-open img").nth(99)
    expect(last).to_be_attached()
    expect(last).not_to_have_attribute("src", re.compile("."))
    last.scroll_into_view_if_needed()
    expect(last).to_have_attribute("src", re.compile("^blob:"))


def test_a_picture_that_is_still_fetched_is_waited_for(page: Page, key: str) -> None:
    enter(page, key)
    module = page.locator('script[type="module"]').get_attribute("src") or ""
    told = page.evaluate(
        """async ([module, picture]) => {
            const { painted } = await import(module);
            const image = new Image();
            let done = false;
            const waiting = painted(image).then(() => (done = true));
            await new Promise((next) => setTimeout(next));
            const early = done;
            image.src = picture;
            await waiting;
            return [early, image.complete];
        }""",
        [module.replace("app.js", "shown.js"), module.replace("app.js", "icon.svg")],
    )
    assert told == [False, True]


def test_a_picture_whose_file_is_gone_shows_its_thumbnail(page: Page, key: str) -> None:
    enter(page, key)
    # As the service answers where the file has changed.
    page.route("**/image", lambda route: route.fulfill(status=403, body="{}"))
    page.locator(".tile-open").first.click()
    expect(page.get_by_text("The file itself cannot be shown")).to_be_visible()
    expect_pictures(page.locator(".large"), 1)


def test_a_tab_keeps_the_key_and_asks_again_once_it_has_forgotten_it(page: Page, key: str) -> None:
    enter(page, key)
    page.reload()
    expect_pictures(page.locator(".tile-open img").first, 1)
    expect(dialog(page)).to_be_hidden()
    page.get_by_role("button", name="Your key").click()
    page.get_by_role("button", name="Forget the key").click()
    expect(dialog(page)).to_be_visible()
    expect(page.locator(".tile-open img")).to_have_count(0)
    assert page.evaluate("sessionStorage.length") == 0


def test_a_visitor_without_a_key_may_close_the_question_and_have_it_asked_again(page: Page, key: str) -> None:
    page.goto("/")
    expect(dialog(page)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_contain_text("only those who have a key")
    expect(dialog(page)).to_be_hidden()
    page.get_by_role("button", name="Enter a key").click()
    dialog(page).get_by_label("Key").fill(key)
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".tile")).to_have_count(50)


def test_a_key_that_is_revoked_meanwhile_is_asked_for_anew(
    visit: Visit, page: Page, file: Path, key: str, wait_until: Callable[[str, int], None]
) -> None:
    other = run_keys(file, "create", "--name", "another", "--scope", "search")
    wait_until(other, 200)
    enter(page, other)
    expect(page.locator(".tile")).to_have_count(50)
    run_keys(file, "revoke", other.split("_")[1])
    wait_until(other, 401)
    page.get_by_label("Search pictures by words").fill("a star")
    expect(dialog(page).get_by_role("alert")).to_contain_text("expired or revoked")
    dialog(page).get_by_label("Key").fill(key)
    page.keyboard.press("Enter")
    expect(dialog(page)).to_be_hidden()
    visit.settle()
    expect_pictures(page.locator(".tile-open img"), 50)


def test_a_key_for_searching_alone_is_told_what_it_lacks_at_the_admin_panel(
    page: Page, file: Path, key: str, wait_until: Callable[[str, int], None]
) -> None:
    other = run_keys(file, "create", "--name", "operator", "--scope", "search", "--scope", "admin")
    wait_until(other, 200)
    enter(page, key, "/?view=admin")
    expect(page.get_by_role("alert")).to_have_text("This key may not administer; enter one that may.")
    page.get_by_label("Admin key").fill(UNKNOWN)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("alert")).to_contain_text("a key that is good")
    assert page.evaluate("sessionStorage['kindred-key']") == key  # still good for searching
    page.get_by_label("Admin key").fill(other)
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("tbody tr").first).to_be_visible()
    page.get_by_role("button", name="Admin").click()
    expect_pictures(page.locator(".tile-open img"), 50)


def test_a_key_that_may_not_search_is_told_so(page: Page, file: Path, wait_until: Callable[[str, int], None]) -> None:
    other = run_keys(file, "create", "--name", "metrics", "--scope", "metrics")
    wait_until(other, 403)
    enter(page, other)
    expect(page.get_by_role("alert")).to_contain_text("This needs a key with the scope search.")
    page.get_by_role("button", name="Enter a key").click()
    expect(page.get_by_role("dialog", name="Your key")).to_be_visible()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_question_for_a_key_has_no_serious_violation(browser: Browser, locked: str, colours: str) -> None:
    with Visit.begun(browser, locked, color_scheme=colours, viewport={"width": 390, "height": 844}) as visit:
        visit.refusals = True
        visit.page.goto("/")
        expect(dialog(visit.page)).to_be_visible()
        assert violations(visit) == []
        dialog(visit.page).get_by_label("Key").fill(UNKNOWN)
        visit.page.keyboard.press("Enter")
        expect(dialog(visit.page).get_by_role("alert")).to_be_visible()
        assert violations(visit) == []
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_keys_nothing_is_asked_and_pictures_are_plain_addresses(browser: Browser, address: str) -> None:
    with Visit.begun(browser, address) as visit:
        visit.open()
        source = visit.page.locator(".tile-open img").first
        expect(source).to_have_attribute("src", re.compile("^/v1/items/[^/]+/thumbnail$"))
        expect(visit.page.locator("dialog[open]")).to_have_count(0)
        expect(visit.page.get_by_role("button", name="Your key")).to_have_count(0)


def test_the_documentation_is_open_and_tries_requests_with_the_key_of_the_tab(
    browser: Browser, locked: str, key: str
) -> None:
    with Visit.begun(browser, locked) as visit:
        visit.refusals = True
        enter(visit.page, key)
        visit.page.get_by_role("link", name="API").click()
        operation = visit.page.locator("#operations-index-index_v1_index_get")
        operation.click()
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        expect(operation.locator(".live-responses-table tbody .response-col_status")).to_have_text("200")
        fetched = visit.page.evaluate(
            "performance.getEntriesByType('resource').map(({ name }) => new URL(name).origin)"
        )
        assert set(fetched) == {locked}
