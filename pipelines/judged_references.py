"""What two simple rules would have earned on the decisions a challenger was judged on.

A challenger that beats its champion and not the best single model, or not the nearest neighbours'
outcomes, has learned little. Both rules know only decisions on other prompts of the same evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.evidence import Evidence
from pipelines.judgement import difference, predicted_outcomes
from policies.evaluation import LoggedRows
from policies.sequences import DEFAULT_ALPHA, Sequence

Array = NDArray[np.float64]
Rows = NDArray[np.bool_]

# The newest ones: distances grow with the square.
MAX_DECISIONS: Final = 5_000
NEIGHBOURS: Final = 20
# Pseudo-observations at the level above, so that an arm tried twice is not believed.
PRIOR: Final = 2.0
# From a log, the rows to learn from and those asked about to every arm's outcomes (asked, K, 2).
Predict = Callable[[LoggedRows, Rows, Rows, int], Array]


def judged_references(evidence: Evidence, *, alpha: float = DEFAULT_ALPHA) -> dict[str, Sequence]:
    """Estimate what each rule earns more than the champion, at the preferences asked for.

    Args:
        evidence: What champion and challenger were compared on.
        alpha: Probability, over all looks, that an end is beyond the truth, for each end.

    Returns:
        By rule, `knn` and `best_single`; negative where the champion is better.
    """
    newest = _newest(evidence, MAX_DECISIONS)
    asked = np.stack([newest.w_quality, 1.0 - newest.w_quality], axis=1)
    rules: Mapping[str, Predict] = {"knn": nearest_outcomes, "best_single": mean_outcomes}
    predicted = predicted_outcomes(newest)
    return {
        name: difference(
            replace(newest, challenger=_chosen(newest, predict, asked)),
            asked,
            predicted,
            alpha=alpha,
        )
        for name, predict in rules.items()
    }


def mean_outcomes(log: LoggedRows, known: Rows, wanted: Rows, num_arms: int) -> Array:
    """Expect of each arm its mean over the known rows, weighed by how seldom it was to be taken."""
    weight, outcomes, arm = 1.0 / log.propensity[known], log.outcomes[known], log.arm[known]
    pool = _weighted(outcomes, weight)
    means = np.stack([_level(outcomes[arm == k], weight[arm == k], pool) for k in range(num_arms)])
    return np.broadcast_to(means, (int(wanted.sum()), *means.shape))


def nearest_outcomes(log: LoggedRows, known: Rows, wanted: Rows, num_arms: int) -> Array:
    """Expect of each arm the mean over the nearest known rows that it was taken on."""
    means = mean_outcomes(log, known, wanted, num_arms)
    expected, asked = means.copy(), log.contexts[wanted]
    for arm in range(num_arms):
        mine = known & (log.arm == arm)
        number = min(NEIGHBOURS, int(mine.sum()))
        if number:
            seen = log.contexts[mine]
            far = (seen**2).sum(axis=1) - 2.0 * asked @ seen.T
            nearest = np.argpartition(far, number - 1, axis=1)[:, :number]
            total = log.outcomes[mine][nearest].sum(axis=1)
            expected[:, arm] = (total + PRIOR * means[:, arm]) / (number + PRIOR)
    return expected


def _chosen(evidence: Evidence, predict: Predict, asked: Array) -> Array:
    """Put all on the arm of the best expected reward among those offered, shape (n, K)."""
    log, num_arms = evidence.log, evidence.champion.shape[1]
    pmf = np.zeros(evidence.champion.shape)
    for fold in np.unique(log.folds):
        wanted = log.folds == fold
        if wanted.all():
            continue
        expected = predict(log, ~wanted, wanted, num_arms)
        reward = (expected * asked[wanted][:, None, :]).sum(axis=2)
        offered = (evidence.champion[wanted] > 0.0) | (evidence.challenger[wanted] > 0.0)
        best = np.where(offered, reward, -np.inf).argmax(axis=1)
        pmf[np.flatnonzero(wanted), best] = 1.0
    # Prompts of one fold alone tell nothing of others: there the rules do as the champion.
    untold = pmf.sum(axis=1) == 0.0
    pmf[untold] = evidence.champion[untold]
    return pmf


def _level(outcomes: Array, weight: Array, pool: Array) -> Array:
    """Return an arm's weighted mean outcomes, shrunk to the pool's, shape (2,)."""
    if not len(outcomes):
        return pool
    count = float(weight.sum()) ** 2 / float((weight**2).sum())
    return np.asarray((count * _weighted(outcomes, weight) + PRIOR * pool) / (count + PRIOR))


def _weighted(outcomes: Array, weight: Array) -> Array:
    """Return the weighted mean of outcomes, shape (2,)."""
    return np.asarray(weight @ outcomes / weight.sum(), dtype=np.float64)


def _newest(evidence: Evidence, most: int) -> Evidence:
    """Keep the decisions that matured last."""
    start, log = max(0, len(evidence) - most), evidence.log
    return replace(
        evidence,
        log=replace(
            log,
            contexts=log.contexts[start:],
            arm=log.arm[start:],
            propensity=log.propensity[start:],
            outcomes=log.outcomes[start:],
            folds=log.folds[start:],
        ),
        units=evidence.units[start:],
        w_quality=evidence.w_quality[start:],
        champion=evidence.champion[start:],
        challenger=evidence.challenger[start:],
        champion_on_grid=evidence.champion_on_grid[:, start:],
        challenger_on_grid=evidence.challenger_on_grid[:, start:],
    )
