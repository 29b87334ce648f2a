"""Features of contexts: fitted without outcomes, finite whatever the contexts are."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from policies.feature_map import FeatureMap, fit_features, k_means, squared_distances


def contexts(number: int, *, tasks: int = 3) -> NDArray[np.float32]:
    """Prompts of a few tasks: a task's prompts lie together."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(tasks, 12))
    return (centres[np.arange(number) % tasks] + 0.1 * rng.normal(size=(number, 12))).astype(
        np.float32
    )


def fitted(rows: NDArray[np.float32]) -> FeatureMap:
    return fit_features(rows, components=4, landmarks=16, kernel_components=6, seed=0)


def test_each_block_has_mean_squared_length_one() -> None:
    rows = contexts(90)
    features = fitted(rows)
    values = features(rows)
    assert values.shape == (90, features.num_features)
    np.testing.assert_array_equal(values[:, 0], 1.0)
    for block in features.blocks:
        assert (values[:, block] ** 2).sum(axis=1).mean() == pytest.approx(1.0)
        np.testing.assert_allclose(values[:, block].mean(axis=0), 0.0, atol=1e-6)


def test_a_linear_model_of_the_kernel_tells_tasks_apart() -> None:
    """Which a linear model of the components alone need not: there are more tasks than those."""
    rows, task = contexts(200, tasks=9), np.arange(200) % 9
    values = fit_features(rows, components=4, landmarks=32, kernel_components=16, seed=0)(rows)
    wanted = np.eye(9)[task]
    found = values @ np.linalg.lstsq(values, wanted, rcond=None)[0]
    assert (found.argmax(axis=1) == task).mean() > 0.95


def test_one_row_is_its_row_of_the_batchs() -> None:
    rows = contexts(40)
    features = fitted(rows)
    np.testing.assert_allclose(features(rows[5:6])[0], features(rows)[5], atol=1e-9)


@pytest.mark.parametrize("rows", [np.ones((70, 12)), np.eye(12)[:5], contexts(4)])
def test_contexts_that_span_too_little_give_finite_features(rows: NDArray[np.float32]) -> None:
    """As with prompts that are all the same: nothing is divided by zero."""
    assert np.isfinite(fitted(rows)(rows)).all()


def test_equal_contexts_give_equal_bytes() -> None:
    one, two = fitted(contexts(80)).weights(), fitted(contexts(80)).weights()
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_a_blank_map_sees_nothing_of_the_prompt() -> None:
    blank = FeatureMap.blank(context_dim=12, components=4, landmarks=16, kernel_components=6)
    values = blank(contexts(7))
    np.testing.assert_array_equal(values[:, 0], 1.0)
    assert not values[:, 1:].any()


def test_weights_and_back() -> None:
    features = fitted(contexts(50))
    np.testing.assert_array_equal(
        FeatureMap.read(features.weights())(contexts(3)), features(contexts(3))
    )


def test_k_means_finds_points_that_are_apart() -> None:
    points = np.array([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0], [5.1, 5.0]])
    found = k_means(points, 2, np.random.default_rng(0))
    np.testing.assert_allclose(found[found[:, 0].argsort()], [[0.05, 0.0], [5.05, 5.0]])


def test_squared_distances_are_never_negative() -> None:
    points = np.full((3, 2), 1e8) + np.array([[0.0], [1e-3], [0.0]])
    found = squared_distances(points, points)
    assert found.min() >= 0.0
    np.testing.assert_allclose(squared_distances(np.eye(2), np.zeros((1, 2))), 1.0)
