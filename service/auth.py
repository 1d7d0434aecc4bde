"""Who may ask, and how often: every request passes here before anything of it is read."""

import asyncio
import hmac
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors
from service.errors import ScopeMissing, Unauthorized
from service.keys import BadKeyFile, Key, KeyFile, digest
from service.keys import Scope as KeyScope
from service.rate_limits import RateLimit, network
from service.settings import ServiceSettings

# How often a change of the file of keys is looked for, in seconds.
_LOOK_SECONDS = 1.0
# Whoever asks too often has the headers of a 429 at once, and its body after so many seconds: one that asks again and
# again does so ten times a second on a connection, not a thousand times, and leaves the others their time.
_PAUSE_SECONDS = 0.1
# What is open to all even where keys are asked for: probes, and the pages, which ask for a key themselves.
_FREE_PATHS = {"/", "/docs", "/livez", "/readyz"}
_PAGE = "web"
_ADMIN = "admin"
# The scope for each first segment of a path. All else is for administrators: a route that is new is closed.
# None needs no key: what the routes are is no secret, and tells nothing of what is served.
_SCOPES = {
    "v1": KeyScope.SEARCH,
    "metrics": KeyScope.METRICS,
    "openapi.json": None,
}


def scope_for(path: str, settings: ServiceSettings) -> KeyScope | None:
    """Return the scope that a request for a path needs, or None if it needs no key."""
    first = _first(path)
    if settings.keys is None:
        return KeyScope.ADMIN if first == _ADMIN and settings.admin_key is not None else None
    return None if _is_free(path) else _SCOPES.get(first, KeyScope.ADMIN)


def _first(path: str) -> str:
    return path.removeprefix("/").partition("/")[0]


def _is_free(path: str) -> bool:
    return path in _FREE_PATHS or _first(path) == _PAGE


@dataclass(frozen=True)
class _Holder:
    """Who has come with a key: its id, and what it may do."""

    id: str
    scopes: tuple[KeyScope, ...]


class KeyRing:
    """The keys of a file, which is read again when it changes; one that is broken then leaves the last good ones.

    Raises:
        BadKeyFile: it cannot be read at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._look()
        self._looked = time.monotonic()
        self._file = KeyFile.read(path)

    def find(self, given: str) -> Key | None:
        """Return the key that was given, if there is such a one and it is good now."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._refresh()
        return self._file.find(given)

    def _refresh(self) -> None:
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._file = KeyFile.read(self._path)
        except BadKeyFile as error:
            structlog.get_logger().error("keys kept as they were", reason=str(error))

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


class Gate:
    """Lets a request pass if its key has the scope that its path needs, and is not used too often.

    With `KINDRED_KEYS`, whatever is not free needs a key; without, only the admin routes do. The path is the one that
    routes are matched with (`scope["path"]`): one rebuilt from the Host header is the client's to choose.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self._app, self._settings = app, settings
        self._ring = None if settings.keys is None else KeyRing(settings.keys)
        admin_key = settings.admin_key
        self._admin = None if admin_key is None else digest(admin_key.get_secret_value())
        self._limit = RateLimit(settings.rate_limit) if settings.rate_limit else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401, 403 or 429."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A request that was pipelined begins in the context of the one before.
        structlog.contextvars.unbind_contextvars("key")
        if not _is_free(scope["path"]):
            refusal = self._refusal(scope)
            if refusal is not None:
                too_often = refusal.status_code == HTTPStatus.TOO_MANY_REQUESTS
                await refusal(scope, receive, _slowly(send) if too_often else send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        request, holder = Request(scope), self._holder(_given(Headers(scope=scope)))
        if holder is not None:
            structlog.contextvars.bind_contextvars(key=holder.id)
        if self._limit is not None:
            client = scope.get("client") or ("",)
            headers = self._limit.take(f"key {holder.id}" if holder is not None else f"from {network(client[0])}")
            if headers is not None:
                detail = f"These are more requests than {self._limit}; ask again in {headers['Retry-After']} s."
                return errors.problem(request, HTTPStatus.TOO_MANY_REQUESTS, "rate_limited", detail, headers)
        needed = scope_for(scope["path"], self._settings)
        if needed is None or (holder is not None and needed in holder.scopes):
            return None
        if holder is not None:
            return errors.answer(request, ScopeMissing(f"This needs a key with the scope {needed}."))
        detail = "This needs a key that is good, in the header `Authorization: Bearer <key>`."
        return errors.answer(request, Unauthorized(detail))

    def _holder(self, given: str) -> _Holder | None:
        if self._admin is not None and hmac.compare_digest(digest(given), self._admin):
            return _Holder("admin", tuple(KeyScope))
        key = None if self._ring is None else self._ring.find(given)
        return None if key is None else _Holder(key.id, key.scopes)


def _slowly(send: Send) -> Send:
    """Return a way to send an answer that pauses before its body; the place of a query is given back before that."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(_PAUSE_SECONDS)
        await send(message)

    return sent


def _given(headers: Headers) -> str:
    """Return the key that a request brings, which may be any text."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key if scheme.lower() == "bearer" else headers.get("api-key", "")
