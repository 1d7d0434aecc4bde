"""Shadow: how much the live index finds of what is truly nearest, measured on a sample of the searches it answers."""

import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from indexer.index import compute_alone
from indexer.snapshot import Hit
from service.searcher import Searcher, Terms, Vector
from service.telemetry import Metrics

# Recall is told of so many results, as the build measures it.
_DEPTH = 10
# A comparison is followed by so many times as long without one: it takes 5 % of a core at most.
_REST = 19
_LEAST_PRIORITY = 19


class Shadow:
    """Repeats some searches exactly, after they were answered, and notes what share of the true nearest they found.

    Only searches of all pictures through an approximate index, one at a time, in a thread of the least priority.
    """

    def __init__(self, rate: float, metrics: Metrics) -> None:
        """Start nothing yet.

        Args:
            rate: share of the searches to repeat, 0 to 1.
            metrics: where the recall is noted.
        """
        self._rate = rate
        self._recall = metrics.index_recall
        self._free = threading.Semaphore()
        self._rested = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow", initializer=_step_back)

    def offer(self, searcher: Searcher, vector: Vector, terms: Terms, hits: Sequence[Hit]) -> None:
        """Perhaps repeat a search that found `hits`; return at once."""
        if random.random() >= self._rate or not _is_approximate(searcher, terms) or not hits:  # noqa: S311 - a sample
            return
        if time.monotonic() >= self._rested and self._free.acquire(blocking=False):
            self._thread.submit(self._compare, searcher, vector, terms, hits)

    def close(self) -> None:
        """Return once what is being compared is done."""
        self._thread.shutdown()

    def _compare(self, searcher: Searcher, vector: Vector, terms: Terms, hits: Sequence[Hit]) -> None:
        start = time.monotonic()
        try:
            depth = min(_DEPTH, len(hits))
            (truth,) = searcher.snapshot.search(vector[None, :], depth, terms.kind, exact=True)
            self._recall.labels(terms.kind.value).observe(recall(hits, truth))
        finally:
            end = time.monotonic()
            self._rested = end + _REST * (end - start)
            self._free.release()


def recall(hits: Sequence[Hit], truth: Sequence[Hit]) -> float:
    """Return the share of the true nearest that the first hits are, 0 to 1; an equal of the last of them is as good."""
    scores = np.array([hit.score for hit in hits[: len(truth)]])
    return float((scores >= truth[-1].score).mean())


def _is_approximate(searcher: Searcher, terms: Terms) -> bool:
    return terms.selection is None and not terms.exact and not searcher.snapshot.index.exact


def _step_back() -> None:
    compute_alone()
    # On Linux this is the priority of one thread.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)
