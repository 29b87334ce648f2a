"""Confidence sequences: intervals that may be looked at as often as one likes.

Asymptotic confidence sequences of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform
central limit theory and asymptotic confidence sequences" (arXiv 2103.06476). An ordinary 95 %
interval that is looked at again and again is wrong far more often than one time in twenty; these
ends are wrong at any of all looks together with probability `alpha` each, for units enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

DEFAULT_ALPHA: Final = 0.05
# The number of units at which the ends lie closest; they hold at any other number too.
TUNED_TO_UNITS: Final = 3_000


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


def confidence_sequence(
    scores: Array,
    units: Indices,
    *,
    alpha: float = DEFAULT_ALPHA,
    tuned_to: int = TUNED_TO_UNITS,
) -> Sequence:
    """Take the mean of all scores so far, with ends that hold at every look.

    Scores of one unit may depend on each other in any way; units are independent. The mean is the
    ratio of two sums over units, and its spread that of the ratio, linearised.

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
    sizes = np.bincount(units)
    totals = np.bincount(units, weights=scores)[sizes > 0]
    sizes = sizes[sizes > 0]
    count, mean = len(sizes), float(scores.mean())
    influence = (totals - mean * sizes) / sizes.mean()
    deviation = float(influence.std(ddof=1)) if count > 1 else math.inf
    half = deviation * boundary(count, alpha=alpha, tuned_to=tuned_to)
    return Sequence(mean=mean, lower=mean - half, upper=mean + half, units=count, n=n)


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
