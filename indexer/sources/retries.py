"""Retries: what fails now and may work soon is asked for again, with growing waits; the door to tenacity."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_random_exponential

_LONGEST_WAIT = 10.0

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Patience:
    """How long to try: attempts, the longest first wait between two of them, and seconds for all of it."""

    attempts: int = 4
    wait_seconds: float = 0.5
    total_seconds: float = 60


class Transient(Exception):
    """An attempt failed in a way that another may not; `after`: seconds that the other side asked to be left alone."""

    def __init__(self, detail: str, after: float = 0) -> None:
        super().__init__(detail)
        self.after = after


def persist(attempt: Callable[[float], Answer], patience: Patience) -> Answer:
    """Call `attempt` until it returns, with the time on the monotonic clock by which it must have.

    The waits are random, up to a limit that doubles: readers that failed together do not come back together.

    Raises:
        Transient: it did not return in time; what it raised last.
    """
    backoff = wait_random_exponential(multiplier=patience.wait_seconds, max=_LONGEST_WAIT)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(backoff(state), error.after if isinstance(error, Transient) else 0)

    retrying = Retrying(
        retry=retry_if_exception_type(Transient),
        stop=stop_after_attempt(patience.attempts) | stop_before_delay(patience.total_seconds),
        wait=wait,
        reraise=True,
    )
    return retrying(attempt, time.monotonic() + patience.total_seconds)
