"""What every arm would have brought, predicted from other logged rows: a control variate.

Ridge regression per arm, cross-fitted: no row's prediction has seen the row. Not a learner's own
estimates: those would judge themselves.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# Pseudo-observations at the pool's mean, and a strong prior on slopes: few rows an arm must do.
LEVEL_PRIOR: Final = 2.0
SLOPE_PRIOR: Final = 30.0


def cross_fitted(
    context: Array, taken: Indices, outcomes: Array, folds: Indices, *, num_arms: int
) -> Array:
    """Predict every arm's outcomes for every row from the rows of the other folds.

    A control variate of its own, not the challenger's estimates: those would judge themselves.

    Args:
        context: Shape (rows, context_dim).
        taken: Position of the arm taken, shape (rows,).
        outcomes: What came back, shape (rows, outcomes).
        folds: Which fold a row is in, shape (rows,).
        num_arms: How many arms there are.

    Returns:
        Shape (rows, num_arms, outcomes).
    """
    predicted = np.zeros((len(context), num_arms, outcomes.shape[1]))
    for fold in np.unique(folds):
        test, train = folds == fold, folds != fold
        for arm in range(num_arms):
            mine = train & (taken == arm)
            predicted[test, arm] = _ridge(
                context[mine], outcomes[mine], context[test], outcomes[train]
            )
    return predicted


def _ridge(context: Array, outcomes: Array, wanted: Array, pool: Array) -> Array:
    """Fit one arm's level, shrunk to the pool's, and its slopes; predict the wanted contexts."""
    pool_level = pool.mean(axis=0) if len(pool) else np.zeros(outcomes.shape[1])
    level = (outcomes.sum(axis=0) + LEVEL_PRIOR * pool_level) / (len(outcomes) + LEVEL_PRIOR)
    if not len(outcomes):
        return np.broadcast_to(level, (len(wanted), len(level)))
    centre = context.mean(axis=0)
    centred = context - centre
    gram = centred.T @ centred + SLOPE_PRIOR * np.eye(centred.shape[1])
    slopes = np.linalg.solve(gram, centred.T @ (outcomes - level))
    return np.asarray(level + (wanted - centre) @ slopes, dtype=np.float64)
