"""What a learner would have gained over the rule that decides. Pure functions of `Evidence`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.evidence import Evidence
from pipelines.judgement import Standards, difference, predicted_outcomes
from policies.evaluation import MIN_ESS, effective_sample_size, importance_weights
from policies.sequences import DEFAULT_ALPHA, Sequence

Array = NDArray[np.float64]
# The share of a learner's choices that may go to models the log never tries.
MAX_UNSUPPORTED: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """An estimated change a decision, and the ends between which it lies; valid at every look."""

    mean: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Foregone:
    """The change a decision, had the learner decided instead of the rule.

    Attributes:
        version: The learner's version that scored last.
        decisions: Decisions behind it, quality and cost known.
        ess: How many decisions of the learner's own the log is worth.
        unsupported: Share of the learner's choices that went to models the rule never tries.
        reward: At the preferences asked for; None where the log cannot tell.
        quality: Quality alone, 0 to 1; likewise.
        cost_usd: Cost, USD, each call's clipped at the ceiling; likewise.
        finding: `better`, `worse`, `undecided`, or `unsupported` where the log cannot tell.
        reason: The same in words.
    """

    version: int
    decisions: int
    ess: float
    unsupported: float
    reward: Between | None
    quality: Between | None
    cost_usd: Between | None
    finding: str
    reason: str


def foregone(
    evidence: Evidence,
    *,
    cost_ceiling_usd: float,
    version: int,
    alpha: float = DEFAULT_ALPHA,
    min_units: int = Standards().min_units,
) -> Foregone:
    """Estimate what the challenger would have gained on the champion's own decisions.

    Args:
        evidence: Decisions that the champion alone made; it is the logging policy.
        cost_ceiling_usd: USD at which costs are clipped.
        version: Whose choices were scored last.
        alpha: Probability, over all looks, that an end is beyond the truth, for each end.
        min_units: Independent units before anything is found: the ends are asymptotic.
    """
    n, rows = len(evidence), np.arange(len(evidence))
    # No estimator can know of a choice that had no chance to be logged: that is not hidden.
    never = evidence.champion <= 0.0
    unsupported = float((evidence.challenger * never).sum(axis=1).mean())
    taken = evidence.challenger[rows, evidence.log.arm]
    ess = effective_sample_size(importance_weights(taken, evidence.log.propensity))
    if unsupported > MAX_UNSUPPORTED:
        return Foregone(
            version=version,
            decisions=n,
            ess=ess,
            unsupported=unsupported,
            reward=None,
            quality=None,
            cost_usd=None,
            finding="unsupported",
            reason=f"cannot be told: {unsupported:.0%} of its choices are models that are never "
            "tried; set exploration_total above 0, or let more models be chosen from",
        )
    asked = np.stack([evidence.w_quality, 1.0 - evidence.w_quality], axis=1)
    predicted = predicted_outcomes(evidence)
    reward, quality, saved = (
        difference(evidence, trade_offs, predicted, alpha=alpha)
        for trade_offs in (asked, np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    )
    finding, words = _finding(reward, ess, min_units)
    return Foregone(
        version=version,
        decisions=n,
        ess=ess,
        unsupported=unsupported,
        reward=Between(mean=reward.mean, lower=reward.lower, upper=reward.upper),
        quality=Between(mean=quality.mean, lower=quality.lower, upper=quality.upper),
        cost_usd=Between(
            mean=-saved.mean * cost_ceiling_usd,
            lower=-saved.upper * cost_ceiling_usd,
            upper=-saved.lower * cost_ceiling_usd,
        ),
        finding=finding,
        reason=f"{words}: reward {reward.mean:+.4f} a decision, in [{reward.lower:+.4f}, "
        f"{reward.upper:+.4f}], on {n} decisions worth {ess:.0f} of its own",
    )


def _finding(reward: Sequence, ess: float, min_units: int) -> tuple[str, str]:
    """Say what is known of the reward."""
    if reward.units < min_units or ess < MIN_ESS:
        return "undecided", f"too little is known (it takes {MIN_ESS:.0f} of its own)"
    if reward.lower > 0.0:
        return "better", "surely better than the rule"
    if reward.upper < 0.0:
        return "worse", "surely worse than the rule"
    return "undecided", "not told apart from the rule yet"
