"""Principal components of contexts."""

from __future__ import annotations

import numpy as np

from policies.projection import features, fit_projection


def test_components_have_unit_variance() -> None:
    contexts = np.random.default_rng(0).normal(size=(90, 12)).astype(np.float32)
    rows = features(contexts, *fit_projection(contexts, components=4))
    np.testing.assert_allclose(np.cov(rows[:, 1:].T), np.eye(4), atol=1e-6)


def test_contexts_that_span_too_little_leave_components_empty() -> None:
    """As with prompts that are all the same: nothing is divided by zero."""
    _, projection = fit_projection(np.ones((70, 12), dtype=np.float32), components=4)
    assert projection.shape == (4, 12)
    assert not projection.any()
