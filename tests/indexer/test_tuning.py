"""Tuning: what is measured is so, and what is chosen holds for other queries than those it was measured with."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.encoder import Embeddings
from indexer.index import SearchParameters, VectorIndex
from indexer.index_building import build_index, write_index
from indexer.index_policy import choose_factory
from indexer.recall import QueryKind, Tuning
from indexer.selection import Selection
from indexer.store import SnapshotStore
from indexer.tuning import Queries, Truth, tune
from tests.snapshots import unit, unit_vectors, write_snapshot

COUNT, DIM = 60_000, 32


class World:
    """Pictures in clusters, queries of pictures near to them, and texts from elsewhere, as a CLIP has them."""

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(0)
        self.centres = random.normal(size=(300, DIM))
        self.apart = 3 * random.normal(size=DIM)
        self.pictures = unit(self.centres[random.integers(300, size=count)] + 0.6 * random.normal(size=(count, DIM)))

    def images(self, seed: int) -> Embeddings:
        random = np.random.default_rng(seed)
        own = self.pictures[random.integers(len(self.pictures), size=200)]
        return unit(own + 0.03 * random.normal(size=own.shape))

    def texts(self, seed: int) -> Embeddings:
        random = np.random.default_rng(seed)
        return unit(self.apart + 0.5 * self.centres[random.integers(300, size=200)] + random.normal(size=(200, DIM)))


@pytest.fixture(scope="module")
def world() -> World:
    return World(COUNT)


@pytest.fixture(scope="module")
def index(world: World, tmp_path_factory: pytest.TempPathFactory) -> VectorIndex:
    """Build what `auto` stands for over these pictures, and open its file."""
    path = tmp_path_factory.mktemp("index") / "index"
    write_index(world.pictures, choose_factory(COUNT, DIM, None, 0), path, None)
    return VectorIndex.open(path)


@pytest.fixture(scope="module")
def tuning(world: World, index: VectorIndex) -> Tuning:
    return tuned(index, world, 0.97)


def tuned(index: VectorIndex, world: World, target: float) -> Tuning:
    texts, images = Queries("texts", world.texts(1)), Queries("crops", world.images(1))
    return tune(index, world.pictures, texts, images, target)


def nearest(pictures: Embeddings, queries: Embeddings, k: int) -> NDArray[np.int64]:
    return np.argsort(-(queries.astype(np.float64) @ pictures.T.astype(np.float64)), axis=1)[:, :k]


def recall(found: NDArray[np.int64], expected: NDArray[np.int64]) -> float:
    return float(np.mean([len({*one} & {*other}) / len(other) for one, other in zip(found, expected, strict=True)]))


# Truth


def test_recall_is_the_part_of_the_ten_nearest_that_was_found() -> None:
    pictures, queries = unit_vectors(500, 8), unit_vectors(3, 8, seed=1)
    expected = nearest(pictures, queries, 20)
    found = np.stack([expected[0, :10], expected[1, 5:15], np.where(np.arange(10) < 3, expected[2, :10], -1)])
    assert Truth.of(pictures, queries).recall(found).tolist() == [1.0, 0.5, 0.3]


def test_an_answer_as_near_as_the_tenth_counts() -> None:
    pictures = np.concatenate([np.tile(unit_vectors(1, 8), (30, 1)), unit_vectors(20, 8, seed=1)])
    truth = Truth.of(pictures, pictures[:1])
    assert truth.recall(np.arange(15, 25)[None, :]).tolist() == [1.0]
    assert truth.recall(np.arange(25, 35)[None, :]).tolist() == [0.5]


def test_of_fewer_than_ten_pictures_all_are_looked_for() -> None:
    pictures = unit_vectors(4, 8)
    truth = Truth.of(pictures, pictures[:1])
    assert truth.depth == 4
    assert truth.recall(np.array([[0, 1, 2, -1]])).tolist() == [0.75]


# Choosing


def test_each_kind_reaches_the_target_with_other_queries_than_it_was_tuned_with(
    world: World, index: VectorIndex, tuning: Tuning
) -> None:
    for kind, queries in ((QueryKind.TEXT, world.texts(2)), (QueryKind.IMAGE, world.images(2))):
        found = index.search(queries, 10, tuning.parameters(kind))
        # 200 queries say what they say to a hundredth or two.
        assert recall(found, nearest(world.pictures, queries, 10)) > 0.97 - 0.02


def test_texts_are_searched_more_widely_than_pictures_and_would_find_too_little_otherwise(
    world: World, index: VectorIndex, tuning: Tuning
) -> None:
    text, image = tuning.parameters(QueryKind.TEXT), tuning.parameters(QueryKind.IMAGE)
    assert text.nprobe is not None
    assert image.nprobe is not None
    assert text.nprobe > image.nprobe
    found = index.search(world.texts(2), 10, image)
    assert recall(found, nearest(world.pictures, world.texts(2), 10)) < 0.95 < tuning.target_recall


def test_a_hundred_neighbours_are_found_as_well_as_ten(world: World, index: VectorIndex, tuning: Tuning) -> None:
    for kind, queries in ((QueryKind.TEXT, world.texts(2)), (QueryKind.IMAGE, world.images(2))):
        found = index.search(queries, 100, tuning.parameters(kind))
        assert recall(found, nearest(world.pictures, queries, 100)) > 0.93


def test_the_curve_says_what_each_setting_finds(world: World, index: VectorIndex, tuning: Tuning) -> None:
    for kind, queries in ((tuning.text, world.texts(1)), (tuning.image, world.images(1))):
        expected = nearest(world.pictures, queries, 10)
        for point in kind.curve[::5]:
            found = index.search(queries, 10, point.parameters)
            assert point.recall == pytest.approx(recall(found, expected), abs=0.002)
            assert point.milliseconds > 0


def test_the_choice_is_the_quickest_of_those_that_reach_the_target(tuning: Tuning) -> None:
    for kind in (tuning.text, tuning.image):
        recalls = [point.recall for point in kind.curve]
        assert recalls == sorted(recalls)
        enough = [point for point in kind.curve if point.recall >= tuning.target_recall]
        assert kind.chosen == min(enough, key=lambda point: point.milliseconds)
        assert kind.chosen.recall >= 0.97
    assert (tuning.text.origin, tuning.text.queries, tuning.image.queries) == ("texts", 200, 200)
    assert tuning.exact_milliseconds > 0


def test_few_of_all_settings_are_tried(tuning: Tuning) -> None:
    for kind in (tuning.text, tuning.image):
        tried = [(point.parameters.nprobe, point.parameters.k_factor) for point in kind.curve]
        assert len(set(tried)) == len(tried) <= 40


def test_where_no_setting_reaches_the_target_the_best_is_chosen() -> None:
    world = World(5_000)
    found = tuned(build_index(world.pictures, "PQ4x4fs"), world, 0.98)
    for kind in (found.text, found.image):
        assert len(kind.curve) == 1
        assert kind.chosen == kind.curve[0]
        assert kind.chosen.recall < 0.7


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        ("SQ8", set()),
        ("IVF16,Flat", {"nprobe"}),
        ("HNSW16", {"ef_search"}),
        ("RR32,IVF16,SQ8", {"nprobe"}),
        ("PQ16x4fs,Refine(SQfp16)", {"k_factor"}),
        ("RR32,IVF16,RaBitQfs,Refine(SQfp16)", {"nprobe", "k_factor"}),
        ("HNSW16,SQ8,Refine(SQfp16)", {"ef_search", "k_factor"}),
    ],
)
def test_what_an_index_has_is_tuned_and_nothing_else(factory: str, names: set[str]) -> None:
    world = World(5_000)
    found = tuned(build_index(world.pictures, factory), world, 0.95)
    for kind in (found.text, found.image):
        assert {name for point in kind.curve for name in point.parameters.model_dump(exclude_none=True)} == names
        assert kind.chosen.recall >= 0.95


def test_an_index_whose_lists_must_all_be_scanned_is_scanned_to_the_last() -> None:
    world = World(2_000)
    found = tuned(build_index(world.pictures, "IVF50,Flat"), world, 1.0)
    assert found.text.chosen.recall == 1.0


# Deeper searches


def test_a_search_for_ten_is_as_it_was_tuned() -> None:
    parameters = SearchParameters(nprobe=7, ef_search=30, k_factor=12)
    assert parameters.deepened(10) == parameters.deepened(1) == parameters


def test_a_search_for_more_is_wider_and_re_ranks_a_smaller_multiple() -> None:
    parameters = SearchParameters(nprobe=16, k_factor=64)
    deep = parameters.deepened(1_000)
    assert (deep.nprobe, deep.k_factor) == (1_600, 8)
    assert SearchParameters(nprobe=16, k_factor=64).deepened(90).k_factor == pytest.approx(64 / 3)
    assert SearchParameters(k_factor=2).deepened(1_000).k_factor == 2
    assert SearchParameters().deepened(1_000) == SearchParameters()


# Through a snapshot


def test_a_large_snapshot_of_the_index_that_auto_chooses_finds_nearly_everything(
    world: World, tuning: Tuning, tmp_path: Path
) -> None:
    store = SnapshotStore(tmp_path / "s")
    factory = choose_factory(COUNT, DIM, None, 0)
    assert factory.startswith("IVF1024,")
    snapshot = store.open(write_snapshot(store, world.pictures, factory=factory, tuning=tuning))
    for kind, queries in ((QueryKind.TEXT, world.texts(2)), (QueryKind.IMAGE, world.images(2))):
        answers = snapshot.search(queries, 10, kind)
        found = np.array([[hit.image.row for hit in hits] for hits in answers])
        assert recall(found, nearest(world.pictures, queries, 10)) >= 0.95


@pytest.mark.parametrize(
    "factory",
    [
        "IVF16,Flat",
        "IVF16,SQ8",
        "IVF16,PQ16x4fs,Refine(SQfp16)",
        "IVF16,PQ16x4fs,Refine(SQ8)",
        "IVF16,PQ16x4fs",
        "RR32,IVF16,RaBitQfs,Refine(SQfp16)",
        "IVF16_HNSW8,PQ16x4fs,Refine(SQfp16)",
        "HNSW16,SQ8",
        "SQ8",
        "PQ16x4fs,Refine(SQfp16)",
    ],
)
@pytest.mark.parametrize("part", [0.98, 0.5, 0.01])
def test_a_search_among_some_gives_as_many_as_asked_for_and_only_of_those(
    world: World, tmp_path: Path, factory: str, part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few pictures would be compared one by one, and the index never asked.
    monkeypatch.setattr("indexer.snapshot._FEW", 0)
    pictures = world.pictures[:3_000]
    store = SnapshotStore(tmp_path / "s")
    snapshot = store.open(write_snapshot(store, pictures, factory=factory))
    chosen = np.random.default_rng(5).permutation(3_000)[: int(3_000 * part)]
    for hits in snapshot.search(world.texts(3)[:10], 25, QueryKind.TEXT, selection=Selection.of(chosen, 3_000)):
        rows = [hit.image.row for hit in hits]
        assert len(set(rows)) == 25
        assert {*rows} <= {*chosen.tolist()}
