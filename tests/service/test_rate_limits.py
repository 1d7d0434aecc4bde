"""Rate limits: an exact count in a moving window, for each by itself, whatever the clock on the wall does."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service import keys
from service.app import create_app
from service.keys import Scope
from service.rate_limits import RateLimit, network
from service.settings import ServiceSettings
from tests.conftest import ADMIN_KEY
from tests.served import wait_for

YEAR = 365 * 24 * 3_600


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


def test_a_forwarded_address_that_is_not_a_trusted_proxys_counts_for_nothing(client: TestClient) -> None:
    statuses = [client.get("/metrics", headers={"X-Forwarded-For": f"192.0.2.{i}"}).status_code for i in range(7)]
    assert statuses == [200] * 5 + [429] * 2


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
    assert min(later - earlier for earlier, later in zip(passed, passed[20:], strict=False)) > 0.99


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
