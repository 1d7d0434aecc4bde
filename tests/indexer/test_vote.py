"""The vote: against the formula written out."""

import math

import numpy as np
import pytest

from indexer.vote import vote


def written_out(labels: list[str], scores: list[float], temperature: float) -> dict[str, float]:
    """Return exp(s / T) of each label over that of all, term by term."""
    weights = [math.exp(score / temperature) for score in scores]
    return {
        label: sum(weight for other, weight in zip(labels, weights, strict=True) if other == label) / sum(weights)
        for label in set(labels)
    }


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("seed", range(5))
def test_probabilities_are_those_of_the_formula(seed: int, temperature: float) -> None:
    random = np.random.default_rng(seed)
    scores = np.sort(random.uniform(-1, 1, 21).astype(np.float32))[::-1]
    labels = random.choice(["cat", "dog", "fox", "owl"], 21).tolist()
    expected = written_out(labels, [float(score) for score in scores], temperature)
    assert vote(labels, scores, temperature) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_a_vote_of_known_numbers() -> None:
    # exp(ln 3) is three times exp(0): three parts against one.
    scores = np.array([math.log(3) / 10, 0.0], np.float32)
    assert vote(["cat", "dog"], scores, 0.1) == pytest.approx({"cat": 0.75, "dog": 0.25}, abs=1e-6)


def test_the_most_probable_comes_first() -> None:
    assert list(vote(["a", "b", "b", "c"], np.array([0.5, 0.5, 0.5, 0.9], np.float32), 0.1)) == ["c", "b", "a"]


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 0.001, 100.0, 1e30, 1e300])
def test_probabilities_sum_to_1_at_any_temperature(temperature: float) -> None:
    scores = np.array([1.0, 0.9999, 0.3, -1.0], np.float32)
    found = vote(["a", "b", "a", "c"], scores, temperature)
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    assert min(found.values()) >= 0


def test_near_zero_only_the_nearest_counts() -> None:
    found = vote(["b", "a", "a"], np.array([0.91, 0.9, 0.9], np.float32), 1e-6)
    assert found == {"b": 1.0, "a": 0.0}


def test_at_great_heat_every_neighbour_counts_the_same() -> None:
    found = vote(["b", "a", "a"], np.array([1.0, -1.0, -1.0], np.float32), 1e12)
    assert found == pytest.approx({"a": 2 / 3, "b": 1 / 3}, abs=1e-9)


def test_equal_labels_come_by_name() -> None:
    assert list(vote(["c", "a", "b"], np.full(3, 0.3, np.float32), 0.1)) == ["a", "b", "c"]


def test_labels_with_equal_neighbours_in_another_order_are_equal() -> None:
    scores = [0.31, 0.77, 0.52, 0.64, 0.18]
    labels = ["b"] * 5 + ["a"] * 5
    found = vote(labels, np.array([*scores, *reversed(scores)], np.float32), 0.07)
    assert list(found.items()) == [("a", 0.5), ("b", 0.5)]


def test_one_neighbour_decides_alone() -> None:
    assert vote(["a"], np.array([-0.7], np.float32), 0.1) == {"a": 1.0}


def test_no_neighbours_make_no_probabilities() -> None:
    assert vote([], np.array([], np.float32), 0.1) == {}
