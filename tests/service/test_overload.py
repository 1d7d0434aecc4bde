"""What is asked of the service at a time beyond what it can do: waits in bounds, or is refused and told when to come.

The answers to requests at twice the capacity are read here; how long they take is for `tests.bench.overload` to tell.
"""

import asyncio
import io
import json
import re
import socket
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from indexer.catalog import Catalog, CatalogWriter, ImageRecord
from indexer.filters import Filter
from service import admission
from service.admission import LONGEST_RETRY, Budget, Door, Pace, Room
from service.app import create_app
from service.errors import Overloaded
from service.pipeline import Pipeline
from service.settings import ServiceSettings
from service.telemetry import Metrics
from tests.service.test_pipeline import (
    GatedEncoder,
    gate,
    gated,
    listening,
    measured,
    posted,
    search,
    wait_for,
    waiting,
)

POST = b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

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


def test_a_door_is_closed_to_what_could_not_be_answered_in_time_and_opens_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "_MEASURED_SECONDS", 0)
    metrics = Metrics()
    door = Door(Room(inf, seconds=1e-9, always=2), metrics)
    for place in [door.place() for _ in range(3)]:  # it is not known yet how long they take
        place.enter()
        place.leave()
        place.leave()
    inside, coming = door.place(), door.place()
    inside.enter()
    for _ in range(4):
        with pytest.raises(Overloaded) as refusal:
            door.place()
        assert refusal.value.retry_after == 1
        door.refuse()
    inside.leave()
    door.place().leave()
    coming.enter()
    door.place().enter()
    with pytest.raises(Overloaded):
        door.place()
    told = metrics.text().decode().splitlines()
    assert 'kindred_http_refusals_total{code="overloaded"} 4.0' in told
    assert 'kindred_http_requests_total{method="other",route="none",status="503"} 4.0' in told


def refused_at(act: Callable[[], object]) -> bool:
    """Tell whether a door let nobody through."""
    try:
        act()
    except Overloaded:
        return True
    return False


def test_who_sends_slowly_loses_the_place_and_gets_another_at_the_end_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    door = Door(Room(items=4, always=4), Metrics())
    slow = [door.place() for _ in range(2)]
    quick = [door.place() for _ in range(2)]
    for each in quick:
        each.enter()
    assert refused_at(door.place)
    monkeypatch.setattr(admission, "_BODY_SECONDS", -1)
    quick += [door.place(), door.place()]
    monkeypatch.setattr(admission, "_BODY_SECONDS", 1_000)
    for each in quick[2:]:
        each.enter()
    assert refused_at(slow[0].enter)
    quick[0].leave()
    slow[0].enter()
    assert refused_at(slow[1].enter)


def test_all_who_are_still_sending_have_half_of_the_places() -> None:
    door = Door(Room(items=4, always=4), Metrics())
    slow = [door.place() for _ in range(100)]
    quick = [door.place() for _ in range(2)]
    for each in quick:
        each.enter()
    assert refused_at(door.place)
    assert refused_at(slow[0].enter)
    quick[0].leave()
    slow[0].enter()
    assert refused_at(slow[1].enter)
    for each in slow[1:]:
        each.leave()
    for _ in range(2):
        door.place().enter()
    assert refused_at(door.place)


def test_whose_bodies_are_there_have_all_of_the_places() -> None:
    door = Door(Room(items=4, always=4), Metrics())
    whole = [door.place() for _ in range(4)]
    for each in whole:
        each.arrive()
    assert refused_at(door.place)
    for each in whole:
        each.enter()
    assert refused_at(door.place)
    whole[0].leave()
    door.place().arrive()
    assert refused_at(door.place)


def test_what_is_answered_before_any_work_tells_nothing_of_how_long_work_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "_MEASURED_SECONDS", 0)
    door = Door(Room(inf, seconds=1e-9), Metrics())
    for _ in range(10):  # as for want of a key
        place = door.place()
        place.arrive()
        place.leave()
    for _ in range(5):  # nothing is known yet
        door.place().arrive()


def test_who_was_answered_before_the_end_of_the_body_takes_no_place_at_its_end() -> None:
    door = Door(Room(items=1), Metrics())
    early = door.place()
    early.leave()
    early.arrive()
    early.enter()
    door.place().enter()


@contextmanager
def full(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, GatedEncoder, Door]]:
    """Serve with room for two queries, and both places taken until the encoder's gate opens."""
    monkeypatch.setattr(admission, "_MEASURED_SECONDS", 0)
    changes = {"backend": "torch", "refresh_seconds": 3_600.0, "max_batch": 1, "queue_seconds": 1e-9}
    app = create_app(settings.model_copy(update=changes))
    with listening(app) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for number in range(2):
            client.post("/v1/search", json={"query": f"before {number}"}).raise_for_status()
        encoder = gate(app)
        inside = [posted(port, b'{"query":"inside %d"}' % number) for number in range(2)]
        try:
            wait_for(lambda: waiting(client) + len(encoder.texts) == 2)
            yield port, encoder, app.state.door
            encoder.gate.set()
            assert [connection.recv(12) for connection in inside] == [b"HTTP/1.1 200"] * 2
        finally:
            encoder.gate.set()
            for connection in inside:
                connection.close()


def test_a_query_is_answered_while_any_number_of_others_never_send_their_bodies(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_MEASURED_SECONDS", 0)
    monkeypatch.setattr(admission, "_BODY_SECONDS", 1_000)
    app = create_app(settings.model_copy(update={"max_batch": 2, "queue_seconds": 1e-9}))
    with listening(app) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        door = app.state.door
        for number in range(4):
            client.post("/v1/search", json={"query": f"before {number}"}).raise_for_status()
        slow = [posted(port, b"", length=10) for _ in range(20)]
        wait_for(lambda: len(door._coming) == 20)
        for number in range(10):
            client.post("/v1/search", json={"query": f"meanwhile {number}"}).raise_for_status()
        assert len(door._coming) == 20
        for connection in slow:
            connection.close()
        wait_for(lambda: not door._coming)


def answered(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return the head and the body of an answer."""
    data = b""
    while not (head := re.match(rb"(.*?\r\n\r\n)", data, re.DOTALL)):
        data += connection.recv(2**16)
    length = re.search(rb"(?i)content-length: (\d+)", head[1])
    end = len(head[1]) + int(length[1] if length else 0)
    while len(data) < end:
        data += connection.recv(2**16)
    assert len(data) == end
    return head[1], data[len(head[1]) :]


def test_a_query_without_a_place_is_refused_at_its_headers_and_its_connection_serves_on(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b'{"query":"afterwards"}'
    with full(settings, monkeypatch) as (port, encoder, _), posted(port, b"", length=len(body)) as connection:
        for _ in range(3):
            head, told = answered(connection)
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n")
            assert b"\r\nretry-after: 1\r\n" in head
            assert (json.loads(told)["code"], json.loads(told)["status"]) == ("overloaded", 503)
            connection.sendall(body[:5])
            connection.sendall(body[5:] + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answered(connection)[0].startswith(b"HTTP/1.1 200 OK\r\n")
            connection.sendall(POST % len(body))
        answered(connection)
        connection.sendall(body)
        encoder.gate.set()
        wait_for(lambda: len(encoder.texts) == 2)
        answers = set()
        while b"HTTP/1.1 200 OK" not in answers:
            connection.sendall(POST % len(body) + body)
            answers.add(answered(connection)[0].partition(b"\r\n")[0])
        assert answers <= {b"HTTP/1.1 200 OK", b"HTTP/1.1 503 Service Unavailable"}


def test_a_client_that_wants_its_connection_closed_is_refused_and_then_it_is_closed(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        full(settings, monkeypatch) as (port, _, _),
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        connection.sendall((POST % 2).replace(b"Host: x", b"Host: x\r\nConnection: close"))
        assert b"\r\nconnection: close\r\n" in answered(connection)[0]
        connection.sendall(b"{}")
        assert connection.recv(1) == b""


def test_a_place_is_given_back_by_a_client_that_leaves_and_is_not_taken_by_one_that_is_slow(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b'{"query":"inside 0"}'
    with full(settings, monkeypatch) as (port, encoder, door):

        def ask() -> int:
            with posted(port, body) as connection:
                return int(answered(connection)[0].split()[1])

        assert ask() == 503
        encoder.gate.set()
        wait_for(lambda: not door._inside)
        slow = [posted(port, body[:4], length=len(body)) for _ in range(2)]
        wait_for(lambda: len(door._coming) == 2)
        wait_for(lambda: ask() == 200)
        encoder.gate.clear()
        left = [posted(port, b'{"query":"leaves %d"}' % number) for number in range(2)]
        wait_for(lambda: len(encoder.texts) == 3 and ask() == 503)
        for connection in left:
            connection.close()
        wait_for(lambda: ask() == 200)  # this text is remembered, and needs no encoder
        for connection in slow:
            connection.sendall(body[4:])
            assert answered(connection)[0].startswith(b"HTTP/1.1 200 ")
            connection.close()


def test_who_has_no_key_takes_no_place(settings: ServiceSettings, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps({"keys": []}))
    app = create_app(settings.model_copy(update={"keys": tmp_path / "keys.json"}))
    with listening(app) as port, posted(port, b"{}") as connection:
        assert answered(connection)[0].startswith(b"HTTP/1.1 401 ")
        assert not app.state.door._coming
        with posted(port, b"", length=10) as headers_alone:
            assert answered(headers_alone)[0].startswith(b"HTTP/1.1 401 ")
            assert not app.state.door._coming


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
