"""RayExecutor: encodes the shards of a build on the machines of a Ray cluster; the door to Ray.

    the build    hands shards to actors, two to each at a time; it alone writes the journal
    an actor     a `Node` on each GPU or, in a cluster without any, on each machine
    the store    where actors put shard files: a folder that all nodes share, or an object store

Lists of pictures and records of finished shards go through Ray, and no pictures. A shard file is there as a whole or
not at all, and named by what is in it; so a shard that was lost with its node is simply done again by another.

kindred must be installed on every node, in the same version, and models, pictures and the folder of snapshots be found
there by the same names. The build itself runs on a node too, or anywhere with an address of the kind `ray://`.
"""

import logging
import secrets
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from indexer.encoder import EncoderSpec
from indexer.encoding import Work
from indexer.errors import BuildError, KindredError
from indexer.node import PROBE, Errand, LoadEncoder, Node, can_read
from indexer.shards import Shard, ShardFile
from indexer.workers import Limits

# Of two shards in hand an actor decodes one while it encodes the other.
_SHARDS_PER_ACTOR = 2
# Nodes and actors die of things that pass; a shard or a node that fails so often is at fault itself.
_ATTEMPTS = 3
_REFRESH_SECONDS = 5.0
_WAIT_SECONDS = 1.0
_logger = logging.getLogger(__name__)


class RayExecutor:
    """Encodes shards on a Ray cluster."""

    def __init__(
        self,
        spec: EncoderSpec,
        load: LoadEncoder,
        limits: Limits,
        *,
        gpus: bool = True,
        workers: int = 0,
        threads: int = 0,
        address: str = "auto",
    ) -> None:
        """Set up; the cluster is joined when there are shards to encode.

        Args:
            spec: of the encoder that the build expects.
            load: loads it on a node.
            limits: of one picture.
            gpus: whether to use the GPUs of the cluster; if it has any, then nothing else.
            workers: decoding processes of one actor; 0 as `Errand` says.
            threads: of one call of the encoder; 0 as `Errand` says.
            address: `auto` for the cluster that this machine is part of, `host:port`, or `ray://host:port`.

        Raises:
            BuildError: Ray is not installed.
        """
        self._ray = _import_ray()
        self._spec, self._load, self._limits = spec, load, limits
        self._gpus, self._workers, self._threads = gpus, workers, threads
        self._address = address

    def __call__(self, work: Work, shards: Iterable[Shard], stop: threading.Event) -> Iterator[ShardFile]:
        """Encode shards as `indexer.encoding.Executor` says.

        Raises:
            BuildError: there is no such cluster, a node does not see what the build sees, or a shard is lost again
                and again.
            EncoderError: a node does not have the encoder of the build.
        """
        errand = Errand(
            spec=self._spec,
            load=self._load,
            threads=self._threads,
            limits=self._limits,
            workers=self._workers,
            preparer=work.preparer,
            store=work.store,
            probe=secrets.token_bytes(16),
            earlier=None if work.earlier is None else work.earlier.folder,
        )
        with _joined(self._ray, self._address):
            work.store.write(PROBE, errand.probe)
            try:
                for done in _Crew(self._ray, errand, gpus=self._gpus).encode(shards, stop):
                    work.tell(done.pictures)
                    yield done
            finally:
                work.store.delete(PROBE)


@dataclass(eq=False)
class _Seat:
    """An actor on a node, how many shards it has in hand, and whether it is ready for any."""

    node: str
    address: str
    actor: Any
    ready: bool = False
    shards: int = 0


class _Crew:
    """The actors of a build, and what each has in hand."""

    def __init__(self, ray: Any, errand: Errand, *, gpus: bool) -> None:
        self._ray = ray
        self._errand = errand
        self._per_gpu = gpus and any(_resource(node, "GPU") for node in ray.nodes() if node["Alive"])
        self._node = ray.remote(Node)
        self._seats: list[_Seat] = []
        self._pending: dict[Any, tuple[_Seat, Shard | None]] = {}
        self._lost: deque[Shard] = deque()
        self._failures: Counter[str] = Counter()  # of nodes since they last finished a shard, and of shards; by id
        self._last_failure = ""
        self._refresh_at = 0.0

    def encode(self, shards: Iterable[Shard], stop: threading.Event) -> Iterator[ShardFile]:
        """Encode shards as `Executor` says."""
        rest = iter(shards)

        def take() -> Shard | None:
            return self._lost.popleft() if self._lost else next(rest, None)

        shard = take()
        while any(seat.shards for seat in self._seats) or (shard and not stop.is_set()):
            self._refresh()
            while shard and not stop.is_set() and (seat := self._free_seat()):
                self._give(seat, shard)
                shard = take()
            yield from self._finished()
            shard = shard or take()

    def _refresh(self) -> None:
        """Put actors on nodes that are new or have lost theirs.

        Raises:
            BuildError: there is no actor, and no node for one.
        """
        if self._seats and time.monotonic() < self._refresh_at:
            return
        self._refresh_at = time.monotonic() + _REFRESH_SECONDS
        taken = Counter(seat.node for seat in self._seats)
        for node in self._ray.nodes():
            if node["Alive"] and self._failures[node["NodeID"]] < _ATTEMPTS:
                wanted = _resource(node, "GPU") if self._per_gpu else min(_resource(node, "CPU"), 1)
                for _ in range(wanted - taken[node["NodeID"]]):
                    self._hire(node, _resource(node, "CPU") // wanted)
        if not self._seats:
            raise BuildError(
                f"The Ray cluster has no node that can encode. {self._last_failure}What is finished is kept, and the "
                "same command goes on from there."
            )

    def _hire(self, node: dict[str, Any], cpus: int) -> None:
        options = {
            "num_cpus": cpus,
            "num_gpus": 1 if self._per_gpu else 0,
            "max_concurrency": _SHARDS_PER_ACTOR,
            "scheduling_strategy": _only_on(node["NodeID"]),
        }
        address = node["NodeManagerAddress"]
        actor = self._node.options(**options).remote(self._errand, address, max(cpus, 1))
        seat = _Seat(node["NodeID"], address, actor)
        self._seats.append(seat)
        self._pending[actor.open.remote()] = seat, None

    def _free_seat(self) -> _Seat | None:
        free = [seat for seat in self._seats if seat.ready and seat.shards < _SHARDS_PER_ACTOR]
        return min(free, key=lambda seat: seat.shards, default=None)

    def _give(self, seat: _Seat, shard: Shard) -> None:
        seat.shards += 1
        reference = seat.actor.encode.remote(shard, can_read(self._errand.preparer, shard))
        self._pending[reference] = seat, shard

    def _finished(self) -> Iterator[ShardFile]:
        """Wait a little, and yield what is finished."""
        done, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=_WAIT_SECONDS)
        for reference in done:
            seat, shard = self._pending.pop(reference)
            seat.shards -= shard is not None
            try:
                answer: ShardFile | None = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._fail(seat, shard, error)
            else:
                seat.ready = True
                if answer is not None:
                    self._failures.pop(seat.node, None)
                    yield answer

    def _fail(self, seat: _Seat, shard: Shard | None, error: Exception) -> None:
        """Give up an actor that has died, or failed in a way that may leave it unsound.

        Raises:
            KindredError: it says itself what is to be put right.
            BuildError: the shard failed too often.
        """
        cause = getattr(error, "cause", None)
        if isinstance(cause, KindredError):
            raise cause from None
        self._last_failure = f"The last failed, on node {seat.address}: {error} "
        if seat in self._seats:
            _logger.warning("An encoder on node %s is lost; others do what it had in hand. %s", seat.address, error)
            self._seats.remove(seat)
            self._failures[seat.node] += 1
            self._ray.kill(seat.actor)
        if shard is not None:
            self._lost.append(shard)
            self._failures[shard.id] += 1
            if self._failures[shard.id] == _ATTEMPTS:
                raise BuildError(
                    f"{_ATTEMPTS} encoders of the Ray cluster were given the pictures from {shard.items[0].key} to "
                    f"{shard.items[-1].key}, and none finished them. {self._last_failure}"
                ) from error


@contextmanager
def _joined(ray: Any, address: str) -> Iterator[None]:
    """Be part of a cluster for a while; actors end with that.

    Raises:
        BuildError: no cluster answers there.
    """
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        # Or Ray tells of dead nodes on standard output, which is for what programs read of the build.
        ray._private.worker._worker_logs_enabled = False  # noqa: SLF001
    except (ConnectionError, ImportError, RuntimeError, TimeoutError, ValueError) as error:
        raise BuildError(
            f"No Ray cluster can be joined at {address}; `ray start --head` starts one. Ray says: {error}"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray's own would end the process with shards in hand.
            signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    finally:
        ray.shutdown()


def _only_on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - an extra

    return NodeAffinitySchedulingStrategy(node, soft=False)


def _resource(node: dict[str, Any], name: str) -> int:
    return int(node["Resources"].get(name, 0))


def _import_ray() -> Any:
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise BuildError(
            "A build on a Ray cluster needs Ray, on this machine and on every node: pip install 'kindred[ray]'."
        ) from error
    return ray
