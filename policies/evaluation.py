"""What a policy would have earned, from a log that another policy wrote.

Estimators return one score per interaction; mean and interval are taken once, after, by
`estimate`. The caller draws the preference and the world does not know it, so a logged row may be
scored at any preference, weighted by pi(a | x, w') / mu(a | x, w_logged).
"""

from __future__ import annotations

from collections.abc import Sequence
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
    direct = np.einsum("nk,nk->n", target_pmf, predicted)
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


def preference_regions(w_quality: Array) -> dict[str, Indices]:
    """Part weights on quality into three regions, and all of them; return their positions.

    >>> {name: rows.tolist() for name, rows in preference_regions(np.array([0, 0.5, 1])).items()}
    {'overall': [0, 1, 2], 'cost': [0], 'balanced': [1], 'quality': [2]}
    """
    third = np.minimum((w_quality * len(REGIONS)).astype(np.int64), len(REGIONS) - 1)
    named = {name: np.flatnonzero(third == i) for i, name in enumerate(REGIONS)}
    return {OVERALL: np.arange(len(w_quality)), **named}


def evaluate_as_asked(
    target_pmf: Array, log: LoggedRows, w_quality: Array
) -> dict[str, dict[str, Estimate]]:
    """Estimate the target policy's reward at the preferences asked for, overall and by region.

    Args:
        target_pmf: The target policy's pmf at each row's own preference, shape (n, K).
        log: What another policy did.
        w_quality: Weight on quality each row was decided under, shape (n,).

    Returns:
        Estimates by region, then by estimator; see REGIONS and ESTIMATORS. A region without rows
        is left out.
    """
    trade_offs = np.stack([w_quality, 1.0 - w_quality], axis=1)
    scores, weights = _scores(target_pmf, log, _predicted(log, target_pmf.shape[-1]), trade_offs)
    return {
        region: {name: estimate(score[rows], weights[rows]) for name, score in scores.items()}
        for region, rows in preference_regions(w_quality).items()
        if len(rows)
    }


def evaluate_on_grid(
    target_pmf: Array, log: LoggedRows, grid: Sequence[Preference]
) -> dict[str, dict[str, Estimate]]:
    """Estimate the target policy's mean reward over a grid of preferences and its regions.

    Every row is scored at every preference, whatever the one it was decided under, so thin regions
    can be judged; where preferences decide the arm the weights are far from even.

    Args:
        target_pmf: The target policy's pmf at each preference, shape (G, n, K).
        log: What another policy did.
        grid: The preferences, G of them.

    Returns:
        Estimates by region, then by estimator.
    """
    predicted = _predicted(log, target_pmf.shape[-1])
    at_each = []
    for pmf, preference in zip(target_pmf, grid, strict=True):
        trade_offs = np.tile([preference.quality, preference.cost], (len(pmf), 1))
        at_each.append(_scores(pmf, log, predicted, trade_offs))
    w_quality = np.array([preference.quality for preference in grid])
    found = {}
    for region, points in preference_regions(w_quality).items():
        weights = np.mean([at_each[point][1] for point in points], axis=0)
        found[region] = {
            name: estimate(np.mean([at_each[point][0][name] for point in points], axis=0), weights)
            for name in ESTIMATORS
        }
    return found


def _predicted(log: LoggedRows, num_arms: int) -> Array:
    """Predict every arm's outcomes, shape (n, K, 2)."""
    return cross_fitted(log.contexts, log.arm, log.outcomes, log.folds, num_arms=num_arms)


def _scores(
    target_pmf: Array, log: LoggedRows, predicted: Array, trade_offs: Array
) -> tuple[dict[str, Array], Array]:
    """Score every row once, by each estimator; return the weights too, all of shape (n,)."""
    rows = np.arange(len(log.arm))
    reward = (log.outcomes * trade_offs).sum(axis=1)
    expected = np.einsum("nko,no->nk", predicted, trade_offs)
    taken = target_pmf[rows, log.arm]
    weights = importance_weights(taken, log.propensity)
    return {
        "ips": weights * reward,
        "snips": snips(taken, log.propensity, reward),
        "dr": doubly_robust(target_pmf, log.propensity, reward, log.arm, expected),
    }, weights
