"""Programmes that are run by hand elsewhere, tried on this machine."""

import json
from pathlib import Path

import pytest

from indexer.index import VectorIndex
from indexer.index_building import build_index
from tests.bench.gpu_search import BATCHES, search_table
from tests.bench.gpu_search import main as search_on_gpu
from tests.bench.gpu_training import main
from tests.snapshots import unit_vectors


def test_the_gpu_benchmark_counts_the_arithmetic_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    main("ViT-S-32-alt", batch=2, steps=1)
    facts = json.loads(capsys.readouterr().out)
    # A multiplication and an addition for each of 22.6 million weights and 50 tokens, once forward and twice backward.
    a_picture = 1e12 * facts["tflops"] / facts["images_per_second"]
    assert a_picture == pytest.approx(3 * 2 * 22.6e6 * 50, rel=0.5)
    assert facts["share"] == pytest.approx(facts["tflops"] / facts["matrix_product_tflops"], rel=0.1)


def test_the_benchmark_of_search_on_a_gpu_sets_times_against_the_floor() -> None:
    index = build_index(unit_vectors(10_000, 16), "Flat")
    rows = [[float(cell.strip(" %").replace(",", "")) for cell in line.split("|")[1:-1]] for line in lines(index)]
    assert [batch for batch, *_ in rows] == list(BATCHES)
    for batch, taken, floor, share, rate in rows:
        # Two bytes of each of 160,000 numbers, at 10 MB per second.
        assert floor == 32.0
        assert share == pytest.approx(100 * floor / taken, rel=0.2, abs=1)
        assert rate == pytest.approx(1_000 * batch / taken, rel=0.2)


def test_the_benchmark_of_search_on_a_gpu_says_so_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search_on_gpu(tmp_path, count=1_000)
    out = capsys.readouterr().out
    assert out.startswith("Nothing was measured: ") or "TB/s" in out


def lines(index: VectorIndex) -> list[str]:
    """Return the rows of the benchmark's table for an index, were memory as slow as 10 MB per second."""
    return search_table(index, 10e6)[2:]
