"""Twice as many searches as the service can answer: each is answered rightly, or told when to come again."""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from tests.bench.closed_loop import ask, measure
from tests.bench.open_loop import Outcome, offer
from tests.bench.overload import CONNECTIONS, NORMAL, SATURATING, starting_on
from tests.bench.serving_material import Template
from tests.served import most_resident, resident, serving
from tests.trust.figures import LONG, noted, sized

pytestmark = LONG

SEED = 14
_SEARCH = Template(b'{"query":"picture number ', b'","limit":24}').posted("/v1/search", "application/json")
_REQUESTS = [_SEARCH.numbered(number) for number in range(50)]


def scores(body: bytes) -> dict[str, float]:
    return {each["id"]: each["score"] for each in json.loads(body)["results"]}


def compared(port: int) -> Callable[[bytes, bytes], str]:
    """Return what tells an answer that is wrong, by those that each request gets while nobody else asks."""
    right = {request: pytest.approx(scores(ask(port, request)), abs=1e-5) for request in _REQUESTS}
    assert all(len(found.expected) == 24 for found in right.values())
    return lambda request, body: "" if scores(body) == right[request] else "a wrong answer"


def p99(outcome: Outcome) -> float:
    return float(np.percentile([latency for _, latency in outcome.answered], 99))


def test_at_twice_the_load_each_search_is_answered_rightly_or_refused_properly(snapshots: Path) -> None:
    seconds = sized(10, 30, 600)
    with ExitStack() as stack:
        with starting_on(max(os.sched_getaffinity(0))):  # so that what asks takes little from what answers
            service = stack.enter_context(serving(snapshots, KINDRED_THREADS="1", KINDRED_TEXT_CACHE="0"))
        port = service.port
        check = compared(port)
        closed = measure(port, cycle(_REQUESTS), CONNECTIONS, 5.0).rate
        capacity = offer(port, cycle(_REQUESTS), SATURATING * closed, 5.0, SEED, check).goodput
        normal = offer(port, cycle(_REQUESTS), NORMAL * capacity, 5.0, SEED, check)
        before = resident(service.process.pid) >> 20
        outcome = offer(port, cycle(_REQUESTS), 2 * capacity, seconds, SEED, check)
        most = most_resident(service.process.pid) >> 20
        assert [check(request, ask(port, request)) for request in _REQUESTS] == [""] * len(_REQUESTS)
    for each in (normal, outcome):
        assert not each.others
        assert len(each.answered) + len(each.refused) == each.intended
    assert outcome.refused
    assert most < 1.1 * before + 32
    figure = f"{outcome.intended:,} searches in {seconds} s, at twice the {capacity:,.0f}/s that it can answer: "
    figure += f"{len(outcome.answered):,} answered rightly, {outcome.goodput / capacity:.0%} of capacity, "
    figure += f"{len(outcome.refused):,} refused, 0 otherwise; p99 {p99(outcome) / p99(normal):.1f} times that at 0.8; "
    noted(promise="R14", figure=figure + f"memory {before} MiB, {most} at most", seed=SEED)
