"""Bayesian linear models of many arms, each by itself: sums of rows, and beliefs from them.

What barp-dr's control variate is made of. Knows nothing of prices or preferences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.artifact import Weights

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeSettings:
    """How strongly models are shrunk; the defaults are tuned to no pool.

    Attributes:
        prior_weight: Observations that an arm's prior mean counts as.
        context_precision: Observations that the prior of no effect of the context counts as.
        deviation_scale: Share of the standard deviation that covariances are stated with.
        prior_deviation: Standard deviation of a target before anything was seen.
    """

    prior_weight: float = 2.0
    context_precision: float = 100.0
    deviation_scale: float = 0.5
    prior_deviation: float = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """All that K linear models need of their data; adding rows is adding numbers.

    Attributes:
        gram: Sums of outer products of the features, shape (K, features, features).
        moment: Sums of feature times target, shape (K, features).
        square: Sums of squared targets, shape (K,).
    """

    gram: Array
    moment: Array
    square: Array

    @classmethod
    def read(cls, weights: Weights, target: str) -> Statistics:
        """Take one target's sums out of an artifact."""
        return cls(**{name: weights[f"{target}.{name}"] for name in cls.__dataclass_fields__})

    @classmethod
    def empty(cls, num_arms: int, num_features: int) -> Statistics:
        """Make the sums over no rows."""
        shape = (num_arms, num_features)
        return cls(
            gram=np.zeros((*shape, num_features)), moment=np.zeros(shape), square=np.zeros(num_arms)
        )

    def select(self, arms: Sequence[int | None]) -> Statistics:
        """List the sums of some arms in another order; None is an arm without data."""
        picked = [len(self.square) if arm is None else arm for arm in arms]
        fields = (self.gram, self.moment, self.square)
        # The row behind the last stands for every arm without data, also where no arm has any.
        gram, moment, square = (
            np.concatenate([f, np.zeros((1, *f.shape[1:]))])[picked] for f in fields
        )
        return Statistics(gram=gram, moment=moment, square=square)

    def plus(self, arms: NDArray[np.int64], features: Array, target: Array) -> Statistics:
        """Add rows, those without a target (NaN) left out.

        Args:
            arms: Which model each row belongs to, shape (n,).
            features: Shape (n, features).
            target: Shape (n,).
        """
        known = ~np.isnan(target)
        arms, features, target = arms[known], features[known], target[known]
        gram, moment, square = self.gram.copy(), self.moment.copy(), self.square.copy()
        np.add.at(gram, arms, features[:, :, None] * features[:, None, :])
        np.add.at(moment, arms, features * target[:, None])
        np.add.at(square, arms, target**2)
        return Statistics(gram=gram, moment=moment, square=square)

    def weights(self, target: str) -> dict[str, Array]:
        """Name the sums for an artifact."""
        return {f"{target}.{name}": getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def pool_mean(self) -> float | None:
        """The mean target over all arms, None where there is no row."""
        count = float(self.gram[:, 0, 0].sum())
        return float(self.moment[:, 0].sum()) / count if count else None


def beliefs(
    statistics: Statistics, prior_means: Array, settings: RidgeSettings, deviation: Array
) -> tuple[Array, Array]:
    """Return mean, shape (K, features), and covariance, (K, features, features), of K models.

    Ridge regression read as a posterior: the level is shrunk toward `prior_means`, the effects
    of the context toward none; the covariance is that of Thompson sampling, deviation scaled.
    """
    num_features = statistics.moment.shape[1]
    prior = np.full(num_features, settings.context_precision)
    prior[0] = settings.prior_weight
    precision = statistics.gram + np.diag(prior)
    moment = statistics.moment.copy()
    moment[:, 0] += settings.prior_weight * prior_means
    covariance = np.linalg.inv(precision)
    means = (covariance @ moment[:, :, None])[:, :, 0]
    return means, covariance * (settings.deviation_scale * deviation[:, None, None]) ** 2


def deviations(statistics: Statistics, settings: RidgeSettings) -> tuple[Array, float]:
    """Return each arm's running standard deviation, shrunk toward the pool's, and the pool's."""
    count = statistics.gram[:, 0, 0]
    spread = statistics.square - statistics.moment[:, 0] ** 2 / np.maximum(count, 1.0)
    spread = np.maximum(spread, 0.0)
    weight = settings.prior_weight
    pool = (weight * settings.prior_deviation**2 + spread.sum()) / (weight + count.sum())
    return np.sqrt((weight * pool + spread) / (weight + count)), float(np.sqrt(pool))


def fit_projection(contexts: NDArray[np.float32], *, components: int) -> tuple[Array, Array]:
    """Fit principal components of unit variance; return (centre, projection).

    Args:
        contexts: Shape (n, context_dim), n >= 2.
        components: How many rows the projection has; those the contexts do not span are zero.
    """
    exact = contexts.astype(np.float64)
    centre = exact.mean(axis=0)
    _, sizes, directions = np.linalg.svd(exact - centre, full_matrices=False)
    # A direction's sign is arbitrary: fix it, so that equal contexts give equal bytes.
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(len(sizes)), largest])[:, None]
    deviation = sizes / np.sqrt(len(exact) - 1)
    real = deviation > 1e-9 * deviation.max(initial=1.0)
    kept = (directions[real] / deviation[real, None])[:components]
    return centre, np.pad(kept, ((0, components - len(kept)), (0, 0)))


def features(contexts: NDArray[np.float32], centre: Array, projection: Array) -> Array:
    """Project contexts and put a leading 1: shape (n, components + 1)."""
    projected = (contexts - centre) @ projection.T
    return np.hstack([np.ones((len(contexts), 1)), projected])
