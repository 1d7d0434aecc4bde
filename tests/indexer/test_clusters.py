"""Clusters as labels: they agree with hidden labels, and k-means does as well as scikit-learn's."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from indexer.clusters import cluster_labels
from indexer.encoder import Embeddings
from indexer.errors import BuildError
from indexer.index_building import kmeans
from tests.snapshots import unit, unit_vectors


def blobs(sizes: list[int], spread: float, seed: int = 0, dim: int = 32) -> tuple[Embeddings, NDArray[np.int64]]:
    """Draw directions around as many centres as there are sizes, shape (n, dim), and the centre of each, shuffled."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = unit_vectors(len(sizes), dim, seed)
    return unit(centres[labels] + spread * random.normal(size=(len(labels), dim))), labels


def inertia(embeddings: Embeddings, assignment: NDArray[np.int64]) -> float:
    """Sum the squared distances of rows to the mean of their cluster."""
    clusters = [embeddings[assignment == number].astype(np.float64) for number in np.unique(assignment)]
    return float(sum(((cluster - cluster.mean(axis=0)) ** 2).sum() for cluster in clusters))


# k-means


@pytest.mark.parametrize("spread", [0.15, 0.2, 0.3])
def test_kmeans_is_as_tight_as_that_of_scikit_learn(spread: float) -> None:
    embeddings, _ = blobs([60] * 20, spread)
    ours = inertia(embeddings, kmeans(embeddings, 20, seed=1).assignment)
    theirs = KMeans(20, n_init=3, random_state=1).fit(embeddings)
    assert inertia(embeddings, theirs.labels_) == pytest.approx(theirs.inertia_, rel=1e-3)
    assert ours <= 1.1 * theirs.inertia_


def test_each_row_belongs_to_the_nearest_centroid_and_each_centroid_is_the_direction_of_its_rows() -> None:
    embeddings, _ = blobs([50] * 8, 0.05)
    clusters = kmeans(embeddings, 8, seed=0)
    assert (clusters.centroids.shape, clusters.assignment.shape) == ((8, 32), (400,))
    assert clusters.assignment.tolist() == np.argmax(embeddings @ clusters.centroids.T, axis=1).tolist()
    for number in range(8):
        mean = embeddings[clusters.assignment == number].mean(axis=0)
        assert clusters.centroids[number] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-3)


def test_the_same_seed_makes_the_same_clusters_and_another_may_not() -> None:
    embeddings = unit_vectors(500, 16)
    first, again, other = (kmeans(embeddings, 10, seed) for seed in (3, 3, 4))
    assert (first.centroids == again.centroids).all()
    assert (first.assignment == again.assignment).all()
    assert (first.assignment != other.assignment).any()


def test_there_may_be_one_cluster_or_as_many_as_rows() -> None:
    embeddings = unit_vectors(30, 8)
    assert set(kmeans(embeddings, 1, 0).assignment.tolist()) == {0}
    assert sorted(kmeans(embeddings, 30, 0).assignment.tolist()) == list(range(30))


@pytest.mark.parametrize("k", [0, 31])
def test_more_clusters_than_rows_are_refused(k: int) -> None:
    with pytest.raises(BuildError, match=rf"^30 pictures cannot make {k} clusters"):
        kmeans(unit_vectors(30, 8), k, 0)


# Labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clusters_agree_with_labels_that_were_hidden(seed: int) -> None:
    embeddings, hidden = blobs([50] * 16, 0.07, seed)
    made = cluster_labels(embeddings, seed, per_cluster=50)
    kept = [i for i, label in enumerate(made) if label is not None]
    assert len(kept) > 0.95 * len(made)
    assert adjusted_rand_score(hidden[kept], [made[i] for i in kept]) > 0.8


def test_more_clusters_than_classes_are_still_pure() -> None:
    embeddings, hidden = blobs([100] * 6, 0.07)
    made = cluster_labels(embeddings, seed=0, per_cluster=20)
    assert len({*made} - {None}) > 12
    classes: dict[str, list[int]] = {}
    for label, truth in zip(made, hidden.tolist(), strict=True):
        classes.setdefault(label or "none", []).append(truth)
    purest = sum(max(each.count(truth) for truth in set(each)) for each in classes.values())
    assert purest / len(made) > 0.98


def test_a_tiny_cluster_has_no_label_and_the_others_do() -> None:
    # Four strays that have nothing to do with the rest would be a class of their own.
    embeddings, hidden = blobs([198, 198, 4], 0.02)
    made = cluster_labels(embeddings, seed=0, per_cluster=133)
    assert [label is None for label in made] == (hidden == 2).tolist()
    assert len({*made}) == 3


def test_a_label_is_the_same_for_the_same_seed() -> None:
    embeddings, _ = blobs([40] * 10, 0.3)
    assert cluster_labels(embeddings, seed=5) == cluster_labels(embeddings, seed=5)


@pytest.mark.parametrize(("count", "per_cluster", "least"), [(99, 50, 100), (1, 50, 100), (39, 20, 40)])
def test_too_few_pictures_are_refused_with_how_many_it_takes(count: int, per_cluster: int, least: int) -> None:
    with pytest.raises(
        BuildError, match=rf"^{count} pictures are too few for clusters of {per_cluster}: at least {least}"
    ):
        cluster_labels(unit_vectors(count, 8), 0, per_cluster)


def test_just_enough_pictures_make_two_clusters() -> None:
    embeddings, hidden = blobs([20, 20], 0.02)
    made = cluster_labels(embeddings, 0, per_cluster=20)
    assert adjusted_rand_score(hidden, made) == 1.0


@pytest.mark.parametrize(("count", "clusters"), [(2_500, 25), (1_000, 10), (600, 10), (45, 11), (5, 2)])
def test_a_cluster_has_a_hundred_pictures_or_a_tenth_of_a_small_collection(count: int, clusters: int) -> None:
    made = cluster_labels(unit_vectors(count, 8), 0)
    # Some may be too small to have a label.
    assert clusters - 3 <= len({*made} - {None}) <= clusters


@pytest.mark.parametrize("per_cluster", [1, 0, -5])
def test_a_cluster_of_one_is_refused(per_cluster: int) -> None:
    with pytest.raises(BuildError, match="at least 2 pictures on average"):
        cluster_labels(unit_vectors(100, 8), 0, per_cluster)
