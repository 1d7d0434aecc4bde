"""The Python clients, against the service and against a server that is busy, slow, gone or something else."""

import base64
import inspect
import io
import json
import pickle
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import anyio
import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from indexer.errors import KindredError
from indexer.filters import Condition, Filter, Match
from indexer.plan import image_id
from service import client as client_module
from service.client import (
    AsyncClient,
    BadArgument,
    Client,
    CursorGone,
    KindredApiError,
    SearchResults,
    ServiceUnreachable,
)
from service.client_calls import Lines
from service.client_options import (
    BrowseOptions,
    ClassifyOptions,
    PartOptions,
    ReindexOptions,
    SearchOptions,
    ZeroShotOptions,
)
from service.client_wire import seconds_of
from service.schemas.admin import ReindexRequest
from service.schemas.classify import ClassifyRequest, ZeroShotRequest
from service.schemas.items import BrowseRequest
from service.schemas.parts import QueryPart, WeightedPart
from service.schemas.search import SearchRequest
from tests.conftest import ADMIN_KEY
from tests.service.conftest import Library
from tests.service.scripted import Reply, scripted

RED, BLUE = image_id("red/1.png"), image_id("blue/2.png")
PROBLEM = {"type": "t", "title": "t", "detail": "Come back.", "instance": "/", "code": "overloaded", "request_id": None}
BUSY = json.dumps({**PROBLEM, "status": 503}).encode()

Ask = Callable[..., Any]


def ask_and_wait(url: str, method: str, *args: Any, settings: dict[str, Any] | None = None, **options: Any) -> Any:
    with Client(url, **(settings or {})) as client:
        answer = getattr(client, method)(*args, **options)
        return list(answer) if isinstance(answer, Iterator) else answer


def ask_in_a_loop(url: str, method: str, *args: Any, settings: dict[str, Any] | None = None, **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncClient(url, **(settings or {})) as client:
            answer = getattr(client, method)(*args, **options)
            return [each async for each in answer] if isinstance(answer, AsyncIterator) else await answer

    return anyio.run(ask)


@pytest.fixture(params=[ask_and_wait, ask_in_a_loop])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Ask a service by a method of either client."""
    asking: Ask = request.param
    return asking


@pytest.fixture(scope="session")
def index_body(library: Library) -> bytes:
    return httpx2.get(f"{library.address}/v1/index", timeout=60).content


def test_the_lines_that_the_module_shows_work(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in str(client_module.__doc__).splitlines() if line.startswith("    ")]
    assert len(lines) == 5
    code = textwrap.dedent("\n".join(lines)).replace("http://localhost:8000", library.address)
    monkeypatch.chdir(library.pictures / "red")
    names: dict[str, Any] = {}
    exec(code.replace("picture.jpg", "1.png").replace('"value": "star"', '"value": "red"'), names)  # noqa: S102
    assert [len(names[each]) for each in ("results", "alike", "mixed")] == [5, 8, 10]
    assert (names["alike"][0].id, names["alike"][0].score) == (RED, 1.0)
    names["client"].close()


def test_both_clients_have_the_same_methods() -> None:
    def methods(of: type) -> dict[str, list[tuple[str, Any]]]:
        return {
            name: [(each.name, each.annotation) for each in inspect.signature(method).parameters.values()]
            for name, method in inspect.getmembers(of, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)


def test_the_options_are_the_fields_of_the_requests() -> None:
    pairs: tuple[tuple[Any, set[str], type[Any], set[str]], ...] = (
        (SearchOptions, {"image", "id"}, SearchRequest, set()),
        (PartOptions, set(), QueryPart, {"text"}),
        (ClassifyOptions, set(), ClassifyRequest, {"text"}),
        (ZeroShotOptions, set(), ZeroShotRequest, {"text", "labels"}),
        (ReindexOptions, set(), ReindexRequest, set()),
        (BrowseOptions, set(), BrowseRequest, {"cursor"}),
    )
    for options, more, model, less in pairs:
        assert options.__optional_keys__ - more == model.model_fields.keys() - less


def test_a_search_answers_what_the_api_does(ask: Ask, library: Library) -> None:
    picture = (library.pictures / "red" / "1.png").read_bytes()
    wanted = {"must": [{"key": "label", "match": {"any": ["red", "blue"]}}]}
    found = ask(
        library.address,
        "search",
        "a picture",
        image=picture,
        id=BLUE,
        query="- 0.5:something green",
        filter=Filter(must=(Condition(key="label", match=Match(any=("red", "blue"))),)),
        limit=6,
        facets=["label"],
        explain=True,
    )
    parts: list[dict[str, Any]] = [{"text": "a picture"}, {"image": base64.b64encode(picture).decode()}, {"id": BLUE}]
    parts.append({"text": "something green", "weight": -0.5})
    body = {"query": parts, "filter": wanted, "limit": 6, "facets": ["label"], "explain": True}
    answer = httpx2.post(f"{library.address}/v1/search", json=body, timeout=60).json()
    del answer["took_ms"]
    assert json.loads(found.response.model_dump_json(exclude={"took_ms"})) == answer


def test_parts_may_be_models_and_hold_pictures_in_any_form(ask: Ask, library: Library) -> None:
    path = library.pictures / "red" / "1.png"
    alike = ask(library.address, "search", query=[WeightedPart(image=path.read_bytes(), weight=2.0)])
    regions = ask(library.address, "search", query=[{"region": {"image": path, "box": (0, 0, 1, 1)}}])
    vectors = ask(library.address, "search", query=[{"vector": ask(library.address, "embed", images=[path])[0]}])
    among = ask(library.address, "search", all_of=[{"id": RED}, {"image": path}])
    assert [found[0].id for found in (alike, regions, vectors, among)] == [RED] * 4


def test_a_picture_may_come_in_any_form(library: Library) -> None:
    path = library.pictures / "red" / "1.png"
    with Image.open(path) as picture, Client(library.address) as client:
        forms: list[Any] = [path, str(path), path.read_bytes(), picture, np.asarray(picture)]
        assert [(client.search(image=form)[0].id) for form in forms] == [RED] * 5
        for mode in ("CMYK", "L", "P", "RGBA"):
            assert len(client.search(image=picture.convert(mode), limit=3)) == 3


def test_a_picture_that_lies_on_its_side_is_sent_upright(library: Library, tmp_path: Any) -> None:
    with Image.open(library.pictures / "red" / "1.png") as picture:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned, Client(library.address) as client:
        sent, read = client.embed(images=[turned, tmp_path / "turned.png"])
    np.testing.assert_allclose(sent, read, atol=1e-6)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)])
def test_an_array_that_is_no_picture_is_refused(pixels: Any) -> None:
    with Client("http://localhost") as client, pytest.raises(BadArgument, match="of type uint8 and shape"):
        client.search(image=pixels)


def test_a_query_that_cannot_be_read_is_refused() -> None:
    with Client("http://localhost") as client, pytest.raises(BadArgument, match="after '-' there is nothing"):
        client.search(query="a dog - ")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://", "", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    for client in (Client, AsyncClient):
        with pytest.raises(BadArgument, match="give one such as http://localhost:8000"):
            client(url)


def test_pages_go_on_to_the_end_and_never_overlap(ask: Ask, library: Library) -> None:
    pages = ask(library.address, "pages", "a picture", limit=7)
    assert [len(page) for page in pages] == [7, 7, 7, 3]
    everything = ask(library.address, "search", "a picture", limit=100)
    assert [each.id for page in pages for each in page] == [each.id for each in everything]


def test_a_page_of_an_index_that_was_replaced_is_gone(library: Library) -> None:
    first, second = library.ids
    with Client(library.address, key=ADMIN_KEY) as client:
        pages, listed = client.pages("a picture", limit=5), client.items(limit=5)
        assert (len(next(pages)), len(next(listed).items)) == (5, 5)
        try:
            assert client.activate(first).snapshot == first
            for following in (pages, listed):
                with pytest.raises(CursorGone, match="rebuilt") as caught:
                    next(following)
                assert (caught.value.status, caught.value.code) == (410, "cursor_expired")
        finally:
            client.activate(second)
        assert [(each.id, each.current) for each in client.snapshots()] == [(second, True), (first, False)]


def test_a_batch_has_an_answer_or_an_error_for_each_search(ask: Ask, library: Library) -> None:
    path = library.pictures / "red" / "1.png"
    searches = [
        {"image": path, "limit": 2},
        {"text": "a picture", "limit": 0},
        {"id": "nope"},
        {"query": "a red thing"},
    ]
    by_picture, wrong, unknown, by_text = ask(library.address, "search_batch", searches)
    assert [each.id for each in by_picture] == [each.id for each in ask(library.address, "search", image=path, limit=2)]
    assert (wrong.status, wrong.code) == (422, "invalid_request")
    assert (unknown.status, unknown.code) == (404, "item_not_found")
    assert isinstance(by_text, SearchResults)


def test_an_export_yields_the_results_of_a_search(ask: Ask, library: Library) -> None:
    exported = ask(library.address, "export", "a picture", limit=24)
    assert exported == list(ask(library.address, "search", "a picture", limit=24))


def test_an_export_that_is_refused_says_why(ask: Ask, library: Library) -> None:
    with pytest.raises(KindredApiError, match="no-such-item"):
        ask(library.address, "export", id="no-such-item")


def test_classes_come_by_votes_and_by_words(ask: Ask, library: Library) -> None:
    voted = ask(library.address, "classify", image=library.pictures / "red" / "1.png", k=5)
    assert (voted.label, len(voted.neighbors)) == ("red", 5)
    described = ask(library.address, "zero_shot", ["red", "blue"], id=RED)
    assert {each.label for each in described.classes} == {"red", "blue"}


def test_embeddings_are_unit_rows_in_the_order_given(ask: Ask, library: Library) -> None:
    path = library.pictures / "red" / "1.png"
    texts = [f"a picture of {number}" for number in range(300)]
    rows = ask(library.address, "embed", texts, [path])
    assert (rows.shape, rows.dtype) == ((301, 16), np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    answer = httpx2.post(f"{library.address}/v1/embeddings", json={"input": texts[280]}, timeout=60).json()
    np.testing.assert_allclose(rows[280], answer["data"][0]["embedding"], atol=1e-5)
    np.testing.assert_allclose(rows[300], ask(library.address, "embed", images=[path])[0], atol=1e-5)
    with pytest.raises(BadArgument, match="nothing to encode"):
        ask(library.address, "embed")


def test_pictures_are_browsed_page_by_page(ask: Ask, library: Library) -> None:
    pages = ask(
        library.address,
        "items",
        filter={"must": {"key": "label", "match": {"value": "red"}}},
        limit=3,
        facets=["label", "metadata.size"],
    )
    assert [[each.label for each in page.items] for page in pages] == [["red"] * 3, ["red"] * 3, ["red"] * 2]
    assert pages[0].total == 8
    assert [(each.value, each.count) for each in pages[0].facets["label"]] == [("red", 8)]
    assert len(pages[0].facets["metadata.size"]) == 8


def test_an_item_its_thumbnail_and_the_index_are_described(ask: Ask, library: Library) -> None:
    assert ask(library.address, "item", RED).path == "red/1.png"
    with Image.open(io.BytesIO(ask(library.address, "thumbnail", RED))) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (56, 40))
    assert ask(library.address, "index").count == 24


def test_an_error_tells_all_that_the_service_said(ask: Ask, library: Library) -> None:
    with pytest.raises(KindredApiError) as caught:
        ask(library.address, "item", "a b?c#d")
    error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - its own
    assert (error.status, error.code, error.problem.status) == (404, "item_not_found", 404)
    assert "'a b?c#d'" in error.detail
    assert str(error) == error.detail == error.problem.detail


def test_a_misspelt_option_is_refused_by_the_service(ask: Ask, library: Library) -> None:
    with pytest.raises(KindredApiError, match="/limitt: Extra inputs are not permitted"):
        ask(library.address, "search", "a picture", limitt=3)


def test_the_admin_methods_need_the_key(ask: Ask, library: Library) -> None:
    for method, args in (("snapshots", ()), ("job", ("x",)), ("reindex", ()), ("activate", ("x",))):
        with pytest.raises(KindredApiError) as caught:
            ask(library.address, method, *args)
        assert caught.value.status == 401
    settings = {"key": ADMIN_KEY}
    with pytest.raises(KindredApiError, match="registered folders"):
        ask(library.address, "reindex", sources=["/etc"], settings=settings)
    with pytest.raises(KindredApiError, match="no job 'x'"):
        ask(library.address, "job", "x", settings=settings)


def test_a_busy_service_is_asked_again_after_as_long_as_it_wants(ask: Ask, index_body: bytes) -> None:
    busy = Reply(503, BUSY, {"Retry-After": "1"})
    with scripted([busy, Reply(429, b"slow down", {"Retry-After": "0"}), Reply(200, index_body)]) as server:
        assert ask(server.address, "index").count == 24
    assert server.asked == [("GET", "/v1/index")] * 3
    assert server.moments[1] - server.moments[0] >= 1


def test_a_post_that_changes_nothing_is_repeated_and_one_that_does_is_not(ask: Ask) -> None:
    with scripted([Reply(503, BUSY, {"Retry-After": "0"})]) as server:
        for method, args, times in (
            ("search", ("a dog",), 2),
            ("export", ("a dog",), 2),
            ("search_batch", ([{"text": "a dog"}],), 2),
            ("classify", ("a dog",), 2),
            ("zero_shot", (["a"], "a dog"), 2),
            ("embed", (["a dog"],), 2),
            ("reindex", (), 1),
            ("activate", ("x",), 1),
        ):
            server.asked.clear()
            with pytest.raises(KindredApiError, match=r"Come back\.") as caught:
                ask(server.address, method, *args, settings={"retries": 1})
            assert (method, len(server.asked)) == (method, times)
            assert (caught.value.status, caught.value.code) == (503, "overloaded")


@pytest.mark.parametrize("status", [400, 404, 422, 500, 502, 504])
def test_what_will_not_pass_is_not_repeated(ask: Ask, status: int) -> None:
    with scripted([Reply(status, b"<html>", {"Retry-After": "0"})]) as server:
        with pytest.raises(KindredApiError, match=f"status {status}") as caught:
            ask(server.address, "index")
        assert (caught.value.code, caught.value.problem, len(server.asked)) == (None, None, 1)


def test_a_service_that_wants_to_be_left_alone_for_long_is_not_waited_for(ask: Ask) -> None:
    with scripted([Reply(503, BUSY, {"Retry-After": "3600"})]) as server:
        with pytest.raises(KindredApiError) as caught:
            ask(server.address, "index")
        assert (caught.value.retry_after, len(server.asked)) == (3_600, 1)


def test_a_connection_that_breaks_is_made_again(ask: Ask, index_body: bytes) -> None:
    with scripted([Reply(0), Reply(200, index_body)]) as server:
        assert ask(server.address, "index").count == 24
        assert len(server.asked) == 2


def test_a_service_out_of_reach_is_named(ask: Ask) -> None:
    with scripted([Reply()]) as server:
        pass
    with pytest.raises(ServiceUnreachable, match="no answer") as caught:
        ask(server.address, "search", "a dog", settings={"retries": 1})
    assert caught.value.url == f"{server.address}/v1/search"


def test_an_answer_that_takes_too_long_is_given_up_and_not_asked_for_again(ask: Ask) -> None:
    late = threading.Event()
    with scripted([Reply(200, b"{}", when=late)]) as server:
        try:
            with pytest.raises(ServiceUnreachable, match=r"no answer within 0\.2 s"):
                ask(server.address, "index", settings={"timeout": 0.2})
            assert len(server.asked) == 1
        finally:
            late.set()


@pytest.mark.parametrize("body", [b"<html>Hello</html>", b'{"hello": "world"}', b""])
def test_something_else_than_kindred_is_told_from_it(ask: Ask, body: bytes) -> None:
    with scripted([Reply(200, body)]) as server, pytest.raises(ServiceUnreachable, match="is not kindred"):
        ask(server.address, "index")


def test_what_a_newer_service_tells_more_is_left_out(ask: Ask, index_body: bytes) -> None:
    newer = {**json.loads(index_body), "colour": "green"}
    newer["encoder"]["colour"] = "green"
    with scripted([Reply(200, json.dumps(newer).encode())]) as server:
        assert ask(server.address, "index").count == 24


def test_the_time_to_wait_is_read_as_seconds_or_as_a_date() -> None:
    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert seconds_of("120", now) == 120
    assert seconds_of("Sun, 22 Nov 2026 12:00:30 GMT", now) == 30
    assert seconds_of("Sun, 22 Nov 2026 11:00:00 GMT", now) == 0
    assert [seconds_of(text, now) for text in (None, "", "soon", "-5", "1.5")] == [None] * 5


@given(st.lists(st.text(st.characters(exclude_characters="\n"), max_size=5)), st.data())
def test_lines_are_put_together_however_they_are_cut(lines: list[str], data: st.DataObject) -> None:
    sent = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=5)))
    reader = Lines()
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert [line.decode("utf-8", "surrogatepass") for piece in pieces for line in reader.of(piece)] == lines


def test_the_errors_are_kindreds_own() -> None:
    assert all(
        issubclass(each, KindredError) for each in (KindredApiError, ServiceUnreachable, BadArgument, CursorGone)
    )
    assert issubclass(BadArgument, ValueError)
