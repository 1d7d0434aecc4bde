"""Clients that are slow on purpose are shown out, and nobody else notices."""

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest

from tests.bench.closed_loop import Load, measure
from tests.served import Service, resident, serving, wait_for
from tests.service.conftest import Library
from tests.trust.figures import LONG, noted, size, sized

# Of the service: little patience, but at the size of a release what it has by default.
HEADER_SECONDS, BODY_SECONDS = (10.0, 30.0) if size() == "full" else (1.0, 1.5)
# Of an attacker, between two bytes.
PAUSE = HEADER_SECONDS / 10
POST = b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
QUERY = {"query": [{"text": "a red picture"}], "limit": 3}
# Headers without end, a byte at a time.
HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: x\r\n" % number for number in range(10_000))
DRIPS = [HEAD[i : i + 1] for i in range(len(HEAD))]
# An attacker that is still connected by then was not shown out.
PATIENCE = max(60, 4 * BODY_SECONDS)
MIB = 2**20
# Open files that a process may want here: a connection for each of a thousand attackers, and some of its own.
FILES = 4_096


# Each waits for a dozen deadlines: the second under `make trust`.
@pytest.fixture(
    scope="module", params=[(), pytest.param(("--workers=2",), marks=LONG)], ids=["one process", "two workers"]
)
def service(request: pytest.FixtureRequest, library: Library) -> Iterator[Service]:
    """Serve with little patience."""
    patience = {"KINDRED_HEADER_SECONDS": str(HEADER_SECONDS), "KINDRED_BODY_SECONDS": str(BODY_SECONDS)}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, FILES)), hard))  # the service inherits it
    try:
        with serving(library.snapshots, *request.param, **patience) as service:
            yield service
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def connected(
    service: Service, room: int = 0
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect, with a buffer of so many bytes for what is received."""
    connection = socket.socket()
    if room:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    connection.connect(("127.0.0.1", service.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=2**10)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answer(service: Service, *parts: bytes, pause: float = 0) -> bytes:
    """Send some bytes, with pauses between them, and return all that comes until the service closes."""
    async with connected(service) as (reader, writer), asyncio.timeout(PATIENCE):
        received = asyncio.create_task(reader.read(-1))
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                done, _ = await asyncio.wait([received], timeout=pause)
                if done:
                    break
            return await received
        return b""


async def silent(service: Service) -> bytes:
    return await answer(service)


async def drips_headers(service: Service) -> bytes:
    return await answer(service, *DRIPS, pause=PAUSE)


async def drips_a_body(service: Service) -> bytes:
    return await answer(service, POST + b"Content-Length: 100000\r\n\r\n", *[b" "] * 10_000, pause=PAUSE)


async def drips_chunks(service: Service) -> bytes:
    return await answer(service, POST + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n \r\n"] * 10_000, pause=PAUSE)


async def drips_a_trailer(service: Service) -> bytes:
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    return await answer(service, head, *[b"X: y\r\n"] * 10_000, pause=PAUSE)


async def drips_a_second_request(service: Service) -> bytes:
    return await answer(service, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", *[b"\r\n"] * 10_000, pause=PAUSE)


async def goes_on_after_the_answer(service: Service) -> bytes:
    head = b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
    return await answer(service, head, *[b" " * 10_000] * 10_000, pause=PAUSE)


async def reads_nothing(service: Service) -> bytes:
    """Ask for more than the buffers of both ends hold, and do not read it."""
    async with connected(service, room=4_096) as (_, writer), asyncio.timeout(PATIENCE):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(PAUSE / 2)
    return b""


ATTACKS = (silent, drips_headers, drips_a_body, drips_chunks, drips_a_trailer, drips_a_second_request, reads_nothing)


def processes(service: Service) -> list[int]:
    return service.workers() or [service.process.pid]


def sockets(service: Service) -> int:
    """Count the open connections of a service."""
    links = [link for pid in processes(service) for link in Path(f"/proc/{pid}/fd").iterdir()]
    found = 0
    for link in links:
        with contextlib.suppress(OSError):
            found += str(link.readlink()).startswith("socket:")
    return found


def test_slow_clients_are_shown_out_again_and_again_and_queries_are_answered_meanwhile(service: Service) -> None:
    wait_for(lambda: httpx2.post(f"{service.address}/v1/search", json=QUERY, timeout=60).status_code == 200)
    port, body, seconds = service.port, json.dumps(QUERY).encode(), sized(1, 10, 600)
    query = itertools.repeat(POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    memory = sum(map(resident, processes(service)))
    before, attackers = sockets(service), sized(105, 210, 1_050)

    async def shown_out(attack: Callable[[Service], Awaitable[bytes]], asking: "Future[Load]") -> int:
        number = 0
        while not asking.done():
            await attack(service)  # raises TimeoutError if it is never shown out
            number += 1
        return number

    async def together(asking: "Future[Load]") -> int:
        attacks = itertools.islice(itertools.cycle(ATTACKS), attackers)
        return sum(await asyncio.gather(*(shown_out(attack, asking) for attack in attacks)))

    # In a process of its own: the attackers keep this one busy.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
        alone = other.submit(measure, port, query, 1, min(seconds, 60)).result()
        asking = other.submit(measure, port, query, 1, seconds)
        ended = asyncio.run(together(asking))
        beside = asking.result()
    assert ended >= attackers
    assert (len(beside.latencies) > 10, beside.errors) == (True, 0)
    wait_for(lambda: sockets(service) <= before, 30)
    after = sum(map(resident, processes(service)))
    assert after < memory + 64 * MIB
    slower, slowest = (np.percentile(beside.latencies, q) / np.percentile(alone.latencies, q) for q in (99, 100))
    asked = f"{len(beside.latencies):,} queries answered meanwhile, 0 failed"
    figure = f"{attackers:,} attackers of {len(ATTACKS)} kinds shown out {ended:,} times; {asked}, p99 {slower:.1f} "
    figure += f"and slowest {slowest:.1f} times that alone; sockets {before}, then {sockets(service)}; "
    figure += f"memory {memory // MIB} MiB, then {after // MIB} MiB"
    noted(promise="R12", figure=figure)


def test_a_body_that_is_too_slow_gets_a_408(service: Service) -> None:
    for attack in (drips_a_body, drips_chunks):
        head, _, body = asyncio.run(attack(service)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"application/problem+json" in head
        assert json.loads(body)["code"] == "body_too_slow"


def test_who_was_answered_cannot_send_on_for_ever(service: Service) -> None:
    assert asyncio.run(goes_on_after_the_answer(service)).startswith(b"HTTP/1.1 413 ")


def test_a_large_body_that_comes_fast_enough_may_take_longer(service: Service) -> None:
    body = b" " * 400_000 + json.dumps(QUERY).encode()
    head = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    parts = [body[i : i + 8_000] for i in range(0, len(body), 8_000)]
    # 80 kB/s, for three times as long as a slow one may take.
    assert asyncio.run(answer(service, head, *parts, pause=0.1)).startswith(b"HTTP/1.1 200 ")


def test_a_large_answer_that_is_read_fast_enough_may_take_longer(service: Service) -> None:
    async def read() -> int:
        async with connected(service, room=4_096) as (reader, writer), asyncio.timeout(PATIENCE):
            requests = 12
            writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * (requests - 1))
            writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            size = 0
            while part := await reader.read(2**14):
                size += len(part)
                await asyncio.sleep(0.1)
            return size

    whole = len(httpx2.get(f"{service.address}/openapi.json").content)
    assert asyncio.run(read()) > 12 * whole


def test_a_connection_may_be_used_again_and_again(service: Service) -> None:
    with httpx2.Client(base_url=service.address, timeout=60) as client:
        ports = set()
        for _ in range(20):
            response = client.get("/livez")
            assert response.status_code == 200
            ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(ports) == 1


def test_a_websocket_is_no_way_around(service: Service) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
    assert asyncio.run(answer(service, b"GET /livez HTTP/1.1\r\nHost: x\r\n" + upgrade)).startswith(b"HTTP/1.1 200 ")
