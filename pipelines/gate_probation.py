"""Probations on recorded outcomes, with the guardrail's own code, and its false alarms in hours.

Quiet hours are the worst there can be: as soon as a champion has passed its probation the next one
is promoted, equal to it in reward and not much dearer, so that no second goes by unwatched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.answers import Answer
from pipelines.gate_versions import APART, ROUTINE, Versions, draw_pair, make_versions, usual_effect
from pipelines.gate_world import Lateness, Traffic, World, draw_traffic, make_world
from pipelines.guardrail import Guard, breach, exploration_collapse, silence
from pipelines.judgement import next_look
from pipelines.quality import EncodedOutcomes

Array = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

# How often the judge takes a step, and an hour, seconds.
STEP_S: Final = 1.0
HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """How a champion on probation is watched.

    Attributes:
        guard: What it is held to.
        rate: Requests a second.
        share: The predecessor's share of the sessions.
        delay_s: Time until an outcome is known, in the mean, seconds.
        missing: Share of the outcomes that never come.
    """

    guard: Guard = field(default_factory=Guard)
    rate: float = 200.0
    share: float = 0.2
    delay_s: float = 0.0
    missing: float = 0.0

    @property
    def decisions(self) -> int:
        """Decisions of one probation: it ends once the answers to `guard.decisions` are known."""
        return self.guard.decisions + int(self.rate * self.guard.answer_within_s)

    @property
    def lateness(self) -> Lateness:
        """When outcomes are known, counted in requests."""
        return Lateness(delay=self.delay_s * self.rate, missing=self.missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A champion that was sent back.

    Attributes:
        decisions: After how many decisions.
        what: By what it seemed worse: `reward`, `cost` or `feedback`.
    """

    decisions: int
    what: str


def alarm(
    world: World, champion: Array, before: Array, watch: Watch, rng: np.random.Generator
) -> Alarm | None:
    """Put a new champion on probation beside its predecessor, as the judge does.

    Args:
        world: Where prompts and outcomes come from.
        champion: The new champion, laid out, shape (G, prompts, K).
        before: Its predecessor, likewise.
        watch: How it is watched.
        rng: Draws everything.

    Returns:
        What sent it back, None where it passed.
    """
    n, guard = watch.decisions, watch.guard
    traffic = draw_traffic(
        world, champion, before, n, share=watch.share, rng=rng, lateness=watch.lateness
    )
    answers = _answers(traffic, watch)
    for made in _looks(n, watch):
        heard = answers[: max(0, made - int(watch.rate * guard.answer_within_s))]
        if silence(heard, guard) is not None:
            return Alarm(decisions=made, what="feedback")
        evidence = traffic.evidence(world, champion, before, made)
        reason = breach(evidence, guard) if len(evidence) else None
        if reason is not None:
            return Alarm(decisions=made, what=reason.split()[0])
    return None


def _looks(n: int, watch: Watch) -> Iterator[int]:
    """Count the decisions made at each look: with every step, where they have grown enough."""
    look_at = 0
    for step in range(1, int(n / (watch.rate * STEP_S)) + 1):
        made = min(n, int(step * watch.rate * STEP_S))
        if made >= look_at or made == n:
            look_at = next_look(made)
            yield made


def _answers(traffic: Traffic, watch: Watch) -> list[Answer]:
    """Say of each decision whether its outcome came in time."""
    within = watch.rate * watch.guard.answer_within_s
    made = np.arange(1, len(traffic.arm) + 1)
    in_time = (traffic.known_at - made <= within).tolist()
    units, by_canary = traffic.units.tolist(), traffic.by_canary.tolist()
    return [
        Answer(
            decision_id=str(number),
            unit=str(units[number]),
            by_canary=by_canary[number],
            canary_share=watch.share,
            judged=in_time[number],
            reported=in_time[number],
        )
        for number in range(watch.guard.decisions)
    ]


def run_quiet_hours(
    outcomes: EncodedOutcomes,
    watch: Watch,
    *,
    hours: float,
    learner: str = "posterior",
    effect: float | None = None,
    seeds: int = 1,
    progress: Progress = lambda step, done, total: None,
) -> dict[str, Any]:
    """Count false alarms; return the object that `barp bench guardrail --json` prints.

    Every other probation is of a retraining, the others of a version from another stream.

    Args:
        outcomes: Recorded outcomes, encoded.
        watch: How champions are watched.
        hours: Hours of traffic for each seed.
        learner: Who makes the versions.
        effect: Two versions are equal to within a tenth of it; None takes it from the stakes.
        seeds: How often the hours are drawn anew.
        progress: Told each probation.

    Raises:
        NoSuchChallenger: No two versions are equal enough.
    """
    world = make_world(outcomes, learner=learner, seed=0)
    versions, effect = make_versions(world, progress=progress), effect or usual_effect(world)
    probations = max(1, round(hours * HOUR_S * watch.rate / watch.decisions))
    alarms, collapsed = list[dict[str, int]](), 0
    for seed in range(seeds):
        found = {"reward": 0, "cost": 0, "feedback": 0}
        for number in range(probations):
            rng = np.random.default_rng([seed, number, 7])
            kind = (ROUTINE, APART)[number % 2]
            before, champion = _sound_pair(kind, world, versions, effect, watch.guard, rng)
            raised = alarm(world, champion, before, watch, rng)
            if raised is not None:
                found[raised.what] += 1
            collapsed += _collapsed(world, champion, rng)
            progress(f"quiet hours, seed {seed}", number + 1, probations)
        alarms.append(found)
    total = sum(sum(found.values()) for found in alarms)
    return {
        "hours": hours,
        "rate": watch.rate,
        "probations": probations,
        "decisions": probations * watch.decisions,
        "seeds": [{"alarms": sum(found.values()), **found} for found in alarms],
        "alarms_per_ten_hours": 10.0 * total / (hours * seeds),
        "collapses": collapsed,
    }


def _sound_pair(
    kind: str,
    world: World,
    versions: Versions,
    effect: float,
    guard: Guard,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Draw two versions equal in truth, the later of which does not cost more than it may."""
    while True:
        before, champion = draw_pair(kind, world, versions, effect, rng)
        if not too_dear(world, champion, before, guard):
            return before, champion


def too_dear(world: World, champion: Array, before: Array, guard: Guard) -> bool:
    """Say whether a champion's calls cost more in truth than the guardrail lets pass."""
    return world.cost(champion) > (1.0 + guard.cost_rise) * world.cost(before)


def _collapsed(world: World, champion: Array, rng: np.random.Generator) -> bool:
    """Say whether a sound champion would be taken for one that does not explore."""
    rows = rng.integers(champion.shape[1], size=1_000)
    asked = rng.choice(len(champion), size=1_000, p=world.asked_shares())
    total = world.run.plan.exploration_total
    return exploration_collapse(champion[asked, rows], exploration_total=total) is not None
