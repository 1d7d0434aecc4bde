"""Limits on what a request may send, and on how long it is worked on."""

import asyncio
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlinePassed, problem

_CLIENT_GONE = 499


class BodyLimit:
    """Answers 413 to a body over `most` bytes: before it is read where its length is announced, else when passed.

    starlette has such a middleware, but its answer is plain text.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with its body counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        detail = f"The body is over {self._most:,} bytes."
        if length.isdecimal() and int(length) > self._most:
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            await problem(Request(scope), status, "body_too_large", detail)(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._most:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            return message

        await self._app(scope, counted, send)


class AwaitedRoute(APIRoute):
    """A route that is worked on only while its client is there, and no longer than `deadline_seconds`.

    The work is cancelled, and with it all that it waits for. A client that has left is given no answer: the status 499,
    nginx's for this, is for the log.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, watched."""
        handler = super().get_route_handler()

        async def awaited(request: Request) -> Response:
            try:
                await request.body()
            except ClientDisconnect:
                return Response(status_code=_CLIENT_GONE)
            seconds = request.app.state.settings.deadline_seconds
            try:
                async with asyncio.timeout(seconds) as deadline:
                    watcher = asyncio.create_task(_end_when_gone(request, deadline))
                    try:
                        return await handler(request)
                    finally:
                        watcher.cancel()
            except TimeoutError as error:
                if not deadline.expired():
                    raise
                if watcher.done() and not watcher.cancelled():
                    return Response(status_code=_CLIENT_GONE)
                raise DeadlinePassed(f"There was no answer within {seconds:g} s, so the query was given up.") from error

        return awaited


async def _end_when_gone(request: Request, deadline: asyncio.Timeout) -> None:
    """Let the time be up as soon as the client has left. After the body nothing else comes from it."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    deadline.reschedule(0)
