"""How often the gate is right: trials on recorded outcomes, where the truth is known.

A routine challenger is the champion's next retraining; those apart come from a training stream of
their own, so that they choose otherwise on many more prompts, and are no better for it. Each trial
is judged by the gate's own code: screen, canary, looks as they come; then each challenger is forced
to champion, and the guardrail watches it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.gate_probation import Watch, alarm, too_dear
from pipelines.gate_versions import (
    APART,
    BAD_KINDS,
    EQUAL_SHARE,
    GOOD,
    KINDS,
    ROUTINE,
    draw_pair,
    loss_in_reach,
    make_versions,
    usual_effect,
    with_worse,
)
from pipelines.gate_world import AT_ONCE, Lateness, Traffic, World, draw_traffic, make_world
from pipelines.judgement import Finding, Mode, Standards, decide, next_look, screen
from pipelines.quality import EncodedOutcomes
from policies.evaluation import ESTIMATORS, OVERALL, evaluate_as_asked
from policies.interaction import is_holdout

Array = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

# Decisions of a log that estimates are compared with the truth on.
COVERAGE_ROWS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePlan:
    """What to try, and how often.

    Attributes:
        runs: Trials of each kind.
        learner: Who makes the versions.
        share: The canary's share of the sessions.
        holdout_share: Share of prompts that the screen looks at.
        shadow_decisions: Decisions before the screen.
        mode: What challengers have to show.
        effect: True difference that makes a challenger bad or good; None takes it from the stakes.
        good_within: Decisions within which a better challenger is to be promoted.
        lateness: When outcomes are known.
        seed: Of the split and of all draws.
    """

    runs: int = 60
    learner: str = "posterior"
    share: float = 0.2
    holdout_share: float = 0.1
    shadow_decisions: int = 200
    mode: Mode = Mode.NONINFERIOR
    effect: float | None = None
    good_within: int = 10_000
    lateness: Lateness = AT_ONCE
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of one kind's trials.

    Attributes:
        runs: How many there were.
        promoted: How many ended with a promotion.
        decisions: How many decisions each promotion took.
        findings: How many ended in each way.
        least_loss: The smallest true loss of a challenger, below 0 where one was better.
    """

    runs: int = 0
    promoted: int = 0
    least_loss: float = math.inf
    decisions: list[int] = field(default_factory=list)
    findings: dict[str, int] = field(default_factory=dict)

    def note(self, finding: Finding, decisions: int, loss: float) -> None:
        """Count a trial that ended after so many decisions, of a challenger with a true loss."""
        self.runs += 1
        self.findings[finding.value] = self.findings.get(finding.value, 0) + 1
        self.least_loss = min(self.least_loss, loss)
        if finding is Finding.PROMOTE:
            self.promoted += 1
            self.decisions.append(decisions)


def run_gate_bench(
    plan: GatePlan,
    outcomes: EncodedOutcomes,
    *,
    progress: Progress = lambda step, done, total: None,
) -> dict[str, Any]:
    """Try every kind, and return the object that `barp bench gate --json` prints."""
    world = make_world(outcomes, learner=plan.learner, seed=plan.seed)
    effect = plan.effect or usual_effect(world)
    versions = with_worse(make_versions(world, progress=progress), world, effect)
    tallies: dict[str, Tally] = {}
    covered: dict[str, list[bool]] = {name: [] for name in ESTIMATORS}
    guarded: dict[str, list[int | None]] = {kind: [] for kind in KINDS}
    for number, kind in enumerate(KINDS):
        tally = tallies[kind] = Tally()
        apart = loss_in_reach(kind, world, versions, effect) if kind in BAD_KINDS else effect
        for run in range(plan.runs):
            rng = np.random.default_rng([plan.seed, number, run])
            champion, challenger = draw_pair(kind, world, versions, apart, rng)
            finding, decisions = try_out(plan, world, champion, challenger, effect, kind, rng)
            tally.note(finding, decisions, world.truth(champion) - world.truth(challenger))
            # As if the challenger had been forced to champion, its predecessor beside it.
            watch = Watch(share=plan.share)
            found = alarm(world, challenger, champion, watch, rng)
            if kind in BAD_KINDS or not too_dear(world, challenger, champion, watch.guard):
                guarded[kind].append(None if found is None else found.decisions)
            _cover(covered, plan, world, champion, challenger, rng)
            progress(kind, run + 1, plan.runs)
    return {
        "bad": {kind: _bad(tallies[kind]) for kind in BAD_KINDS},
        GOOD: _timed(tallies[GOOD]),
        ROUTINE: _timed(tallies[ROUTINE]),
        APART: _timed(tallies[APART]),
        "effect": effect,
        "equal_within": EQUAL_SHARE * effect,
        "findings": {kind: tally.findings for kind, tally in tallies.items()},
        "guardrail": {
            "quiet": _caught([guarded[kind] for kind in (ROUTINE, APART)]),
            "harmful": _caught([guarded[kind] for kind in BAD_KINDS]),
        },
        "coverage": {name: float(np.mean(hits)) for name, hits in covered.items()},
    }


def try_out(
    plan: GatePlan,
    world: World,
    champion: Array,
    challenger: Array,
    effect: float,
    kind: str,
    rng: np.random.Generator,
) -> tuple[Finding, int]:
    """Put one challenger through the gate; return how it ended, and after how many decisions."""
    longest = Standards().max_decisions
    standards = Standards(
        mode=plan.mode, margin=effect / 2, max_decisions=longest - plan.shadow_decisions
    )
    limit = plan.good_within if kind == GOOD else longest
    canary_limit = limit - plan.shadow_decisions
    before = draw_traffic(world, champion, challenger, plan.shadow_decisions, share=0.0, rng=rng)
    held_out = before.where(_held_out(before, plan.holdout_share))
    if len(held_out.arm):
        looked_at = held_out.evidence(world, champion, challenger, len(held_out.arm))
        if screen(looked_at, standards).finding is Finding.REJECT:
            return Finding.REJECT, plan.shadow_decisions
    traffic = draw_traffic(
        world,
        champion,
        challenger,
        canary_limit,
        share=plan.share,
        rng=rng,
        lateness=plan.lateness,
    )
    look = standards.min_units
    while True:
        look = min(look, canary_limit)
        evidence = traffic.evidence(world, champion, challenger, look)
        if len(evidence) >= standards.min_units:
            found = decide(evidence, standards)
            if found.finding is not Finding.UNDECIDED:
                return found.finding, look + plan.shadow_decisions
        if look == canary_limit:
            return Finding.INCONCLUSIVE, look + plan.shadow_decisions
        look = next_look(look)


def _held_out(traffic: Traffic, share: float) -> NDArray[np.bool_]:
    """Mark the requests whose prompts are kept from training."""
    return np.array([is_holdout(str(prompt), share) for prompt in traffic.prompts])


def _cover(
    covered: Mapping[str, list[bool]],
    plan: GatePlan,
    world: World,
    champion: Array,
    challenger: Array,
    rng: np.random.Generator,
) -> None:
    """Estimate the champion's reward from a mixed log; note whose interval holds the truth."""
    traffic = draw_traffic(world, champion, challenger, COVERAGE_ROWS, share=plan.share, rng=rng)
    log = traffic.evidence(world, champion, challenger, COVERAGE_ROWS)
    found = evaluate_as_asked(log.champion, log.log, log.w_quality)[OVERALL]
    truth = world.truth(champion)
    for name, hits in covered.items():
        hits.append(found[name].lower <= truth <= found[name].upper)


def _caught(kinds: Sequence[Sequence[int | None]]) -> dict[str, Any]:
    """Count the probations that ended with a breach."""
    runs = [after for kind in kinds for after in kind]
    caught = [after for after in runs if after is not None]
    median = float(np.median(caught)) if caught else None
    return {"breaches": len(caught), "runs": len(runs), "median_decisions": median}


def _bad(tally: Tally) -> dict[str, Any]:
    return {"promoted": tally.promoted, "runs": tally.runs, "least_loss": tally.least_loss}


def _timed(tally: Tally) -> dict[str, Any]:
    median = float(np.median(tally.decisions)) if tally.decisions else None
    return {"promoted": tally.promoted, "runs": tally.runs, "median_decisions": median}
