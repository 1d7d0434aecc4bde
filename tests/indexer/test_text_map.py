"""The map from texts to pictures, and what of a query texts are about."""

import numpy as np
import pytest

from indexer.text_map import fit_text_map, text_directions
from tests.snapshots import unit, unit_vectors


def test_the_map_is_the_ridge_regression_of_pictures_on_captions() -> None:
    pictures, texts = unit_vectors(300, 12), unit_vectors(300, 12, seed=1)
    ridge = 1e-3 * np.trace(texts.T.astype(np.float64) @ texts) / 12
    # Ridge regression is least squares with as many rows more as there are dimensions.
    more = np.concatenate([texts, np.sqrt(ridge) * np.eye(12)])
    expected = np.linalg.lstsq(more, np.concatenate([pictures, np.zeros((12, 12))]), rcond=None)[0].T
    found = fit_text_map(pictures, texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pictures_that_follow_from_their_captions_are_explained() -> None:
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    texts = unit_vectors(300, 12)
    found = fit_text_map((texts @ turned.T).astype(np.float32), texts)
    np.testing.assert_allclose(found, turned, atol=0.01)


def test_the_directions_of_a_text_are_what_the_map_makes_of_it() -> None:
    text_map, text = unit_vectors(8, 8, seed=2), unit_vectors(1, 8)
    found = text_directions(text, text_map)
    expected = text_map @ text[0]
    assert found.shape == (8, 1)
    np.testing.assert_allclose(found[:, 0] * (found[:, 0] @ expected), expected, atol=1e-6)


def test_without_a_map_they_are_the_text_itself() -> None:
    text = unit_vectors(1, 8)
    np.testing.assert_allclose(np.abs(text_directions(text, None)[:, 0]), np.abs(text[0]), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_directions_are_orthonormal_and_at_most_as_many_as_the_texts(count: int) -> None:
    found = text_directions(unit_vectors(count, 16), unit_vectors(16, 16, seed=1))
    assert 1 <= found.shape[1] <= count
    np.testing.assert_allclose(found.T @ found, np.eye(found.shape[1]), atol=1e-9)


def test_two_texts_are_both_taken_out_of_a_query() -> None:
    texts = unit_vectors(2, 16)
    directions = text_directions(texts, None)
    query = unit_vectors(1, 16, seed=1)[0]
    left = query - directions @ (directions.T @ query)
    np.testing.assert_allclose(texts @ left, 0, atol=1e-6)


def test_what_three_texts_have_in_common_stays() -> None:
    common, own = np.eye(16)[0], np.eye(16)[1:5]
    directions = text_directions(unit(3 * common + own), None)
    assert directions.shape == (16, 3)
    np.testing.assert_allclose(common @ directions, 0, atol=1e-6)
    np.testing.assert_allclose((own[0] - own[3]) @ directions @ directions.T, own[0] - own[3], atol=1e-6)


def test_the_order_of_texts_and_one_said_twice_do_not_matter() -> None:
    texts = unit_vectors(5, 16)
    one, other = (text_directions(each, None) for each in (texts, texts[[4, 2, 0, 1, 3, 2]]))
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-6)


def test_directions_of_noise_are_left() -> None:
    random = np.random.default_rng(0)
    plane = random.normal(size=(10, 2)) @ np.eye(16)[:2]
    directions = text_directions(unit(np.eye(16)[5] * 9 + plane + 0.05 * random.normal(size=(10, 16))), None)
    assert directions.shape == (16, 2)
    assert np.linalg.norm(directions[:2]) == pytest.approx(np.sqrt(2), abs=0.02)
