"""What every arm would have brought, modelled from the log: the control variate of barp-dr.

The posterior learner's models (`policies.outcome_models`), on principal components: quality, and
cost as a departure from list price. A row's own outcome must not be in the prediction it is
compared with, or the residual is too small where the model is flexible: the residual is left one
out, by the leverage of the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from policies.hierarchy import Beliefs, Guess
from policies.outcome_models import (
    COST_GUESS,
    QUALITY_GUESS,
    Rows,
    cost_noise,
    fit_cost,
    fit_quality,
    quality_noise,
    quality_variance,
    sigmoid,
)

Array = NDArray[np.float64]
# A row alone in its direction would have a leverage of one, and no prediction without itself.
MAX_LEVERAGE: Final = 0.95
# Steps of expectation maximisation: the model need not be the best one, only a fair one.
ROUNDS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelled:
    """Quality and scaled cost, in this order on the last axis.

    Attributes:
        expected: Of every arm, shape (n, K, 2).
        deviation: How uncertain that is, one standard deviation, shape (n, K, 2).
        residual: What the arm taken brought beyond what the other rows predict, shape (n, 2).
    """

    expected: Array
    deviation: Array
    residual: Array

    def worth(self, w_quality: Array, *, bonus: float) -> Array:
        """Price every arm of every row at a preference, shape (n, K).

        Args:
            w_quality: Weight on quality, shape (n,).
            bonus: Standard deviations that an arm is given on top for being little known.
        """
        weights = np.stack([w_quality, w_quality - 1.0], axis=1)[:, None, :]
        deviation = np.sqrt(((weights * self.deviation) ** 2).sum(axis=-1))
        return np.asarray((weights * self.expected).sum(axis=-1) + bonus * deviation)

    def surprise(self, w_quality: Array) -> Array:
        """Return the residual of the reward at a preference, shape (n,)."""
        return w_quality * self.residual[:, 0] - (1.0 - w_quality) * self.residual[:, 1]

    def take(self, rows: NDArray[np.int64]) -> Modelled:
        """Pick rows."""
        return Modelled(
            expected=self.expected[rows],
            deviation=self.deviation[rows],
            residual=self.residual[rows],
        )


def modelled(features: Array, arm: NDArray[np.int64], outcome: Array, *, listed: Array) -> Modelled:
    """Model the outcomes of every arm on every row.

    Args:
        features: A leading 1 and the projected context, mean squared length about 1, shape (n, p).
        arm: Index of the arm taken, shape (n,), n >= 1.
        outcome: Quality and scaled cost, shape (n, 2).
        listed: Scaled list cost of each arm, 0 where no price is given, shape (K,).
    """
    quality, paid = outcome.T
    targets = (
        _quality(_Log.of(features, arm, quality, num_arms=len(listed))),
        _cost(_Log.of(features, arm, paid - listed[arm], num_arms=len(listed)), listed),
    )
    expected, deviation, residual = (np.stack(parts, -1) for parts in zip(*targets, strict=True))
    return Modelled(expected=expected, deviation=deviation, residual=residual)


def constant(outcome: Array, *, num_arms: int) -> Modelled:
    """Expect the mean outcome of any arm: a baseline that knows the preference and nothing else."""
    n, mean = len(outcome), outcome.mean(axis=0)
    return Modelled(
        expected=np.broadcast_to(mean, (n, num_arms, 2)),
        deviation=np.zeros((n, num_arms, 2)),
        residual=outcome - mean,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    """One target of a log, as it came and sorted by arm.

    Attributes:
        features: Shape (n, p).
        arm: Shape (n,).
        target: Shape (n,).
        rows: The same, sorted by arm.
        num_arms: K.
    """

    features: Array
    arm: NDArray[np.int64]
    target: Array
    rows: Rows
    num_arms: int

    @classmethod
    def of(cls, features: Array, arm: NDArray[np.int64], target: Array, *, num_arms: int) -> _Log:
        """Lay a target out."""
        rows = Rows.sorted(features, arm, target, num_arms=num_arms)
        return cls(features=features, arm=arm, target=target, rows=rows, num_arms=num_arms)

    @property
    def blocks(self) -> tuple[slice]:
        """All slopes have one variance in common."""
        return (slice(1, self.features.shape[1]),)

    def prior(self, guess: Guess) -> Beliefs:
        """Believe nothing yet."""
        return Beliefs.prior(guess, num_arms=self.num_arms, blocks=self.blocks)

    def variance(self, found: Beliefs) -> Array:
        """Return the variance of every arm's prediction on every row, shape (n, K)."""
        moved = self.features @ found.covariances
        return np.asarray(np.maximum((moved * self.features).sum(axis=-1).T, 0.0))

    def residual(self, expected: Array, leverage: Array) -> Array:
        """Return what the arm taken brought beyond a prediction without the row, shape (n,)."""
        taken = np.arange(len(self.arm)), self.arm
        return np.asarray(
            (self.target - expected[taken]) / (1.0 - np.minimum(leverage[taken], MAX_LEVERAGE))
        )


def _quality(log: _Log) -> tuple[Array, Array, Array]:
    """Return expectation and deviation, (n, K), and residual, (n,), of quality."""
    found = fit_quality(log.prior(QUALITY_GUESS), log.rows, log.blocks, ROUNDS)
    expected, variance = sigmoid(log.features @ found.means.T), log.variance(found)
    weight = quality_variance(expected)
    noise = quality_noise(log.rows, sigmoid(log.rows.predicted(found.means)))
    residual = log.residual(expected, variance * weight / noise)
    return expected, np.sqrt(variance) * weight, residual


def _cost(log: _Log, listed: Array) -> tuple[Array, Array, Array]:
    """Return the same of scaled cost."""
    found = fit_cost(log.prior(COST_GUESS), log.rows, log.blocks, ROUNDS)
    expected, variance = log.features @ found.means.T, log.variance(found)
    residual = log.residual(expected, variance / cost_noise(log.rows, found.means))
    return np.clip(listed + expected, 0.0, 1.0), np.sqrt(variance), residual
