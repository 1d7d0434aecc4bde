"""Rate limits: an exact count in a moving window, for each by itself, whatever the clock on the wall does."""

import asyncio
import itertools
import json
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from starlette.responses import PlainTextResponse
from starlette.types import Message

from service import keys
from service.admission import Door, Doorway, Room
from service.app import create_app
from service.auth import Gate
from service.keys import Scope
from service.rate_limits import RateLimit, network
from service.settings import ServiceSettings
from service.telemetry import Metrics
from tests.bench.closed_loop import measure
from tests.conftest import ADMIN_KEY
from tests.served import Service, serving, wait_for
from tests.service.conftest import Library
from tests.trust.figures import LONG, noted, sized

YEAR = 365 * 24 * 3_600
FLOOD = 16


def settings(folder: Path, **more: Any) -> ServiceSettings:
    return ServiceSettings.model_validate({"snapshots": folder / "none", "admin_key": ADMIN_KEY, **more})


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """Talk to a service that lets five requests pass in an hour."""
    with TestClient(create_app(settings(tmp_path, rate_limit="5/hour"))) as client:
        yield client


def test_as_many_requests_pass_as_may_however_many_come_at_once(tmp_path: Path) -> None:
    app = create_app(settings(tmp_path, rate_limit="100/hour"))

    async def storm() -> Counter[int]:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
            room = asyncio.Semaphore(64)

            async def ask() -> int:
                async with room:
                    return (await client.get("/openapi.json")).status_code

            return Counter(await asyncio.gather(*(ask() for _ in range(300))))

    assert asyncio.run(storm()) == {200: 100, 429: 200}
    noted(promise="R20", figure="300 requests, 64 at a time, limit 100: exactly 100 passed, 200 refused")


def test_a_refusal_says_when_to_come_again(client: TestClient) -> None:
    assert [client.get("/metrics").status_code for _ in range(5)] == [200] * 5
    refused = client.get("/metrics")
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert refused.headers["content-type"] == "application/problem+json"
    seconds = refused.headers["retry-after"]
    assert 3_590 <= int(seconds) <= 3_600
    assert refused.headers["ratelimit-policy"] == '"default";q=5;w=3600'
    assert refused.headers["ratelimit"] == f'"default";r=0;t={seconds}'


def test_probes_and_the_page_are_free(client: TestClient) -> None:
    for path, status in (("/livez", 200), ("/readyz", 503), ("/", 200)):
        assert [client.get(path).status_code for _ in range(10)] == [status] * 10
    assert client.get("/metrics").status_code == 200


def test_none_are_refused_unless_told(tmp_path: Path) -> None:
    with TestClient(create_app(settings(tmp_path))) as client:
        assert {client.get("/metrics").status_code for _ in range(100)} == {200}


def test_every_key_has_its_own_count_and_those_without_share_that_of_their_address(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    one, other = (keys.create(file, name, (Scope.METRICS,), None) for name in ("one", "other"))
    with TestClient(create_app(settings(tmp_path, keys=file, rate_limit="5/hour"))) as client:

        def ask(key: str) -> list[int]:
            headers = {"Authorization": f"Bearer {key}"}
            return [client.get("/metrics", headers=headers).status_code for _ in range(7)]

        assert ask(one) == [200] * 5 + [429] * 2
        assert ask(other) == [200] * 5 + [429] * 2
        assert ask("guess") == [401] * 5 + [429] * 2
        assert ask("another guess") == [429] * 7
        assert ask(ADMIN_KEY) == [200] * 5 + [429] * 2


def test_whoever_asks_too_often_waits_for_the_end_of_the_answer_and_holds_no_place_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door, seen = Door(Room(1), Metrics()), list[str]()
    app = Doorway(Gate(PlainTextResponse("found"), settings(tmp_path, rate_limit="1/hour")), door)

    async def pause(_: float) -> None:
        door.place()  # the only one: it is free by now
        seen.append("pause")

    async def send(message: Message) -> None:
        seen.append(message["type"].removeprefix("http.response.") + f" {message.get('status', '')}")

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}"}

    monkeypatch.setattr(asyncio, "sleep", pause)
    scope = {"type": "http", "method": "POST", "path": "/v1/search", "headers": [], "client": ("192.0.2.1", 1)}
    for _ in range(2):
        asyncio.run(app({**scope}, receive, send))
    assert seen == ["start 200", "body ", "start 429", "pause", "body "]


def test_a_forwarded_address_that_is_not_a_trusted_proxys_counts_for_nothing(client: TestClient) -> None:
    statuses = [client.get("/metrics", headers={"X-Forwarded-For": f"192.0.2.{i}"}).status_code for i in range(7)]
    assert statuses == [200] * 5 + [429] * 2


@pytest.mark.parametrize(
    ("proxies", "passed"),
    [pytest.param("", 5, id="none is trusted"), pytest.param("10.0.0.0/8, 127.0.0.1", 7, id="the proxy tells")],
)
def test_only_a_proxy_that_is_named_tells_who_asks(tmp_path: Path, proxies: str, passed: int) -> None:
    trusting = {"KINDRED_PROXIES": proxies, "FORWARDED_ALLOW_IPS": "*"}  # the latter is uvicorn's own
    with serving(tmp_path / "none", **trusting, KINDRED_RATE_LIMIT="5/hour") as service:

        def ask(forwarded: str) -> list[int]:
            headers = [{"X-Forwarded-For": forwarded.format(number)} for number in range(7)]
            return [httpx2.get(f"{service.address}/metrics", headers=each).status_code for each in headers]

        assert ask("192.0.2.{}") == [200] * passed + [429] * (7 - passed)
        # What a proxy was told by its client comes first, and counts for nothing.
        assert ask("192.0.2.{}, 198.51.100.1") == ([200] * 5 + [429] * 2 if proxies else [429] * 7)


@pytest.mark.parametrize("text", ["many", "*", "localhost", "10.0.0.1/8", "10.0.0.1,", "10.0.0.1 10.0.0.2", " "])
def test_what_is_no_address_of_a_proxy_is_refused_at_start(text: str) -> None:
    with pytest.raises(ValidationError, match="no address or network of a proxy"):
        ServiceSettings.model_validate({"proxies": text})


def paced(service: Service, key: str, count: int) -> list[float]:
    """Search ten times a second, so many times; return the seconds that each answer took."""
    taken = []
    with httpx2.Client(base_url=service.address, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        begin = time.perf_counter()
        for number in range(count):
            time.sleep(max(begin + number / 10 - time.perf_counter(), 0))
            start = time.perf_counter()
            answer = client.post("/v1/search", json={"query": f"a red picture {number}"})
            assert answer.status_code == 200, answer.text
            taken.append(time.perf_counter() - start)
    return taken


@LONG
def test_a_key_that_floods_is_held_to_its_limit_and_another_is_answered(library: Library, tmp_path: Path) -> None:
    file, seconds, limit = tmp_path / "keys.json", sized(5, 30, 600), 20
    flooder, gentle = (keys.create(file, name, (Scope.SEARCH,), None) for name in ("flooder", "gentle"))
    body = json.dumps({"query": "a red picture"}).encode()
    head = f"POST /v1/search HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {flooder}\r\nContent-Length: {len(body)}\r\n"
    flood = itertools.repeat(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    secured = {"KINDRED_KEYS": str(file), "KINDRED_ADMIN_KEY": ADMIN_KEY, "KINDRED_RATE_LIMIT": f"{limit}/second"}
    with (
        serving(library.snapshots, **secured) as service,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other,
    ):
        alone = paced(service, gentle, 10 * seconds)
        flooding = other.submit(measure, service.port, flood, FLOOD, seconds + 2)
        beside = paced(service, gentle, 10 * seconds)
        load = flooding.result()
        told = httpx2.get(f"{service.address}/metrics", headers={"Authorization": f"Bearer {ADMIN_KEY}"}).text
    refused = re.findall(r'^kindred_http_refusals_total{code="(\w+)"} [1-9]', told, re.MULTILINE)
    assert refused == ["rate_limited"]
    assert load.errors > 0
    # As many windows as have begun, each of a second.
    assert len(load.latencies) <= limit * (load.seconds + 1)
    slower = np.percentile(beside, 99) / np.percentile(alone, 99)
    asked, passed = len(load.latencies) + load.errors, len(load.latencies)
    figure = f"{FLOOD} connections of one key asked {asked:,} times in {load.seconds:.0f} s, and {passed:,} passed at "
    figure += f"{limit}/second; all {len(beside):,} of another key passed, with a p99 of {slower:.1f} times that alone"
    noted(promise="R20", figure=figure)


@pytest.mark.parametrize("jump", [-YEAR, YEAR, -5])
def test_a_clock_that_jumps_locks_nobody_out_and_lets_nobody_in(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    limit, real = RateLimit("2/second"), time.time
    assert [limit.take("x") is None for _ in range(3)] == [True, True, False]
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    refused = limit.take("x")
    assert refused is not None
    assert refused["Retry-After"] == "1"
    wait_for(lambda: limit.take("x") is None, 5)


def test_no_window_of_time_has_more_than_may_pass() -> None:
    limit, passed = RateLimit("20/second"), list[float]()

    def full() -> bool:
        before = time.monotonic()
        if limit.take("x") is None:
            passed.append(before)
        return len(passed) == 70

    while not full():
        assert time.monotonic() < passed[0] + 60
    # The 21st after any one comes a second later, but for the time that taking it took.
    least = min(later - earlier for earlier, later in zip(passed, passed[20:], strict=False))
    assert least > 0.99
    noted(promise="R20", figure=f"20/second, asked for without a pause: the 21st came {least:.3f} s after the 1st")


def test_those_who_came_long_ago_are_forgotten() -> None:
    limit = RateLimit("1/second")
    for number in range(1_000):
        limit.take(f"early {number}")
    wait_for(lambda: limit.take("early 999") is None, 5)
    for number in range(1_000):
        limit.take(f"late {number}")
    kept = limit._windows.storage._moments  # type: ignore[attr-defined]
    assert len(kept) <= 1_001
    assert "early 0" not in "".join(kept)


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9%eth0", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_an_address_of_ipv6_stands_for_its_network(address: str, counted: str) -> None:
    assert network(address) == counted


@pytest.mark.parametrize("text", ["many", "0/second", "-1/second", "5", "1/second;5/minute", " "])
def test_what_is_no_limit_is_refused_at_start(text: str) -> None:
    with pytest.raises(ValidationError, match="rate limit"):
        ServiceSettings.model_validate({"rate_limit": text})
