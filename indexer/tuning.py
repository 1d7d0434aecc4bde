"""tune(): measures an approximate index against exact search, and chooses how it is searched for each kind of query."""

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings
from indexer.index import DEFAULT, DEPTH, Rows, SearchParameters, VectorIndex, nearest
from indexer.recall import CurvePoint, KindTuning, Tuning

# Similarities of one pair differ by so much between ways to compute them.
_ROUNDING = 1e-6
_MOST_FACTOR = 256
_MOST_EF_SEARCH = 2_048
_LEAST_EF_SEARCH = 16
# A search that goes further in breadth than one that suffices can be quicker only by re-ranking less: not this much.
_TOO_SLOW = 1.5
# Searches that are timed one by one: so many, or what can be done in so many seconds.
_TIMED, _TIMED_SECONDS, _FEWEST_TIMED = 50, 0.3, 5


@dataclass(frozen=True)
class Queries:
    """Held-out queries of one kind: what they were made from, and unit `vectors`, shape (q, dim)."""

    origin: str
    vectors: Embeddings


@dataclass(frozen=True)
class Truth:
    """What an exact search finds.

    Attributes:
        embeddings: what is searched, unit rows, shape (n, dim).
        queries: unit rows, shape (q, dim).
        depth: how many neighbours of a query count: 10, or all where there are fewer.
        worst: cosine of each query and the last of its neighbours that count, shape (q,).
    """

    embeddings: Embeddings
    queries: Embeddings
    depth: int
    worst: NDArray[np.float32]

    @classmethod
    def of(cls, embeddings: Embeddings, queries: Embeddings, depth: int = DEPTH) -> Self:
        """Compare the queries with all embeddings, which may be memory-mapped."""
        depth = min(depth, len(embeddings))
        rows = nearest(embeddings, queries, depth)
        return cls(embeddings, queries, depth, _cosines(embeddings, queries, rows).min(axis=1))

    def recall(self, rows: Rows) -> NDArray[np.float64]:
        """Return the part of the true neighbours that was found for each query, 0 to 1, shape (q,).

        An answer counts that is as near as the last true neighbour: among equals, an index may take any.

        Args:
            rows: different answers to each query, -1 for none; shape (q, depth).
        """
        right = _cosines(self.embeddings, self.queries, rows.clip(0)) >= self.worst[:, None] - _ROUNDING
        share: NDArray[np.float64] = (right & (rows >= 0)).sum(axis=1) / self.depth
        return share


def tune(index: VectorIndex, embeddings: Embeddings, text: Queries, image: Queries, target: float) -> Tuning:
    """Measure an index and choose the parameters of its searches.

    Args:
        index: an approximate one, as it will be searched.
        embeddings: what it was built over, unit rows, shape (n, dim), which may be memory-mapped.
        text: held-out queries of texts.
        image: held-out queries of pictures.
        target: recall@10 to reach, 0 to 1.
    """
    return Tuning(
        target_recall=target,
        exact_milliseconds=milliseconds(lambda query: nearest(embeddings, query, DEPTH), image.vectors),
        text=_tuned(index, embeddings, text, target),
        image=_tuned(index, embeddings, image, target),
    )


def milliseconds(search: Callable[[Embeddings], object], queries: Embeddings) -> float:
    """Return the median processor time of a search for one query, given in shape (1, dim); a few of them are timed.

    Not the time by the clock: a build shares its machine.
    """
    times: list[float] = []
    for query in queries[:_TIMED]:
        if len(times) >= _FEWEST_TIMED and sum(times) > _TIMED_SECONDS:
            break
        start = time.process_time()
        search(query[None, :])
        times.append(time.process_time() - start)
    return float(np.median(times)) * 1_000


def _tuned(index: VectorIndex, embeddings: Embeddings, queries: Queries, target: float) -> KindTuning:
    sweep = _Sweep(index, Truth.of(embeddings, queries.vectors), target)
    sweep.along_the_border()
    sweep.around(sweep.chosen())
    chosen, curve = sweep.chosen(), sorted(sweep.points.values(), key=_merit)
    return KindTuning(origin=queries.origin, queries=len(queries.vectors), chosen=chosen, curve=tuple(curve))


class _Sweep:
    """Tries settings of an index with the queries of one kind, each once."""

    def __init__(self, index: VectorIndex, truth: Truth, target: float) -> None:
        self.points: dict[SearchParameters, CurvePoint] = {}
        self._index = index
        self._truth = truth
        self._target = target
        self._breadths = _breadths(index)

    def along_the_border(self) -> None:
        """Try settings along the border between those that reach the target and those that do not.

        Recall grows with the breadth of a search and with the candidates that are re-ranked. So the narrowest search
        that suffices with the most candidates is looked for; then, of wider and wider ones, the fewest candidates.
        """
        factors, quickest = _factors(self._index), np.inf
        narrowest = bisect_left(self._breadths, True, key=lambda breadth: self._try(breadth, factors[-1]))
        for breadth in self._breadths[narrowest:]:
            if self._try(breadth, factors[-1]):
                del factors[bisect_left(factors[:-1], True, key=partial(self._try, breadth)) :]
                quickest = self.chosen().milliseconds
            elif self._measured(breadth, factors[-1]).milliseconds > _TOO_SLOW * quickest:
                return
            if not factors:
                return

    def around(self, chosen: CurvePoint) -> None:
        """Try narrower searches, and the next wider one, with as many candidates as a setting has: a curve to show."""
        widest = self._breadths.index(chosen.parameters.model_copy(update={"k_factor": None}))
        for breadth in self._breadths[: widest + 2]:
            self._measured(breadth, chosen.parameters.k_factor)

    def chosen(self) -> CurvePoint:
        """Return the quickest setting that reaches the target, or the best where none does."""
        reaching = [point for point in self.points.values() if point.recall >= self._target]
        return (
            min(reaching, key=lambda point: point.milliseconds) if reaching else max(self.points.values(), key=_merit)
        )

    def _try(self, breadth: SearchParameters, factor: float | None) -> bool:
        """Tell whether a setting reaches the target."""
        return self._measured(breadth, factor).recall >= self._target

    def _measured(self, breadth: SearchParameters, factor: float | None) -> CurvePoint:
        parameters = breadth.model_copy(update={"k_factor": factor})
        if parameters not in self.points:
            truth = self._truth
            found = truth.recall(self._index.search(truth.queries, truth.depth, parameters))
            took = milliseconds(lambda query: self._index.search(query, truth.depth, parameters), truth.queries)
            self.points[parameters] = CurvePoint(parameters=parameters, recall=float(found.mean()), milliseconds=took)
        return self.points[parameters]


def _merit(point: CurvePoint) -> tuple[float, float]:
    return point.recall, -point.milliseconds


def _breadths(index: VectorIndex) -> list[SearchParameters]:
    """Return how widely an index can search, rising; one setting where nothing can be set."""
    adjustable = index.adjustable
    if adjustable.lists:
        return [SearchParameters(nprobe=lists) for lists in _steps(1, adjustable.lists)]
    if adjustable.graph:
        return [SearchParameters(ef_search=nodes) for nodes in _steps(_LEAST_EF_SEARCH, _MOST_EF_SEARCH)]
    return [DEFAULT]


def _factors(index: VectorIndex) -> list[float | None]:
    """Return how many times as many candidates an index can re-rank as are asked for, rising."""
    most = min(_MOST_FACTOR, max(len(index) // DEPTH, 1))
    return [float(step) for step in _steps(1, most)] if index.adjustable.refines else [None]


def _steps(least: int, most: int) -> list[int]:
    """Return least, and then 2, 3, 4, 6, 8, 12, ... times as much, up to `most`, which is the last."""
    rising = {least * factor << power for power in range(most.bit_length()) for factor in (2, 3)}
    return [least, *sorted(step for step in rising if step < most), *([most] if most > least else [])]


def _cosines(embeddings: Embeddings, queries: Embeddings, rows: Rows) -> NDArray[np.float32]:
    cosines: NDArray[np.float32] = np.einsum("qkd,qd->qk", embeddings[rows], queries)
    return cosines
