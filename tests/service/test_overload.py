"""What is asked of the service at a time beyond what it can do: waits in bounds, or is refused and told when to come.

The answers to requests at twice the capacity are read here; how long they take is for `tests.bench.overload` to tell.
"""

import asyncio
import io
import sqlite3
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
from PIL import Image

from indexer.catalog import Catalog, CatalogWriter, ImageRecord
from indexer.filters import Filter
from service.admission import LONGEST_RETRY, Budget, Pace, Room
from service.errors import Overloaded
from service.pipeline import Pipeline
from service.settings import ServiceSettings
from service.telemetry import Metrics
from tests.service.test_pipeline import gated, measured, search, wait_for, waiting

SLOW = {"should": [{"key": f"metadata.{number}.x", "match": {"value": number}} for number in range(60)]}
"""A filter that makes a catalogue of so many rows slow to read: the metadata of each are parsed again and again."""


def refused(pace: Pace, waiting: int, room: Room) -> int | None:
    """Return after how many seconds to come again; None where there is room."""
    try:
        pace.check(waiting, room)
    except Overloaded as error:
        return error.retry_after
    return None


def test_what_is_expected_to_wait_too_long_is_refused_beyond_a_batch_and_told_how_long() -> None:
    pace, room = Pace(), Room(items=100, seconds=2, always=4)
    assert refused(pace, 99, room) is None
    assert refused(pace, 100, room) == 1
    pace.note(8.0, items=16)
    assert [refused(pace, number, room) for number in (3, 4, 5, 7, 40, 99, 100)] == [None, None, 3, 4, 20, 30, 30]
    assert LONGEST_RETRY == 30
    for _ in range(100):
        pace.note(0.016, items=16)
    assert [refused(pace, number, room) for number in (99, 100)] == [None, 1]


def test_no_more_is_held_than_there_is_and_what_is_larger_is_held_alone() -> None:
    budget, held, most = Budget(10), Counter[str](), []
    lock = threading.Lock()

    def hold(amount: int) -> None:
        with budget.holding(amount):
            with lock:
                held.update(now=amount, number=1)
                most.append((held["now"], held["number"]))
            threading.Event().wait(0.001)
            with lock:
                held.update(now=-amount, number=-1)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hold, [3, 4, 5, 50, 1, 10, 2, 7] * 10))
    assert len(most) == 80
    assert all(now <= 10 or number == 1 for now, number in most)
    assert budget.holding(10).__enter__() is None


def test_pictures_are_decoded_one_after_the_other_where_their_pixels_are_too_many(settings: ServiceSettings) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (400, 300), "teal").save(buffer, "PNG")
    with gated(settings, decode_pixels=150_000) as (client, encoder), ThreadPoolExecutor(6) as clients:
        encoder.gate.set()
        held, most, preprocess, lock = 0, 0, encoder.preprocess, threading.Lock()

        def watched(picture: Any) -> Any:
            nonlocal held, most
            with lock:
                held += 1
                most = max(most, held)
            try:
                return preprocess(picture)
            finally:
                with lock:
                    held -= 1

        encoder.preprocess = watched
        upload: dict[str, Any] = {"files": {"file": buffer.getvalue()}, "data": {"limit": "1"}}
        answers = list(clients.map(lambda _: client.post("/v1/search", **upload), range(12)))
    assert [answer.status_code for answer in answers] == [200] * 12
    assert most == 1


def test_bodies_beyond_the_memory_for_them_are_refused_until_others_are_answered(settings: ServiceSettings) -> None:
    text = "x" * 10_000
    limits = {"body_memory": 25_000}
    with gated(settings, **limits) as (client, encoder), ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(search, client, f"{text[:9_000]}{number}") for number in range(2)]
        wait_for(lambda: waiting(client) + sum(map(len, encoder.texts)) >= 2)
        answer = search(client, text[:9_000])
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
        assert client.get("/livez").status_code == 200
        encoder.gate.set()
        assert [each.result().status_code for each in answers] == [200, 200]
        assert search(client, text[:9_000]).status_code == 200
        # By itself one may be as large as any body may be.
        queries = {"searches": [{"query": [{"text": text}]} for _ in range(3)]}
        assert client.post("/v1/search/batch", json=queries).status_code == 200


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Write 60,000 rows, which some filters take a second or more to go through."""
    path = tmp_path_factory.mktemp("catalog") / "catalog.sqlite"
    writer = CatalogWriter(path)
    facts: dict[str, Any] = {"content_hash": "0" * 64, "media_type": "image/png", "width": 1, "height": 1}
    metadata = {"words": "word " * 20}
    rows = (
        ImageRecord(row=row, id=f"{row:016x}", path=f"{row}.png", thumbnail=(0, 0), metadata=metadata, **facts)
        for row in range(60_000)
    )
    writer.add(rows)
    writer.finish()
    return Catalog.open(path)


def test_a_scan_that_nobody_waits_for_any_more_ends_in_the_middle(catalog: Catalog) -> None:
    given_up = threading.Event()
    given_up.set()
    wanted = Filter.model_validate(SLOW)
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        catalog.select(wanted, given_up)
    assert catalog.kept(wanted) is None
    assert catalog.select(Filter.model_validate({"must": [{"key": "path", "match": {"value": "7.png"}}]})).count == 1
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        catalog.facet(Filter(), "metadata.words", 1, given_up)


def test_a_scan_in_time_is_whole_and_is_kept(catalog: Catalog) -> None:
    wanted = Filter.model_validate({"must": [{"key": "path", "match": {"value": "8.png"}}]})
    assert catalog.kept(wanted) is None
    found = catalog.select(wanted, threading.Event())
    assert found.rows().tolist() == [8]
    assert catalog.kept(wanted) is found


def test_the_scan_of_a_late_request_stops_and_those_behind_it_are_answered(catalog: Catalog) -> None:
    begun, stopped = threading.Event(), threading.Event()

    def endless(given_up: threading.Event) -> None:
        begun.set()
        try:
            # Another filter each time, so that none is remembered.
            for number in count():
                parts = [{**part, "key": f"{part['key']}{number}"} for part in SLOW["should"]]
                catalog.select(Filter.model_validate({"should": parts}), given_up)
        except sqlite3.OperationalError:
            stopped.set()
            raise

    async def ask() -> None:
        pipeline = Pipeline(ServiceSettings(), Metrics())
        try:
            late = asyncio.create_task(pipeline.scan(endless))
            assert await asyncio.to_thread(begun.wait, 60)
            wanted = Filter.model_validate({"must": [{"key": "path", "match": {"value": "9.png"}}]})
            behind = asyncio.create_task(pipeline.select(catalog, wanted))
            late.cancel()
            assert (await behind).rows().tolist() == [9]
            assert stopped.is_set()
        finally:
            await asyncio.to_thread(pipeline.close)

    asyncio.run(ask())


def test_at_more_than_can_be_done_each_is_answered_or_refused_properly_and_all_is_well_afterwards(
    settings: ServiceSettings,
) -> None:
    with gated(settings, queue=8, max_batch=4, text_cache=0) as (client, encoder), ThreadPoolExecutor(32) as clients:
        encoder.gate.set()
        answers = list(clients.map(lambda number: search(client, f"text {number}"), range(400)))
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) == {200, 503}
        for answer in answers:
            if answer.status_code == 503:
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["code"] == "overloaded"
                assert 1 <= int(answer.headers["retry-after"]) <= LONGEST_RETRY
        assert waiting(client) == 0
        # Some are encoded, and then find no room to be searched for.
        assert statuses[200] <= measured(client, 'kindred_batch_size_sum{stage="encode"}') <= len(answers)
        assert all(len(batch) <= 4 for batch in encoder.texts)
        assert [search(client, f"afterwards {number}").status_code for number in range(20)] == [200] * 20
