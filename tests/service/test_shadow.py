"""The recall of the live index, measured on the searches that it answers."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from fastapi.testclient import TestClient

from indexer.encoder import Encoder
from indexer.recall import QueryKind
from indexer.selection import Selection
from indexer.store import SnapshotStore
from service.app import create_app
from service.searcher import Searcher, Terms
from service.settings import ServiceSettings
from service.shadow import Shadow
from service.telemetry import Metrics
from tests.conftest import build_snapshot
from tests.served import wait_for

TERMS = Terms(5, QueryKind.IMAGE)


def built(source: Path, folder: Path, encoder: Encoder, index: str) -> Searcher:
    """Return a searcher over an index that is searched as FAISS does unless told: in one list of two."""
    build_snapshot(source, folder, encoder, index=index)
    store = SnapshotStore(folder)
    snapshot = store.open(store.published())
    return Searcher(replace(snapshot, manifest=snapshot.manifest.model_copy(update={"tuning": None})), encoder)


def sampled(metrics: Metrics, kind: QueryKind = QueryKind.IMAGE) -> tuple[float, float]:
    """Return how many searches were compared, and the sum of their recalls."""
    lines = metrics.text().decode().splitlines()
    told = dict(line.rsplit(" ", 1) for line in lines if f'kind="{kind.value}"' in line)
    name = "kindred_index_recall_ratio"
    return tuple(float(told.get(f'{name}_{part}{{kind="{kind.value}"}}', 0)) for part in ("count", "sum"))  # type: ignore[return-value]


def test_the_share_of_the_true_nearest_that_a_search_found_is_noted(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    searcher = built(source, tmp_path / "ivf", encoder, "IVF2,Flat")
    embeddings = np.array(searcher.snapshot.embeddings)
    # Between two pictures, so that what is near lies in both lists.
    vectors = [(one + other) / np.linalg.norm(one + other) for one in embeddings[::3] for other in embeddings[1::5]]
    shares = []
    for vector in vectors:
        found = {hit.image.row for hit in searcher.search([vector], TERMS)[0]}
        truth = set(np.argsort(-(embeddings @ vector), kind="stable")[:5].tolist())
        shares.append(len(found & truth) / 5)
    assert min(shares) < 1
    worst = vectors[int(np.argmin(shares))]
    metrics = Metrics()
    shadow = Shadow(1, metrics)
    shadow.offer(searcher, worst, TERMS, searcher.search([worst], TERMS)[0])
    shadow.close()
    count, total = sampled(metrics)
    assert count == 1
    assert total == pytest.approx(min(shares))


@pytest.mark.parametrize(
    ("index", "rate", "terms"),
    [
        pytest.param("Flat", 1, TERMS, id="exact-index"),
        pytest.param("IVF2,Flat", 0, TERMS, id="rate-0"),
        pytest.param("IVF2,Flat", 1, replace(TERMS, exact=True), id="exact-search"),
        pytest.param("IVF2,Flat", 1, replace(TERMS, selection=Selection.of(range(20), 24)), id="filter"),
    ],
)
def test_what_cannot_tell_of_the_index_is_not_compared(
    index: str, rate: float, terms: Terms, source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    searcher, metrics = built(source, tmp_path / "s", encoder, index), Metrics()
    shadow = Shadow(rate, metrics)
    vector = searcher.snapshot.embeddings[0]
    shadow.offer(searcher, vector, terms, searcher.search([vector], terms)[0])
    shadow.close()
    assert sampled(metrics) == (0, 0)


def test_one_search_is_compared_at_a_time_and_none_waits_for_it(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    real = built(source, tmp_path / "s", encoder, "IVF2,Flat")
    vector = real.snapshot.embeddings[0]
    hits = real.search([vector], TERMS)[0]
    gate = threading.Event()

    def search(*_: Any, **__: Any) -> Any:
        assert gate.wait(60)
        return [hits]

    slow = cast("Searcher", SimpleNamespace(snapshot=SimpleNamespace(index=real.snapshot.index, search=search)))
    metrics = Metrics()
    shadow = Shadow(1, metrics)
    for _ in range(5):
        shadow.offer(slow, vector, TERMS, hits)
    assert sampled(metrics) == (0, 0)
    gate.set()
    shadow.close()
    assert sampled(metrics) == (1, 1)


def test_a_service_over_an_approximate_index_tells_its_recall(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    build_snapshot(source, tmp_path / "snapshots", encoder, labels=str(source / "table.csv"), index="IVF2,Flat")
    settings = ServiceSettings.model_validate({"snapshots": tmp_path / "snapshots", "shadow_rate": 1})
    with TestClient(create_app(settings)) as client:
        query = {"query": [{"text": "a red picture"}]}

        def told() -> bool:
            assert client.post("/v1/search", json=query).status_code == 200
            return 'kindred_index_recall_ratio_count{kind="text"}' in client.get("/metrics").text

        wait_for(told)
