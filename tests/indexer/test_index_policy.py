"""What `auto` stands for: by count, memory and where searches run."""

from itertools import pairwise

import numpy as np
import pytest

from indexer.errors import BuildError
from indexer.index import SearchParameters
from indexer.index_building import build_index, check_factory, memory_needed
from indexer.index_policy import check_index, choose_factory, resolve_factory
from tests.snapshots import unit_vectors


@pytest.mark.parametrize("count", [1, 1_000, 50_000])
def test_auto_is_exact_where_that_is_quick(count: int) -> None:
    assert resolve_factory("auto", count, 512) == "Flat"


def test_auto_scans_lists_of_small_codes_and_compares_the_best_in_half_precision() -> None:
    assert resolve_factory("auto", 1_000_000, 512) == "IVF4096,PQ256x4fs,Refine(SQfp16)"


@pytest.mark.parametrize("count", [10, 1_000_000])
def test_any_other_string_stands_for_itself(count: int) -> None:
    assert resolve_factory("HNSW16", count, 512) == "HNSW16"


def test_lists_grow_with_the_root_of_the_count() -> None:
    lists = [int(choose_factory(count, 64, None, 0).split(",")[0][3:]) for count in (60_000, 10**6, 16 * 10**6)]
    assert all(later == 4 * earlier for earlier, later in pairwise(lists))


def test_less_memory_than_the_codes_take_makes_an_exact_index_which_takes_none() -> None:
    whole = choose_factory(1_000_000, 512, None, 0)
    need = memory_needed(1_000_000, 512, whole)
    assert choose_factory(1_000_000, 512, need, 0) == whole
    assert choose_factory(1_000_000, 512, need - 1, 0) == "Flat"
    assert memory_needed(1_000_000, 512, "Flat") == 0


def test_on_a_gpu_what_it_cannot_hold_in_half_precision_is_an_index_that_it_can_take() -> None:
    assert choose_factory(1_000_000, 512, None, 512_000_000) == "IVF4096,SQ8"
    assert choose_factory(1_000_000, 512, None, 1_024_000_000) == choose_factory(1_000_000, 512, None, 0)


@pytest.mark.parametrize("dim", [*range(2, 20), 30, 33, 512, 768])
def test_there_is_a_choice_for_vectors_of_every_length(dim: int) -> None:
    for limit in (None, 60_000 * dim * 4, 60_000 * dim * 2):
        check_factory(choose_factory(60_000, dim, limit, 0), dim)


@pytest.mark.parametrize("dim", [3, 17, 32])
def test_the_choice_finds_what_sorting_finds(dim: int) -> None:
    vectors = unit_vectors(50_001, dim)
    index = build_index(vectors, choose_factory(len(vectors), dim, None, 0))
    queries = unit_vectors(20, dim, seed=1)
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = index.search(queries, 10, SearchParameters(nprobe=index.adjustable.lists or None, k_factor=100))
    assert np.mean([len({*one} & {*other}) / 10 for one, other in zip(found, expected, strict=True)]) > 0.95


def test_a_string_that_is_neither_auto_nor_an_index_is_refused() -> None:
    check_index("auto", 16)
    check_index("IVF8,SQ8", 16)
    with pytest.raises(BuildError, match="FAISS knows no index 'automatic' of 16 dimensions"):
        check_index("automatic", 16)
