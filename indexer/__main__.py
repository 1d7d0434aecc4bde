"""Build snapshots of image collections, and look after them.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but more pictures were skipped than --max-skip allows, 130 stopped.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from indexer import build_command as building
from indexer import captions
from indexer import index_command as indexing
from indexer.build_command import Snapshots
from indexer.demo import Fold, write_collection
from indexer.errors import BuildInterrupted, CorruptSnapshot, one_line_errors
from indexer.evaluate import command as evaluation
from indexer.finetune import command as finetuning
from indexer.settings import Settings
from indexer.store import SnapshotStore

FAILED = 1

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=__doc__,
)


app.command()(building.build)
app.command()(building.retry)
app.command()(indexing.reindex)
app.command()(indexing.info)


@app.command()
def verify(
    snapshots: Snapshots = None,
    every: Annotated[bool, typer.Option("--all", help="Every snapshot, not only the current one.")] = False,
) -> None:
    """Compare every file of the current snapshot with its hash, and search for a few of its own pictures."""
    store = _store(snapshots)
    damaged = 0
    for snapshot_id in store.ids() if every else [store.published()]:
        try:
            store.open(snapshot_id).check_canaries()
            print(f"{snapshot_id}: sound")
        except CorruptSnapshot as error:
            damaged += 1
            print(f"{snapshot_id}: {error}")
    if damaged:
        raise typer.Exit(FAILED)


@app.command()
def rollback(
    snapshots: Snapshots = None,
    to: Annotated[str | None, typer.Option(help="Id of a snapshot, instead of the one before the current.")] = None,
) -> None:
    """Make an earlier snapshot current again; a running service follows within seconds."""
    store = _store(snapshots)
    snapshot_id = to or store.previous()
    store.publish(snapshot_id)
    print(f"Snapshot {snapshot_id} is current.")


@app.command()
def prune(
    snapshots: Snapshots = None,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest to keep.")] = 2,
) -> None:
    """Delete old snapshots; the current one always stays."""
    for snapshot_id in _store(snapshots).prune(keep):
        print(f"Deleted {snapshot_id}.")


@app.command()
def demo(
    directory: Annotated[Path, typer.Argument(help="Folder to draw into.")],
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 2_000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other pictures.")] = 0,
    fold: Annotated[Fold, typer.Option(help="Things to train on, or other things to test with.")] = Fold.TEST,
) -> None:
    """Draw the demo collection: captioned, labelled pictures, and the table metadata.jsonl that describes them."""
    drawn = write_collection(directory, count=count, seed=seed, fold=fold)
    print(f"Drew {drawn:,} pictures into {directory}." if drawn else f"{directory} holds these pictures already.")


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Folder for the model; must not exist.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures to draw and train on.")] = 40_000,
    epochs: Annotated[int, typer.Option(min=1, help="How often each is seen.")] = 10,
) -> None:
    """Train the base of the demo model on drawn pictures."""
    from indexer.finetune.pretrain import PretrainConfig  # noqa: PLC0415 - torch takes seconds to import
    from indexer.finetune.pretrain import pretrain as train  # noqa: PLC0415

    if out.exists():
        # Snapshots name models by their folder: one that changed under its name would be refused.
        raise typer.BadParameter(f"{out} exists already; a model is never overwritten.", param_hint="--out")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("indexer").setLevel(logging.INFO)
    done = train(PretrainConfig(seed=seed, pictures=pictures, epochs=epochs), out)
    print(
        f"{done.steps:,} steps, loss {done.first_loss:.2f} to {done.loss:.2f}, {done.cpu_seconds:,.0f} s of CPU time."
    )


app.command()(finetuning.finetune)
app.command()(captions.caption)
app.command()(evaluation.evaluate)


def main() -> None:
    """Run the command line."""
    with one_line_errors():
        try:
            app()
        except BuildInterrupted as error:
            print(error, file=sys.stderr)
            sys.exit(building.INTERRUPTED)


def _store(snapshots: Path | None) -> SnapshotStore:
    return SnapshotStore(snapshots or Settings().snapshots)


if __name__ == "__main__":
    main()
