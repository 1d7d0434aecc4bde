"""GpuIndex on stand-ins for GPUs: FAISS's own fp16 indexes on the CPU, with memory that is counted."""

import functools
import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from indexer.encoder import Embeddings
from indexer.errors import NoGpu
from indexer.gpu_index import GpuIndex, on_gpu
from indexer.index import SearchParameters, VectorIndex
from indexer.index_building import build_index
from indexer.recall import QueryKind
from indexer.selection import Selection
from indexer.store import SnapshotStore
from tests.snapshots import unit, unit_vectors, write_snapshot

COUNT, DIM = 1_000, 16
# Two bytes a number, and two norms of four: an eighth more is kept for the vectors that are being added.
A_VECTOR = 2 * DIM + 8
KEPT = 4 * 2**30


class Flat(faiss.IndexScalarQuantizer):  # type: ignore[misc]
    """Every vector in fp16, as in a flat index on a GPU."""

    threads: Any = None  # FAISS lets no instance have attributes that its class has not
    busy: Any = None

    def __init__(self, dim: int) -> None:
        super().__init__(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self.threads = set()
        self.busy = threading.Lock()

    def search(self, vectors: Embeddings, k: int, **more: Any) -> Any:
        """Search, in one thread at a time."""
        self.threads.add(threading.get_ident())
        assert self.busy.acquire(blocking=False), "two threads search at once"
        try:
            return super().search(vectors, k, **more)
        finally:
            self.busy.release()


class Heedless(Flat):
    """Takes no notice of a selection, as FAISS's own implementation for GPUs."""

    def search(self, vectors: Embeddings, k: int, **_: Any) -> Any:
        """Search among all."""
        return super().search(vectors, k)


class Wrong(Flat):
    """Finds other vectors than the nearest."""

    def search(self, vectors: Embeddings, k: int, **more: Any) -> Any:
        """Search for the opposite."""
        return super().search(-vectors, k, **more)


class Failing(Flat):
    """Fails once it is told to."""

    failing = False

    def search(self, vectors: Embeddings, k: int, **more: Any) -> Any:
        """Search, or fail."""
        if Failing.failing:
            raise RuntimeError("CUDA error 700")
        return super().search(vectors, k, **more)


class StandIn:
    """A GPU with room for so many vectors of 16 dimensions, and for those that are being added."""

    def __init__(self, room: int = 10 * COUNT, kind: type[Flat] = Flat, most: int = 2_048) -> None:
        self.most = most
        self.indexes: weakref.WeakSet[Any] = weakref.WeakSet()
        self._memory = KEPT + room * A_VECTOR * 8 // 7 + 8
        self._kind = kind

    def free(self) -> int:
        """Return what the indexes there leave."""
        return self._memory - sum(self.counts) * A_VECTOR

    def flat(self, dim: int) -> Any:
        """Return an empty index."""
        index = self._kind(dim)
        self.indexes.add(index)
        return index

    def copy(self, index: Any) -> Any:
        """Return a copy."""
        return faiss.clone_index(index)

    @property
    def counts(self) -> list[int]:
        """How many vectors each index has."""
        return sorted(int(index.ntotal) for index in self.indexes)


@functools.cache
def on_cpu(factory: str) -> VectorIndex:
    """Build an index of the CPU's."""
    return build_index(unit_vectors(COUNT, DIM), factory)


@pytest.fixture(scope="module")
def vectors() -> Embeddings:
    """Draw 1,000 directions of 16 dimensions."""
    return unit_vectors(COUNT, DIM)


@pytest.fixture(scope="module")
def flat() -> VectorIndex:
    """Build the CPU's exact index."""
    return on_cpu("Flat")


@pytest.fixture(scope="module")
def queries() -> Embeddings:
    """Draw 30 queries."""
    return unit_vectors(30, DIM, seed=1)


@pytest.fixture(autouse=True)
def sound() -> Iterator[None]:
    """Let no test leave failing GPUs behind."""
    yield
    Failing.failing = False


def nearest(vectors: Embeddings, queries: Embeddings, k: int, among: Selection | None = None) -> list[list[int]]:
    """Find the nearest rows by sorting all of them."""
    rows = np.arange(len(vectors)) if among is None else among.rows()
    scores = queries.astype(np.float64) @ vectors[rows].astype(np.float64).T
    return rows[np.argsort(-scores, axis=1)[:, :k]].tolist()  # type: ignore[no-any-return]


# Flat


@pytest.mark.parametrize("rooms", [[10_000], [1_000], [500, 500], [700, 150, 150], [900, 0, 108], [5_000, 5_000]])
def test_every_vector_is_compared_however_they_are_split(
    vectors: Embeddings, flat: VectorIndex, queries: Embeddings, rooms: list[int]
) -> None:
    index = on_gpu(vectors, flat, "cuda", gpus=[StandIn(room) for room in rooms])
    assert isinstance(index, GpuIndex)
    assert (len(index), index.dim, index.exact, index.selects) == (COUNT, DIM, True, True)
    assert index.search(queries, 10).tolist() == nearest(vectors, queries, 10)
    assert index.search(queries[:1], 100).tolist() == nearest(vectors, queries[:1], 100)


def test_gpus_take_vectors_in_proportion_to_their_memory_and_a_full_one_in_seven_parts(
    vectors: Embeddings, flat: VectorIndex
) -> None:
    gpus = [StandIn(700), StandIn(300)]
    index = on_gpu(vectors, flat, "cuda", gpus=gpus)
    assert len(index) == COUNT
    assert gpus[0].counts == [80] + [104] * 6  # 704, and a seventh in multiples of eight
    assert gpus[1].counts == [8] + [48] * 6


def test_fewer_vectors_than_gpus_leave_some_without(queries: Embeddings) -> None:
    few = unit_vectors(9, DIM)
    gpus = [StandIn() for _ in range(4)]
    index = on_gpu(few, build_index(few, "Flat"), "cuda", gpus=gpus)
    assert [sum(gpu.counts) for gpu in gpus] == [8, 0, 0, 1]
    assert index.search(queries, 4).tolist() == nearest(few, queries, 4)


def test_neighbours_that_fp16_cannot_tell_apart_are_told_apart_in_fp32() -> None:
    step = np.arange(6)[:, None] * 2e-5
    vectors = unit(np.hstack([np.ones((6, 1)), 0.3 + step, np.zeros((6, DIM - 2))]))
    assert (vectors.astype(np.float16) == vectors[:1].astype(np.float16)).all()
    index = on_gpu(vectors, build_index(vectors, "Flat"), "cuda", gpus=[StandIn()])
    query = unit(np.array([[0.0, 1.0, *[0.0] * (DIM - 2)]]))
    assert index.search(query, 3).tolist() == [[5, 4, 3]]


def test_more_neighbours_than_there_are_vectors_end_in_none(
    vectors: Embeddings, flat: VectorIndex, queries: Embeddings
) -> None:
    index = on_gpu(vectors, flat, "cuda", gpus=[StandIn()])
    rows = index.search(queries[:2], COUNT + 5)
    assert rows[:, COUNT:].tolist() == [[-1] * 5] * 2
    assert rows[:, :COUNT].tolist() == nearest(vectors, queries[:2], COUNT)


def test_more_neighbours_than_a_gpu_can_find_are_found_by_the_cpu(vectors: Embeddings, queries: Embeddings) -> None:
    gpu = StandIn(most=50)
    index = on_gpu(vectors, on_cpu("IVF8,Flat"), "cuda", gpus=[gpu])
    assert index.search(queries, 200).tolist() == nearest(vectors, queries, 200)
    assert index.exact


# Selections


@pytest.mark.parametrize("rooms", [[10_000], [1_000], [500, 500]])
@pytest.mark.parametrize("wanted", [range(0, 1_000, 3), range(990, 1_000), range(5), [123, 987]])
def test_a_search_among_selected_rows_finds_the_nearest_of_them(
    vectors: Embeddings, flat: VectorIndex, queries: Embeddings, rooms: list[int], wanted: range | list[int]
) -> None:
    index = on_gpu(vectors, flat, "cuda", gpus=[StandIn(room) for room in rooms])
    selection = Selection.of(wanted, COUNT)
    k = min(10, selection.count)
    assert index.search(queries, k, selection=selection).tolist() == nearest(vectors, queries, k, selection)


def test_a_gpu_that_takes_no_notice_of_selections_is_found_out(
    vectors: Embeddings, flat: VectorIndex, queries: Embeddings
) -> None:
    index = on_gpu(vectors, flat, "cuda", gpus=[StandIn(kind=Heedless)])
    assert (index.exact, index.selects) == (True, False)
    rows = index.search(queries, 10, selection=Selection.of(range(500), COUNT))
    assert rows.max() < 500
    assert index.search(queries, 10).tolist() == nearest(vectors, queries, 10)


# Threads


def test_each_gpu_is_only_ever_touched_by_one_thread(
    vectors: Embeddings, flat: VectorIndex, queries: Embeddings
) -> None:
    gpus = [StandIn(500), StandIn(504)]
    index = on_gpu(vectors, flat, "cuda", gpus=gpus)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda query: index.search(query[None, :], 10)[0].tolist(), np.tile(queries, (10, 1))))
    assert answers == nearest(vectors, queries, 10) * 10
    threads = [set().union(*(each.threads for each in gpu.indexes)) for gpu in gpus]
    assert [len(own) for own in threads] == [1, 1]
    assert len(threads[0] | threads[1] | {threading.get_ident()}) == 3


# Copies of the CPU's index


@pytest.mark.parametrize(("factory", "gpus"), [("IVF8,SQ8", 1), ("IVF8,SQ8", 2), ("IVF8,PQ8x4", 1), ("IVF8,PQ8x4", 2)])
@pytest.mark.parametrize("batch", [1, 2, 30])
def test_where_flat_does_not_fit_each_gpu_takes_a_copy_and_answers_as_the_cpu(
    vectors: Embeddings, queries: Embeddings, factory: str, gpus: int, batch: int
) -> None:
    cpu = on_cpu(factory)
    # For each of two GPUs, room for less than half of the vectors is less than a copy in 8 bits takes.
    cards = [StandIn(800 if gpus == 1 else 490) for _ in range(gpus)]
    if (factory, gpus) == ("IVF8,SQ8", 2):
        with pytest.raises(NoGpu, match="a copy of the index takes 3e-05 GB on each"):
            on_gpu(vectors, cpu, "cuda", gpus=cards)
        return
    index = on_gpu(vectors, cpu, "cuda", gpus=cards)
    assert isinstance(index, GpuIndex)
    assert (index.exact, index.selects) == (False, True)
    parameters, odd = SearchParameters(nprobe=3), Selection.of(range(1, COUNT, 2), COUNT)
    for among in (None, odd):
        expected = cpu.search(queries[:batch], 10, parameters, among)
        assert index.search(queries[:batch], 10, parameters, among).tolist() == expected.tolist()


def test_a_search_of_more_lists_than_a_gpu_can_scan_is_made_by_the_cpu(
    vectors: Embeddings, queries: Embeddings
) -> None:
    cpu = on_cpu("IVF64,SQ8")
    index = on_gpu(vectors, cpu, "cuda", gpus=[StandIn(800, most=20)])
    wide = SearchParameters(nprobe=40)
    assert index.search(queries, 10, wide).tolist() == cpu.search(queries, 10, wide).tolist()
    assert index.search(queries, 30).tolist() == cpu.search(queries, 30).tolist()


def test_an_index_that_neither_fits_nor_can_be_copied_is_refused_and_one_that_would_fit_is_named(
    vectors: Embeddings,
) -> None:
    with pytest.raises(NoGpu) as raised:
        on_gpu(vectors, on_cpu("HNSW8"), "cuda", gpus=[StandIn(999)])
    assert str(raised.value) == (
        "The device is to be cuda. 1,000 vectors of 16 dimensions take 4e-05 GB in fp16, and the GPUs have room for "
        "4e-05 GB: more GPUs would hold them, or an index such as IVF4096,SQ8, of half the size. With the device auto, "
        "the CPU would search."
    )


# Failures


@pytest.mark.parametrize("factory", ["Flat", "IVF8,PQ8x4", "HNSW8"])
def test_a_gpu_that_fails_in_a_search_leaves_it_and_all_others_to_the_cpu(
    vectors: Embeddings, queries: Embeddings, factory: str, caplog: pytest.LogCaptureFixture
) -> None:
    cpu = on_cpu(factory)
    gpu = StandIn(kind=Failing)
    index = on_gpu(vectors, cpu, "cuda", gpus=[gpu])
    assert index.exact
    Failing.failing = True
    with caplog.at_level(logging.WARNING):
        # What began as an exact search ends as one, whatever the CPU's index is.
        assert index.search(queries, 10).tolist() == nearest(vectors, queries, 10)
        assert index.search(queries, 10).tolist() == cpu.search(queries, 10).tolist()
    assert [record.getMessage() for record in caplog.records] == [
        "A GPU failed; the CPU searches from now on. CUDA error 700"
    ]
    assert (index.exact, index.selects) == (cpu.exact, cpu.selects)
    gc.collect()
    assert not gpu.indexes


@pytest.mark.parametrize(("kind", "why"), [(Failing, "CUDA error 700"), (Wrong, "does not find vectors")])
def test_a_gpu_that_fails_or_errs_at_the_start_is_not_used(
    vectors: Embeddings, flat: VectorIndex, kind: type[Flat], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    Failing.failing = True
    assert on_gpu(vectors, flat, "auto", gpus=[StandIn(kind=kind)]) is flat
    assert why in caplog.text
    with pytest.raises(NoGpu, match=rf"^The device is to be cuda\. A GPU failed: .*{why}.*the CPU would search\.$"):
        on_gpu(vectors, flat, "cuda", gpus=[StandIn(kind=kind)])


def test_without_a_gpu_the_cpu_searches_unless_a_gpu_is_demanded(vectors: Embeddings, flat: VectorIndex) -> None:
    assert on_gpu(vectors, flat, "auto") is flat
    assert on_gpu(vectors, flat, "cpu", gpus=[StandIn()]) is flat
    with pytest.raises(NoGpu, match=r"for CPUs only: install|finds no GPU: it needs"):
        on_gpu(vectors, flat, "cuda")


def test_an_index_over_nothing_stays_on_the_cpu() -> None:
    nothing = np.empty((0, DIM), np.float32)
    index = VectorIndex(faiss.IndexFlatIP(DIM))
    assert on_gpu(nothing, index, "cuda", gpus=[StandIn()]) is index


# Swaps


def test_an_index_that_is_replaced_makes_room_where_both_do_not_fit(
    vectors: Embeddings, flat: VectorIndex, queries: Embeddings
) -> None:
    gpu = StandIn(1_500)
    old = on_gpu(vectors, flat, "cuda", gpus=[gpu])
    others = unit_vectors(COUNT, DIM, seed=2)
    new = on_gpu(others, build_index(others, "Flat"), "cuda", replaced=old, gpus=[gpu])
    assert sum(gpu.counts) == COUNT
    assert new.search(queries, 10).tolist() == nearest(others, queries, 10)
    assert old.search(queries, 10).tolist() == nearest(vectors, queries, 10)


def test_an_index_that_is_replaced_stays_where_both_fit(vectors: Embeddings, flat: VectorIndex) -> None:
    gpu = StandIn(2_500)
    old = on_gpu(vectors, flat, "cuda", gpus=[gpu])
    new = on_gpu(vectors, flat, "cuda", replaced=old, gpus=[gpu])
    assert sum(gpu.counts) == 2 * COUNT
    assert (len(old), len(new)) == (COUNT, COUNT)
    assert on_gpu(vectors, new, "cuda", gpus=[gpu]) is new


# Snapshots


@pytest.mark.parametrize("factory", ["Flat", "HNSW8"])
def test_a_snapshot_answers_from_gpus_as_it_does_when_it_compares_with_every_picture(
    tmp_path: Path, vectors: Embeddings, queries: Embeddings, factory: str
) -> None:
    store = SnapshotStore(tmp_path)
    snapshot = store.open(write_snapshot(store, vectors, factory=factory))
    gpus = [StandIn(500), StandIn(508)]
    placed = replace(snapshot, index=on_gpu(snapshot.embeddings, snapshot.index, "cuda", gpus=gpus))
    placed.check_canaries()
    for among in (None, Selection.of(range(0, COUNT, 7), COUNT)):
        expected = snapshot.search(queries, 10, QueryKind.TEXT, selection=among, exact=True)
        assert placed.search(queries, 10, QueryKind.TEXT, selection=among) == expected
