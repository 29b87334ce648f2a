"""Decides on evidence: may the challenger take the champion's place, at a stated error rate?

Pure functions of `Evidence`. The uplift is paired and doubly robust, challenger minus champion on
the same decisions; its ends hold at every look, so that one may look whenever there is news.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.evidence import Evidence
from policies.evaluation import (
    OVERALL,
    doubly_robust,
    effective_sample_size,
    importance_weights,
    preference_regions,
)
from policies.reward_model import cross_fitted
from policies.sequences import (
    DEFAULT_ALPHA,
    MIN_UNITS,
    Sequence,
    confidence_sequence,
    planned_sequence,
)

Array = NDArray[np.float64]
# Each look takes all decisions so far; growing by a tenth, all looks cost what ten of the last do.
LOOK_GROWTH: Final = 1.1
# The gate promotes nothing that the guardrail would send back for its cost, so they share this.
COST_RISE: Final = 0.5


class Mode(StrEnum):
    """What a challenger has to show."""

    NONINFERIOR = "noninferior"  # it is not worse than the champion by more than the margin
    SUPERIOR = "superior"  # it is better than the champion


class Finding(StrEnum):
    """What a look at the evidence ends with."""

    UNDECIDED = "undecided"
    PROMOTE = "promote"
    REJECT = "reject"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standards:
    """What is asked of the evidence.

    Attributes:
        mode: What a challenger has to show.
        margin: Reward by which a challenger may be worse and still count as not inferior.
        region_loss: Reward that no region of preferences may lose.
        region_ess: Effective decisions from which a region is looked at.
        alpha: Probability, over all looks, that the lower end is above the truth.
        min_units: Independent units before the first look: the ends are asymptotic.
        max_decisions: Decisions after which the champion stays for want of evidence.
        cost_rise: Share by which a challenger's calls may cost more, unless it is surely better.
    """

    mode: Mode = Mode.NONINFERIOR
    margin: float = 0.01
    region_loss: float = 0.03
    region_ess: float = 500.0
    alpha: float = DEFAULT_ALPHA
    min_units: int = MIN_UNITS
    max_decisions: int = 20_000
    cost_rise: float = COST_RISE

    @property
    def bar(self) -> float:
        """What the lower end of the uplift must exceed."""
        return -self.margin if self.mode is Mode.NONINFERIOR else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplift:
    """Reward of the challenger minus that of the champion.

    Attributes:
        mean: Doubly robust estimate.
        lower: Lower end, valid at every look.
        upper: Upper end, likewise.
        units: Independent units behind it.
        n: Decisions behind it.
        ess: Effective sample size of the importance weights, of the policy that has the lower one.
    """

    mean: float
    lower: float
    upper: float
    units: int
    n: int
    ess: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a look found.

    Attributes:
        finding: What follows.
        uplift: At the preferences asked for; decides.
        regions: On the grid of preferences, by region and overall; guards. Empty where more
            evidence is needed.
        reason: In words.
    """

    finding: Finding
    uplift: Uplift
    regions: Mapping[str, Uplift]
    reason: str

    def words(self) -> dict[str, Any]:
        """Return it as plain values for tags and events."""
        parts = ("mean", "lower", "upper", "units", "n", "ess")
        shown = {
            name: {part: round(getattr(one, part), 5) for part in parts}
            for name, one in {"asked": self.uplift, **self.regions}.items()
        }
        return {"finding": self.finding.value, "reason": self.reason, "uplift": shown}


def next_look(decisions: int) -> int:
    """Return how many decisions there must be for the look after one at so many."""
    return max(decisions + 1, int(decisions * LOOK_GROWTH))


def decide(evidence: Evidence, standards: Standards) -> Judgement:
    """Look at a canary's evidence: promote, reject, give up, or wait for more.

    While it waits for more, nobody asks for the regions: they take five times as long.
    """
    predicted = predicted_outcomes(evidence)
    last = standards.max_decisions
    uplift = _asked(evidence, predicted, alpha=standards.alpha, last_look=last)
    finding, reason = _finding(uplift, [], standards)
    if finding is Finding.UNDECIDED:
        return Judgement(finding=finding, uplift=uplift, regions={}, reason=reason)
    regions = _on_grid(evidence, predicted, alpha=standards.alpha)
    against = _harmed(regions, standards)
    if uplift.lower <= 0.0:
        # The guardrail would send it back for that.
        risen = dearer(evidence, predicted, rise=standards.cost_rise, alpha=standards.alpha)
        against += [] if risen is None else [f"{risen}, and it is not surely better"]
    finding, reason = _finding(uplift, against, standards)
    return Judgement(finding=finding, uplift=uplift, regions=regions, reason=reason)


def screen(evidence: Evidence, standards: Standards) -> Judgement:
    """Look before a canary: reject only what is surely worse, for little can be told yet."""
    uplift, regions = uplifts(evidence, alpha=standards.alpha)
    worse = uplift.upper < -standards.margin
    words = "surely worse" if worse else "not surely worse"
    return Judgement(
        finding=Finding.REJECT if worse else Finding.UNDECIDED,
        uplift=uplift,
        regions=regions,
        reason=f"screen: {words}, {_interval(uplift)}",
    )


def uplifts(evidence: Evidence, *, alpha: float) -> tuple[Uplift, dict[str, Uplift]]:
    """Estimate the uplift at the preferences asked for, and by region of the grid."""
    predicted = predicted_outcomes(evidence)
    asked = _asked(evidence, predicted, alpha=alpha, last_look=None)
    return asked, _on_grid(evidence, predicted, alpha=alpha)


def difference(
    evidence: Evidence, trade_offs: Array, predicted: Array, *, alpha: float
) -> Sequence:
    """Estimate challenger minus champion of a weighting of quality and minus scaled cost.

    Args:
        evidence: What both are compared on.
        trade_offs: Weights of the two, shape (n, 2).
        predicted: What `predicted_outcomes` says of the same decisions.
        alpha: Probability, over all looks, that an end is beyond the truth, for each end.
    """
    champion, challenger = evidence.champion, evidence.challenger
    scores = _scores(evidence, champion, challenger, predicted, trade_offs)
    return confidence_sequence(scores, evidence.units, alpha=alpha)


def dearer(evidence: Evidence, predicted: Array, *, rise: float, alpha: float) -> str | None:
    """Say in words by how much more the challenger's calls surely cost than allowed, or None.

    Args:
        evidence: What both are compared on.
        predicted: What `predicted_outcomes` says of the same decisions.
        rise: Share of the champion's cost by which the challenger's may be higher.
        alpha: Probability, over all looks, that it is said of one whose cost is within that.
    """
    only_cost = np.tile([0.0, 1.0], (len(evidence), 1))
    saved = difference(evidence, only_cost, predicted, alpha=alpha)
    if saved.upper >= -rise * _mean_cost(evidence):
        return None
    return (
        f"cost rose by {-saved.mean:.4f} of the ceiling, surely by more than {rise:.0%}, on "
        f"{saved.n} decisions"
    )


def _mean_cost(evidence: Evidence) -> float:
    """Estimate the champion's scaled cost, self-normalised."""
    taken = evidence.champion[np.arange(len(evidence)), evidence.log.arm]
    weights = importance_weights(taken, evidence.log.propensity)
    total = float(weights.sum())
    return float(weights @ -evidence.log.outcomes[:, 1]) / total if total > 0.0 else 0.0


def predicted_outcomes(evidence: Evidence) -> Array:
    """Predict every arm's outcomes on every decision from the other folds', shape (n, K, 2)."""
    return cross_fitted(
        evidence.log.contexts,
        evidence.log.arm,
        evidence.log.outcomes,
        evidence.log.folds,
        num_arms=evidence.champion.shape[1],
    )


def _asked(evidence: Evidence, predicted: Array, *, alpha: float, last_look: int | None) -> Uplift:
    """Estimate the uplift at the preferences asked for; None where no last look is planned."""
    trade_offs = np.stack([evidence.w_quality, 1.0 - evidence.w_quality], axis=1)
    return _uplift(
        evidence,
        _scores(evidence, evidence.champion, evidence.challenger, predicted, trade_offs),
        [_ess(evidence, evidence.champion), _ess(evidence, evidence.challenger)],
        alpha=alpha,
        last_look=last_look,
    )


def _on_grid(evidence: Evidence, predicted: Array, *, alpha: float) -> dict[str, Uplift]:
    """Estimate the uplift where every decision is scored at every preference of the grid."""
    scores, weights = [], []
    pairs = zip(evidence.grid, evidence.champion_on_grid, evidence.challenger_on_grid, strict=True)
    rows = np.arange(len(evidence))
    for point, champion, challenger in pairs:
        trade_offs = np.array([[point.quality, point.cost]])
        scores.append(_scores(evidence, champion, challenger, predicted, trade_offs))
        weights.append(
            [
                importance_weights(pmf[rows, evidence.log.arm], evidence.log.propensity)
                for pmf in (champion, challenger)
            ]
        )
    w_quality = np.array([point.quality for point in evidence.grid])
    found = {}
    for region, points in preference_regions(w_quality).items():
        mixed = np.mean([weights[point] for point in points], axis=0)
        found[region] = _uplift(
            evidence,
            np.mean([scores[point] for point in points], axis=0),
            [effective_sample_size(of_policy) for of_policy in mixed],
            alpha=alpha,
        )
    return found


def _scores(
    evidence: Evidence, champion: Array, challenger: Array, predicted: Array, trade_offs: Array
) -> Array:
    """Score each decision: the estimator is linear, so two pmfs' difference scores as one."""
    reward = (evidence.log.outcomes * trade_offs).sum(axis=1)
    expected = predicted[..., 0] * trade_offs[:, :1] + predicted[..., 1] * trade_offs[:, 1:]
    return doubly_robust(
        challenger - champion, evidence.log.propensity, reward, evidence.log.arm, expected
    )


def _ess(evidence: Evidence, pmf: Array) -> float:
    """Count the decisions that a policy's own would be worth."""
    rows = np.arange(len(evidence))
    weights = importance_weights(pmf[rows, evidence.log.arm], evidence.log.propensity)
    return effective_sample_size(weights)


def _uplift(
    evidence: Evidence,
    scores: Array,
    ess: list[float],
    *,
    alpha: float,
    last_look: int | None = None,
) -> Uplift:
    """Put an estimate's ends and its effective size together."""
    if last_look is None:
        found = confidence_sequence(scores, evidence.units, alpha=alpha)
    else:
        found = planned_sequence(scores, evidence.units, alpha=alpha, last_look=last_look)
    return Uplift(
        mean=found.mean,
        lower=found.lower,
        upper=found.upper,
        units=found.units,
        n=found.n,
        ess=min(ess),
    )


def _harmed(regions: Mapping[str, Uplift], standards: Standards) -> list[str]:
    """List the regions of preferences that lose too much, where enough is known of them."""
    return [
        f"the region {name} loses"
        for name, one in regions.items()
        if name != OVERALL and one.ess >= standards.region_ess and one.mean < -standards.region_loss
    ]


def _finding(uplift: Uplift, against: list[str], standards: Standards) -> tuple[Finding, str]:
    """Apply the standards; what speaks against a promotion holds it back."""
    bar, shown = standards.bar, _interval(uplift)
    if uplift.units < standards.min_units:
        return Finding.UNDECIDED, f"{uplift.units} of {standards.min_units} units, {shown}"
    # What is known to be worse does not pass as "not much worse".
    if uplift.upper < 0.0:
        return Finding.REJECT, f"worse: the upper end is below 0, {shown}"
    if uplift.lower > bar and not against:
        return Finding.PROMOTE, f"{standards.mode}: the lower end is above {bar:g}, {shown}"
    if uplift.n >= standards.max_decisions:
        why = against[0] if against else f"the ends enclose {bar:g}"
        return Finding.INCONCLUSIVE, f"inconclusive: {why}, {shown}"
    if uplift.lower > bar:
        return Finding.UNDECIDED, f"{against[0]}, {shown}"
    return Finding.UNDECIDED, f"more evidence is needed, {shown}"


def _interval(uplift: Uplift) -> str:
    """Write an estimate in words."""
    return (
        f"uplift {uplift.mean:+.4f} in [{uplift.lower:+.4f}, {uplift.upper:+.4f}] on {uplift.n} "
        f"decisions, {uplift.ess:.0f} effective"
    )
