"""Is a new champion surely worse than its predecessor? Pure functions of a comparison.

The predecessor keeps a share of the traffic for a while, so both meet the same prompts at the same
time: what changes for both, as prices, providers or judges do, is no difference between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.answers import Answer
from pipelines.evidence import Evidence
from pipelines.judgement import COST_RISE, dearer, difference, predicted_outcomes
from policies.sequences import confidence_sequence

Array = NDArray[np.float64]
# Below this share of the exploration that was asked for, off-policy estimates lose their ground:
# half of what the posterior shares evenly (`even_part`). The gradients share all of it so.
COLLAPSED_SHARE: Final = 0.05
COLLAPSE_ROWS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What a champion on probation is held to.

    Attributes:
        decisions: How long it is on probation; 0 lets it serve alone at once.
        loss: Reward that it may lose against its predecessor.
        cost_rise: Share by which its calls may cost more, unless its reward is surely higher.
        feedback_fall: Share of decisions by which feedback may come less often.
        answer_within_s: Time after a decision by which feedback counts as come, seconds.
        alpha: Probability of a false alarm over all looks of one probation, for each of the four.
        min_units: Independent units before the first look: the ends are asymptotic.
    """

    decisions: int = 2_000
    loss: float = 0.01
    cost_rise: float = COST_RISE
    feedback_fall: float = 0.05
    answer_within_s: float = 30.0
    alpha: float = 0.01
    min_units: int = 200


def breach(evidence: Evidence, guard: Guard) -> str | None:
    """Say in words by what the champion is surely worse than the version beside it, or None."""
    trade_offs = np.stack([evidence.w_quality, 1.0 - evidence.w_quality], axis=1)
    # Champion minus predecessor: what is estimated is the change that its promotion made.
    swapped, predicted = evidence.swapped(), predicted_outcomes(evidence)
    reward = difference(swapped, trade_offs, predicted, alpha=guard.alpha)
    if reward.units < guard.min_units:
        return None
    if reward.upper < -guard.loss:
        return (
            f"reward fell by {-reward.mean:.4f}, surely by more than {guard.loss:g}: change in "
            f"[{reward.lower:+.4f}, {reward.upper:+.4f}] on {reward.n} decisions"
        )
    if reward.lower >= 0.0:
        return None
    risen = dearer(swapped, predicted, rise=guard.cost_rise, alpha=guard.alpha)
    return None if risen is None else f"{risen}, and reward did not"


def silence(answers: Sequence[Answer], guard: Guard) -> str | None:
    """Say in words by how much less often a champion's decisions get feedback, or None.

    Calls that fail are seldom reported at all, so the share of decisions of which nothing was heard
    is the error rate that a router can see. Both versions' decisions were given the same time.

    Args:
        answers: Decisions of champion and predecessor side by side, all looked at equally late.
        guard: What the champion is held to.
    """
    if not answers:
        return None
    names: dict[str, int] = {}
    units = np.array([names.setdefault(one.unit, len(names)) for one in answers], dtype=np.int64)
    if len(names) < guard.min_units:
        return None
    share = np.array([one.canary_share for one in answers])
    by_control = np.array([one.by_canary for one in answers])
    # Champion minus predecessor: whichever drew, weighed by how likely it was to.
    side = np.where(by_control, -1.0 / share, 1.0 / (1.0 - share))
    for words, came in (
        ("decisions of which anything is heard", [one.reported for one in answers]),
        ("decisions with a quality", [one.judged for one in answers]),
    ):
        value = np.array(came, dtype=np.float64)
        change = confidence_sequence((value - value.mean()) * side, units, alpha=guard.alpha)
        if change.upper < -guard.feedback_fall:
            return (
                f"the share of {words} within {guard.answer_within_s:g} s fell by "
                f"{-change.mean:.1%}, surely by more than {guard.feedback_fall:.0%}, on {change.n} "
                "decisions"
            )
    return None


def exploration_collapse(pmf: Array, *, exploration_total: float) -> str | None:
    """Say in words that a version hardly explores any more, or None.

    Args:
        pmf: Its probabilities, 0 for arms not offered, shape (n, K).
        exploration_total: Probability that it is to share over the arms offered.
    """
    if len(pmf) < COLLAPSE_ROWS or exploration_total == 0.0:
        return None
    offered = (pmf > 0.0).sum(axis=1)
    least = np.where(pmf > 0.0, pmf, np.inf).min(axis=1)
    explored = float(np.median(offered * least))
    top_share = float(np.bincount(pmf.argmax(axis=1)).max() / len(pmf))
    alone = bool((offered <= 1).mean() > 1.0 / 2.0)
    if not alone and explored >= COLLAPSED_SHARE * exploration_total:
        return None
    return f"explores with {explored:.4f}, {exploration_total:g} is set; {top_share:.0%} to one arm"
