"""How much each may ask: so many requests in so long a time."""

import math
import time
from collections import deque
from ipaddress import IPv6Address, ip_address

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

# Those who have not asked for a whole window are looked for each time that so many more have.
_SWEEP = 1_024
# One customer has as many addresses of IPv6 as share these leading bits.
_IPV6_PREFIX = 64


class _MonotonicMemory(MemoryStorage):
    """Moving windows by the monotonic clock.

    Those of `limits` go by the clock of the wall: set back by a year, it would let nobody in for one. They also
    keep an entry of everybody who ever asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self._moments: dict[str, deque[float]] = {}
        self._sweep_at = _SWEEP

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        moments = self._within(key, expiry)
        if len(moments) + amount > limit:
            return False
        if key not in self._moments:
            self._sweep(expiry)
            self._moments[key] = moments
        moments.extend([time.monotonic()] * amount)
        return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:  # noqa: ARG002 - as `limits` has it
        moments = self._within(key, expiry)
        return (moments[0] if moments else time.monotonic()), len(moments)

    def _within(self, key: str, expiry: int) -> deque[float]:
        moments, start = self._moments.get(key, deque()), time.monotonic() - expiry
        while moments and moments[0] <= start:
            moments.popleft()
        return moments

    def _sweep(self, expiry: int) -> None:
        if len(self._moments) >= self._sweep_at:
            start = time.monotonic() - expiry
            self._moments = {key: moments for key, moments in self._moments.items() if moments[-1] > start}
            self._sweep_at = max(_SWEEP, 2 * len(self._moments))


class RateLimit:
    """A limit, counted for each who asks, in the memory of this process.

    Args:
        limit: such as "100/second" or "5000 per hour".

    Raises:
        ValueError: that is no limit.
    """

    def __init__(self, limit: str) -> None:
        self._limit = checked(limit)
        self._windows = MovingWindowRateLimiter(_MonotonicMemory())

    def __str__(self) -> str:
        return str(self._limit)

    def take(self, who: str) -> dict[str, str] | None:
        """Count a request; return None if it may pass, else the headers that say when another may.

        They are `Retry-After` and, as draft-ietf-httpapi-ratelimit-headers has them since its version 08,
        `RateLimit-Policy` with the quota q and the window w in seconds, and `RateLimit` with what remains r and the
        seconds t until there is more.
        """
        if self._windows.hit(self._limit, who):
            return None
        reset = self._windows.get_window_stats(self._limit, who).reset_time
        seconds = max(1, math.ceil(reset - time.monotonic()))
        return {
            "Retry-After": str(seconds),
            "RateLimit-Policy": f'"default";q={self._limit.amount};w={self._limit.get_expiry()}',
            "RateLimit": f'"default";r=0;t={seconds}',
        }


def checked(limit: str) -> RateLimitItem:
    """Return a limit that was written as text.

    Raises:
        ValueError: that is no limit, or one that lets nothing pass.
    """
    found = parse_many(limit) if limit.strip() else []
    if len(found) != 1 or found[0].amount < 1:
        raise ValueError(f"'{limit}' is no rate limit; write for example 100/second or 5000/hour.")
    return found[0]


def network(address: str) -> str:
    """Return what stands for an address: itself, or of IPv6 its network of one customer."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return f"{IPv6Address(int(found) >> _IPV6_PREFIX << _IPV6_PREFIX)}/{_IPV6_PREFIX}"
