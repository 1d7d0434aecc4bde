"""How much may be in the service at a time: items that wait, pixels that are decoded, bytes of bodies."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Overloaded

LONGEST_RETRY = 30
"""A client is never told to wait longer, in seconds: rates change."""

# Of the time that an item takes, as measured anew, so much goes into what is expected of the next.
_NEWEST = 0.2


@dataclass(frozen=True)
class Room:
    """What may wait for a stage.

    Attributes:
        items: so many, at most.
        seconds: how long the last of them may be expected to wait.
        always: so many may wait however long that takes: a whole batch of one request.
    """

    items: int
    seconds: float = inf
    always: int = 1


class Pace:
    """How long one item of a stage takes, as it was lately. Not for several threads at a time."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def note(self, seconds: float, items: int) -> None:
        """Take the time that some items took together, in seconds, with all threads of the stage at work."""
        own = seconds / items
        self._seconds = own if self._seconds is None else (1 - _NEWEST) * self._seconds + _NEWEST * own

    def check(self, waiting: int, room: Room) -> None:
        """Let one more item wait behind others.

        Raises:
            Overloaded: there is no room; it says when there may be.
        """
        wait = waiting * (self._seconds or 0.0)
        if waiting >= room.items or (waiting >= room.always and wait > room.seconds):
            detail = "The service has as many requests waiting as it may; try again in a moment."
            raise Overloaded(detail, retry_after=min(max(ceil(wait), 1), LONGEST_RETRY))


class Budget:
    """An amount of something, of which each holder takes a part for a while."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = 0
        self._changed = threading.Condition()
        # Whoever wants much waits at the head of the line, not for the others to want nothing.
        self._line = threading.Lock()

    @contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        """Wait for a part, in a thread, and hold it; one that is more than there is has all for itself."""
        own = min(amount, self._total)
        with self._line, self._changed:
            self._changed.wait_for(lambda: self._held + own <= self._total)
            self._held += own
        try:
            yield
        finally:
            with self._changed:
                self._held -= own
                self._changed.notify_all()


class BodyMemory:
    """Answers 503 to a request while the bodies of all that are being read or answered take `most` bytes."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with its body held until it is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own = 0

        async def held() -> Message:
            nonlocal own
            message = await receive()
            size = len(message.get("body", b""))
            own += size
            self._held += size
            # By itself a body is only held against the limit of one.
            if size and self._held > max(self._most, own):
                detail = "The service has as many bytes of requests in memory as it may; try again in a moment."
                raise Overloaded(detail)
            return message

        try:
            await self._app(scope, held, send)
        finally:
            self._held -= own
