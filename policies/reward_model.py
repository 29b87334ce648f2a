"""What every arm would have brought, predicted from other logged rows: a control variate.

Ridge regression per arm, cross-fitted: no row's prediction has seen the row. Not a learner's own
estimates: those would judge themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    dim, kinds = context.shape[1], outcomes.shape[1]
    tests = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    pools = [_mean_without(outcomes, test) for test in tests]
    levels = np.empty((len(tests), num_arms, kinds))
    slopes = np.empty((len(tests), dim, num_arms, kinds))
    for arm in range(num_arms):
        mine = [test[taken[test] == arm] for test in tests]
        parts = [_Sums.over(context[rows], outcomes[rows]) for rows in mine]
        # Every row is summed once; what a fold is not to know is taken out again.
        total = sum(parts, start=_Sums.over(context[:0], outcomes[:0]))
        for fold, (part, pool) in enumerate(zip(parts, pools, strict=True)):
            levels[fold, arm], slopes[fold, :, arm] = _ridge(total - part, pool)
    predicted = np.empty((len(context), num_arms, kinds))
    for fold, test in enumerate(tests):
        sloped = context[test] @ slopes[fold].reshape(dim, num_arms * kinds)
        predicted[test] = levels[fold] + sloped.reshape(len(test), num_arms, kinds)
    return predicted


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sums:
    """What a regression needs of some rows.

    Attributes:
        count: How many rows.
        context: Their contexts, shape (context_dim,).
        outcomes: Their outcomes, shape (outcomes,).
        gram: Context times context, shape (context_dim, context_dim).
        cross: Context times outcomes, shape (context_dim, outcomes).
    """

    count: int
    context: Array
    outcomes: Array
    gram: Array
    cross: Array

    @classmethod
    def over(cls, context: Array, outcomes: Array) -> _Sums:
        """Sum over rows."""
        return cls(
            count=len(context),
            context=context.sum(axis=0),
            outcomes=outcomes.sum(axis=0),
            gram=context.T @ context,
            cross=context.T @ outcomes,
        )

    def __add__(self, other: _Sums) -> _Sums:
        """Sum over the rows of both."""
        return _Sums(
            count=self.count + other.count,
            context=self.context + other.context,
            outcomes=self.outcomes + other.outcomes,
            gram=self.gram + other.gram,
            cross=self.cross + other.cross,
        )

    def __sub__(self, other: _Sums) -> _Sums:
        """Take some of the rows out."""
        return _Sums(
            count=self.count - other.count,
            context=self.context - other.context,
            outcomes=self.outcomes - other.outcomes,
            gram=self.gram - other.gram,
            cross=self.cross - other.cross,
        )


def _ridge(rows: _Sums, pool: Array) -> tuple[Array, Array]:
    """Fit one arm: its level, shrunk to the pool's, and its slopes about the rows' mean context.

    Returns:
        Prediction for a context of zeros, shape (outcomes,), and slopes (context_dim, outcomes).
    """
    level = (rows.outcomes + LEVEL_PRIOR * pool) / (rows.count + LEVEL_PRIOR)
    if not rows.count:
        return level, np.zeros(rows.cross.shape)
    centre = rows.context / rows.count
    gram = rows.gram - np.outer(rows.context, centre) + SLOPE_PRIOR * np.eye(len(centre))
    slopes = np.linalg.solve(gram, rows.cross - np.outer(centre, rows.outcomes))
    return np.asarray(level - centre @ slopes), np.asarray(slopes)


def _mean_without(outcomes: Array, test: Indices) -> Array:
    """Return the mean outcomes of all rows but some, zeros where there are none."""
    number = len(outcomes) - len(test)
    if not number:
        return np.zeros(outcomes.shape[1])
    return np.asarray((outcomes.sum(axis=0) - outcomes[test].sum(axis=0)) / number)
