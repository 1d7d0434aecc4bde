"""How much may be in the service at a time: queries, items that wait, pixels that are decoded, bytes of bodies."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil, inf

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Overloaded, answer
from service.telemetry import Metrics

LONGEST_RETRY = 30
"""A client is never told to wait longer, in seconds: rates change."""

# Of the time that an item takes, as measured anew, so much goes into what is expected of the next.
_NEWEST = 0.2
# The pace of all queries is measured over this long at least, in which the service was not idle.
_MEASURED_SECONDS = 0.25
# A body that takes longer, in seconds, loses its place.
_BODY_SECONDS = 0.1

PLACE = "kindred.place"
"""Where a request has its place, in its scope."""


@dataclass(frozen=True)
class Room:
    """What may wait for a stage.

    Attributes:
        items: so many, at most.
        seconds: how long the last of them may be expected to wait.
        always: so many may wait however long that takes: a whole batch of one request.
    """

    items: float
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


class Door:
    """Gives places to queries as long as the last of them may be expected to be answered soon enough.

    A place is taken when the headers of a query are there, and given back when its answer begins: so no client that
    reads slowly has one. One that sends its body slowly loses its own, and asks for another at the end of the body; all
    who are still sending have half of the places at most. For one event loop.
    """

    def __init__(self, room: Room, metrics: Metrics) -> None:
        self._room = room
        self._pace = Pace()
        self._refused = metrics.requests.labels("other", "none", "503"), metrics.request_refusals.labels("overloaded")
        self._inside = 0
        # When those came whose bodies are not there yet, in that order. They count as so many at most: the other half
        # of the places is for who does not come slowly. Where there are more, there may be no room for some in the end.
        self._coming: dict[Place, float] = {}
        self._most_coming = ceil(room.always / 2)
        # Whose bodies are there, and whose work has not begun: it may never, for want of a key, and then tells nothing
        # of how long it takes.
        self._here: set[Place] = set()
        # Since when the service has not been idle, or since when that was last added to the following.
        self._since = 0.0
        self._busy_seconds = 0.0
        self._answered = 0

    def place(self) -> "Place":
        """Give a place.

        Raises:
            Overloaded: there is none; it says when there may be.
        """
        self._check()
        place = Place(self)
        self._coming[place] = time.monotonic()
        return place

    def refuse(self) -> None:
        """Count a query that the application never sees, because there was no place."""
        for counter in self._refused:
            counter.inc()

    def arrive(self, place: "Place") -> None:
        """Let one wait to be taken in; see `Place.arrive`."""
        with suppress(Overloaded):  # it asks again when its work would begin
            self._keep(place)
            self._here.add(place)

    def enter(self, place: "Place") -> None:
        """Take one in; see `Place.enter`."""
        if place in self._here:
            self._here.remove(place)
        else:
            self._keep(place)
        if not self._inside:
            self._since = time.monotonic()
        self._inside += 1

    def leave(self, place: "Place", *, inside: bool) -> None:
        """Let one out; see `Place.leave`."""
        self._coming.pop(place, None)
        self._here.discard(place)
        if not inside:
            return
        now = time.monotonic()
        self._inside -= 1
        self._answered += 1
        self._busy_seconds += now - self._since
        self._since = now
        # Queries of one batch are answered at once: a few answers tell nothing.
        if self._busy_seconds >= _MEASURED_SECONDS and self._answered >= self._room.always:
            self._pace.note(self._busy_seconds, self._answered)
            self._busy_seconds, self._answered = 0.0, 0

    def _keep(self, place: "Place") -> None:
        """Take one from those who are coming, and see that there is room where none was kept for it."""
        if self._coming.pop(place, None) is None or len(self._coming) >= self._most_coming:
            self._check()

    def _check(self) -> None:
        """See that there is room for one more, with those left out whose bodies are late."""
        late = time.monotonic() - _BODY_SECONDS
        while self._coming and next(iter(self._coming.values())) < late:
            del self._coming[next(iter(self._coming))]
        coming = min(len(self._coming), self._most_coming)
        self._pace.check(self._inside + len(self._here) + coming, self._room)


class Place:
    """The place of one query."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._inside = False
        self._left = False

    def arrive(self) -> None:
        """Tell that the body is there, from where on the query counts for what it is."""
        if not self._left:
            self._door.arrive(self)

    def enter(self) -> None:
        """Begin to work on the query, whose body is there.

        Raises:
            Overloaded: the body came slowly, or with too many others, and there is no place for it.
        """
        if not self._left:
            self._door.enter(self)
            self._inside = True

    def leave(self) -> None:
        """Give it back, once or more."""
        self._door.leave(self, inside=self._inside)
        self._inside, self._left = False, True


class Doorway:
    """Answers 503 to a query for which there is no place. The protocol has mostly done so before."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; a query has a place until its answer begins."""
        if scope["type"] != "http" or not is_query(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            place: Place = scope.get(PLACE) or self._door.place()
        except Overloaded as error:
            self._door.refuse()
            await answer(Request(scope), error)(scope, receive, send)
            return
        whole = False

        async def received() -> Message:
            nonlocal whole
            message = await receive()
            if not whole and message["type"] == "http.request" and not message.get("more_body", False):
                whole = True
                place.enter()
            return message

        async def sent(message: Message) -> None:
            place.leave()
            await send(message)

        try:
            await self._app(scope, received, sent)
        finally:
            place.leave()


def is_query(method: str, path: str) -> bool:
    """Return whether a request is one that takes a place: what is not searches, encodes or votes is cheap."""
    return method == "POST" and path.startswith("/v1/")


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
