"""What every arm would have brought, modelled from the log: the control variate of barp-dr.

A Bayesian linear model of quality and one of scaled cost per arm, as the posterior learner's. A
row's own outcome must not be in the prediction it is compared with, or the residual is too small
where the model is flexible: the residual is left one out, exactly, by the leverage of the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from policies.linear_models import RidgeSettings, Statistics, beliefs, deviations

Array = NDArray[np.float64]
# A row alone in its direction would have a leverage of one, and no prediction without itself.
MAX_LEVERAGE: Final = 0.95


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


def modelled(
    features: Array, arm: NDArray[np.int64], outcome: Array, *, num_arms: int, precision: float
) -> Modelled:
    """Model the outcomes of every arm on every row.

    Args:
        features: A leading 1 and the projected context, shape (n, features), n >= 1.
        arm: Index of the arm taken, shape (n,).
        outcome: Quality and scaled cost, shape (n, 2).
        num_arms: K.
        precision: Observations that the prior of no effect of the context counts as.
    """
    targets = [
        _modelled_one(features, arm, outcome[:, i], num_arms=num_arms, precision=precision)
        for i in range(2)
    ]
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


def _modelled_one(
    features: Array, arm: NDArray[np.int64], target: Array, *, num_arms: int, precision: float
) -> tuple[Array, Array, Array]:
    """Return expectation and deviation, (n, K), and residual, (n,), of one target."""
    settings = RidgeSettings(context_precision=precision, deviation_scale=1.0)
    statistics = Statistics.empty(num_arms, features.shape[1]).plus(arm, features, target)
    prior_means = np.full(num_arms, target.mean())
    deviation, _ = deviations(statistics, settings)
    means, inverse = beliefs(statistics, prior_means, settings, np.ones(num_arms))
    leverage = ((features @ inverse) * features).sum(axis=-1).T
    expected, rows = features @ means.T, np.arange(len(arm))
    share = np.minimum(leverage[rows, arm], MAX_LEVERAGE)
    residual = (target - expected[rows, arm]) / (1.0 - share)
    return expected, np.sqrt(leverage) * deviation, residual
