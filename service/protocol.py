"""HTTP with an end: uvicorn's protocol, in which nobody can hold a connection by being slow.

uvicorn itself waits for ever for a request that has begun, and for an answer to be read.
"""

import asyncio
import json
from asyncio import TimerHandle
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from service.admission import PLACE, Place, is_query
from service.errors import PROBLEM_JSON, Overloaded, contents

# A body that comes, or an answer that is read, this fast may take as long as it takes; in bytes per second.
_RATE = 10_000
# Most bytes of the headers of a request, and most in a row that are none of its body.
_MOST_HEADERS = 65_536


class TimedProtocol(HttpToolsProtocol):
    """Closes a connection when its time is up.

    Headers have `header_seconds` from the connection on, or from the end of the request before. A body has
    `body_seconds`, or longer while it comes at 10 kB/s on average. An answer has to be read at that rate too, over each
    `body_seconds` in which it waits. A request whose answer has been given has no more than `body_seconds` to end.

    What follows on an answer that came before the end of its request is read and dropped: closed at once, TCP would
    take the answer back from a client that is still sending.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        state = config.app.state  # type: ignore[union-attr]
        settings, self._door = state.settings, state.door
        self._header_seconds, self._body_seconds = settings.header_seconds, settings.body_seconds
        self._reading: TimerHandle | None = None
        self._writing: TimerHandle | None = None
        # Of the request that comes: when its body began, how much of that came, and how much else since.
        self._began = 0.0
        self._received = 0
        self._idle = 0
        self._too_large = False
        # Whether the client wants the connection closed; whether nothing of what comes is looked at any more.
        self._closes = False
        self._refused = False
        # Whether the request that comes was turned away at its headers.
        self._away = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Wait for a first request."""
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, unless too much of it is neither headers nor body."""
        if self._refused:
            return
        self._idle += len(data)
        super().data_received(data)
        if self._idle > _MOST_HEADERS and not self._refused and not self.transport.is_closing():
            self._too_large = True
            self.send_400_response("Invalid HTTP request received.")

    def on_headers_complete(self) -> None:
        """Begin to answer, and wait for the body."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > _MOST_HEADERS:
            self._too_large = True
            raise ValueError  # the parser ends there, and `send_400_response` follows
        if self._turn_away():
            return
        super().on_headers_complete()
        self._closes, self.cycle.keep_alive = not self.cycle.keep_alive, True  # until all of the request is there
        self._idle = self._received = 0
        self._began = self.loop.time()
        self._read_until(self._began + self._body_seconds, self._judge_body)

    def on_body(self, body: bytes) -> None:
        """Count a part of the body."""
        self._received += len(body)
        self._idle = 0
        if not self._away:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop waiting for the request; wait for the next one, if this was answered before it ended."""
        away, self._away = self._away, False
        if not away:
            place: Place | None = self.scope.get(PLACE)  # type: ignore[assignment]
            if place is not None:
                place.arrive()
            super().on_message_complete()
        self._idle = 0
        if self._reading is not None:
            self._reading.cancel()
        if not away and not self.cycle.response_complete:
            self.cycle.keep_alive = self.cycle.keep_alive and not self._closes
        elif self._closes:
            self.transport.close()
        else:
            self._await_headers()

    def on_response_complete(self) -> None:
        """Wait for the next request, and until the answer is read."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.cycle.more_body:
            self._await_headers()
        elif self.cycle.response_complete and self._closes:
            self.transport.write_eof()
        self._watch_writing()

    def pause_writing(self) -> None:
        """Wait until more of the answer is read."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """Wait until the rest of the answer is read."""
        super().resume_writing()
        self._watch_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or has too much of it, as a problem; uvicorn has plain text."""
        if self._too_large:
            detail = f"The headers are over {_MOST_HEADERS:,} bytes."
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", detail)
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, "bad_request", msg)

    def _turn_away(self) -> bool:
        """Answer a query at its headers where there is no room for it; return whether there was none.

        The application would do the same, at several times the cost: at ten times the load that is most of all work.
        """
        # What comes behind another request, or waits to be told to go on, takes the long way.
        behind = self.cycle is not None and not self.cycle.response_complete
        if behind or self.expect_100_continue or self.parser.should_upgrade():
            return False
        if not is_query(self.parser.get_method().decode(), self.url.decode(errors="replace")):
            return False
        try:
            self.scope[PLACE] = self._door.place()  # type: ignore[literal-required]
        except Overloaded as error:
            self._door.refuse()
            self._answer_away(error)
            return True
        return False

    def _answer_away(self, error: Overloaded) -> None:
        self._away = True
        self._closes = self.parser.get_http_version() == "1.0" or not self.parser.should_keep_alive()
        self._idle = self._received = 0
        self.transport.write(_overloaded(str(error), error.retry_after, closes=self._closes))
        self._watch_writing()
        self._read_until(self.loop.time() + self._body_seconds, self.transport.close)

    def _refuse(self, status: HTTPStatus, code: str, detail: str) -> None:
        self._refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started:
                self.transport.close()  # nothing can be told in the midst of an answer
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(_problem(status, code, detail, "connection: close"))
        self.transport.write_eof()
        self._watch_writing()
        self._read_until(self.loop.time() + self._header_seconds, self.transport.close)

    def _await_headers(self) -> None:
        self._idle = 0
        self._read_until(self.loop.time() + self._header_seconds, self.transport.close)

    def _read_until(self, when: float, then: Callable[[], None]) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self.loop.call_at(when, then)

    def _judge_body(self) -> None:
        now = self.loop.time()
        if self.flow.read_paused:
            # It is the service that does not read: this time does not count.
            self._began += self._body_seconds
            self._read_until(now + self._body_seconds, self._judge_body)
            return
        # At the least rate, what has come would have taken until then.
        last = self._began + self._received / _RATE
        if self.cycle.response_started:
            self.transport.close()
        elif last > now:
            self._read_until(last, self._judge_body)
        else:
            detail = f"The body took over {self._body_seconds:g} s, at less than {_RATE:,} bytes a second."
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "body_too_slow", detail)

    def _watch_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
        waiting = self.transport.get_write_buffer_size()
        self._writing = self.loop.call_later(self._body_seconds, self._judge_writing, waiting) if waiting else None

    def _judge_writing(self, before: int) -> None:
        # Else it is the service that has not written on.
        answered = self._refused or self.cycle is None or self.cycle.response_complete
        if self.flow.write_paused or self.transport.is_closing() or answered:
            if 0 < self.transport.get_write_buffer_size() > before - _RATE * self._body_seconds:
                self.transport.abort()
            else:
                self._watch_writing()


def _problem(status: HTTPStatus, code: str, detail: str, *headers: str) -> bytes:
    """Return a whole answer."""
    body = json.dumps(contents(status, code, detail)).encode()
    lines = [f"content-type: {PROBLEM_JSON}", f"content-length: {len(body)}", *headers, "\r\n"]
    return STATUS_LINE[status] + "\r\n".join(lines).encode() + body


@cache
def _overloaded(detail: str, retry_after: int, *, closes: bool) -> bytes:
    closing = ["connection: close"] if closes else []
    return _problem(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", detail, f"retry-after: {retry_after}", *closing)
