"""What a policy would have earned, from a log that another policy wrote.

Estimators return one score per interaction; mean and interval are taken once, after, by
`estimate`. The caller draws the preference and the world does not know it, so a logged row may be
scored at any preference, weighted by pi(a | x, w') / mu(a | x, w_logged).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from policies.preference import Preference
from policies.reward_model import cross_fitted

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

ESTIMATORS: Final = ("ips", "snips", "dr")
OVERALL: Final = "overall"
REGIONS: Final = ("cost", "balanced", "quality")
# Below this effective sample size an estimate is shown, but flagged.
MIN_ESS: Final = 100.0


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

    @property
    def trusted(self) -> bool:
        """Whether it rests on rows enough for its interval to be believed."""
        return self.ess >= MIN_ESS


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRows:
    """A log as arrays: n interactions over K arms, outcomes known.

    Attributes:
        contexts: What the reward model sees, float64, shape (n, features).
        arm: Index of the arm taken, shape (n,).
        propensity: Probability the logging policy gave it, shape (n,).
        outcomes: Quality and minus scaled cost, so that a preference weighs both, shape (n, 2).
        folds: Which fold a row is in, by prompt: a prompt never predicts itself, shape (n,).
    """

    contexts: Array
    arm: Indices
    propensity: Array
    outcomes: Array
    folds: Indices


def preference_regions(grid: Sequence[Preference]) -> dict[str, Indices]:
    """Part the grid into three regions of the weight on quality, and all of it.

    >>> from policies.preference import preference_grid
    >>> {name: len(points) for name, points in preference_regions(preference_grid()).items()}
    {'overall': 11, 'cost': 4, 'balanced': 3, 'quality': 4}
    """
    third = np.array([min(int(point.quality * 3), 2) for point in grid])
    named = {name: np.flatnonzero(third == i) for i, name in enumerate(REGIONS)}
    return {OVERALL: np.arange(len(grid)), **named}


def evaluate(
    target_pmf: Array, log: LoggedRows, grid: Sequence[Preference]
) -> dict[str, dict[str, Estimate]]:
    """Estimate the target policy's reward overall and by region of preferences.

    Every row is scored at every preference of the grid, whatever the one it was decided under;
    a region's score of a row is the mean over the region's preferences.

    Args:
        target_pmf: The target policy's pmf at each preference, shape (G, n, K).
        log: What another policy did.
        grid: The preferences, G of them.

    Returns:
        Estimates by region, then by estimator; see REGIONS and ESTIMATORS.
    """
    predicted = cross_fitted(
        log.contexts, log.arm, log.outcomes, log.folds, num_arms=target_pmf.shape[2]
    )
    rows = np.arange(len(log.arm))
    weights = importance_weights(target_pmf[:, rows, log.arm], log.propensity)
    scores = {name: np.empty(weights.shape) for name in ESTIMATORS}
    for point, preference in enumerate(grid):
        trade_off = np.array([preference.quality, preference.cost])
        reward, expected = log.outcomes @ trade_off, predicted @ trade_off
        target = target_pmf[point]
        scores["ips"][point] = weights[point] * reward
        scores["snips"][point] = snips(target[rows, log.arm], log.propensity, reward)
        scores["dr"][point] = doubly_robust(target, log.propensity, reward, log.arm, expected)
    return {
        region: _estimates(scores, weights, points)
        for region, points in preference_regions(grid).items()
    }


def _estimates(scores: Mapping[str, Array], weights: Array, points: Indices) -> dict[str, Estimate]:
    """Average each row over the points, then take mean and interval over the rows."""
    weight = weights[points].mean(axis=0)
    return {name: estimate(score[points].mean(axis=0), weight) for name, score in scores.items()}
