"""build(): list, compare, encode what is new, put together, publish."""

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from indexer.assemble import Assembled, assemble
from indexer.catalog import Catalog
from indexer.encoder import Encoder
from indexer.encoding import Executor, Work
from indexer.errors import BuildError, BuildInterrupted, CorruptShard, Reason, SnapshotError
from indexer.images import DecodePolicy
from indexer.index_building import vector_bytes
from indexer.index_policy import check_index, resolve_factory
from indexer.journal import DatabaseError, Journal
from indexer.plan import Plan, PlanCounts
from indexer.planning import make_plan, narrower
from indexer.preparing import Earlier, Preparer
from indexer.progress import Reporter
from indexer.recall import Tuning
from indexer.relevance_learning import Lessons, learn
from indexer.shards import Row, ShardFile, ShardFolder, ShardStore, file_name, read_shard_file
from indexer.snapshot import CATALOG, EMBEDDINGS, THUMBNAILS, BuildOptions, FileFacts, Manifest, Snapshot
from indexer.snapshot_tuning import tune_snapshot
from indexer.sources.fetch import FetchPolicy
from indexer.sources.opening import open_sources
from indexer.store import SnapshotStore
from indexer.writer import SnapshotWriter

SHARD_SIZE = 512
"""Pictures of a shard: what a kill may cost, against a wait for the disk."""

_SAMPLE = 64


@dataclass(frozen=True)
class Run:
    """How one build runs: what does not change the snapshot that comes of it.

    Attributes:
        executor: encodes shards, here or on other machines.
        fetch: which addresses pictures may be fetched from.
        shard_size: pictures of a shard, about.
        memory_limit: bytes that building the index may take; None for any.
        gpu_memory: bytes of the GPUs that the service will search on; 0 where it searches on a CPU.
        retry: reasons for which a picture that could not be used is tried again though it has not changed.
        shards: where finished work is kept; None for a folder among the snapshots.
        stop: once set, the build stops after the shards in hand.
    """

    executor: Executor
    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    shard_size: int = SHARD_SIZE
    memory_limit: int | None = None
    gpu_memory: int = 0
    retry: frozenset[Reason] = frozenset()
    shards: ShardStore | None = None
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        manifest: of the snapshot.
        plan: what there was to do.
        encoded: pictures that were encoded for it, before an interruption too.
        reused: pictures whose embedding an earlier snapshot had.
        resumed: pictures in shards that an interrupted build had finished.
        skipped: pictures that are not in it, by reason.
    """

    manifest: Manifest
    plan: PlanCounts
    encoded: int
    reused: int
    resumed: int
    skipped: Counter[Reason]


@dataclass(frozen=True)
class Forecast:
    """What a build would do: pictures, those of them that are finished already, seconds, bytes of disk."""

    plan: PlanCounts
    resumed: int
    seconds: float
    disk: int


@dataclass(frozen=True)
class _Bench:
    """What a build works with while it holds the lock of its folder."""

    options: BuildOptions
    store: SnapshotStore
    encoder: Encoder
    run: Run
    journal: Journal
    plan: Plan
    counts: PlanCounts
    shards: ShardStore
    earlier: Snapshot | None
    work: Work
    progress: Reporter


class _Tally:
    """Counts pictures that are done, in whatever thread."""

    def __init__(self, progress: Reporter, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, more: int) -> None:
        with self._lock:
            self._done += more
            self._progress.update("encode", self._done, self._total)


def build(
    options: BuildOptions, store: SnapshotStore, encoder: Encoder, policy: DecodePolicy, run: Run, progress: Reporter
) -> BuildReport:
    """Build a snapshot of all sources and publish it; go on with such a build where one was interrupted.

    Embeddings are reused where the newest snapshot of the same image half has them.

    Raises:
        BuildError: a source, the labels or the index are not usable, no picture is, the disk would not hold it, the
            index finds too little, or another build is running.
        BuildInterrupted: it was told to stop.
    """
    check_index(options.index, encoder.spec.dim)
    with _bench(options, store, encoder, policy, run, progress) as bench:
        _check_disk(bench)
        job = bench.journal.begin(
            options.model_dump_json(), encoder.spec.model_dump_json(), repr(policy), newest=store.newest()
        )
        resumed = _encode(bench)
        building = store.start(job.snapshot_id)
        with SnapshotWriter(building, encoder.spec.dim) as writer:
            done = _assemble(bench, writer)
            progress.update("index", writer.rows, writer.rows)
            factory = _factory(bench, writer.rows)
            facts = (job.snapshot_id, job.begun_at, options, encoder.spec, policy, factory)
            measure = partial(_tuned, bench, factory), partial(_lessons, bench)
            manifest = writer.finish(*facts, run.memory_limit, *measure)
        progress.update("publish", manifest.count, manifest.count)
        store.commit(building)
        store.publish(manifest.id, verified=True)
        if run.shards:
            for number in range(1, bench.counts.shards + 1):
                run.shards.delete(file_name(bench.plan.shard_id(number)))
        return BuildReport(manifest, bench.counts, done.encoded, done.reused, resumed, writer.skipped)


def forecast(
    options: BuildOptions, store: SnapshotStore, encoder: Encoder, policy: DecodePolicy, run: Run, progress: Reporter
) -> Forecast:
    """Tell what `build` would do, changing nothing; a sample of the pictures is encoded to see how long they take.

    Raises:
        BuildError: as `build`.
    """
    check_index(options.index, encoder.spec.dim)
    with _bench(options, store, encoder, policy, run, progress) as bench:
        counts, (resumed, _) = bench.counts, _finished(bench)
        seconds = _seconds_per_picture(bench) * (counts.work - resumed) if counts.work > resumed else 0.0
        return Forecast(counts, resumed, seconds, _disk_needed(bench))


@contextmanager
def _bench(
    options: BuildOptions, store: SnapshotStore, encoder: Encoder, policy: DecodePolicy, run: Run, progress: Reporter
) -> Iterator[_Bench]:
    """Hold the lock, make the plan, and clear up what has been published."""
    with _disk_faults(), store.lock():
        folder = store.work()
        with Journal.open(folder) as journal, Plan(folder / "plan.sqlite") as plan:
            _finish_published(store, journal)
            earlier = _newest(store, encoder)
            sources = open_sources(options.sources, run.fetch)
            make_plan(plan, options, sources, encoder.spec, policy, earlier, run.shard_size, run.retry)
            preparer = Preparer(sources, policy, encoder.preprocess, _reusable(earlier, policy))
            shards = run.shards or ShardFolder(folder / "shards")
            counts = plan.counts()
            work = Work(preparer, counts.work, earlier, shards, lambda _: None)
            yield _Bench(options, store, encoder, run, journal, plan, counts, shards, earlier, work, progress)
            job = journal.job()
            unfinished = job is not None and job.snapshot_id not in store.ids()
        if not unfinished:
            shutil.rmtree(folder)  # the journal as it is: to clear it takes room, which there may be no more


@contextmanager
def _disk_faults() -> Iterator[None]:
    """Say in a sentence what the disk refused: it is full, or failing."""
    try:
        yield
    except (OSError, DatabaseError) as error:
        raise BuildError(
            f"The build cannot read or write its files: {error}. What is finished is kept: the same command goes on."
        ) from error


def _finish_published(store: SnapshotStore, journal: Journal) -> None:
    """Publish what a build was killed for while publishing: its snapshot is complete."""
    job = journal.job()
    if job is not None and job.snapshot_id in store.ids():
        if store.current() != job.snapshot_id:
            store.publish(job.snapshot_id)
        journal.clear()


def _newest(store: SnapshotStore, encoder: Encoder) -> Snapshot | None:
    """Return the newest sound snapshot whose embeddings this encoder would make again."""
    wanted = (encoder.spec.image, encoder.spec.precision)
    for snapshot_id in store.ids():
        try:
            found = store.manifest(snapshot_id).encoder
            if (found.image, found.precision) == wanted:
                return store.open(snapshot_id)
        except SnapshotError:
            # A damaged snapshot costs its embeddings, not the build that may replace it.
            continue
    return None


def _reusable(earlier: Snapshot | None, policy: DecodePolicy) -> Earlier | None:
    return Earlier(earlier.folder / CATALOG, narrower(earlier.manifest.limits, policy)) if earlier else None


def _finished(bench: _Bench) -> tuple[int, list[int]]:
    """Return how many pictures are in finished shards, and the numbers of the other shards."""
    done, rest = 0, []
    for number in range(1, bench.counts.shards + 1):
        shard = bench.journal.finished(bench.plan.shard_id(number))
        if shard is None:
            rest.append(number)
        else:
            done += shard.pictures
    return done, rest


def _encode(bench: _Bench) -> int:
    """Encode every shard that is not finished, and return how many pictures are in those that were."""
    resumed, rest = _finished(bench)
    left = bench.counts.work - resumed
    if rest:
        work = replace(bench.work, tell=_Tally(bench.progress, left))
        for shard in bench.run.executor(work, map(bench.plan.shard, rest), bench.run.stop):
            bench.journal.record(shard)
            left -= shard.pictures
    if left:
        total = bench.counts.work
        raise BuildInterrupted(
            f"Stopped: {total - left:,} of {total:,} pictures are encoded and kept. "
            "The same command goes on from there."
        )
    return resumed


def _assemble(bench: _Bench, writer: SnapshotWriter) -> Assembled:
    def read(number: int) -> list[Row]:
        shard = cast("ShardFile", bench.journal.finished(bench.plan.shard_id(number)))  # as every shard is by now
        try:
            return read_shard_file(bench.shards, shard.shard_id, shard.sha256)
        except CorruptShard as error:
            bench.journal.forget(shard.shard_id)
            raise CorruptShard(f"{error} Run the same command again: it encodes these pictures anew.") from error

    total = bench.counts.total
    done = assemble(bench.plan, read, bench.earlier, writer, lambda n: bench.progress.update("write", n, total))
    if not writer.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in writer.skipped.items()) or "no files"
        sources = ", ".join(bench.options.sources)
        raise BuildError(f"No picture in {sources} can be used ({reasons}); nothing was published.")
    return done


def _factory(bench: _Bench, count: int) -> str:
    """Return what the index asked for stands for over so many pictures."""
    run = bench.run
    return resolve_factory(bench.options.index, count, bench.encoder.spec.dim, run.memory_limit, run.gpu_memory)


def _tuned(bench: _Bench, factory: str, folder: Path) -> Tuning | None:
    def encoder() -> Encoder:
        bench.progress.update("tune", 0, 1)
        return bench.encoder

    return tune_snapshot(folder, factory, bench.options, encoder)


def _lessons(bench: _Bench, folder: Path, files: dict[str, FileFacts]) -> Lessons:
    """Learn of a snapshot, unless the earlier one has the same to learn from."""
    earlier, spec = bench.earlier, bench.encoder.spec
    if earlier and earlier.manifest.relevance and earlier.manifest.encoder == spec:
        known = earlier.manifest.files
        if all(files[name] == known[name] for name in (CATALOG, EMBEDDINGS, THUMBNAILS)):
            text_map = Lessons.none(spec.dim).text_map if earlier.text_map is None else earlier.text_map
            return Lessons(earlier.manifest.relevance, text_map)
    bench.progress.update("learn", 0, 1)
    catalog, embeddings = Catalog.open(folder / CATALOG), np.load(folder / EMBEDDINGS, mmap_mode="r")
    return learn(catalog, embeddings, np.memmap(folder / THUMBNAILS, np.uint8, "r"), bench.encoder)


def _check_disk(bench: _Bench) -> None:
    needed, free = _disk_needed(bench), shutil.disk_usage(bench.store.folder).free
    if needed > free:
        raise BuildError(
            f"The snapshot needs about {needed:,} bytes and {bench.store.folder} has {free:,} free. "
            "Prune old snapshots, or give the folder more room."
        )


def _disk_needed(bench: _Bench) -> int:
    """Return the bytes that a build will write, about: a thumbnail is as large as those before, or 8 KiB."""
    counts, vector = bench.counts, 4 * bench.encoder.spec.dim
    earlier = bench.earlier
    thumbnail = len(earlier.thumbnails) // len(earlier) if earlier else 8 * 2**10
    index = vector_bytes(bench.encoder.spec.dim, _factory(bench, counts.usable))
    row = vector + index + thumbnail + 2**10  # embeddings, index, thumbnail, catalogue
    return counts.usable * row + counts.work * (vector + thumbnail)


def _seconds_per_picture(bench: _Bench) -> float:
    """Encode a sample and return the seconds that one of its pictures took."""
    sample = bench.plan.sample(_SAMPLE)
    for _ in range(2):  # the first time, processes start and models warm up
        start = time.monotonic()
        list(bench.run.executor(bench.work, [sample], threading.Event()))
        seconds = time.monotonic() - start
    bench.shards.delete(file_name(sample.id))
    return seconds / len(sample.items)
