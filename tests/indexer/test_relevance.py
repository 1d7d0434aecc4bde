"""Relevance and confidence: rising lines that say how often such a score, or such a vote, is right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.isotonic import IsotonicRegression

from indexer.calibration import calibration_error, fit_line
from indexer.recall import QueryKind
from indexer.relevance import Bin, Calibration, Confidence, CoveragePoint, Line, Relevance

SEEN = st.lists(st.tuples(st.floats(-1, 1), st.booleans()), min_size=1, max_size=200)


def calibration(knots: Line) -> Calibration:
    return Calibration(
        knots=knots, expected_calibration_error=0.01, reliability=(), origin="labels", queries=8, pairs=80
    )


def confidence(knots: Line) -> Confidence:
    points = tuple(CoveragePoint(coverage=c, accuracy=a, confidence=0.5) for c, a in ((1, 0.8), (0.9, 0.9), (0.5, 1)))
    return Confidence(
        knots=knots, expected_calibration_error=0, reliability=(), pictures=16, accuracy=0.8, coverage=points
    )


def drawn(count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Draw scores, the probability that a pair with each is right, and whether it is."""
    random = np.random.default_rng(seed)
    seen = np.round(random.uniform(-0.2, 0.8, count), 6)
    probability = 1 / (1 + np.exp(-12 * (seen - 0.4)))
    return seen, probability, (random.random(count) < probability).astype(np.float64)


# Fitting


def test_the_knots_are_the_means_of_the_steps_that_scikit_learn_finds() -> None:
    seen, _, right = drawn(150, seed=0)
    steps = IsotonicRegression(y_min=0, y_max=1).fit_transform(seen, right)
    levels = np.unique(steps)
    assert len(levels) < 32
    expected = [(seen[steps == level].mean(), level) for level in levels]
    np.testing.assert_allclose(fit_line(seen, right), expected, atol=6e-5)


def test_equal_scores_count_as_one_place() -> None:
    assert fit_line(np.array([0.1, 0.1, 0.1, 0.1, 0.5]), np.array([0.0, 1, 0, 0, 1])) == ((0.1, 0.25), (0.5, 1.0))


def test_a_line_in_few_knots_is_nowhere_far_from_one_in_all_of_them() -> None:
    seen, _, right = drawn(50_000, seed=1)
    steps = IsotonicRegression(y_min=0, y_max=1).fit_transform(seen, right)
    levels = np.unique(steps)
    assert len(levels) > 60
    line = fit_line(seen, right)
    assert 2 <= len(line) <= 32
    found = calibration(line).relevance([seen[steps == level].mean() for level in levels])
    np.testing.assert_allclose(found, levels, atol=0.01)
    assert (line[0][1], line[-1][1]) == pytest.approx((levels[0], levels[-1]), abs=6e-5)


def test_a_known_probability_is_learnt() -> None:
    seen, _, right = drawn(25_000, seed=2)
    places, probability, _ = drawn(500, seed=3)
    found = calibration(fit_line(seen, right)).relevance(places)
    np.testing.assert_allclose(found, probability, atol=0.05)
    assert np.abs(found - probability).mean() < 0.015


@given(pairs=SEEN, scores=st.lists(st.floats(-2, 2), min_size=2))
def test_relevance_rises_with_the_score_and_is_a_probability(
    pairs: list[tuple[float, bool]], scores: list[float]
) -> None:
    seen, right = np.array(pairs, np.float64).T
    line = fit_line(seen, right)
    assert len(line) <= 32
    found = calibration(line).relevance(np.sort(scores))
    assert (np.diff(found) >= 0).all()
    assert found.min() >= 0
    assert found.max() <= 1


# How far it is off


def test_the_calibration_error_is_the_mean_distance_in_fifteen_bins() -> None:
    predicted = np.array([0.05, 0.05, 0.95, 0.95, 0.55])
    error, bins = calibration_error(predicted, np.array([0.0, 1, 1, 1, 0]))
    assert error == pytest.approx((2 * 0.45 + 2 * 0.05 + 0.55) / 5, abs=1e-4)
    assert bins == (
        Bin(predicted=0.05, observed=0.5, count=2),
        Bin(predicted=0.55, observed=0, count=1),
        Bin(predicted=0.95, observed=1, count=2),
    )


def test_certainty_falls_into_the_last_bin() -> None:
    assert calibration_error(np.array([1.0, 0.94]), np.array([1.0, 1])) == (
        0.03,
        (Bin(predicted=0.97, observed=1, count=2),),
    )


# What is kept


def test_between_knots_the_line_is_straight_and_beyond_them_it_is_level() -> None:
    found = calibration(((0.2, 0.1), (0.4, 0.5), (0.5, 0.9))).relevance(np.array([[-1, 0.2, 0.3], [0.4, 0.45, 1]]))
    np.testing.assert_allclose(found, [[0.1, 0.1, 0.3], [0.5, 0.7, 0.9]])


def test_confidence_is_read_from_the_share_of_the_votes() -> None:
    found = confidence(((0.2, 0.0), (0.6, 0.5), (1.0, 1.0)))
    assert [found.confidence(share) for share in (0.1, 0.4, 0.6, 1.0)] == pytest.approx([0, 0.25, 0.5, 1])
    assert [found.accuracy_at(coverage) for coverage in (1, 0.9, 0.52, 0)] == [0.8, 0.9, 1, 1]


def test_each_kind_of_query_has_its_own() -> None:
    text, image = calibration(((0.0, 0.0), (0.3, 1.0))), calibration(((0.5, 0.0), (0.9, 1.0)))
    learnt = Relevance(text=text, image=image, votes=None)
    assert (learnt.of(QueryKind.TEXT), learnt.of(QueryKind.IMAGE)) == (text, image)
    assert Relevance.model_validate_json(learnt.model_dump_json()) == learnt


@pytest.mark.parametrize(
    "knots",
    [(), ((0.1, 0.2), (0.1, 0.3)), ((0.2, 0.1), (0.1, 0.3)), ((0.1, 0.3), (0.2, 0.2)), ((0, -0.1),), ((0, 1.1),)],
)
def test_a_line_that_does_not_rise_within_0_and_1_is_refused(knots: Line) -> None:
    with pytest.raises(ValidationError):
        calibration(knots)
