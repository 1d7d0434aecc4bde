"""Worker processes, and items that crash, hang or bloat them."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.errors import ImageError, Reason
from indexer.workers import DecodePool, Limits
from tests import poison
from tests.poison import Poison, UnexpectedError, Work, picture

ROOT = Path(__file__).parent.parent.parent
LIMITS = Limits(cpu_seconds=0.5, wall_seconds=60, memory_bytes=64 * 2**20)

Pool = DecodePool[Work, NDArray[np.uint8]]


@pytest.fixture
def task(tmp_path: Path) -> Poison:
    """Return the task that some items harm."""
    (tmp_path / "tally").touch()
    return Poison(tmp_path / "tally")


@pytest.fixture
def pool(task: Poison) -> Iterator[Pool]:
    """Start two workers that do it."""
    with DecodePool(task, 2, LIMITS) as opened:
        yield opened


def eventually(true: Callable[[], bool]) -> bool:
    """Wait until something is true, at most 20 s."""
    end = time.monotonic() + 20
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def gone(process: int) -> bool:
    """Return whether a process has ended, even if nobody has asked how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def end_idle(worker: int) -> None:
    """Kill a worker that has nothing to do, and give its pool a moment to hear of it."""
    os.kill(worker, signal.SIGKILL)
    assert eventually(lambda: not Path(f"/proc/{worker}").exists())
    time.sleep(0.1)


def refusal(future: Future[NDArray[np.uint8]]) -> tuple[Reason, str]:
    """Return why an item was refused."""
    error = future.exception(timeout=60)
    assert isinstance(error, ImageError), error
    return error.reason, str(error)


def test_twenty_poison_items_among_five_hundred_cost_only_themselves(task: Poison, pool: Pool) -> None:
    ended = Reason.KILLED_WORKER
    told = {
        "segfaults": (ended, "It ended two workers, the second by SIGSEGV."),
        "is_killed": (ended, "It ended two workers, the second by SIGKILL."),
        "exits": (ended, "It ended two workers, the second with exit code 3."),
        "raises_exit": (ended, "It ended two workers, the second with exit code 4."),
        "grows": (Reason.TOO_MUCH_MEMORY, "It took more than 64 MB of memory."),
        "spins": (Reason.TOO_SLOW, "It took more than 0.5 s of CPU time."),
    }
    harms = [*told, *["segfaults", "is_killed", "exits", "raises_exit", "grows"] * 3][:20]
    works = [Work(number) for number in range(500)] + [Work(500 + n, harm) for n, harm in enumerate(harms)]
    random.Random(0).shuffle(works)
    for work, future in [(work, pool.submit(work)) for work in works]:
        if work.harm is None:
            np.testing.assert_array_equal(future.result(timeout=60), picture(work.number))
        else:
            assert refusal(future) == told[work.harm]
    starts = Counter(number for number, _ in task.log())
    assert starts == {work.number: 1 if work.harm is None else 2 for work in works}


def test_an_item_may_take_what_the_limit_allows_beyond_the_libraries(task: Poison) -> None:
    with DecodePool(task, 1, Limits(cpu_seconds=60, wall_seconds=60, memory_bytes=2**29)) as pool:
        np.testing.assert_array_equal(pool.submit(Work(1, "takes_much")).result(timeout=60), picture(1))
    assert task.starts(1) == 1


@pytest.mark.parametrize("harm", ["sleeps", "spins"])
def test_an_item_over_the_wall_limit_is_refused_after_two_workers(task: Poison, harm: str) -> None:
    limits = Limits(cpu_seconds=60, wall_seconds=0.25, memory_bytes=2**30)
    with DecodePool(task, 1, limits) as pool:
        assert refusal(pool.submit(Work(1, harm))) == (Reason.TOO_SLOW, "It took longer than 0.25 s.")
        np.testing.assert_array_equal(pool.submit(Work(2)).result(timeout=20), picture(2))
    assert task.starts(1) == 2
    workers = [process for _, process in task.log()]
    assert len(set(workers)) == 3
    assert eventually(lambda: all(gone(worker) for worker in workers))


def test_an_item_that_closes_the_files_of_its_worker_is_refused(pool: Pool) -> None:
    assert refusal(pool.submit(Work(1, "sleeps_deaf")))[0] is Reason.KILLED_WORKER


def test_an_item_whose_worker_died_once_is_done_by_another(task: Poison, pool: Pool) -> None:
    np.testing.assert_array_equal(pool.submit(Work(1, "dies_once")).result(timeout=20), picture(1))
    assert task.starts(1) == 2


def test_cpu_time_is_counted_anew_for_each_item(task: Poison) -> None:
    with DecodePool(task, 1, LIMITS) as pool:
        futures = [pool.submit(Work(number, "works")) for number in range(6)]  # 1.8 s together
        for number, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(timeout=60), picture(number))
            assert task.starts(number) == 1


def test_a_worker_killed_between_items_costs_nothing(task: Poison) -> None:
    with DecodePool(task, 1, LIMITS) as pool:
        for number in range(5):
            np.testing.assert_array_equal(pool.submit(Work(number)).result(timeout=20), picture(number))
            assert task.starts(number) == 1
            end_idle(task.log()[-1][1])
        # It still has both of its tries.
        np.testing.assert_array_equal(pool.submit(Work(5, "dies_once")).result(timeout=20), picture(5))


def test_four_threads_that_submit_at_once_get_their_own_results(pool: Pool) -> None:
    def results(first: int) -> list[NDArray[np.uint8]]:
        futures = [pool.submit(Work(number)) for number in range(first, first + 50)]
        return [future.result(timeout=20) for future in futures]

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(results, range(0, 200, 50)))
    np.testing.assert_array_equal(np.concatenate(done), [picture(number) for number in range(200)])


def test_a_refusal_by_the_task_is_passed_on_and_final(task: Poison, pool: Pool) -> None:
    assert refusal(pool.submit(Work(1, "refuses"))) == (Reason.NOT_AN_IMAGE, "This is no picture.")
    assert task.starts(1) == 1


def test_any_other_exception_arrives_as_itself_with_where_it_was_raised(task: Poison, pool: Pool) -> None:
    error = pool.submit(Work(1, "fails")).exception(timeout=20)
    assert isinstance(error, UnexpectedError)
    assert error.args == ("seven", 7)
    assert "in fails\n" in "".join(error.__notes__)
    assert task.starts(1) == 1


def test_an_exception_that_cannot_be_pickled_is_described(pool: Pool) -> None:
    with pytest.raises(RuntimeError, match="OddError: Ada is 36"):
        pool.submit(Work(1, "fails_oddly")).result(timeout=20)


def test_a_result_that_cannot_be_pickled_is_an_error_of_the_item() -> None:
    with DecodePool(poison.unpicklable, 1, LIMITS) as pool, pytest.raises(AttributeError, match="lambda"):
        pool.submit(0).result(timeout=20)


def test_an_item_that_cannot_be_pickled_is_an_error_of_the_item() -> None:
    with DecodePool(poison.process_id, 1, LIMITS) as pool:
        with pytest.raises(AttributeError, match="lambda"):
            pool.submit(lambda: None).result(timeout=20)
        assert pool.submit(1).result(timeout=20) > 0


def test_a_worker_runs_one_thread() -> None:
    with DecodePool(poison.threads, 1, LIMITS) as pool:
        assert pool.submit(0).result(timeout=20) == 1


def test_closing_ends_the_workers_and_cancels_what_is_not_done(task: Poison) -> None:
    def interrupted() -> None:
        with DecodePool(task, 2, LIMITS) as pool:
            futures.append(pool.submit(Work(0)))
            futures.extend(pool.submit(Work(number, "sleeps")) for number in range(1, 100))
            assert eventually(lambda: task.starts(2) == 1)
            raise KeyboardInterrupt

    futures: list[Future[NDArray[np.uint8]]] = []
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < 10
    assert wait(futures, timeout=0).not_done == set()
    np.testing.assert_array_equal(futures[0].result(), picture(0))
    assert all(future.cancelled() for future in futures[1:])
    assert eventually(lambda: all(gone(process) for _, process in task.log()))


def test_a_closed_pool_takes_nothing_more(pool: Pool) -> None:
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match=r"The pool is closed\."):
        pool.submit(Work(1))


def test_a_cancelled_item_is_never_started(task: Poison) -> None:
    with DecodePool(task, 1, Limits(cpu_seconds=60, wall_seconds=0.25, memory_bytes=2**30)) as pool:
        slow, cancelled, last = pool.submit(Work(1, "sleeps")), pool.submit(Work(2)), pool.submit(Work(3))
        assert cancelled.cancel()
        np.testing.assert_array_equal(last.result(timeout=20), picture(3))
        assert refusal(slow)[0] is Reason.TOO_SLOW
        with pytest.raises(CancelledError):
            cancelled.result(timeout=0)
    assert task.starts(2) == 0


class Unloadable:
    """A task that is pickled, but cannot be unpickled."""

    def __call__(self, _: int) -> int:
        return 0

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, ("seven",)


def test_a_task_that_cannot_be_loaded_is_an_error_that_says_where_to_look() -> None:
    with DecodePool(Unloadable(), 2, LIMITS) as pool:
        for number in range(3):
            with pytest.raises(BrokenExecutor, match="the error output says why"):
                pool.submit(number).result(timeout=20)


def test_a_pool_that_is_still_starting_closes_at_once(task: Poison) -> None:
    script = "import sys, time; from pathlib import Path; from indexer.workers import *; from tests.poison import *\n"
    script += "pool = DecodePool(Poison(Path(sys.argv[1])), 2, Limits(60, 60, 2**30)); start = time.monotonic()\n"
    script += "future = pool.submit(Work(1)); pool.close(); print(time.monotonic() - start, future.cancelled())"
    done = subprocess.run(
        [sys.executable, "-c", script, task.tally], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, cancelled = done.stdout.split()
    assert float(seconds) < 1  # the fork server takes longer to import torch
    assert cancelled == "True"
    assert done.stderr == ""


# Without the guard `if __name__ == "__main__"`, which multiprocessing needs.
SCRIPT = """
import pathlib, signal, sys
from indexer.workers import DecodePool, Limits
from tests.poison import Poison, Work

print("main", flush=True)
interrupts = []
signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
task = Poison(pathlib.Path(sys.argv[1]))
with DecodePool(task, 2, Limits(60, 600, 2**30)) as pool:
    futures = [pool.submit(Work(number, sys.argv[2])) for number in range(4)]
    print("started", flush=True)
    print(sum(int(future.result()[0, 0, 7]) for future in futures), len(interrupts))
"""


def start_script(task: Poison, harm: str) -> subprocess.Popen[str]:
    """Start a process, and group, with a pool that does four items."""
    script = task.tally.with_name("script.py")
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, script, task.tally, harm],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_ctrl_c_reaches_no_worker_and_the_main_script_is_not_run_again(task: Poison) -> None:
    def interrupted() -> bool:
        """Interrupt the group, from when the fork server is started until the last item is."""
        os.killpg(process.pid, signal.SIGINT)
        return len(task.log()) == 4

    with start_script(task, "works") as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["main\n", "started\n"]
        assert eventually(interrupted)
        said, errors = process.communicate(timeout=20)
    assert errors == ""
    total, interrupts = map(int, said.split())  # and no second "main"
    assert total == 0 + 1 + 2 + 3
    assert interrupts > 3


def sleeping(task: Poison) -> list[int]:
    """Wait until two workers have an item, and return their fork server's process and theirs."""
    assert eventually(lambda: len(task.log()) == 2)
    workers = [process for _, process in task.log()]
    parents = {int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]) for worker in workers}
    assert len(parents) == 1
    return [*parents, *workers]


def test_no_process_outlives_one_that_is_killed(task: Poison) -> None:
    with start_script(task, "sleeps") as process:
        children = sleeping(task)
        assert not any(map(gone, children))
        process.kill()
        assert eventually(lambda: all(map(gone, children)))


def test_a_pool_fails_when_its_fork_server_is_killed_and_leaves_nobody_behind(task: Poison) -> None:
    with start_script(task, "sleeps") as process:
        children = sleeping(task)
        os.kill(children[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=20)
        assert "BrokenExecutor: The process that starts the workers has ended." in errors
        assert eventually(lambda: all(map(gone, children)))
