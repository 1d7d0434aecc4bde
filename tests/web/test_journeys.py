"""What visitors do, from the first word to a rebuilt index: a real browser, a real service, the bundled model."""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.conftest import ADMIN_KEY
from tests.served import wait_for
from tests.web.visit import Visit

Search = Callable[..., list[str]]


def test_typing_finds_pictures(visit: Visit, page: Page, search: Search, truth: list[dict[str, str]]) -> None:
    wanted = f"a {truth[0]['colour']} {truth[0]['kind']}"
    visit.open()
    page.get_by_label("Search pictures by words").press_sequentially(wanted, delay=5)
    visit.expect_shown(search(query=wanted))
    first = page.locator(".tile-open img").first
    expect(first).to_have_attribute("alt", re.compile(f"{truth[0]['colour']} {truth[0]['kind']}"))
    assert parse_qs(urlparse(page.url).query)["q"] == [wanted]
    expect(page.locator(".worth").first).to_have_text(re.compile(r"^\d+%\d\.\d\d$"))


def test_the_shorthand_works_in_the_search_field(visit: Visit, page: Page, search: Search) -> None:
    visit.open()
    page.get_by_label("Search pictures by words").fill("2:a star - red")
    page.keyboard.press("Enter")
    visit.expect_shown(search(query=[{"text": "a star", "weight": 2}, {"text": "red", "weight": -1}]))


def test_a_facet_narrows_the_results_and_counts_what_it_hides(
    visit: Visit, page: Page, truth: list[dict[str, str]]
) -> None:
    stars = [row for row in truth if row["label"] == "star"]
    visit.open()
    page.get_by_role("group", name="Label").get_by_role("button", name=re.compile("Show all")).click()
    page.get_by_role("group", name="Label").get_by_label(re.compile("^star")).check()
    expect(page.locator(".said")).to_have_text(
        f"{len(stars)} pictures of {len(stars)} · {len(truth) - len(stars)} hidden by filters"
    )
    assert set(page.locator(".tile-name").all_text_contents()) == {"star"}
    # The other labels are still there to be added, with their counts.
    other = next(row["label"] for row in truth if row["label"] != "star")
    count = len([row for row in truth if row["label"] == other])
    expect(page.get_by_role("group", name="Label").get_by_label(re.compile(f"^{other} ?{count}$"))).to_be_visible()
    page.get_by_role("button", name="Clear all filters").click()
    expect(page.locator(".said")).to_have_text(f"50 pictures of {len(truth)}")


def test_more_pictures_come_when_the_end_is_near(visit: Visit, page: Page, truth: list[dict[str, str]]) -> None:
    visit.open()
    expect(page.locator(".tile")).to_have_count(50)
    page.mouse.wheel(0, 100_000)
    expect(page.locator(".said")).to_have_text(re.compile(rf"^(100|150) pictures of {len(truth)}$"))
    shown = visit.shown()
    assert len(set(shown)) == len(shown)


def test_the_cut_off_hides_what_is_less_relevant_and_says_how_many(
    visit: Visit, page: Page, api: httpx2.Client
) -> None:
    visit.open("/?q=a+star")
    slider = page.get_by_role("slider", name="Least relevance")
    slider.fill("0.5")
    request = {"query": "a star", "limit": 50, "collapse_duplicates": True, "min_relevance": 0.5}
    answer = api.post("/v1/search", json=request).json()
    assert answer["hidden"]["cutoff"] > 0
    expect(page.locator(".said")).to_contain_text(f"{answer['hidden']['cutoff']} under the cut-off")
    visit.expect_shown([hit["id"] for hit in answer["results"]])
    assert all(int(text.split("%")[0]) >= 50 for text in page.locator(".worth").all_text_contents())
    slider.fill("1")
    expect(page.get_by_role("heading", name="Nothing is likely enough to be what you asked for")).to_be_visible()
    page.get_by_role("button", name="Show it all the same").click()
    expect(page.locator(".tile")).to_have_count(50)


def test_an_open_picture_tells_what_is_known_and_leads_to_more_like_it(
    visit: Visit, page: Page, search: Search, api: httpx2.Client
) -> None:
    first = search(query="a red star")[0]
    visit.open("/?q=a+red+star")
    page.locator(".tile-open").first.click()
    dialog = page.get_by_role("dialog")
    caption = api.get(f"/v1/items/{first}").json()["caption"]
    expect(dialog.get_by_role("heading", name=caption)).to_be_visible()
    expect(dialog.locator("dl")).to_contain_text("Relevance")
    dialog.get_by_role("button", name="More like this").click()
    expect(dialog).to_be_hidden()
    visit.expect_shown(search(query=[{"id": first}]))
    assert visit.shown()[0] == first
    expect(page.locator(".score").first).to_have_text("1.00")


def test_plus_and_minus_refine_a_query_and_their_weights_can_be_changed(
    visit: Visit, page: Page, search: Search
) -> None:
    plus, minus = search(query="a star")[1:3]
    visit.open("/?q=a+star")
    page.locator(".tile").nth(1).hover()
    page.locator(".tile").nth(1).get_by_label("More of this in the query").click()
    text, liked = {"text": "a star"}, {"id": plus, "weight": 0.5}
    visit.expect_shown(search(query=[text, liked]))
    now = visit.shown().index(minus)
    page.locator(".tile").nth(now).hover()
    page.locator(".tile").nth(now).get_by_label("Less of this in the query").click()
    visit.expect_shown(search(query=[text, liked, {"id": minus, "weight": -0.5}]))
    page.locator(".chip .weight").first.fill("2")
    page.keyboard.press("Tab")
    visit.expect_shown(search(query=[text, {"id": plus, "weight": 2}, {"id": minus, "weight": -0.5}]))
    page.locator(".chip").first.get_by_label(re.compile("^Remove")).click()
    visit.expect_shown(search(query=[text, {"id": minus, "weight": -0.5}]))


def test_a_picture_from_the_device_finds_itself_and_a_reload_asks_for_it_again(
    visit: Visit, page: Page, pictures: Path, truth: list[dict[str, str]]
) -> None:
    visit.open()
    page.locator("header input[type=file]").set_input_files(pictures / truth[7]["path"])
    expect(page.locator(".tile-open img").first).to_have_attribute("alt", truth[7]["caption"])
    expect(page.locator(".score").first).to_have_text("1.00")
    page.reload()
    expect(page.get_by_role("heading", name="Your picture is not here any more")).to_be_visible()
    page.locator(".message input[type=file]").set_input_files(pictures / truth[7]["path"])
    expect(page.locator(".tile-open img").first).to_have_attribute("alt", truth[7]["caption"])


@pytest.mark.parametrize("how", ["paste", "drop"])
def test_a_picture_that_is_pasted_or_dropped_is_searched_with(
    visit: Visit, page: Page, pictures: Path, truth: list[dict[str, str]], how: str
) -> None:
    visit.open()
    data = base64.b64encode((pictures / truth[3]["path"]).read_bytes()).decode()
    page.evaluate(
        """([how, data]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], "picture.jpg", { type: "image/jpeg" }));
            const options = { bubbles: true, cancelable: true };
            const event = how === "paste" ? new ClipboardEvent("paste", { ...options, clipboardData: carried })
                : new DragEvent("drop", { ...options, dataTransfer: carried });
            document.body.dispatchEvent(event);
        }""",
        [how, data],
    )
    expect(page.locator(".tile-open img").first).to_have_attribute("alt", truth[3]["caption"])


def test_a_box_drawn_on_a_picture_is_searched_with(
    visit: Visit, page: Page, search: Search, api: httpx2.Client
) -> None:
    first = search(query="a red star")[0]
    item = api.get(f"/v1/items/{first}").json()
    visit.open(f"/?q=a+red+star&item={first}")
    page.get_by_role("button", name="Search a part").click()
    surface = page.get_by_role("application")
    surface.locator("img").evaluate("each => each.decode()")
    box = surface.bounding_box()
    assert box is not None
    # Else shares of what is drawn on would be no shares of the picture.
    assert box["width"] / box["height"] == pytest.approx(item["width"] / item["height"], rel=0.01)
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.125)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.875, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Search with this part").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    drawn = parse_qs(urlparse(page.url).query)["like"][0].split("~")
    sides = [float(side) for side in drawn[2].split(",")]
    assert drawn[1] == first
    assert sides == pytest.approx([0.25, 0.125, 0.75, 0.875], abs=0.01)
    visit.expect_shown(search(query=[{"region": {"id": first, "box": sides}}]))


def test_classification_shows_the_label_its_votes_and_who_voted(visit: Visit, page: Page, api: httpx2.Client) -> None:
    def classified(item: str, **more: float) -> dict[str, Any]:
        answer: dict[str, Any] = api.post("/v1/classify", json={"id": item, "k": 21, **more}).json()
        return answer

    ids = [item["id"] for item in api.get("/v1/items", params={"limit": 240}).json()["items"]]
    unsure = next(item for item in ids if (classified(item)["confidence"] or 1) < 0.99)
    answer = classified(unsure)
    visit.open(f"/?q=a+red+star&item={unsure}")
    page.get_by_role("tab", name="Classify").click()
    expect(page.locator(".verdict strong")).to_have_text(answer["label"])
    expect(page.locator(".verdict")).to_contain_text(f"{answer['confidence'] * 100:.0f}%")
    expect(page.locator(".voters li")).to_have_count(21)
    voters = page.locator(".voters img").evaluate_all("all => all.map(each => each.src.split('/').at(-2))")
    assert voters == [each["id"] for each in answer["neighbors"]]
    page.get_by_role("slider", name="Give a label only from a confidence of").fill("1")
    expect(page.locator(".verdict strong")).to_have_text("No label")
    expect(page.locator(".verdict")).to_contain_text(f"“{answer['label']}”")
    assert classified(unsure, min_confidence=1)["abstained"]


def test_back_forward_and_a_reload_bring_back_what_was_there(visit: Visit, page: Page, search: Search) -> None:
    star, moon = search(query="a star"), search(query="a moon")
    visit.open("/?q=a+star")
    visit.expect_shown(star)
    page.get_by_label("Search pictures by words").fill("a moon")
    visit.expect_shown(moon)
    page.locator(".tile-open").nth(2).click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.reload()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("dialog")).to_be_hidden()
    visit.expect_shown(moon)
    page.go_back()
    visit.expect_shown(star)
    expect(page.get_by_label("Search pictures by words")).to_have_value("a star")
    page.go_forward()
    visit.expect_shown(moon)


def test_the_whole_tour_can_be_made_with_the_keyboard(visit: Visit, page: Page, search: Search) -> None:
    star = search(query="a star")
    visit.open()
    keys = page.keyboard
    keys.press("/")
    keys.type("a star")
    keys.press("Enter")
    visit.expect_shown(star)
    for _ in range(80):
        keys.press("Tab")
        if page.evaluate("document.activeElement.className") == "tile-open":
            break
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    keys.press("ArrowLeft")
    keys.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert f"item={star[1]}" in page.url
    keys.press("ArrowRight")
    expect(page).to_have_url(re.compile(f"item={star[2]}"))
    keys.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    keys.press("+")
    visit.expect_shown(search(query=[{"text": "a star"}, {"id": star[1], "weight": 0.5}]))
    page.locator(".tile-open").first.focus()
    keys.press("s")
    expect(page.get_by_label("Search pictures by words")).to_have_value("")
    keys.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    keys.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()


def test_a_box_can_be_chosen_with_the_keyboard(visit: Visit, page: Page, search: Search) -> None:
    first = search(query="a red star")[0]
    visit.open(f"/?q=a+red+star&item={first}&panel=part")
    page.get_by_role("application").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    visit.expect_shown(search(query=[{"region": {"id": first, "box": [0.23, 0.25, 0.73, 0.77]}}]))


def test_the_map_shows_the_collection_and_can_be_zoomed_and_walked(
    visit: Visit, page: Page, api: httpx2.Client
) -> None:
    map_ = api.post("/v1/map", json={"limit": 400}).json()
    visit.open("/?view=map")
    expect(page.locator(".spot")).to_have_count(len(map_["items"]))
    before = page.locator(".plane").evaluate("each => each.style.transform")
    page.get_by_role("button", name="Zoom in").click()
    expect(page.locator(".plane")).not_to_have_css("transform", before)
    assert page.locator(".plane").evaluate("each => each.style.transform") != before
    page.locator(".spot").first.focus()
    row, column = (map_["items"][0][name] for name in ("row", "column"))
    step = 1 if column + 1 < map_["columns"] else -1
    page.keyboard.press("ArrowRight" if step == 1 else "ArrowLeft")
    page.keyboard.press("Enter")
    there = next(each["id"] for each in map_["items"] if (each["row"], each["column"]) == (row, column + step))
    expect(page).to_have_url(re.compile(f"item={there}"))


def test_what_the_service_refuses_is_said_in_its_own_words(visit: Visit, page: Page, api: httpx2.Client) -> None:
    wrong = {"must": [{"key": "colour", "match": {"value": "red"}}]}
    detail = api.post("/v1/search", json={"query": "a star", "filter": wrong}).json()["detail"]
    visit.refusals = True
    visit.open("/?q=a+star")
    page.get_by_text("Filter in JSON").click()
    page.get_by_label("Conditions").fill('{"must": [{"key": "colour", "match": {"value": "red"}}]}')
    page.keyboard.press("Tab")
    expect(page.get_by_role("alert")).to_contain_text("no field is called so")
    assert "no field is called so" in detail
    page.get_by_label("Conditions").fill('{"must": [{"key": "label", "match"')
    page.keyboard.press("Tab")
    expect(page.get_by_role("alert")).to_contain_text("The filter is not JSON yet")
    page.get_by_label("Conditions").fill("")
    page.keyboard.press("Tab")
    expect(page.locator(".tile")).to_have_count(50)


def test_what_is_being_written_is_kept_when_the_counts_of_the_facets_come(visit: Visit, page: Page) -> None:
    page.add_init_script(
        """window.held = [];
        const plain = window.fetch;
        window.fetch = async (path, options) => {
            if (options?.body?.includes("facets")) await new Promise((release) => held.push(release));
            return plain(path, options);
        };"""
    )
    visit.open("/?q=a+star")
    wait_for(lambda: page.evaluate("held.length") > 0)
    page.get_by_text("Filter in JSON").click()
    page.get_by_label("Conditions").press_sequentially('{"must"')
    page.evaluate("held.forEach((release) => release())")
    expect(page.get_by_role("group", name="Label").get_by_role("checkbox").first).to_be_visible()
    expect(page.get_by_label("Conditions")).to_have_value('{"must"')


def test_an_operator_rebuilds_the_index_and_rolls_back(visit: Visit, page: Page, api: httpx2.Client) -> None:
    first = api.get("/v1/index").json()["snapshot"]
    visit.open()
    page.get_by_role("button", name="Admin").click()
    page.get_by_label("Admin key").fill(ADMIN_KEY)
    page.get_by_role("button", name="Continue").click()
    row = page.locator("tbody tr")
    expect(row.first).to_be_visible()
    before = row.count()
    meanwhile = page.context.new_page()
    meanwhile.goto("/")
    expect(meanwhile.locator(".tile")).to_have_count(50)
    page.get_by_role("button", name="Start a reindex").click()
    expect(page.locator("[role=status]")).to_contain_text("succeeded", timeout=120_000)
    expect(row).to_have_count(before + 1)
    assert api.get("/v1/index").json()["snapshot"] != first
    # Whoever looks at pages of the earlier index is told, and shown the new one.
    meanwhile.get_by_role("button", name="Load more").click()
    expect(meanwhile.locator(".note")).to_contain_text("The index has been rebuilt")
    expect(meanwhile.locator(".tile")).to_have_count(50)
    page.get_by_role("button", name=f"Roll back to {first}").click()
    page.get_by_role("button", name="Yes, serve it").click()
    expect(page.locator("tr[aria-current] th")).to_have_text(first)
    assert api.get("/v1/index").json()["snapshot"] == first
    assert page.evaluate("localStorage.length") == 0  # the key is in the tab alone


def test_a_wrong_admin_key_is_refused_and_forgotten(visit: Visit, page: Page) -> None:
    visit.refusals = True
    visit.open("/?view=admin")
    page.get_by_label("Admin key").fill("not-the-key-at-all")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("alert")).to_contain_text("Authorization: Bearer")
    assert page.evaluate("sessionStorage.length") == 0
