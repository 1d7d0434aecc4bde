"""How soon the page shows what the service answered, by the browser's own clock.

`python -m tests.bench.page SNAPSHOTS` serves a folder of snapshots and opens the page in Chromium, each time as a new
visitor with an empty cache. A thumbnail is there once the browser has painted it.
"""

from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from playwright.sync_api import Browser, Page, sync_playwright

from indexer import demo
from tests.served import serving
from tests.web.visit import browser_path

_OBSERVED = """
window.seen = { lcp: 0, cls: 0 };
new PerformanceObserver((list) => { for (const each of list.getEntries()) seen.lcp = each.startTime; })
    .observe({ type: "largest-contentful-paint", buffered: true });
new PerformanceObserver((list) => { for (const each of list.getEntries()) seen.cls += each.value; })
    .observe({ type: "layout-shift", buffered: true });
const watch = () => {
    const pictures = [...document.querySelectorAll(".tile-open img")];
    const anew = pictures[0]?.src !== seen.before;
    const there = anew ? pictures.filter((each) => each.complete && each.naturalWidth).length : 0;
    if (there && !seen.first) seen.first = performance.now();
    if (there >= 50 && !seen.all) seen.all = performance.now();
    requestAnimationFrame(watch);
};
requestAnimationFrame(watch);
"""
# The policy of the page keeps Playwright from evaluating a condition again and again.
_WAIT = "new Promise((done) => { const look = () => (seen.all ? done() : setTimeout(look, 20)); look(); })"
_READ = """() => {
    const entries = performance.getEntries();
    const own = entries.filter((each) => each.decodedBodySize && !each.name.includes("/v1/"));
    const sum = (name) => own.reduce((all, each) => all + each[name], 0);
    const answered = entries.filter((each) => /v1.(search|items[?]limit=50)$/.test(each.name))[0].responseEnd;
    return { weight: sum("decodedBodySize"), sent: sum("transferSize"), lcp: seen.lcp, cls: seen.cls,
        answered, first: seen.first - answered, all: seen.all - answered };
}"""
# As if nothing had been seen yet; the results that are there now are not those that are waited for.
_FORGET = """() => {
    performance.clearResourceTimings();
    Object.assign(seen, { first: 0, all: 0, before: document.querySelector(".tile-open img").src });
}"""


def main(
    snapshots: Annotated[Path, typer.Argument(help="A folder of snapshots.")],
    visits: Annotated[int, typer.Option(help="How many visitors search, each for something else.")] = 15,
) -> None:
    """Measure, and print a table in Markdown."""
    with serving(snapshots) as service, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(playwright))
        queries = [f"a {query.colour} {query.kind}" for query in demo.queries(count=visits + 1, seed=0)]
        seen = [measured(browser, service.address, query) for query in queries][1:]  # the first warms the service up
        browser.close()
    print("| figure | median | worst |\n|---|---|---|")
    for name, words in {
        "lcp": "largest contentful paint, ms",
        "cls": "cumulative layout shift",
        "weight": "page without pictures, bytes",
        "sent": "the same, as sent",
        "first": "first thumbnail after the answer, as the page opens, ms",
        "all": "50 thumbnails after the answer, as the page opens, ms",
        "typed_first": "first thumbnail after the answer, of a search that is typed, ms",
        "typed_all": "50 thumbnails after the answer, of a search that is typed, ms",
    }.items():
        values = [each[name] for each in seen]
        print(f"| {words} | {median(values):,.3g} | {max(values):,.3g} |")


def measured(browser: Browser, address: str, query: str) -> dict[str, float]:
    """Return the figures of one visit: the page opens, then something is searched for."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.add_init_script(_OBSERVED)
    page.goto(address)
    opened = _figures(page)
    page.evaluate(_FORGET)
    page.get_by_label("Search pictures by words").fill(query)
    typed = _figures(page)
    context.close()
    return {**opened, "typed_first": typed["first"], "typed_all": typed["all"]}


def _figures(page: Page) -> dict[str, float]:
    page.evaluate(_WAIT)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(500)  # what is asked for once the pictures are there
    figures: dict[str, float] = page.evaluate(_READ)
    return figures


if __name__ == "__main__":
    typer.run(main)
