"""A closed loop of HTTP requests: each connection sends its next one when the answer to its last has come."""

import asyncio
import itertools
import multiprocessing
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import cast

import uvloop

ADDRESS = "127.0.0.1"

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = b"\r\nconnection: close"
_OK = b" 200 "
_WARM_SECONDS = 0.5
_ANSWERS = 3
_PATIENCE = 5
_SPARE_SECONDS = 60
_BACKLOG = 2_048
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + bytes(2000)


@dataclass
class Load:
    """What a closed loop came to.

    Attributes:
        latencies: seconds from the first byte sent to the last byte received, of each request answered with status 200.
            Connecting anew, where the server had closed, is not in them.
        errors: requests that ended otherwise.
        seconds: the time measured.
    """

    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Requests answered per second."""
        return len(self.latencies) / self.seconds


def measure(port: int, requests: Iterator[bytes], connections: int, seconds: float) -> Load:
    """Send whole requests over so many connections.

    What ends in the first half second, and the first request of each connection, is not counted. A slow server is given
    more than `seconds`, up to five times as much, until every connection has had three answers on average.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(port, requests, connections, seconds))


def ask(port: int, request: bytes) -> bytes:
    """Return the body of the answer to one whole request.

    Raises:
        RuntimeError: the status is not 200.
    """

    async def answer() -> bytes:
        exchange = await _Exchange.opened(port)
        try:
            return await exchange.ask(request)
        finally:
            exchange.transport.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        head, _, body = runner.run(answer()).partition(b"\r\n\r\n")
    if _OK not in head[:16]:
        raise RuntimeError(f"The answer was {head!r} {body!r}.")
    return body


def nothing(request: bytes, connections: int, seconds: float) -> Load:
    """Return what the loop itself comes to: of a server that does nothing."""
    with serving_nothing() as port:
        return measure(port, itertools.repeat(request), connections, seconds)


@contextmanager
def serving_nothing() -> Iterator[int]:
    """Run a server that does nothing but answer, in another process, and give its port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_answer_all, args=(theirs,), daemon=True)
    server.start()
    try:
        yield ours.recv()
    finally:
        server.terminate()
        server.join()


class Messages(asyncio.Protocol):
    """Finds the end of one HTTP message, whose length must be in its head, and hands it to `whole`."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._end = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._end:
            head = self._data.find(b"\r\n\r\n")
            if head < 0:
                return
            length = _LENGTH.search(self._data, 0, head)
            self._end = head + 4 + (int(length[1]) if length else 0)
        if len(self._data) >= self._end:
            message, self._data, self._end = bytes(self._data), bytearray(), 0
            self.whole(message)

    def whole(self, message: bytes) -> None:
        """Take a message."""
        raise NotImplementedError


class _Exchange(Messages):
    """One connection of a client."""

    closed = False
    _answer: asyncio.Future[bytes] | None = None

    @classmethod
    async def opened(cls, port: int) -> "_Exchange":
        return (await asyncio.get_running_loop().create_connection(cls, ADDRESS, port))[1]

    async def ask(self, request: bytes) -> bytes:
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer

    def whole(self, message: bytes) -> None:
        self.closed = _CLOSE in message.partition(b"\r\n\r\n")[0].lower()
        if self._answer:
            self._answer.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._answer and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed before the answer"))


class _Null(Messages):
    """One connection of the server that does nothing."""

    def whole(self, message: bytes) -> None:
        del message
        self.transport.write(_ANSWER)


class _Count:
    """Decides which answers count, and when there are enough."""

    def __init__(self, connections: int, seconds: float) -> None:
        self.load = Load()
        self.over = False
        self._connections = connections
        self._seconds = seconds
        self._uncounted = 0
        self._begin = time.perf_counter() + _WARM_SECONDS

    def note(self, seconds: float, *, answered: bool) -> None:
        """Take the end of a request."""
        now, load = time.perf_counter(), self.load
        if self.over:
            return
        if self._uncounted < self._connections or now < self._begin:
            self._uncounted += 1
            self._begin = max(self._begin, now)
            return
        if answered:
            load.latencies.append(seconds)
        else:
            load.errors += 1
        load.seconds = now - self._begin
        enough = len(load.latencies) + load.errors >= _ANSWERS * self._connections
        self.over = load.seconds >= self._seconds * (1 if enough else _PATIENCE)


async def _measure(port: int, requests: Iterator[bytes], connections: int, seconds: float) -> Load:
    count = _Count(connections, seconds)
    async with asyncio.timeout(_PATIENCE * seconds + _SPARE_SECONDS), asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(_one_connection(port, requests, count))
    return count.load


async def _one_connection(port: int, requests: Iterator[bytes], count: _Count) -> None:
    exchange = await _Exchange.opened(port)
    while not count.over:
        start = time.perf_counter()
        try:
            if exchange.closed:
                exchange.transport.close()
                exchange = await _Exchange.opened(port)
                start = time.perf_counter()
            answer = await exchange.ask(next(requests))
        except OSError:
            answer, exchange.closed = b"", True
        count.note(time.perf_counter() - start, answered=_OK in answer[:16])
    exchange.transport.close()


def _answer_all(pipe: Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Null, ADDRESS, 0, backlog=_BACKLOG)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
