"""GpuIndex: search on the GPUs of this machine. A door to FAISS.

The vectors lie on the GPUs in fp16 and every one is compared (Flat), for as long as they fit. They are split over all
GPUs: half of the vectors each takes half the time, so that whole copies would answer no more queries. Where they do not
fit, each GPU takes a copy of the CPU's index, if that is of a kind that FAISS has there, and the queries are split.

FAISS's GPU indexes may not even be read by two threads at once, and their streams and handles belong to the thread that
uses them: so each GPU has one thread that alone touches it. Whatever goes wrong, the CPU's index goes on answering;
only what FAISS asserts about CUDA itself ends the process.
"""

import itertools
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings
from indexer.errors import NoGpu
from indexer.gpus import Gpu, find_gpus
from indexer.index import DEFAULT, Index, Rows, SearchParameters, VectorIndex, last_line, nearest
from indexer.selection import Selection

Scores = NDArray[np.float32]

# The kinds that FAISS can copy and that can be smaller than Flat in fp16.
_COPIED = (faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ)
# Left free on each GPU: FAISS takes 1.5 GiB at once and cuVS some for each batch, and the encoder may be beside them.
_SCRATCH = 4 * 2**30
# FAISS grows an index by copying it: several small ones, of an eighth of the memory, need only that much more for it.
_PARTS = 8
# What a vector takes beside its numbers: its norm, of which there are two while vectors are added.
_NORMS = 8
# FAISS's lists grow by a quarter.
_GROWTH = 1.25
# Rows that are sent to a GPU at a time.
_ADD_ROWS = 65_536
# A cosine in fp16 is off by 1.3e-5 (standard deviation, 512 dimensions): 0.04 % of the nearest were not among the k
# best of it, and all of them among so many more.
_SPARE, _SPARE_SHARE = 8, 8
_PROBES, _PROBE_DEPTH, _PROBE_SCORE = 8, 10, 0.999

_LOG = logging.getLogger(__name__)


def on_gpu(
    embeddings: Embeddings,
    index: Index,
    device: Literal["auto", "cpu", "cuda"],
    replaced: Index | None = None,
    gpus: Sequence[Gpu] | None = None,
) -> Index:
    """Return an index on the GPUs, or the CPU's where that is what there is.

    Args:
        embeddings: unit rows, shape (n, dim), which may be memory-mapped.
        index: the CPU's over the same vectors; one on GPUs stays as it is.
        device: `auto` takes GPUs where there are some and the vectors fit, `cuda` insists on them.
        replaced: an index that is about to go. Where both do not fit, it gives up its GPUs first, and what is still
            asked of it is answered by its CPU.
        gpus: where to; those that FAISS finds if None.

    Raises:
        NoGpu: the device is `cuda`, and the GPUs cannot be used.
    """
    if device == "cpu" or not len(index) or not isinstance(index, VectorIndex):
        return index
    try:
        gpus = find_gpus() if gpus is None else gpus
        if isinstance(replaced, GpuIndex) and sum(_room(gpus, index.dim)) < len(index):
            replaced.release()
        return GpuIndex(embeddings, index, gpus)
    except (NoGpu, RuntimeError, MemoryError, AssertionError) as error:
        why = str(error) if isinstance(error, NoGpu) else f"A GPU failed: {last_line(error)}."
        if device == "cuda":
            raise NoGpu(f"The device is to be cuda. {why} With the device auto, the CPU would search.") from error
        _LOG.log(logging.WARNING if gpus else logging.INFO, "The CPU searches. %s", why)
        return index


class GpuIndex:
    """An index on GPUs over the vectors of a CPU index, which answers what they do not.

    As Flat it is `exact`: more candidates than asked for are found in fp16 and compared in fp32, so that of vectors
    whose cosines differ by more than some 1e-4 never the wrong one is found.
    """

    def __init__(self, embeddings: Embeddings, index: VectorIndex, gpus: Sequence[Gpu]) -> None:
        """Put vectors on GPUs, as `on_gpu` says.

        Raises:
            NoGpu: they do not fit.
            RuntimeError, MemoryError: of FAISS, or the GPUs answer wrongly.
        """
        self._embeddings = embeddings
        self._cpu = index
        self._most = min(gpu.most for gpu in gpus)
        self._turn = itertools.count()
        self._lost = False
        parts = _split(len(index), _room(gpus, index.dim))
        self._flat = bool(parts)
        if self._flat:
            self._owners = [_Owner(gpu) for gpu, own in zip(gpus, parts, strict=True) if own]
            work = [owner.fill(embeddings, own) for owner, own in zip(self._owners, filter(None, parts), strict=True)]
        else:
            _check_copy(index, gpus)
            self._owners = [_Owner(gpu) for gpu in gpus]
            work = [owner.copy(index.faiss_index) for owner in self._owners]
        heeded = [each.result() for each in work]
        self._selects = all(heeded)
        self._probe()

    def __len__(self) -> int:
        return len(self._cpu)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._cpu.dim

    @property
    def exact(self) -> bool:
        """Whether it finds the true nearest."""
        return self._cpu.exact if self._lost else self._flat

    @property
    def selects(self) -> bool:
        """Whether it can search among the rows of a selection."""
        return self._cpu.selects if self._lost else self._selects

    def search(
        self, vectors: Embeddings, k: int, parameters: SearchParameters = DEFAULT, selection: Selection | None = None
    ) -> Rows:
        """Return the rows of the nearest vectors to each of n, as `Index.search` says."""
        exact = self.exact  # as it was when the caller looked
        available = len(self) if selection is None else selection.count
        asked = min(k + max(_SPARE, k // _SPARE_SHARE), available) if self._flat else k
        if not self._lost and self._takes(asked, parameters):
            try:
                rows = self._rows(vectors, asked, parameters, selection)
                return self._ranked(vectors, rows, k) if self._flat else rows
            except (RuntimeError, MemoryError) as error:
                if not self._lost:
                    _LOG.warning("A GPU failed; the CPU searches from now on. %s", last_line(error))
                    self.release()
        if exact or (selection is not None and not self._cpu.selects):
            return nearest(self._embeddings, vectors, k, selection)
        return self._cpu.search(vectors, k, parameters, selection)

    def release(self) -> None:
        """Give up the GPUs: the CPU searches from now on."""
        self._lost = True
        for owner in self._owners:
            owner.clear()

    def _takes(self, k: int, parameters: SearchParameters) -> bool:
        """Tell whether the GPUs may be asked for k neighbours, and so thoroughly."""
        lists = 0 if self._flat else parameters.deepened(k).nprobe or 0
        return 0 < k <= self._most and lists <= self._most

    def _rows(self, vectors: Embeddings, k: int, parameters: SearchParameters, selection: Selection | None) -> Rows:
        """Return the rows that the GPUs find, shape (n, k)."""
        if not self._flat:
            pieces = np.array_split(vectors, min(len(vectors), len(self._owners)))
            turn = next(self._turn)
            owners = [self._owners[(turn + number) % len(self._owners)] for number in range(len(pieces))]
            work = [each.search(own, k, parameters, selection) for each, own in zip(owners, pieces, strict=True)]
            return np.concatenate([each.result()[1] for each in work])
        best = faiss.ResultHeap(len(vectors), k, keep_max=True)
        for each in [owner.search(vectors, k, parameters, selection) for owner in self._owners]:
            best.add_result(*each.result())
        best.finalize()
        rows: Rows = best.I
        return rows

    def _ranked(self, vectors: Embeddings, found: Rows, k: int) -> Rows:
        """Return the k best of the rows found for each vector by their scores in fp32, shape (n, k)."""
        ranked = np.full((len(vectors), k), -1)
        for own, vector, out in zip(found, vectors, ranked, strict=True):
            rows = own[own >= 0]
            order = np.argsort(-(self._embeddings[rows] @ vector), kind="stable")[:k]
            out[: len(order)] = rows[order]
        return ranked

    def _probe(self) -> None:
        """Search for a few of the vectors, of which an approximate index may miss some."""
        rows = np.linspace(0, len(self) - 1, _PROBES).astype(np.int64)
        vectors = self._embeddings[rows]
        found = self._rows(vectors, min(_PROBE_DEPTH, len(self)), DEFAULT, None)
        scores = [(self._embeddings[own[own >= 0]] @ vector) for own, vector in zip(found, vectors, strict=True)]
        if sum(bool((own >= _PROBE_SCORE).any()) for own in scores) * 2 < _PROBES:
            self.release()
            raise RuntimeError("It does not find vectors that it was given.")


class _Owner:
    """The indexes on one GPU, and the only thread that touches them; each search is of all of them."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._parts: list[tuple[int, VectorIndex]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu")

    def fill(self, embeddings: Embeddings, parts: Sequence[range]) -> Future[bool]:
        """Make a flat index of each range of rows; the result is whether selections are heeded."""
        return self._thread.submit(self._fill, embeddings, parts)

    def copy(self, index: Any) -> Future[bool]:
        """Copy an index over all rows; the result is whether selections are heeded."""
        return self._thread.submit(self._copy, index)

    def search(
        self, vectors: Embeddings, k: int, parameters: SearchParameters, selection: Selection | None
    ) -> Future[tuple[Scores, Rows]]:
        """Return the best k of its rows for each vector, best first; -1 where it finds no more."""
        return self._thread.submit(self._search, vectors, k, parameters, selection)

    def clear(self) -> None:
        """Free the memory, once what was asked before is answered."""
        self._thread.submit(self._parts.clear).result()

    def _fill(self, embeddings: Embeddings, parts: Sequence[range]) -> bool:
        for rows in parts:
            index = self._gpu.flat(embeddings.shape[1])
            for start in range(rows.start, rows.stop, _ADD_ROWS):
                index.add(np.ascontiguousarray(embeddings[start : min(start + _ADD_ROWS, rows.stop)], np.float32))
            self._parts.append((rows.start, VectorIndex(index)))
        return self._parts[0][1].selects

    def _copy(self, index: Any) -> bool:
        self._parts.append((0, VectorIndex(self._gpu.copy(index))))
        return self._parts[0][1].selects

    def _search(
        self, vectors: Embeddings, k: int, parameters: SearchParameters, selection: Selection | None
    ) -> tuple[Scores, Rows]:
        if not self._parts:
            raise RuntimeError("It was given up.")
        best = faiss.ResultHeap(len(vectors), k, keep_max=True)
        for start, index in self._parts:
            own = None if selection is None else _cut(selection, start, len(index))
            most = min(k, len(index) if own is None else own.count)
            if not most:
                continue
            scores, rows = index.scored(vectors, most, parameters, own)
            good = rows >= 0
            if own is not None:
                # Whatever the probe has told: no answer is a row that was not to be found.
                good &= (own.bits[rows >> 3] >> (rows & 7) & 1).astype(np.bool_)
            best.add_result(np.where(good, scores, -np.inf), np.where(good, rows + start, -1))
        best.finalize()
        return best.D, best.I


def _room(gpus: Sequence[Gpu], dim: int) -> list[int]:
    """Return for how many vectors in fp16 each GPU has room, and for those that are being added besides."""
    usable = [max(gpu.free() - _SCRATCH, 0) for gpu in gpus]
    return [each * (_PARTS - 1) // _PARTS // (2 * dim + _NORMS) for each in usable]


def _split(count: int, room: Sequence[int]) -> list[list[range]]:
    """Return the rows of each index on each GPU, in proportion to its room; nothing if there is not room for all."""
    if sum(room) < count:
        return []
    # Multiples of 8, so that selections, eight rows to a byte, can be cut there.
    stops = [min(-(-count * total // sum(room) // 8) * 8, count) for total in itertools.accumulate(room)]
    steps = [max(-(-own // (_PARTS - 1) // 8) * 8, 8) for own in room]
    return [
        [range(first, min(first + step, stop)) for first in range(start, stop, step)]
        for start, stop, step in zip([0, *stops], stops, steps, strict=False)
    ]


def _cut(selection: Selection, start: int, count: int) -> Selection:
    """Return the selection among `count` rows from `start`, a multiple of 8."""
    bits = selection.bits[start // 8 : -(-(start + count) // 8)]
    return Selection(bits, int(np.bitwise_count(bits).sum()))


def _check_copy(index: VectorIndex, gpus: Sequence[Gpu]) -> None:
    """Raise NoGpu unless each GPU has room for a copy of an index, of a kind that can be copied."""
    count, dim = len(index), index.dim
    flat, total = count * (2 * dim + _NORMS), sum(_room(gpus, dim)) * (2 * dim + _NORMS)
    why = f"{count:,} vectors of {dim} dimensions take {_giga(flat)} in fp16, and the GPUs have room for {_giga(total)}"
    inner = faiss.downcast_index(index.faiss_index)
    if not isinstance(inner, _COPIED):
        raise NoGpu(f"{why}: more GPUs would hold them, or an index such as IVF4096,SQ8, of half the size.")
    need = int(count * (inner.code_size + 8) * _GROWTH)
    least = max(min(gpu.free() for gpu in gpus) - _SCRATCH, 0)
    if need > least:
        raise NoGpu(f"{why}; a copy of the index takes {_giga(need)} on each, and there is room for {_giga(least)}.")


def _giga(size: int) -> str:
    return f"{size / 10**9:.3g} GB"
