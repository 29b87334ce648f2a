"""What a rule of choice earns where every arm's outcome is known.

Everything is exact: expectations over probabilities, no sampling. A rule is laid out as its
`choices`: the probability of each arm for each held-out prompt at each preference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from policies.preference import Preference
from policies.references import HeldOut
from policies.reward import scaled_cost

Array = NDArray[np.float64]
Pmf = Callable[[NDArray[np.float32], Preference], Array]

# METHOD's bound on a rise that noise between prompts explains.
PAIRED_ERRORS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """What a rule earned on n held-out prompts at each of G preferences.

    Attributes:
        reward: Mean reward, shape (G,).
        quality: Expected quality of each prompt, shape (G, n).
        cost_usd: Expected cost of each prompt, USD, shape (G, n).
        arm_share: Mean probability of each arm, shape (G, K).
    """

    reward: Array
    quality: Array
    cost_usd: Array
    arm_share: Array


def performance(choices: Array, held_out: HeldOut, grid: Sequence[Preference]) -> Performance:
    """Judge a rule.

    Args:
        choices: Probability of each arm, shape (G, n, K).
        held_out: What came of each arm on each prompt.
        grid: The preferences, G of them.
    """
    quality = (choices * held_out.scores).sum(axis=2)
    scaled = scaled_cost(held_out.costs, cost_ceiling_usd=held_out.cost_ceiling_usd)
    weight = np.array([preference.quality for preference in grid])
    paid = (choices * scaled).sum(axis=2).mean(axis=1)
    return Performance(
        reward=weight * quality.mean(axis=1) - (1.0 - weight) * paid,
        quality=quality,
        cost_usd=(choices * held_out.costs).sum(axis=2),
        arm_share=choices.mean(axis=1),
    )


def choices_of(pmf: Pmf, held_out: HeldOut, grid: Sequence[Preference]) -> Array:
    """Lay out a policy, `pmf` its own over all arms, with or without exploration, (G, n, K)."""
    return np.array([[pmf(row, point) for row in held_out.contexts] for point in grid])


def best_choices(quality: Array, scaled: Array, grid: Sequence[Preference]) -> Array:
    """Lay out the rule that takes the arm of the best expected worth, shape (G, n, K).

    Args:
        quality: Expected quality, shape (n, K).
        scaled: Expected scaled cost, shape (n, K).
        grid: The preferences, G of them.
    """
    weight = np.array([preference.quality for preference in grid])[:, None, None]
    worth = weight * quality - (1.0 - weight) * scaled
    return np.asarray(np.eye(quality.shape[1])[worth.argmax(axis=2)])


def gap_closed(reward: Array, *, best_single: Array, oracle: Array) -> float:
    """Return how far from best single (0) to oracle (1) a rule lies: a ratio of means.

    At a weight of 0 on quality there may be nothing to gain, so a mean of ratios has no meaning.

    >>> gap_closed(np.array([0.0, 3.0]), best_single=np.ones(2), oracle=np.array([1.0, 3.0]))
    0.5
    """
    return float((reward.mean() - best_single.mean()) / (oracle.mean() - best_single.mean()))


def is_monotone(quality: Array, cost_usd: Array) -> bool:
    """Say whether more weight on quality never costs less nor scores worse, up to noise.

    Adjacent preferences are compared on the same prompts: a fall counts beyond two standard
    errors of the paired difference.

    Args:
        quality: Expected quality, preferences by rising weight on quality, shape (G, n), n >= 2.
        cost_usd: Expected cost, USD, shape (G, n).
    """
    return all(_rises(values) for values in (quality, cost_usd))


def _rises(values: Array) -> bool:
    """Compare neighbours along the first axis, paired over the second."""
    steps = np.diff(values, axis=0)
    error = steps.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    # Rounding alone is no fall.
    return bool((steps.mean(axis=1) >= -PAIRED_ERRORS * error - 1e-12).all())
