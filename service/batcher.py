"""Batcher: requests that wait at the same time share one call.

    event loop     `await batcher(item, group)` queues the item and sleeps
    owner thread   takes the item that has waited longest and with it others of its group, calls `run(group, items)`
                   once, and wakes whoever waits for them

An owner that is idle takes an item at once, so that one client alone never waits. After a batch of several it waits
until as many are there again, but no longer than `wait_seconds` since the first of them came: clients that were
answered together ask again together.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from service.admission import Pace, Room
from service.errors import Overloaded
from service.telemetry import Metrics
from service.tracing import note

Group = TypeVar("Group")
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class _Work(Generic[Group, Item, Result]):
    """One item and who waits for it. Its future is cancelled where nobody does any more."""

    item: Item
    group: Group
    future: "asyncio.Future[Result]"
    since: float = field(default_factory=time.monotonic)
    batch: int = 0  # items of the batch that it was taken in


class Batcher(Generic[Group, Item, Result]):
    """Calls `run` on batches of waiting items, from threads of its own.

    An item whose caller is cancelled (the client has left, or its time is up) before it is taken is never run.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Group, list[Item]], Sequence[Result | Exception]],
        metrics: Metrics,
        *,
        most: int,
        wait_seconds: float,
        room: Room,
        threads: int = 1,
    ) -> None:
        """Start the threads.

        Args:
            name: in the metrics.
            run: returns what came of each item, in their order: a result, or the exception that its caller gets. Where
                it raises, the items of the batch are run one by one, so that one of them can only fail for itself.
            metrics: where the sizes of batches and the length of the queue are noted.
            most: items of a batch.
            wait_seconds: that the first item of a batch may wait for others.
            room: what may wait; one item more is refused.
            threads: batches that are run at a time.
        """
        self._run = run
        self._most = most
        self._wait_seconds = wait_seconds
        self._room = room
        self._pace = Pace()
        self._name = name
        self._sizes = metrics.batch_size.labels(name)
        self._waits = metrics.queue_seconds.labels(name)
        self._depth = metrics.queue_depth.labels(name)
        # A dict, for its order and for items that leave from the middle.
        self._waiting: dict[_Work[Group, Item, Result], None] = {}
        self._last_size = 1
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._own, name=f"{name}-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    async def __call__(self, item: Item, group: Group) -> Result:
        """Return what comes of an item, which shares a batch with items of equal groups only.

        Raises:
            Overloaded: there is no room, or the queue is closed.
        """
        work = _Work[Group, Item, Result](item, group, asyncio.get_running_loop().create_future())
        with self._changed:
            if self._closed:
                raise _closing()
            self._pace.check(len(self._waiting), self._room)
            self._waiting[work] = None
            self._depth.set(len(self._waiting))
            # No owner has a reason to wake up in between: it is idle, or waits for a batch to be whole.
            if len(self._waiting) == 1 or len(self._waiting) >= self._last_size:
                self._changed.notify()
        try:
            result = await work.future
        except asyncio.CancelledError:
            with self._changed:
                self._waiting.pop(work, None)
            raise
        note(f"{self._name}.batch", work.batch)
        return result

    def close(self) -> None:
        """Refuse what waits, and return once what is being run is done."""
        with self._changed:
            self._closed = True
            refused = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        _settle_soon([(work, _closing()) for work in refused])
        for thread in self._threads:
            thread.join()

    def _own(self) -> None:
        while (batch := self._take()) is not None:
            self._account_for(batch)
            # While it waits for the next batch, a thread keeps nothing of this one: a snapshot, for example.
            del batch

    def _account_for(self, batch: list[_Work[Group, Item, Result]]) -> None:
        """Work off a batch, and note its size, how long it waited and how long it took."""
        self._sizes.observe(len(batch))
        now = time.monotonic()
        for work in batch:
            work.batch = len(batch)
            self._waits.observe(now - work.since)
        self._work_off(batch)
        with self._changed:
            self._pace.note((time.monotonic() - now) / len(self._threads), len(batch))

    def _take(self) -> list[_Work[Group, Item, Result]] | None:
        """Wait for a batch; None once closed."""
        with self._changed:
            while (seconds := self._seconds_left()) is None or seconds > 0:
                if self._closed:
                    return None
                self._changed.wait(seconds)
            group = next(iter(self._waiting)).group
            batch = [work for work in self._waiting if work.group == group][: self._most]
            for work in batch:
                del self._waiting[work]
            self._depth.set(len(self._waiting))
            self._last_size = len(batch)
            if self._waiting:  # of another group, or too many: perhaps another owner is idle
                self._changed.notify()
            return batch

    def _seconds_left(self) -> float | None:
        """Return how long to wait for more items, 0 or less for not at all; None while there are none."""
        if not self._waiting:
            return None
        if len(self._waiting) >= self._last_size:
            return 0
        return next(iter(self._waiting)).since + self._wait_seconds - time.monotonic()

    def _work_off(self, batch: list[_Work[Group, Item, Result]]) -> None:
        batch = [work for work in batch if not work.future.cancelled()]
        if not batch:
            return
        try:
            outcomes = list(zip(batch, self._run(batch[0].group, [work.item for work in batch]), strict=True))
        except Exception as error:  # noqa: BLE001 - whatever it is, it goes to the caller, and the thread lives on
            if len(batch) > 1:
                for work in batch:
                    self._work_off([work])
                return
            outcomes = [(batch[0], error)]
        _settle_soon(outcomes)


def _closing() -> Overloaded:
    return Overloaded("The service is shutting down.")


def _settle_soon(outcomes: Sequence[tuple[_Work[Any, Any, Result], Result | Exception]]) -> None:
    """Hand out outcomes in the event loop, in one go."""

    def settle() -> None:
        for work, outcome in outcomes:
            if work.future.done():  # cancelled meanwhile
                continue
            if isinstance(outcome, Exception):
                work.future.set_exception(outcome)
            else:
                work.future.set_result(outcome)

    if outcomes:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            outcomes[0][0].future.get_loop().call_soon_threadsafe(settle)
