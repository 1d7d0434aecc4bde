"""Batcher: items that wait at the same time share a call."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from service.admission import Room
from service.batcher import Batcher
from service.errors import Overloaded
from service.telemetry import Metrics
from tests.served import wait_for

T = TypeVar("T")
FOREVER = 3_600.0


class Doubler:
    """Doubles numbers once its gate is open, and notes what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, group: str, items: list[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        self.entered.release()
        assert self.gate.wait(60)
        if group == "fragile" and -1 in items:
            raise ValueError("-1 cannot be doubled")
        return [KeyError(item) if item == -2 else 2 * item for item in items]


@asynccontextmanager
async def batching(
    run: Doubler, *, most: int = 8, wait_seconds: float = 0.0, queue: int = 100, threads: int = 1
) -> AsyncIterator[Batcher[str, int, int]]:
    batcher = Batcher("test", run, Metrics(), most=most, wait_seconds=wait_seconds, room=Room(queue), threads=threads)
    try:
        yield batcher
    finally:
        run.gate.set()
        await asyncio.to_thread(batcher.close)


async def started(run: Doubler, calls: int = 1) -> None:
    for _ in range(calls):
        assert await asyncio.to_thread(run.entered.acquire, timeout=60)


async def asking(batcher: Batcher[str, int, int], *items: int, group: str = "a") -> "list[asyncio.Task[int]]":
    """Ask for items, and return once they are queued."""
    tasks = [asyncio.create_task(batcher(item, group)) for item in items]
    await asyncio.sleep(0)
    return tasks


def running(test: Coroutine[Any, Any, T]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(60):
            return await test

    return asyncio.run(limited())


def test_an_item_by_itself_is_not_kept_waiting_for_others() -> None:
    run = Doubler()
    run.gate.set()

    async def test() -> list[int]:
        async with batching(run, wait_seconds=FOREVER) as batcher:
            return [await batcher(number, "a") for number in range(5)]

    assert running(test()) == [0, 2, 4, 6, 8]
    assert run.batches == [[0], [1], [2], [3], [4]]


def test_items_of_one_group_that_wait_share_a_batch_and_the_oldest_goes_first() -> None:
    run = Doubler()

    async def test() -> list[int]:
        async with batching(run, most=3) as batcher:
            tasks = await asking(batcher, 0)
            await started(run)
            for item, group in ((1, "a"), (2, "b"), (3, "a"), (4, "b"), (5, "a"), (6, "a")):
                tasks += await asking(batcher, item, group=group)
            run.gate.set()
            return await asyncio.gather(*tasks)

    assert running(test()) == [0, 2, 4, 6, 8, 10, 12]
    assert run.batches == [[0], [1, 3, 5], [2, 4], [6]]


def test_after_a_batch_of_several_it_waits_until_as_many_are_there_again() -> None:
    run = Doubler()

    async def test() -> None:
        async with batching(run, wait_seconds=FOREVER) as batcher:
            tasks = await asking(batcher, 0)
            await started(run)
            tasks += await asking(batcher, 1, 2, 3)
            run.gate.set()
            await asyncio.gather(*tasks)
            tasks = await asking(batcher, 4)
            tasks += await asking(batcher, 5)
            tasks += await asking(batcher, 6)
            await asyncio.gather(*tasks)

    running(test())
    assert run.batches == [[0], [1, 2, 3], [4, 5, 6]]


def test_but_no_longer_than_the_first_of_them_may_wait() -> None:
    run = Doubler()

    async def test() -> int:
        async with batching(run, wait_seconds=0.01) as batcher:
            tasks = await asking(batcher, 0)
            await started(run)
            tasks += await asking(batcher, 1, 2, 3)
            run.gate.set()
            await asyncio.gather(*tasks)
            return await batcher(4, "a")

    assert running(test()) == 8
    assert run.batches == [[0], [1, 2, 3], [4]]


def test_an_item_that_breaks_its_batch_fails_by_itself() -> None:
    run = Doubler()

    async def test() -> list[Any]:
        async with batching(run) as batcher:
            tasks = await asking(batcher, 0)
            await started(run)
            tasks += await asking(batcher, 1, -1, 2, group="fragile")
            run.gate.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    zero, one, broken, two = running(test())
    assert (zero, one, two) == (0, 2, 4)
    assert isinstance(broken, ValueError)
    assert run.batches == [[0], [1, -1, 2], [1], [-1], [2]]


def test_an_exception_in_the_place_of_a_result_is_raised_to_its_caller_only() -> None:
    run = Doubler()

    async def test() -> list[Any]:
        async with batching(run) as batcher:
            tasks = await asking(batcher, 0)
            await started(run)
            tasks += await asking(batcher, 1, -2)
            run.gate.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    zero, one, broken = running(test())
    assert (zero, one, type(broken)) == (0, 2, KeyError)
    assert run.batches == [[0], [1, -2]]


def test_an_item_too_many_is_refused_and_those_that_wait_are_not() -> None:
    run = Doubler()

    async def test() -> list[int]:
        async with batching(run, queue=2) as batcher:
            tasks = await asking(batcher, 0)
            await started(run)
            tasks += await asking(batcher, 1, 2)
            with pytest.raises(Overloaded, match="as many requests waiting as it may"):
                await batcher(3, "a")
            run.gate.set()
            return [*await asyncio.gather(*tasks), await batcher(4, "a")]

    assert running(test()) == [0, 2, 4, 8]


def test_an_item_whose_caller_has_left_is_never_run_and_makes_room() -> None:
    run = Doubler()

    async def test() -> None:
        async with batching(run, queue=2) as batcher:
            tasks = await asking(batcher, 0)
            await started(run)
            left, *_ = await asking(batcher, 1)
            tasks += await asking(batcher, 2)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            tasks += await asking(batcher, 3)
            run.gate.set()
            assert await asyncio.gather(*tasks) == [0, 4, 6]

    running(test())
    assert run.batches == [[0], [2, 3]]


def test_a_caller_that_leaves_while_its_item_is_run_harms_nobody() -> None:
    run = Doubler()

    async def test() -> int:
        async with batching(run) as batcher:
            tasks = await asking(batcher, 0)
            await started(run)
            tasks[0].cancel()
            run.gate.set()
            return await batcher(1, "a")

    assert running(test()) == 2


def test_several_threads_run_batches_at_the_same_time() -> None:
    run = Doubler()

    async def test() -> list[int]:
        async with batching(run, threads=2) as batcher:
            tasks = [*await asking(batcher, 0), *await asking(batcher, 1, group="b")]
            await started(run, calls=2)
            run.gate.set()
            return await asyncio.gather(*tasks)

    assert running(test()) == [0, 2]


def test_an_idle_thread_keeps_nothing_of_what_it_did_last() -> None:
    class Snapshot:
        """What the items of a group are about."""

    def run(_group: Snapshot, items: list[int]) -> list[int]:
        return items

    async def main() -> None:
        batcher = Batcher("test", run, Metrics(), most=8, wait_seconds=0, room=Room(9))
        snapshot = Snapshot()
        kept = weakref.ref(snapshot)
        assert list(await asyncio.gather(batcher(1, snapshot), batcher(2, snapshot))) == [1, 2]
        del snapshot
        await asyncio.to_thread(wait_for, lambda: kept() is None)
        await asyncio.to_thread(batcher.close)

    asyncio.run(main())


def test_closing_refuses_what_waits_and_finishes_what_is_run() -> None:
    run = Doubler()

    async def test() -> int:
        async with batching(run) as batcher:
            tasks = await asking(batcher, 0)
            await started(run)
            tasks += await asking(batcher, 1)
            closing = asyncio.create_task(asyncio.to_thread(batcher.close))
            with pytest.raises(Overloaded, match="shutting down"):
                await tasks[1]
            run.gate.set()
            await closing
            with pytest.raises(Overloaded, match="shutting down"):
                await batcher(2, "a")
            return await tasks[0]

    assert running(test()) == 0
    assert run.batches == [[0]]


def test_the_sizes_of_batches_and_the_length_of_the_queue_are_measured() -> None:
    run, metrics = Doubler(), Metrics()

    async def test() -> str:
        batcher: Batcher[str, int, int] = Batcher("test", run, metrics, most=8, wait_seconds=0, room=Room(9))
        tasks = await asking(batcher, 0)
        await started(run)
        tasks += await asking(batcher, 1, 2, 3)
        while_waiting = metrics.text().decode()
        run.gate.set()
        await asyncio.gather(*tasks)
        await asyncio.to_thread(batcher.close)
        return while_waiting

    assert 'kindred_queue_depth{stage="test"} 3.0' in running(test())
    afterwards = metrics.text().decode()
    assert 'kindred_queue_depth{stage="test"} 0.0' in afterwards
    assert 'kindred_batch_size_sum{stage="test"} 4.0' in afterwards
    assert 'kindred_batch_size_count{stage="test"} 2.0' in afterwards
