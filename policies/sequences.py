"""Confidence sequences: intervals that may be looked at as often as one likes.

Asymptotic confidence sequences of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform
central limit theory and asymptotic confidence sequences" (arXiv 2103.06476). An ordinary 95 %
interval that is looked at again and again is wrong far more often than one time in twenty; these
ends are wrong at any of all looks together with probability `alpha` each, for units enough.

Who knows beforehand when the last look will be can have narrower ends towards it: a part of `alpha`
goes to a few looks planned at fixed sizes, with the boundary of O'Brien and Fleming ("A multiple
testing procedure for clinical trials", Biometrics 35, 1979). Both together err with `alpha`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

DEFAULT_ALPHA: Final = 0.05
# The number of units at which the ends lie closest; they hold at any other number too.
TUNED_TO_UNITS: Final = 3_000
# Planned looks, at even distances, and what of alpha they have.
LOOKS: Final = 5
LOOKS_SHARE: Final = 0.4
# The ends are asymptotic: a planned look at fewer units is left out.
MIN_UNITS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """A running mean between two ends, each of which errs with probability `alpha` over all looks.

    Attributes:
        mean: Mean of the scores.
        lower: Lower end.
        upper: Upper end.
        units: Independent units behind it: sessions, or decisions that belong to none.
        n: Scores behind it.
    """

    mean: float
    lower: float
    upper: float
    units: int
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ratio:
    """A mean over units of any size: the ratio of two sums over units, linearised.

    Attributes:
        mean: Mean of all scores.
        deviation: Standard deviation of one unit's influence on it.
        units: How many units there are.
    """

    mean: float
    deviation: float
    units: int

    @classmethod
    def of(cls, scores: Array, units: Indices) -> _Ratio:
        """Take the mean of scores, shape (n,), that come in units, shape (n,)."""
        sizes = np.bincount(units)
        totals = np.bincount(units, weights=scores)[sizes > 0]
        sizes = sizes[sizes > 0]
        count, mean = len(sizes), float(scores.mean())
        influence = (totals - mean * sizes) / sizes.mean()
        deviation = float(influence.std(ddof=1)) if count > 1 else math.inf
        return cls(mean=mean, deviation=deviation, units=count)


def confidence_sequence(
    scores: Array,
    units: Indices,
    *,
    alpha: float = DEFAULT_ALPHA,
    tuned_to: int = TUNED_TO_UNITS,
) -> Sequence:
    """Take the mean of all scores so far, with ends that hold at every look.

    Scores of one unit may depend on each other in any way; units are independent.

    Args:
        scores: One number a decision, at least one, shape (n,).
        units: Which unit each belongs to, numbered from 0, shape (n,).
        alpha: Probability that the lower end is ever above the truth; likewise the upper below.
        tuned_to: Number of units at which the interval is to be narrowest.

    Raises:
        ValueError: There is no score.
    """
    n = len(scores)
    if n == 0:
        raise ValueError("a confidence sequence needs at least one score")
    found = _Ratio.of(scores, units)
    half = found.deviation * boundary(found.units, alpha=alpha, tuned_to=tuned_to)
    return Sequence(
        mean=found.mean,
        lower=found.mean - half,
        upper=found.mean + half,
        units=found.units,
        n=n,
    )


def planned_sequence(
    scores: Array, units: Indices, *, last_look: int, alpha: float = DEFAULT_ALPHA
) -> Sequence:
    """Take the mean with ends that hold at every look up to a last one, and are narrow there.

    The ends of a confidence sequence at a part of `alpha`, or those of the planned looks that have
    been reached, whichever are narrower. A planned look takes its first so many scores and no
    others, so that it says the same whenever it is asked for.

    Args:
        scores: One number a decision, at least one, in the order they came, shape (n,).
        units: Which unit each belongs to, numbered from 0, shape (n,).
        last_look: Number of scores after which nobody looks any more, fixed beforehand.
        alpha: Probability that the lower end is ever above the truth; likewise the upper below.

    Raises:
        ValueError: There is no score.
    """
    found = confidence_sequence(scores, units, alpha=alpha * (1.0 - LOOKS_SHARE))
    lower, upper = found.lower, found.upper
    for look in range(1, LOOKS + 1):
        size = last_look * look // LOOKS
        if not 0 < size <= len(scores):
            continue
        then = _Ratio.of(scores[:size], units[:size])
        if then.units >= MIN_UNITS:
            errors = planned_boundary(alpha * LOOKS_SHARE) * math.sqrt(LOOKS / look)
            half = errors * then.deviation / math.sqrt(then.units)
            lower, upper = max(lower, then.mean - half), min(upper, then.mean + half)
    return replace(found, lower=lower, upper=upper)


@lru_cache
def planned_boundary(alpha: float) -> float:
    """Return how many standard errors an end lies from the mean at the last planned look.

    At look k of K it lies sqrt(K / k) times as many away: sums of k steps of a Gaussian random walk
    meet one and the same bound, which any of them exceeds with probability `alpha`.

    >>> round(planned_boundary(0.025), 2)
    2.04
    """
    low, high = NormalDist().inv_cdf(1.0 - alpha), 10.0
    while high - low > 1e-4:
        middle = (low + high) / 2.0
        if _walk_exceeds(middle * math.sqrt(LOOKS)) > alpha:
            low = middle
        else:
            high = middle
    return high


def _walk_exceeds(bound: float) -> float:
    """Return how likely a Gaussian random walk of LOOKS steps is ever above a bound."""
    places = np.linspace(-8.0 * math.sqrt(LOOKS), bound, 400)
    step = (places[1] - places[0]) / math.sqrt(2.0 * math.pi)
    kernel = np.exp(-0.5 * (places[:, None] - places[None, :]) ** 2) * step
    # The trapezoid rule: the walk that has stayed below the bound, by where it is.
    kernel[:, [0, -1]] /= 2.0
    density = np.exp(-0.5 * places**2) / math.sqrt(2.0 * math.pi)
    for _ in range(LOOKS - 1):
        density = kernel @ density
    return 1.0 - float(np.trapezoid(density, places))


def boundary(count: int, *, alpha: float, tuned_to: int = TUNED_TO_UNITS) -> float:
    """Return how many standard deviations of one unit an end lies from the mean of `count`.

    The one-sided normal mixture boundary: sqrt(2 (t rho^2 + 1) / (t^2 rho^2) * log(1 + sqrt(t
    rho^2 + 1) / (2 alpha))). A half-normal mixture over all effects, of scale rho, makes a
    martingale that exceeds 1 / alpha at any time with probability alpha (Ville).

    >>> round(boundary(1000, alpha=0.05) * 1000**0.5, 2)
    2.89
    """
    # The rho at which the width is least at t = tuned_to, up to a small term (same paper, for the
    # two-sided boundary at twice the alpha).
    log_alpha = -2.0 * math.log(2.0 * alpha)
    rho_square = (log_alpha + math.log(log_alpha + 1.0) + 1.0) / tuned_to
    spread = count * rho_square + 1.0
    width = 2.0 * spread / (count**2 * rho_square)
    return math.sqrt(width * math.log1p(math.sqrt(spread) / (2.0 * alpha)))
