"""tune_snapshot(): how the index of a snapshot is searched; one that finds too little is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from indexer.catalog import Catalog
from indexer.encoder import Encoder
from indexer.errors import BuildError
from indexer.held_out import held_out
from indexer.index import SearchParameters, VectorIndex
from indexer.recall import QueryKind, Tuning
from indexer.snapshot import CATALOG, EMBEDDINGS, INDEX, THUMBNAILS, BuildOptions
from indexer.tuning import tune


def tune_snapshot(folder: Path, factory: str, options: BuildOptions, encoder: Callable[[], Encoder]) -> Tuning | None:
    """Measure the index of a snapshot that is being put together, and choose how it is searched.

    Args:
        folder: with all files of the snapshot but its manifest.
        factory: of the index.
        options: what was asked for.
        encoder: gives the encoder of the embeddings; only called for an approximate index.

    Returns:
        None for an index that is exact.

    Raises:
        BuildError: a kind of query finds less than `options` ask for.
    """
    index = VectorIndex.open(folder / INDEX)
    if index.exact:
        return None
    embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r")
    queries = held_out(Catalog.open(folder / CATALOG), np.memmap(folder / THUMBNAILS, np.uint8, "r"), encoder())
    text, image = queries[QueryKind.TEXT], queries[QueryKind.IMAGE]
    tuning = tune(index, embeddings, text, image, options.target_recall)
    if not options.accept_low_recall:
        _refuse_low_recall(tuning, factory, index)
    return tuning


def told(parameters: SearchParameters) -> str:
    """Return search parameters in words, such as `nprobe 16, k_factor 4`."""
    values = parameters.model_dump(exclude_none=True)
    return ", ".join(f"{name} {value:g}" for name, value in values.items()) or "nothing to set"


def _refuse_low_recall(tuning: Tuning, factory: str, index: VectorIndex) -> None:
    for kind in QueryKind:
        best = tuning.of(kind).chosen
        if best.recall < tuning.target_recall:
            other = "auto" if index.adjustable.refines else f"{factory},Refine(SQfp16)"
            raise BuildError(
                f"By {kind}, the index {factory} finds {best.recall:.3f} of the nearest ten at best "
                f"({told(best.parameters)}), and the target recall is {tuning.target_recall:g}. What is encoded is "
                f"kept: run again with another --index, such as {other}, with a lower --target-recall, or with "
                "--accept-low-recall to publish it as it is."
            )
