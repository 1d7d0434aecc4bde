"""The command lines that are about indexes: `reindex` and `info`."""

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from indexer.build_command import (
    INDEX_HELP,
    RECALL_HELP,
    AcceptLowRecall,
    MemoryLimit,
    Snapshots,
    gpu_memory,
    load_for_build,
)
from indexer.recall import KindTuning, QueryKind, Tuning
from indexer.reindex import reindex as make_another_index
from indexer.relevance import Relevance
from indexer.settings import Settings
from indexer.snapshot_tuning import told
from indexer.store import SnapshotStore


def reindex(
    index: Annotated[str | None, typer.Option(help=f"{INDEX_HELP} As before where left out.")] = None,
    target_recall: Annotated[
        float | None, typer.Option(min=0.01, max=1, help=f"{RECALL_HELP} As before where left out.")
    ] = None,
    accept_low_recall: AcceptLowRecall = False,
    snapshots: Snapshots = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Give the current snapshot's pictures another index, and publish that; no source is read, no picture encoded."""
    settings = Settings()
    asked = {"index": index, "target_recall": target_recall, "accept_low_recall": accept_low_recall}
    changes = {name: value for name, value in asked.items() if value is not None}
    start = time.monotonic()
    manifest = make_another_index(
        SnapshotStore(snapshots or settings.snapshots),
        lambda options: options.model_copy(update=changes),
        lambda current: load_for_build(settings, current.encoder.name, threads=settings.threads),
        memory_limit,
        gpu_memory(settings),
    )
    seconds = time.monotonic() - start
    typer.echo(
        f"Snapshot {manifest.id} is current: {manifest.count:,} pictures, index {manifest.factory}, in {seconds:.1f} s."
    )
    _tell(manifest.tuning)


def info(
    snapshots: Snapshots = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="File (.svg or .png) for what was measured of the current one: recall, relevance, labels."),
    ] = None,
) -> None:
    """List the snapshots, newest first; * marks the current one, and below it is what was measured of it."""
    store = SnapshotStore(snapshots or Settings().snapshots)
    current = store.current()
    for snapshot_id in store.ids():
        manifest = store.manifest(snapshot_id)
        mark = "*" if snapshot_id == current else " "
        sources = ", ".join(manifest.options.sources)
        facts = f"{manifest.count:>10,} pictures  {manifest.factory}  {manifest.encoder.name}  {sources}"
        typer.echo(f"{mark} {snapshot_id}  {facts}")
        if snapshot_id == current:
            _tell(manifest.tuning)
            _tell_learnt(manifest.relevance)
    if plot is not None:
        _plot(store, plot)


def _tell(tuning: Tuning | None) -> None:
    """Say how each kind of query is searched for, where there is anything to tune."""
    if tuning is None:
        return
    for kind in QueryKind:
        typer.echo(f"    by {kind:<5}  {_chosen(tuning.of(kind), tuning)}")


def _tell_learnt(relevance: Relevance | None) -> None:
    """Say how far relevances and confidences are off, where there are any."""
    if relevance is None:
        return
    known = {kind: calibration for kind in QueryKind if (calibration := relevance.of(kind))}
    told_of = (
        f"{kind} ({found.origin}, {found.queries:,} queries): calibration error {found.expected_calibration_error:.3f}"
        for kind, found in known.items()
    )
    typer.echo(f"    relevance: {'; '.join(told_of) or 'nothing to learn from'}")
    if votes := relevance.votes:
        typer.echo(
            f"    classification: accuracy {votes.accuracy:.3f}; at 90 % coverage {votes.accuracy_at(0.9):.3f} "
            f"({votes.pictures:,} pictures); calibration error {votes.expected_calibration_error:.3f}"
        )


def _chosen(found: KindTuning, tuning: Tuning) -> str:
    point = found.chosen
    short = "" if point.recall >= tuning.target_recall else f", BELOW the target of {tuning.target_recall:g}"
    return (
        f"{told(point.parameters)}: recall {point.recall:.3f}{short} in {point.milliseconds:.2f} ms (exact search: "
        f"{tuning.exact_milliseconds:.2f} ms), measured with {found.queries:,} {found.origin}"
    )


def _plot(store: SnapshotStore, file: Path) -> None:
    if find_spec("matplotlib") is None:
        raise typer.BadParameter("Plots are drawn with matplotlib: pip install 'kindred[train]'.", param_hint="--plot")
    if file.suffix not in {".svg", ".png"}:
        raise typer.BadParameter(f"{file} is to end in .svg or .png.", param_hint="--plot")
    manifest = store.manifest(store.published())
    from indexer.evaluate.plots import draw_measured  # noqa: PLC0415 - loads matplotlib

    title = f"{manifest.factory}, {manifest.count:,} pictures"
    if not draw_measured(manifest.tuning, manifest.relevance, title, file):
        raise typer.BadParameter(
            f"The current index, {manifest.factory}, has not been tuned, and nothing was learnt of its pictures: "
            "there is nothing to draw.",
            param_hint="--plot",
        )
