"""Quality and cost of every arm, fitted to a log: a logistic model and a linear one.

Both are `policies.hierarchy`'s. Knows nothing of artifacts, prices or preferences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from policies.hierarchy import Beliefs, Guess, step

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# On the logit scale; and of scaled cost, as a departure from list price.
QUALITY_GUESS: Final = Guess(level=0.5, slope=0.02, shared_slope=0.1, shared_level=1.0, mean=0.0)
COST_GUESS: Final = Guess(level=0.02, slope=0.005, shared_slope=0.02, shared_level=0.25, mean=0.0)
# A logistic model's own variance is never taken for less: certainty would stop all learning.
LEAST_VARIANCE: Final = 0.02
# Pseudo-observations that shrink an arm's noise toward the pool's, and the pool's toward its guess.
QUALITY_NOISE: Final = (20.0, 8.0)
COST_NOISE: Final = (8.0, 4.0)
MAX_LOGIT: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CostPrior:
    """What is expected of costs before any was seen.

    Attributes:
        guess: Variances of the models.
        noise: Variance of a call's cost around its model.
        least_noise: That variance is never taken for less.
    """

    guess: Guess
    noise: float
    least_noise: float


# Of scaled costs, as departures from list price.
SCALED_COSTS: Final = CostPrior(guess=COST_GUESS, noise=0.02, least_noise=1e-5)
# Of costs in units of what the arm's calls usually cost: what makes one arm's call dear makes
# another's dear by a like factor, so that cheap and dear arms teach each other.
RELATIVE_COSTS: Final = CostPrior(
    guess=Guess(level=0.1, slope=0.02, shared_slope=0.1, shared_level=0.25, mean=0.0),
    noise=0.5,
    least_noise=1e-3,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What one target is fitted to, sorted by arm.

    Attributes:
        features: Shape (n, p).
        arm: Index of the arm each row belongs to, shape (n,), ascending.
        target: Shape (n,).
        borders: Where each arm's rows begin, and where the last one's end, shape (K + 1,).
    """

    features: Array
    arm: Indices
    target: Array
    borders: Indices

    @classmethod
    def sorted(cls, features: Array, arm: Indices, target: Array, *, num_arms: int) -> Rows:
        """Sort rows, those without a target (NaN) left out."""
        known = np.flatnonzero(~np.isnan(target))
        order = known[np.argsort(arm[known], kind="stable")]
        return cls(
            features=features[order],
            arm=arm[order],
            target=target[order],
            borders=np.searchsorted(arm[order], np.arange(num_arms + 1)),
        )

    @property
    def count(self) -> Array:
        """Rows of each arm, shape (K,)."""
        return np.diff(self.borders).astype(np.float64)

    def by_arm(self, values: Array) -> Array:
        """Add values up by arm, shape (K,)."""
        sums = np.bincount(self.arm, weights=values, minlength=len(self.borders) - 1)
        return np.asarray(sums, dtype=np.float64)

    def predicted(self, means: Array) -> Array:
        """Return each row's features times its arm's model, shape (n,)."""
        return np.asarray((self.features * means[self.arm]).sum(axis=1))

    def sums(self, weight: Array, target: Array) -> tuple[Array, Array]:
        """Return weighted Gram matrices (K, p, p) and moments (K, p)."""
        weighted = self.features * weight[:, None]
        parts = [slice(a, b) for a, b in zip(self.borders[:-1], self.borders[1:], strict=True)]
        return (
            np.stack([self.features[part].T @ weighted[part] for part in parts]),
            np.stack([weighted[part].T @ target[part] for part in parts]),
        )


def fit_quality(start: Beliefs, rows: Rows, blocks: Sequence[slice], rounds: int) -> Beliefs:
    """Fit a logistic model; quality may be graded, then it is quasi-binomial.

    By the bound of Jaakkola and Jordan (2000): each round is a weighted least squares that cannot
    make the fit worse, however far off it starts, and that rests where the likelihood does.
    Newton's steps diverge where new rows contradict what was believed. A step of expectation
    maximisation comes with each round.

    Args:
        start: Beliefs to go on from.
        rows: Qualities in [0, 1], at least one.
        blocks: Features that have a variance in common.
        rounds: How many steps; few are enough where little is new.
    """
    pool = float(np.clip(rows.target.mean(), 0.02, 0.98))
    prior_mean = float(np.log(pool / (1.0 - pool)))
    beliefs = start
    for number in range(rounds + 1):
        logit = rows.predicted(beliefs.means)
        weight, noise = bound_weight(logit), quality_noise(rows, sigmoid(logit))
        sums = rows.sums(weight, (rows.target - 0.5) / weight)
        last = number == rounds
        beliefs = step(beliefs, *sums, noise, prior_mean, QUALITY_GUESS, blocks, last=last)
    return _with_exact_curvature(beliefs, rows, prior_mean, blocks)


def bound_weight(logit: Array) -> Array:
    """Return the curvature of the quadratic bound on the logistic likelihood that touches here.

    >>> bound_weight(np.array([0.0, 2.0])).round(4)
    array([0.25  , 0.1904])
    """
    size = np.maximum(np.abs(logit), 1e-6)
    return np.asarray(np.tanh(size / 2.0) / (2.0 * size))


def _with_exact_curvature(
    beliefs: Beliefs, rows: Rows, prior_mean: float, blocks: Sequence[slice]
) -> Beliefs:
    """State covariances by the likelihood's own curvature: the bound's is too sure of itself."""
    logit = rows.predicted(beliefs.means)
    quality = sigmoid(logit)
    sums = rows.sums(quality_variance(quality), logit)
    noise = quality_noise(rows, quality)
    exact = step(beliefs, *sums, noise, prior_mean, QUALITY_GUESS, blocks, last=True)
    return replace(
        beliefs, covariances=exact.covariances, shared_covariance=exact.shared_covariance
    )


def quality_variance(quality: Array) -> Array:
    """Return the variance of a 0/1 outcome, and of the slope of quality over its logit."""
    return np.asarray(np.maximum(quality * (1.0 - quality), LEAST_VARIANCE))


def quality_noise(rows: Rows, quality: Array) -> Array:
    """Estimate how much wider than binomial each arm's outcomes spread, shape (K,)."""
    shrink_arm, shrink_pool = QUALITY_NOISE
    variance = quality_variance(quality)
    pearson = (rows.target - quality) ** 2 / variance
    common = (shrink_pool + pearson.sum()) / (shrink_pool + len(pearson))
    noise = (shrink_arm * common + rows.by_arm(pearson)) / (shrink_arm + rows.count)
    return np.asarray(np.clip(noise, 0.05, 1.5))


def fit_cost(
    start: Beliefs,
    rows: Rows,
    blocks: Sequence[slice],
    rounds: int,
    prior: CostPrior = SCALED_COSTS,
) -> Beliefs:
    """Fit a linear model whose noise is each arm's own, shrunk toward the pool's.

    Args:
        start: Beliefs to go on from.
        rows: Scaled costs, or departures from a known level, at least one.
        blocks: Features that have a variance in common.
        rounds: How many steps; one is enough where little is new.
        prior: What is expected in the units that costs are in.
    """
    guess = prior.guess
    gram, moment = rows.sums(np.ones(len(rows.target)), rows.target)
    beliefs = start
    for number in range(rounds + 1):
        last, noise = number == rounds, cost_noise(rows, beliefs.means, prior)
        beliefs = step(beliefs, gram, moment, noise, guess.mean, guess, blocks, last=last)
    return beliefs


def cost_noise(rows: Rows, means: Array, prior: CostPrior = SCALED_COSTS) -> Array:
    """Estimate the variance of each arm's costs around its model, shape (K,)."""
    shrink_arm, shrink_pool = COST_NOISE
    residual = (rows.target - rows.predicted(means)) ** 2
    guessed = shrink_pool * prior.noise
    common = (guessed + residual.sum()) / (shrink_pool + len(residual))
    noise = (shrink_arm * common + rows.by_arm(residual)) / (shrink_arm + rows.count)
    return np.asarray(np.maximum(noise, prior.least_noise))


def sigmoid(logit: Array) -> Array:
    """Map logits to probabilities."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logit, -MAX_LOGIT, MAX_LOGIT))))
