"""Work done a little ahead of its use, so that decoding and encoding overlap."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

BATCH_SIZE = 64
"""Pictures that an encoder is given at a time."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    pool: Executor, prepare: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Future[Result]]]:
    """Prepare items in order in `pool`, at most two batches ahead of their use."""
    pending: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        pending.append((item, pool.submit(prepare, item)))
        if len(pending) > 2 * BATCH_SIZE:
            yield pending.popleft()
    yield from pending
