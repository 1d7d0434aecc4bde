"""Results as rows of a table and as a grid of pictures in a notebook."""

import asyncio
import base64
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa

from service.client import AsyncClient, Client
from service.picture_grid import SearchResults
from service.schemas.items import IndexRef, Result
from service.schemas.search import Hidden, SearchResponse
from tests.service.conftest import Library

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


class Elements(HTMLParser):
    """The elements and the texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def response(*results: dict[str, Any], **more: Any) -> SearchResponse:
    """Return an answer with such results."""
    fields: dict[str, Any] = {"label": None, "caption": None, "metadata": {}, "thumbnail": "/t", "relevance": 0.5}
    hits = [
        Result.model_validate({**fields, "id": f"{rank}", "path": f"{rank}.png", "rank": rank, "score": 0.25, **each})
        for rank, each in enumerate(results, start=1)
    ]
    rest: dict[str, Any] = {"next_cursor": None, "no_confident_match": False, "facets": {}, "notes": [], "took_ms": {}}
    rest |= {
        "hidden": Hidden(filter=0, cutoff=0, duplicates=0),
        "index": IndexRef(snapshot="s1", model="demo", count=9),
    }
    return SearchResponse(results=hits, **{**rest, **more})


def grid(results: SearchResults) -> Elements:
    return Elements(results._repr_html_())


def test_results_are_a_sequence() -> None:
    results = SearchResults(response({}, {}, {}))
    assert len(results) == 3
    assert [each.rank for each in results] == [1, 2, 3]
    assert results[-1].rank == 3
    assert [each.rank for each in results[1:]] == [2, 3]
    assert repr(results) == "<SearchResults: 3 of 9 pictures of snapshot s1>"


def test_rows_have_the_same_columns_so_that_tables_take_them() -> None:
    results = SearchResults(response({"metadata": {"year": 2020}}, {"label": "cat", "metadata": {"by": "Ann"}}))
    rows = results.to_rows()
    assert rows[0]["metadata.year"] == 2020
    table = pa.Table.from_pylist(rows)
    assert table.column("metadata.by").to_pylist() == [None, "Ann"]
    assert table.column("label").to_pylist() == [None, "cat"]
    assert set(table.column_names) == Result.model_fields.keys() - {"metadata"} | {"metadata.year", "metadata.by"}


def test_no_text_of_a_picture_becomes_a_part_of_the_page() -> None:
    evil = {"caption": EVIL, "label": EVIL, "path": EVIL, "id": EVIL}
    page = grid(
        SearchResults(response(evil, {**evil, "caption": None}, notes=[EVIL]), lambda ids: [b"jpeg"] * len(ids))
    )
    assert {tag for tag, _ in page.elements} == {"div", "figure", "figcaption", "img"}
    assert page.text.count(EVIL) == 3
    assert {name for _, attributes in page.elements for name in attributes} == {"style", "title", "src", "alt"}
    assert [attributes["alt"] for tag, attributes in page.elements if tag == "img"] == [EVIL, EVIL]


def test_a_grid_tells_score_and_relevance_and_what_there_is_to_know() -> None:
    page = grid(SearchResults(response({"relevance": None}, {"score": 0.123}, no_confident_match=True, notes=["Cut."])))
    assert "score 0.250" in page.text
    assert "score 0.123, relevance 0.50" in page.text
    assert "no confident match" in page.text
    assert "Cut." in page.text


def test_a_grid_shows_a_hundred_pictures_and_says_so() -> None:
    asked: list[str] = []

    def thumbnails(ids: Any) -> list[bytes | None]:
        asked.extend(ids)
        return [None] * len(ids)

    page = grid(SearchResults(response(*[{}] * 120), thumbnails))
    assert len(asked) == sum(tag == "figure" for tag, _ in page.elements) == 100
    assert "the first 100 are shown" in page.text


def test_the_grids_of_both_clients_hold_the_thumbnails(library: Library) -> None:
    async def found() -> SearchResults:
        async with AsyncClient(library.address) as client:
            return await client.search("a picture", limit=3)

    with Client(library.address) as client:
        results = client.search("a picture", limit=3)
        wanted = [client.thumbnail(each.id) for each in results]
        pages = [grid(results), grid(asyncio.run(found()))]
    for page in pages:
        sources = [str(attributes["src"]) for tag, attributes in page.elements if tag == "img"]
        assert [base64.b64decode(source.removeprefix("data:image/jpeg;base64,")) for source in sources] == wanted


def test_a_picture_whose_thumbnail_cannot_be_had_is_still_told_of(library: Library) -> None:
    with Client(library.address) as client:
        page = grid(SearchResults(response({"caption": "gone"}), client._thumbnails))
    assert "img" not in {tag for tag, _ in page.elements}
    assert "gone" in page.text
