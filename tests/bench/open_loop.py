"""An open loop of HTTP requests: each is sent at its own time, whatever has become of those before it.

Times are drawn as a Poisson process has them. A latency counts from the time that a request was meant to be sent, so
that one which had to wait, here or there, is not forgotten. A connection that is free is used again; where none is, a
further one is opened; a good number are open from the start, so that it is requests that come at once, not clients.
"""

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import uvloop

from tests.bench.closed_loop import ADDRESS, Messages

MOST_CONNECTIONS = 1_000
"""Beyond so many, a request waits for one that is free."""

_TICK_SECONDS = 0.001
# A server may close one that was idle for longer just when it is used again; uvicorn does so after 5 s.
_IDLE_SECONDS = 4
_PATIENCE = 60
# So many connections are open from the start as requests come within this time.
_READY_SECONDS = 0.1


@dataclass
class Outcome:
    """What became of the requests of an open loop.

    Attributes:
        seconds: the time over which they were meant to be sent.
        intended: so many were.
        offered: so many were sent within that time.
        late: seconds from when each was meant to be sent until it was, or until there was a connection to wait for.
        answered: of those with status 200: when it was meant to be sent, and the latency, in seconds.
        refused: the same of those with status 503.
        in_time: answers of status 200 that came within that time.
        others: other statuses, what was wrong with a refusal, and connections that broke, each with its number.
        connections: so many were open at a time.
    """

    seconds: float
    intended: int
    offered: int = 0
    late: list[float] = field(default_factory=list)
    answered: list[tuple[float, float]] = field(default_factory=list)
    refused: list[tuple[float, float]] = field(default_factory=list)
    in_time: int = 0
    others: Counter[str] = field(default_factory=Counter)
    connections: int = 0

    @property
    def goodput(self) -> float:
        """Requests answered with status 200, per second."""
        return self.in_time / self.seconds


def offer(
    port: int,
    requests: Iterator[bytes],
    rate: float,
    seconds: float,
    seed: int,
    check: Callable[[bytes, bytes], str] = lambda _request, _body: "",
) -> Outcome:
    """Send whole requests at so many a second on average, and wait for every answer.

    Args:
        port: of the server.
        requests: are sent in their order.
        rate: of the process.
        seconds: how long.
        seed: of the times.
        check: is given the request and the body of each answer of status 200, and returns what is wrong with it.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 1.2) + 100)
    times = np.cumsum(gaps)
    loop = _OpenLoop(port, requests, times[times < seconds].tolist(), seconds, check)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(loop.run())


class _OpenLoop:
    """Sends what is due, every millisecond."""

    def __init__(
        self,
        port: int,
        requests: Iterator[bytes],
        times: list[float],
        seconds: float,
        check: Callable[[bytes, bytes], str],
    ) -> None:
        self.outcome = Outcome(seconds, len(times))
        self._port = port
        self._requests = requests
        self._times = times
        self._check = check
        self._sent = 0
        self._under_way = 0
        # The one used last is the first to be used again, so that there are no more than it takes.
        self._free: list[_Client] = []
        # When each of those that have no connection yet was meant to be sent, and the request.
        self._waiting: deque[tuple[float, bytes]] = deque()
        self.connections = 0
        self._all_ended: asyncio.Event | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._begin = 0.0

    async def run(self) -> Outcome:
        """Send everything, and return what became of it."""
        for _ in range(min(int(_READY_SECONDS * len(self._times) / self.outcome.seconds), MOST_CONNECTIONS)):
            self.connections += 1
            await self._open()
        self.outcome.connections = self.connections
        self._begin = time.perf_counter()
        for client in self._free:
            client.free_since = 0.0
        async with asyncio.timeout(self.outcome.seconds + _PATIENCE):
            while self._sent < len(self._times):
                self._send_due()
                await asyncio.sleep(_TICK_SECONDS)
            if self._under_way:
                self._all_ended = asyncio.Event()
                await self._all_ended.wait()
        for client in self._free:
            client.transport.close()
        return self.outcome

    def now(self) -> float:
        """Return the seconds since the beginning."""
        return time.perf_counter() - self._begin

    def _send_due(self) -> None:
        outcome, now = self.outcome, self.now()
        while self._sent < len(self._times) and self._times[self._sent] <= now:
            due = self._times[self._sent]
            self._sent += 1
            self._under_way += 1
            outcome.offered += now <= outcome.seconds
            outcome.late.append(now - due)
            self._send(due, next(self._requests))

    def _send(self, due: float, request: bytes) -> None:
        while self._free:
            client = self._free.pop()
            if not client.transport.is_closing() and self.now() - client.free_since < _IDLE_SECONDS:
                client.send(due, request)
                return
            client.transport.close()
        self._waiting.append((due, request))
        if self.connections < MOST_CONNECTIONS:
            self.connections += 1
            self.outcome.connections = max(self.outcome.connections, self.connections)
            task = asyncio.get_running_loop().create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        try:
            _, client = await asyncio.get_running_loop().create_connection(lambda: _Client(self), ADDRESS, self._port)
        except OSError as error:
            self.connections -= 1
            if self._waiting:
                self._waiting.popleft()
                self.ended(f"not connected: {error!r}")
        else:
            self.free(client)

    def free(self, client: "_Client") -> None:
        """Use a connection again."""
        if self._waiting:
            client.send(*self._waiting.popleft())
        else:
            client.free_since = self.now()
            self._free.append(client)

    def ended(self, what: str) -> None:
        """Take the end of a request that was neither answered nor refused."""
        self.outcome.others[what] += 1
        self._end()

    def take(self, due: float, request: bytes, message: bytes) -> None:
        """Take an answer."""
        now, status = self.now(), message[9:12]
        if status == b"200":
            self.outcome.answered.append((due, now - due))
            self.outcome.in_time += now <= self.outcome.seconds
            wrong = self._check(request, message.partition(b"\r\n\r\n")[2])
        elif status == b"503":
            self.outcome.refused.append((due, now - due))
            wrong = _wrong_refusal(message)
        else:
            wrong = status.decode(errors="replace")
        if wrong:
            self.outcome.others[wrong] += 1
        self._end()

    def _end(self) -> None:
        self._under_way -= 1
        if self._all_ended is not None and not self._under_way:
            self._all_ended.set()


class _Client(Messages):
    """One connection."""

    def __init__(self, loop: _OpenLoop) -> None:
        super().__init__()
        self.free_since = 0.0
        self._loop = loop
        self._asked: tuple[float, bytes] | None = None

    def send(self, due: float, request: bytes) -> None:
        """Send a request, which is the only one under way here."""
        self._asked = due, request
        self.transport.write(request)

    def whole(self, message: bytes) -> None:
        if self._asked is not None:
            asked, self._asked = self._asked, None
            self._loop.take(*asked, message)
            self._loop.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._loop.connections -= 1
        if self._asked is not None:
            self._asked = None
            self._loop.ended(f"broken: {exc!r}")


def _wrong_refusal(message: bytes) -> str:
    """Return what is wrong with an answer of status 503."""
    head, _, body = message.partition(b"\r\n\r\n")
    lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if not lines.get(b"retry-after", b"").isdigit():
        return "503 without Retry-After"
    if lines.get(b"content-type") != b"application/problem+json" or json.loads(body)["code"] != "overloaded":
        return "503 that is no problem"
    return ""
