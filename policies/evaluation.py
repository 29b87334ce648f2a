"""What a policy would have earned, from a log that another policy wrote.

Estimators return one score per interaction; mean and interval are taken once, after, by
`estimate`. The caller draws the preference and the world does not know it, so a logged row may be
scored at any preference, weighted by pi(a | x, w') / mu(a | x, w_logged).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        mean: Mean of the per-interaction scores.
        lower: Low end of the interval.
        upper: High end.
        ess: Effective sample size, (sum of weights)^2 / sum of squares: how many rows it rests on.
        n: How many rows there were.
    """

    mean: float
    lower: float
    upper: float
    ess: float
    n: int


def importance_weights(target_prob: Array, propensity: Array) -> Array:
    """Return how much likelier the target policy takes each logged arm than the log did.

    Args:
        target_prob: Probability under the target policy, at the preference to judge, of the arm
            that was taken, shape (n,) or, for several preferences a row, (n, m).
        propensity: Probability the logging policy gave it at the preference logged, > 0, shape
            (n,) or (n, 1).
    """
    return np.asarray(target_prob / propensity, dtype=np.float64)


def ips(target_prob: Array, propensity: Array, reward: Array) -> Array:
    """Score by inverse propensity: unbiased, and noisy where the two policies differ.

    >>> ips(np.array([0.5]), np.array([0.25]), np.array([0.3]))
    array([0.6])
    """
    return importance_weights(target_prob, propensity) * reward


def snips(target_prob: Array, propensity: Array, reward: Array) -> Array:
    """Score by self-normalised inverse propensity, linearised.

    The mean of the scores is exactly sum(weight * reward) / sum(weight); their spread is that of
    the ratio, so that the interval of `estimate` is the one of the delta method.

    Raises:
        ValueError: The target policy takes none of the logged arms.
    """
    weight = importance_weights(target_prob, propensity)
    mean_weight = weight.mean()
    if mean_weight == 0:
        raise ValueError("the target policy takes none of the logged arms")
    ratio = (weight * reward).mean() / mean_weight
    return np.asarray(ratio + weight * (reward - ratio) / mean_weight, dtype=np.float64)


def doubly_robust(
    target_pmf: Array, propensity: Array, reward: Array, arm: NDArray[np.int64], predicted: Array
) -> Array:
    """Score by a reward model, corrected where the log knows better.

    Unbiased whatever the model predicts, as long as it has not seen these rows; the better it
    predicts, the less noisy.

    Args:
        target_pmf: The target policy's pmf, shape (n, K), 0 for arms not offered.
        propensity: Probability the logging policy gave the arm it took, shape (n,).
        reward: What came of it, shape (n,).
        arm: Index of the arm taken, shape (n,).
        predicted: The model's reward of each arm, shape (n, K).
    """
    rows = np.arange(len(arm))
    weight = importance_weights(target_pmf[rows, arm], propensity)
    direct = (target_pmf * predicted).sum(axis=1)
    return np.asarray(direct + weight * (reward - predicted[rows, arm]), dtype=np.float64)


def estimate(scores: Array, weights: Array | None = None, *, level: float = 0.95) -> Estimate:
    """Take mean and interval of per-interaction scores, by the normal approximation.

    Args:
        scores: One number per interaction, at least one, shape (n,). For a paired comparison the
            difference of two policies' scores.
        weights: The importance weights behind them, shape (n,); None counts every row once.
        level: Share of such intervals that cover the truth.

    Raises:
        ValueError: There is no score.
    """
    n = len(scores)
    if n == 0:
        raise ValueError("an estimate needs at least one interaction")
    mean = float(scores.mean())
    # One row alone says nothing of its spread.
    error = float(scores.std(ddof=1)) / n**0.5 if n > 1 else float("inf")
    half = NormalDist().inv_cdf(0.5 + level / 2) * error
    ess = float(n) if weights is None else effective_sample_size(weights)
    return Estimate(mean=mean, lower=mean - half, upper=mean + half, ess=ess, n=n)


def effective_sample_size(weights: Array) -> float:
    """Count the equally weighted rows that would be as informative.

    >>> effective_sample_size(np.array([1.0, 1.0, 0.0, 0.0]))
    2.0
    """
    square = float((weights**2).sum())
    return float(weights.sum()) ** 2 / square if square > 0 else 0.0
