"""What both clients know of the way to the service: its address, what may go wrong, and when to try again.

* KindredError
  x KindredApiError         the service answered with an error
    + CursorGone            the index has been rebuilt since the page that a cursor comes from
  x ServiceUnreachable      there was no answer, or not one of kindred's
  x BadArgument             what was given cannot be sent
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx2
from pydantic import ValidationError
from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_random_exponential

from indexer.errors import KindredError
from service.schemas.index import Problem

# Seconds that all attempts of a call may take before the last one.
_PATIENCE = 60.0
_BACKOFF = wait_random_exponential(multiplier=0.5, max=10.0)
_BUSY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


class KindredApiError(KindredError):
    """The service answered with an error; its text is the `detail` of the problem.

    Attributes:
        status: of HTTP.
        code: stable, for programs, such as `item_not_found`; None where something else than the service answered.
        detail: a sentence for people.
        problem: all that the service said.
        retry_after: seconds that the service asked to be left alone.
    """

    def __init__(
        self,
        status: int,
        code: str | None,
        detail: str,
        problem: Problem | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, code, detail, problem, retry_after)
        self.status, self.code, self.detail, self.problem = status, code, detail, problem
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.detail


class CursorGone(KindredApiError):
    """The index has been rebuilt since the page that a cursor comes from: ask for the first page again."""


class ServiceUnreachable(KindredError):
    """There was no answer, or not one of kindred's.

    Attributes:
        url: what was asked for.
        timed_out: whether the service took too long, which to ask again does not mend.
    """

    def __init__(self, url: str, detail: str, *, timed_out: bool = False) -> None:
        super().__init__(url, detail)
        self.url, self.detail, self.timed_out = url, detail, timed_out

    def __str__(self) -> str:
        return f"{self.url}: {self.detail}"


class BadArgument(KindredError, ValueError):
    """What was given cannot be sent."""


class Address:
    """Where the service is, and how to talk to it."""

    def __init__(self, url: str, key: str | None, timeout: float, retries: int) -> None:
        try:
            address = httpx2.URL(url)
        except httpx2.InvalidURL:
            address = httpx2.URL("")
        if address.scheme not in {"http", "https"} or not address.host:
            raise BadArgument(f"{url!r} is no address of a service: give one such as http://localhost:8000.")
        self.url, self.key, self.timeout, self.retries = url, key, timeout, retries

    def settings(self) -> dict[str, Any]:
        """Return what httpx2's clients are made with."""
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        return {"base_url": self.url, "timeout": self.timeout, "headers": headers}

    def retrying(self, *, repeatable: bool) -> Retrying:
        """Return what calls until there is an answer, or none is to be hoped for."""
        return Retrying(**self._patience(repeatable))

    def async_retrying(self, *, repeatable: bool) -> AsyncRetrying:
        """Return what does so in asyncio."""
        return AsyncRetrying(**self._patience(repeatable))

    def _patience(self, repeatable: bool) -> dict[str, Any]:
        attempts = 1 + self.retries if repeatable else 1
        return {
            "retry": retry_if_exception(_may_pass),
            "stop": stop_after_attempt(attempts) | stop_before_delay(_PATIENCE),
            "wait": _pause,
            "reraise": True,
        }


@contextmanager
def reaching(url: httpx2.URL | str, timeout: float) -> Iterator[None]:
    """Raise what goes wrong on the way to the service and back as `ServiceUnreachable`."""
    try:
        yield
    except (httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
        raise ServiceUnreachable(str(url), f"no connection within {timeout:g} s.") from error
    except httpx2.TimeoutException as error:
        raise ServiceUnreachable(str(url), f"no answer within {timeout:g} s.", timed_out=True) from error
    except httpx2.RequestError as error:
        raise ServiceUnreachable(str(url), f"no answer: {error or type(error).__name__}.") from error
    except ValidationError as error:
        raise ServiceUnreachable(str(url), "what answers there is not kindred, or another version of it.") from error


def of_problem(status: int, problem: Problem | None, retry_after: float | None = None) -> KindredApiError:
    """Return the error that a problem tells of; None is an answer that holds none."""
    if problem is None:
        return KindredApiError(status, None, f"The answer has status {status}, and says no more.", None, retry_after)
    kind = CursorGone if problem.code == "cursor_expired" else KindredApiError
    return kind(status, problem.code, problem.detail, problem, retry_after)


def refusal(response: httpx2.Response) -> KindredApiError:
    """Return the error that an answer tells of, which has been read."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        problem = None
    return of_problem(response.status_code, problem, seconds_of(response.headers.get("retry-after"), datetime.now(UTC)))


def seconds_of(retry_after: str | None, now: datetime) -> float | None:
    """Read the header Retry-After: seconds, or a date (RFC 9110, 10.2.3); what is neither is None."""
    if retry_after is None:
        return None
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max((moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds(), 0.0)


def _pause(state: RetryCallState) -> float:
    """Wait as long as the service asks for, and a random while more, up to a limit that doubles.

    So clients that were sent away together do not come back together.
    """
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, KindredApiError) else None
    return _BACKOFF(state) + (asked or 0.0)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, KindredApiError):
        return error.status in _BUSY
    return isinstance(error, ServiceUnreachable) and not error.timed_out
