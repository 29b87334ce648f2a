"""Linear models of each arm by itself: ridge regression read as a posterior."""

from __future__ import annotations

import numpy as np

from policies.linear_models import (
    RidgeSettings,
    Statistics,
    beliefs,
    features,
    fit_projection,
)


def test_beliefs_are_ridge_regression() -> None:
    """Against the normal equations written out for one arm."""
    rng = np.random.default_rng(0)
    design = np.hstack([np.ones((50, 1)), rng.normal(size=(50, 2))])
    target = rng.normal(size=50)
    settings = RidgeSettings(prior_weight=2.0, context_precision=10.0, deviation_scale=1.0)
    sums = Statistics.empty(1, 3).plus(np.zeros(50, dtype=np.int64), design, target)
    mean, covariance = beliefs(sums, np.array([0.7]), settings, np.array([0.3]))
    prior = np.diag([2.0, 10.0, 10.0])
    precision = design.T @ design + prior
    expected = np.linalg.solve(precision, design.T @ target + prior @ [0.7, 0.0, 0.0])
    np.testing.assert_allclose(mean[0], expected)
    np.testing.assert_allclose(covariance[0], 0.09 * np.linalg.inv(precision))


def test_components_have_unit_variance() -> None:
    contexts = np.random.default_rng(0).normal(size=(90, 12)).astype(np.float32)
    rows = features(contexts, *fit_projection(contexts, components=4))
    np.testing.assert_allclose(np.cov(rows[:, 1:].T), np.eye(4), atol=1e-6)


def test_contexts_that_span_too_little_leave_components_empty() -> None:
    """As with prompts that are all the same: nothing is divided by zero."""
    _, projection = fit_projection(np.ones((70, 12), dtype=np.float32), components=4)
    assert projection.shape == (4, 12)
    assert not projection.any()
