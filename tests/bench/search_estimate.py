"""What ten million vectors would cost, estimated from a tenth of them.

`python -m tests.bench.search_estimate FOLDER`: the index that `auto` chooses for ten million vectors, with all its
lists and trained as it would be (on no more than a quarter of a million vectors), is filled with one million, and with
the first hundred thousand of these. Between the two only the lists differ in length, so that what a search costs is a
line through both, which is prolonged to ten million. The setting is the one that the million needs.

What this leaves out: more vectors lie closer together, so that the lists of the nearest ten are found a little sooner,
and codes are told apart a little worse. Costs are processor time in one thread.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import faiss
import numpy as np
import typer

from indexer.index import SearchParameters, VectorIndex
from indexer.index_building import write_index
from indexer.index_policy import AUTO, resolve_factory
from indexer.recall import CurvePoint, QueryKind
from indexer.tuning import Queries, tune
from tests.bench.search_engine import K, Vectors
from tests.bench.tables import grid
from tests.bench.vectors import DIM, make

_ALL, _SOME, _FEW = 10_000_000, 1_000_000, 100_000
_TARGET = 0.98
_ROUNDS = 15


def main(folder: Annotated[Path, typer.Argument(help="Of the search benchmark; 3.5 GB.")]) -> None:
    """Estimate, and print a table in Markdown."""
    place = folder.resolve() / str(_SOME)
    make(place, _SOME)
    pictures = np.load(place / "pictures.npy", mmap_mode="r")
    queries = {kind: np.load(place / f"{kind}.npy") for kind in QueryKind}
    factory, path = resolve_factory(AUTO, _ALL, DIM), place / "estimate.index"
    faiss.omp_set_num_threads(1)
    if not path.exists():
        building = _seconds(lambda: write_index(pictures, factory, path, memory_limit=None))
        print(f"{_SOME:,} built in {building:,.0f} CPU s", flush=True)
    full = VectorIndex.open(path)
    text, image = (Queries("the queries measured", queries[kind]) for kind in (QueryKind.TEXT, QueryKind.IMAGE))
    tuning = tune(full, pictures, text, image, _TARGET)
    index = faiss.read_index(str(path))
    index.reset()
    adding = _seconds(lambda: index.add(np.ascontiguousarray(pictures[:_FEW]))) / _FEW
    print(f"{factory}, {path.stat().st_size / _SOME:,.0f} bytes a vector over {_SOME:,}")
    print(f"each further million is added in {adding * 1_000_000:,.0f} CPU s\n")
    indexes = (VectorIndex(index), full)
    rows = [row for kind in QueryKind for row in _rows(kind, queries[kind], tuning.of(kind).chosen, indexes)]
    head = ("queries", "recall over a million", *(f"CPU ms over {count:,}" for count in (_FEW, _SOME)))
    print(grid((*head, f"estimated over {_ALL:,}", "queries/s and thread"), rows))


def _rows(
    kind: QueryKind, vectors: Vectors, chosen: CurvePoint, indexes: tuple[VectorIndex, VectorIndex]
) -> Iterator[tuple[str, ...]]:
    for manner, together in (("singly", 1), ("at once", len(vectors))):
        few, some = _milliseconds(indexes, vectors, chosen.parameters, together)
        estimate = some + (some - few) / (_SOME - _FEW) * (_ALL - _SOME)
        told = (f"{few:.2f}", f"{some:.2f}", f"{estimate:.2f}", f"{1000 / estimate:,.0f}")
        yield (f"{kind}, {manner}", f"{chosen.recall:.3f}", *told)


def _milliseconds(
    indexes: tuple[VectorIndex, VectorIndex], vectors: Vectors, parameters: SearchParameters, together: int
) -> list[float]:
    """Return the processor time of a query to each index, so many given at a time: the least of rounds in turns."""
    starts = range(0, len(vectors), together)

    def search(index: VectorIndex) -> None:
        for start in starts:
            index.search(vectors[start : start + together], K, parameters)

    rounds = [[_seconds(partial(search, index)) for index in indexes] for _ in range(_ROUNDS)]
    return [min(times) / len(vectors) * 1000 for times in zip(*rounds, strict=True)]


def _seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


if __name__ == "__main__":
    typer.run(main)
