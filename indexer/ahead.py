"""Work done a little ahead of its use, so that decoding and encoding overlap."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

BATCH_SIZE = 64
"""Pictures that an encoder is given at a time."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(submit: Callable[[Item], Future[Result]], items: Iterable[Item]) -> Iterator[tuple[Item, Future[Result]]]:
    """Submit items in order, at most two batches ahead of their use."""
    pending: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        pending.append((item, submit(item)))
        if len(pending) > 2 * BATCH_SIZE:
            yield pending.popleft()
    yield from pending
