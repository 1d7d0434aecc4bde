"""A visit to the page: what is seen there, and what went wrong in the browser."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Request, expect


def browser_path(playwright: Playwright) -> str | None:
    """Return where a Chromium is, or None."""
    own = playwright.chromium.executable_path
    return shutil.which("chromium") or (own if Path(own).exists() else None)


@dataclass
class Visit:
    """One visitor.

    Attributes:
        page: their tab.
        address: of the service.
        problems: what the browser complained of: errors in scripts, what the Content-Security-Policy refused,
            requests to other hosts.
        refusals: whether the service may refuse a request, as some tests want it to.
    """

    page: Page
    address: str
    problems: list[str] = field(default_factory=list)
    refusals: bool = False

    @classmethod
    @contextmanager
    def begun(cls, browser: Browser, address: str, **device: Any) -> Iterator[Self]:
        """Begin a visit, and see in the end that nothing went wrong."""
        context = browser.new_context(base_url=address, **{"viewport": _DESKTOP, **device})
        context.set_default_timeout(20_000)
        visit = cls(context.new_page(), address)
        visit.page.on("console", visit._on_console)
        visit.page.on("pageerror", lambda error: visit.problems.append(str(error)))
        visit.page.on("request", visit._on_request)
        try:
            yield visit
            assert visit.problems == []
        finally:
            context.close()

    def open(self, path: str = "/") -> None:
        """Open the page at a path, and wait until it shows what it found."""
        self.page.goto(path)
        self.settle()

    def settle(self) -> None:
        """Wait until the page shows what it found."""
        expect(self.page.locator("#page .status h1, main.narrow h1")).not_to_have_text(re.compile("^Looking"))
        expect(self.page.locator(".grid[aria-busy=true]")).to_have_count(0)

    def shown(self) -> list[str]:
        """Return the ids of the pictures in the grid, in their order."""
        self.settle()
        sources = self.page.locator(".tile-open img").evaluate_all("all => all.map(each => each.src)")
        return [source.split("/")[-2] for source in sources]

    def expect_shown(self, ids: list[str]) -> None:
        """Wait until the grid shows exactly these pictures first, in this order."""
        expect(self.page.locator(f".tile:nth-child({len(ids)}) img")).to_have_attribute(
            "src", f"/v1/items/{ids[-1]}/thumbnail"
        )
        assert self.shown()[: len(ids)] == ids

    def _on_console(self, message: ConsoleMessage) -> None:
        refused = "Failed to load resource" in message.text and "/v1/" in message.location["url"]
        if message.type in {"error", "warning"} and not (refused and self.refusals):
            self.problems.append(f"{message.text} ({message.location['url']})")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((self.address, "blob:", "data:")):
            self.problems.append(f"a request to another host: {request.url}")


_DESKTOP = {"width": 1280, "height": 800}
