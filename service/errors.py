"""From errors to HTTP: every error leaves as RFC 9457 problem+json.

Errors of the service itself, beside those of `indexer.errors`:

* ServiceError
  x NotReady        no snapshot is being served yet
  x ItemNotFound    no picture has that id in the current snapshot
  x ItemGone        its file is gone, or no longer the one that was indexed
  x NoLabels        nothing to vote with: the current snapshot has no labels
  x BadQuery        a query that is well formed but has no answer
  x CursorExpired   it belongs to a snapshot that is served no more
  x Overloaded      as many requests are waiting as may
  x DeadlinePassed  the answer would have come too late
  x MetricsUnavailable  what several processes counted cannot be told
  x Unauthorized    the key is missing, or good for nothing
  x ScopeMissing    the key is good, for other things
  x JobNotFound     no job has that id
  x SourceForbidden a reindex of a folder that is not registered
"""

from errno import EROFS
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from indexer.errors import (
    BuildError,
    BuildRunning,
    CorruptSnapshot,
    EncoderError,
    EncoderMismatch,
    ImageError,
    KindredError,
    NoGpu,
    NoSnapshot,
    Reason,
)

PROBLEM_JSON = "application/problem+json"


class ServiceError(KindredError):
    """Base of the service's own errors."""


class NotReady(ServiceError):
    """No snapshot is being served yet."""


class ItemNotFound(ServiceError):
    """No picture has that id in the current snapshot."""


class ItemGone(ServiceError):
    """The file of a picture is gone, or no longer the one that was indexed."""


class NoLabels(ServiceError):
    """The current snapshot has no labels to vote with."""


class BadQuery(ServiceError):
    """A query that is well formed but has no answer."""


class CursorExpired(ServiceError):
    """The cursor belongs to a snapshot that is served no more."""


class Overloaded(ServiceError):
    """As many requests are waiting as may.

    Attributes:
        retry_after: when to come again, in whole seconds.
    """

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class DeadlinePassed(ServiceError):
    """The answer would have come too late."""


class MetricsUnavailable(ServiceError):
    """What several processes counted cannot be told."""


class Unauthorized(ServiceError):
    """The key is missing, or good for nothing."""


class ScopeMissing(ServiceError):
    """The key is good, but not for this."""


class JobNotFound(ServiceError):
    """No job has that id."""


class SourceForbidden(ServiceError):
    """A reindex of a folder that is not registered."""


# The whole table. An error takes the first row that it is an instance of.
STATUS: dict[type[KindredError], HTTPStatus] = {
    NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    ItemNotFound: HTTPStatus.NOT_FOUND,
    ItemGone: HTTPStatus.GONE,
    NoLabels: HTTPStatus.CONFLICT,
    BadQuery: HTTPStatus.UNPROCESSABLE_ENTITY,
    CursorExpired: HTTPStatus.GONE,
    Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    DeadlinePassed: HTTPStatus.GATEWAY_TIMEOUT,
    MetricsUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    Unauthorized: HTTPStatus.UNAUTHORIZED,
    ScopeMissing: HTTPStatus.FORBIDDEN,
    JobNotFound: HTTPStatus.NOT_FOUND,
    SourceForbidden: HTTPStatus.FORBIDDEN,
    ImageError: HTTPStatus.BAD_REQUEST,
    EncoderMismatch: HTTPStatus.CONFLICT,
    EncoderError: HTTPStatus.UNPROCESSABLE_ENTITY,
    NoSnapshot: HTTPStatus.NOT_FOUND,
    CorruptSnapshot: HTTPStatus.CONFLICT,
    NoGpu: HTTPStatus.CONFLICT,
    BuildRunning: HTTPStatus.CONFLICT,
    BuildError: HTTPStatus.UNPROCESSABLE_ENTITY,
}
_HEADERS = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
    HTTPStatus.SERVICE_UNAVAILABLE: {"Retry-After": "1"},
}
IMAGE_STATUS: dict[Reason, HTTPStatus] = {
    Reason.TOO_MANY_BYTES: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Reason.TOO_MANY_PIXELS: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Reason.NOT_AN_IMAGE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
}


def problem(
    request: Request, status: int, code: str, detail: str, headers: dict[str, str] | None = None, **more: Any
) -> JSONResponse:
    """Return a problem+json response; `code` is stable, `detail` is a sentence for people."""
    return JSONResponse(_told(request, status, code, detail, **more), status, headers, PROBLEM_JSON)


def as_problem(request: Request, error: KindredError | RequestValidationError) -> dict[str, Any]:
    """Return the body of the problem that an error leaves as."""
    if isinstance(error, RequestValidationError):
        errors = [
            {
                "pointer": "".join(f"/{part}" for part in each["loc"][1:]),
                "detail": each["msg"].removeprefix("Value error, "),
            }
            for each in error.errors()
        ]
        detail = "; ".join(f"{each['pointer'] or '/'}: {each['detail']}" for each in errors)
        return _told(request, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", detail, errors=errors)
    code = error.reason.value if isinstance(error, ImageError) else _snake(type(error).__name__)
    return _told(request, status_of(error), code, str(error))


def status_of(error: KindredError) -> HTTPStatus:
    """Return the HTTP status of an error."""
    if isinstance(error, ImageError) and error.reason in IMAGE_STATUS:
        return IMAGE_STATUS[error.reason]
    return next(status for kind, status in STATUS.items() if isinstance(error, kind))


def answer(request: Request, error: KindredError) -> JSONResponse:
    """Return the response that an error leaves as."""
    body = as_problem(request, error)
    headers = _HEADERS.get(body["status"])
    if isinstance(error, Overloaded):
        headers = {"Retry-After": str(error.retry_after)}
    return JSONResponse(body, body["status"], headers, PROBLEM_JSON)


def install(app: FastAPI) -> None:
    """Have every error of an app leave as problem+json."""

    @app.exception_handler(KindredError)
    async def kindred_error(request: Request, error: KindredError) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        body = as_problem(request, error)
        return JSONResponse(body, body["status"], media_type=PROBLEM_JSON)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = _snake(HTTPStatus(error.status_code).phrase.replace(" ", ""))
        return problem(request, error.status_code, code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(OSError)
    async def read_only(request: Request, error: OSError) -> JSONResponse:
        if error.errno != EROFS:  # of which only what writes can fail
            raise error
        detail = "The folder of snapshots is read-only for this service: build and publish where it can be written."
        return problem(request, HTTPStatus.CONFLICT, "read_only", detail)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        structlog.get_logger().error("unexpected error", exc_info=error)
        detail = "The service failed; its log has the cause under this request id."
        return problem(request, HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", detail)


def contents(status: int, code: str, detail: str, instance: str = "", request_id: str | None = None) -> dict[str, Any]:
    """Return what every problem says: the members of RFC 9457, a stable code and the id of the request."""
    return {
        "type": f"urn:kindred:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        "instance": instance,
        "code": code,
        "request_id": request_id,
    }


def _told(request: Request, status: int, code: str, detail: str, **more: Any) -> dict[str, Any]:
    request.scope["problem"] = code  # for the metrics
    return {**contents(status, code, detail, request.url.path, request.scope.get("request_id")), **more}


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
