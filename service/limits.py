"""Limits on what a request may send."""

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import problem


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
