"""The command lines of `build` and `retry`."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from indexer.build import SHARD_SIZE, BuildReport, Forecast, Run, forecast
from indexer.build import build as build_snapshot
from indexer.encoder import Encoder, EncoderName, accelerated, load_encoder
from indexer.encoding import Executor, LocalExecutor
from indexer.errors import BuildError, Reason
from indexer.images import DecodePolicy
from indexer.index_building import gpu_search
from indexer.index_policy import AUTO
from indexer.labels import PARENT
from indexer.plan import PlanCounts
from indexer.progress import ProgressStyle, Reporter, reporter
from indexer.settings import Settings
from indexer.shard_bucket import ShardBucket
from indexer.snapshot import NEAR_DUPLICATES, TARGET_RECALL, BuildOptions
from indexer.sources.fetch import FetchPolicy
from indexer.sources.opening import absolute, open_sources
from indexer.store import SnapshotStore
from indexer.workers import Limits, fork_server

TOO_MANY_SKIPPED, INTERRUPTED = 3, 130

# By the clock a picture may take this many times its processor time: the machine does other things too.
_PATIENCE = 4
# Exporting a model takes as long as ONNX Runtime saves on this many pictures, or less.
_WORTH_EXPORTING = 4_000


class Where(StrEnum):
    """Where shards are encoded."""

    LOCAL = "local"
    RAY = "ray"


Snapshots = Annotated[Path | None, typer.Option(help="Folder of snapshots, instead of KINDRED_SNAPSHOTS.")]
MaxSkip = Annotated[int | None, typer.Option(min=0, help="Exit with 3 if more pictures are skipped.")]
Progress = Annotated[ProgressStyle, typer.Option(help="How to show progress.")]
ShardSize = Annotated[int, typer.Option(min=1, help="Pictures of a shard, about: what a kill may cost.")]
MemoryLimit = Annotated[int | None, typer.Option(min=1, help="Bytes that building the index may take.")]
AcceptLowRecall = Annotated[
    bool, typer.Option("--accept-low-recall", help="Publish an index that finds less than --target-recall.")
]
Within = Annotated[
    list[str] | None, typer.Option(hidden=True, help="Where the rows of tables may lead, besides their own folder.")
]
INDEX_HELP = "auto (by how many pictures there are), or a FAISS factory string."
RECALL_HELP = "Part of the true ten nearest, 0 to 1, that an approximate index must find."


def build(
    sources: Annotated[
        list[str], typer.Argument(help="Folders, tables, lists, tars or URLs of pictures; NAME=SOURCE prefixes names.")
    ],
    snapshots: Snapshots = None,
    model: Annotated[str | None, typer.Option(help="Encoder, instead of KINDRED_MODEL.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="Its weights, instead of KINDRED_PRETRAINED.")] = None,
    index: Annotated[str, typer.Option(help=INDEX_HELP)] = AUTO,
    target_recall: Annotated[float, typer.Option(min=0.01, max=1, help=RECALL_HELP)] = TARGET_RECALL,
    accept_low_recall: AcceptLowRecall = False,
    labels: Annotated[
        str | None, typer.Option(help="parent (folder names), or a .csv, .jsonl or .parquet table.")
    ] = None,
    near_duplicates: Annotated[
        float, typer.Option(min=0, max=1, help="Cosine from which pictures that look alike are grouped; 0: none.")
    ] = NEAR_DUPLICATES,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is to do.")] = False,
    shard_size: ShardSize = SHARD_SIZE,
    memory_limit: MemoryLimit = None,
    executor: Annotated[Where, typer.Option(help="This machine, or a Ray cluster.")] = Where.LOCAL,
    ray_address: Annotated[str, typer.Option(help="auto, host:port or ray://host:port.")] = "auto",
    shards: Annotated[str | None, typer.Option(help="URL for finished work, instead of the snapshots.")] = None,
    max_skip: MaxSkip = None,
    progress: Progress = ProgressStyle.AUTO,
    within: Within = None,
) -> None:
    """Index pictures into a new snapshot and publish it; one that was interrupted goes on."""
    settings = Settings()
    reach = replace(FetchPolicy.of(settings), within=tuple(within or ()))
    store = SnapshotStore((snapshots or settings.snapshots).resolve())  # as other machines have other working folders
    name = EncoderName.of(settings, model, pretrained)
    table = labels if labels in {None, PARENT} else str(Path(str(labels)).resolve())
    options = BuildOptions(
        sources=tuple(map(absolute, sources)),
        labels=table,
        index=index,
        near_duplicates=near_duplicates or None,
        target_recall=target_recall,
        accept_low_recall=accept_low_recall,
    )
    try:
        open_sources(options.sources, reach)  # before a model is loaded
    except BuildError as error:
        raise typer.BadParameter(str(error), param_hint="SOURCES") from error
    fork_server()  # it starts while the model loads
    encoder = load_for_build(settings, name, threads=settings.threads)
    # Only said beforehand, not done: other machines are not asked how fast they are.
    work = _local(settings, encoder) if dry_run or executor is Where.LOCAL else _on_ray(settings, encoder, ray_address)
    bucket = ShardBucket(shards) if shards else None
    run = Run(work, reach, shard_size, memory_limit, gpu_memory(settings), shards=bucket)
    if dry_run:
        with _shown(progress) as shown:
            _foretell(forecast(options, store, encoder, DecodePolicy.of(settings), run, shown), store)
    else:
        _build(options, store, encoder, DecodePolicy.of(settings), run, progress, max_skip)


def retry(
    reason: Annotated[list[Reason] | None, typer.Option(help="Only these; may be given more than once.")] = None,
    snapshots: Snapshots = None,
    shard_size: ShardSize = SHARD_SIZE,
    memory_limit: MemoryLimit = None,
    accept_low_recall: AcceptLowRecall = False,
    max_skip: MaxSkip = None,
    progress: Progress = ProgressStyle.AUTO,
) -> None:
    """Build the current snapshot anew, and try pictures again that could not be used, though they have not changed."""
    settings = Settings()
    store = SnapshotStore(snapshots or settings.snapshots)
    manifest = store.manifest(store.published())
    fork_server()
    encoder = load_for_build(settings, manifest.encoder.name, threads=settings.threads)
    wanted = frozenset(reason or Reason)
    limits = (memory_limit, gpu_memory(settings))
    run = Run(_local(settings, encoder), FetchPolicy.of(settings), shard_size, *limits, wanted)
    accepting = {"accept_low_recall": accept_low_recall or manifest.options.accept_low_recall}
    options = manifest.options.model_copy(update=accepting)
    _build(options, store, encoder, DecodePolicy.of(settings), run, progress, max_skip)


def load_for_build(settings: Settings, name: EncoderName, *, threads: int) -> Encoder:
    """Load an encoder on the backend of a deployment; on other machines too.

    Raises:
        EncoderError: it cannot be loaded.
    """
    encoder = load_encoder(name, device=settings.device, threads=threads)
    if settings.backend == "onnx":
        return accelerated(encoder, settings.cache, threads=threads)
    if settings.backend == "onnx-int8":
        return accelerated(encoder, settings.cache, threads=threads, precision="int8")
    return encoder


def gpu_memory(settings: Settings) -> int:
    """Return the bytes of the GPUs that the service will search on; 0 where it searches on a CPU."""
    if settings.device == "cpu" or not gpu_search():
        return 0
    from indexer.torch_runtime import torch  # noqa: PLC0415 - torch takes seconds to import

    return sum(torch.cuda.get_device_properties(each).total_memory for each in range(torch.cuda.device_count()))


def _limits(settings: Settings) -> Limits:
    return Limits(settings.decode_seconds, _PATIENCE * settings.decode_seconds, settings.decode_memory)


def _local(settings: Settings, encoder: Encoder) -> LocalExecutor:
    return LocalExecutor(partial(_encoders, settings, encoder), settings.workers, _limits(settings))


def _on_ray(settings: Settings, encoder: Encoder, address: str) -> Executor:
    from indexer.distribute import RayExecutor  # noqa: PLC0415 - an extra

    load = partial(load_for_build, settings, encoder.spec.name)
    gpus, workers, threads = settings.device != "cpu", settings.workers, settings.threads
    return RayExecutor(
        encoder.spec, load, _limits(settings), gpus=gpus, workers=workers, threads=threads, address=address
    )


def _encoders(settings: Settings, encoder: Encoder, pictures: int) -> list[Encoder]:
    """Return one encoder for each device, and on a CPU the fastest for so many pictures."""
    from indexer.torch_runtime import devices  # noqa: PLC0415 - torch takes seconds to import

    if settings.backend.startswith("onnx"):
        return [encoder]
    first, *rest = ["cpu"] if settings.device == "cpu" else devices()
    if first != "cpu":
        name, precision = encoder.spec.name, encoder.spec.precision
        return [encoder, *(load_encoder(name, device=gpu, threads=1, precision=precision) for gpu in rest)]
    if settings.backend == "auto" and pictures >= _WORTH_EXPORTING and find_spec("onnxruntime"):
        return [accelerated(encoder, settings.cache, threads=settings.threads)]
    return [encoder]


def _build(
    options: BuildOptions,
    store: SnapshotStore,
    encoder: Encoder,
    policy: DecodePolicy,
    run: Run,
    style: ProgressStyle,
    max_skip: int | None,
) -> None:
    start = time.monotonic()
    with _stopping(run.stop), _shown(style) as shown:
        report = build_snapshot(options, store, encoder, policy, run, shown)
    if style is ProgressStyle.JSON:
        facts = {"encoded": report.encoded, "reused": report.reused, "resumed": report.resumed}
        changes = {name: getattr(report.plan, name) for name in ("new", "changed", "moved", "unchanged", "deleted")}
        print(json.dumps({"snapshot": report.manifest.id, **facts, **changes, "skipped": report.skipped}))
    else:
        _summarise(report, time.monotonic() - start)
    if max_skip is not None and report.skipped.total() > max_skip:
        raise typer.Exit(TOO_MANY_SKIPPED)


@contextmanager
def _shown(style: ProgressStyle) -> Iterator[Reporter]:
    shown = reporter(style)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Let Ctrl-C, or SIGTERM, finish the shards in hand; a second one ends the process where it is."""

    def handle(*_: object) -> None:
        if stop.is_set():
            # A build may be killed at any moment: threads that encode could not be stopped otherwise.
            os._exit(INTERRUPTED)
        stop.set()
        print("Finishing the shards in hand; once more stops at once.", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _foretell(seen: Forecast, store: SnapshotStore) -> None:
    print(_changes(seen.plan))
    resumed = f" ({seen.resumed:,} of them finished already)" if seen.resumed else ""
    print(f"To be encoded: {seen.plan.work:,} pictures{resumed} in {seen.plan.shards:,} shards.")
    free = shutil.disk_usage(store.folder).free
    print(f"About {timedelta(seconds=round(seen.seconds))} and {_size(seen.disk)} of disk; {_size(free)} are free.")


def _summarise(report: BuildReport, seconds: float) -> None:
    manifest = report.manifest
    print(
        f"Snapshot {manifest.id} is current: {manifest.count:,} pictures "
        f"({report.encoded:,} encoded, {report.reused:,} reused) in {seconds:.1f} s."
    )
    print(_changes(report.plan))
    if report.resumed:
        print(f"Resumed: {report.resumed:,} pictures had been finished before an interruption.")
    if report.skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.skipped.most_common())
        files = f"{report.skipped.total():,} {'file' if report.skipped.total() == 1 else 'files'}"
        print(f"Skipped {files}: {reasons}. Each is listed in the snapshot's skipped.parquet.")


def _changes(plan: PlanCounts) -> str:
    told = f"{plan.new:,} new, {plan.changed:,} changed, {plan.moved:,} moved, {plan.unchanged:,} unchanged"
    return f"{told}, {plan.deleted:,} deleted, {plan.skipped:,} known to be of no use."


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
