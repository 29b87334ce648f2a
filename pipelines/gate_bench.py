"""How often the gate is right: trials on recorded outcomes, where the truth is known.

Bad challengers lose by at least an effect, good ones gain as much over a weak champion, routine
ones are equal to within a tenth of it; a pair that is none of it is drawn again. A routine one is
the champion's next retraining; those apart come from a training stream of their own, so that they
choose otherwise on many more prompts, and are no better for it. Each trial is judged by the gate's
own code: screen, canary, looks as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.gate_world import AT_ONCE, Lateness, Traffic, World, draw_traffic, make_world, pick
from pipelines.guardrail import Guard, breach
from pipelines.judgement import Finding, Mode, Standards, decide, next_look, screen
from pipelines.quality import EncodedOutcomes
from policies.artifact import PolicyArtifact
from policies.errors import RouterError
from policies.evaluation import ESTIMATORS, OVERALL, evaluate_as_asked
from policies.interaction import is_holdout

Array = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

# A loss that users feel, in units of reward; where routing itself is worth little, a quarter.
EFFECT: Final = 0.02
SMALL_EFFECT: Final = 0.005
SMALL_STAKES: Final = 0.1
BAD_KINDS: Final = ("shuffled_arms", "stale_prices", "poisoned_feedback")
GOOD, ROUTINE, APART = "good", "routine", "routine_apart"
KINDS: Final = (*BAD_KINDS, GOOD, ROUTINE, APART)
# Of the effect: true differences below it make two versions equal.
EQUAL_SHARE: Final = 0.1
MAX_DRAWS: Final = 1_000
STREAMS: Final = 4
# Versions of one kind of falsehood, where hardly one loses as much as is asked for.
MAX_FALSE: Final = 24
# A chain's first version has seen this share of the stream, each further one so much more.
CHAIN_START: Final = 0.5
CHAIN_STEP: Final = 0.1
# Decisions of a log that estimates are compared with the truth on.
COVERAGE_ROWS: Final = 1_000


class NoSuchChallenger(RouterError):
    """No pair of versions differs by what a kind of trial asks for."""

    code = "no_such_challenger"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Versions laid out, by what they are.

    Attributes:
        chains: Versions of one stream each, every one retrained from the one before.
        weak: Trained on little or nothing.
        shuffled_arms: Sound ones whose arms were confused.
        stale_prices: Trained on costs of another price table.
        poisoned_feedback: Trained on false quality.
    """

    chains: Sequence[Sequence[Array]]
    weak: Sequence[Array]
    shuffled_arms: Sequence[Array]
    stale_prices: Sequence[Array]
    poisoned_feedback: Sequence[Array]


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of one kind's trials.

    Attributes:
        runs: How many there were.
        promoted: How many ended with a promotion.
        decisions: How many decisions each promotion took.
        findings: How many ended in each way.
    """

    runs: int = 0
    promoted: int = 0
    decisions: list[int] = field(default_factory=list)
    findings: dict[str, int] = field(default_factory=dict)


def run_gate_bench(
    plan: GatePlan,
    outcomes: EncodedOutcomes,
    *,
    progress: Progress = lambda step, done, total: None,
) -> dict[str, Any]:
    """Try every kind, and return the object that `barp bench gate --json` prints."""
    world = make_world(outcomes, learner=plan.learner, seed=plan.seed)
    effect = plan.effect or (EFFECT if world.stakes() >= SMALL_STAKES else SMALL_EFFECT)
    versions = _with_worse(make_versions(world, progress=progress), world, effect)
    tallies: dict[str, Tally] = {}
    covered: dict[str, list[bool]] = {name: [] for name in ESTIMATORS}
    guarded: dict[str, list[int | None]] = {kind: [] for kind in KINDS}
    for number, kind in enumerate(KINDS):
        tally = tallies[kind] = Tally()
        for run in range(plan.runs):
            rng = np.random.default_rng([plan.seed, number, run])
            champion, challenger = draw_pair(kind, world, versions, effect, rng)
            finding, decisions = try_out(plan, world, champion, challenger, effect, kind, rng)
            tally.runs += 1
            tally.findings[finding.value] = tally.findings.get(finding.value, 0) + 1
            if finding is Finding.PROMOTE:
                tally.promoted += 1
                tally.decisions.append(decisions)
            # As if the challenger had been forced to champion, its predecessor beside it.
            harmed_after = breach_after(plan, world, challenger, champion, rng)
            guarded[kind].append(harmed_after)
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


def make_versions(world: World, *, progress: Progress = lambda *_: None) -> Versions:
    """Train the versions that trials are drawn from."""
    chains, weak = list[list[Array]](), list[Array]()
    stale, poisoned = list[Array](), list[Array]()
    for seed in range(STREAMS):
        rows, untrained = world.even_log(seed=seed), world.untrained(seed=seed)
        rng = np.random.default_rng([world.run.seed, seed, 3])
        chains.append(_chain(world, untrained, rows))
        few = world.trained(untrained, rows.slice(0, 50))
        weak += [world.choices(untrained), world.choices(few)]
        stale.append(world.choices(world.trained(untrained, _repriced(rows, rng))))
        poisoned.append(world.choices(world.trained(untrained, _poisoned(rows, rng))))
        progress("training versions", seed + 1, STREAMS)
    return Versions(
        chains=chains,
        weak=weak,
        shuffled_arms=[_shuffled(one, seed) for seed, one in enumerate(_newest(chains) * 8)],
        stale_prices=stale,
        poisoned_feedback=poisoned,
    )


def _with_worse(versions: Versions, world: World, effect: float) -> Versions:
    """Train further on false prices, and on false quality, until some version loses enough."""
    best = max(world.truth(one) for one in _newest(versions.chains))
    falsify = {"stale_prices": _repriced, "poisoned_feedback": _poisoned}
    more = {}
    for number, (kind, falsified) in enumerate(falsify.items()):
        made = list(getattr(versions, kind))
        while len(made) < MAX_FALSE and min(map(world.truth, made)) > best - effect:
            seed = len(made)
            rng = np.random.default_rng([world.run.seed, seed, 5, number])
            rows = falsified(world.even_log(seed=seed), rng)
            made.append(world.choices(world.trained(world.untrained(seed=seed), rows)))
        more[kind] = made
    return replace(versions, **more)


def draw_pair(
    kind: str, world: World, versions: Versions, effect: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Draw champion and challenger until they differ in truth as the kind asks.

    Raises:
        NoSuchChallenger: None of many pairs does.
    """
    for _ in range(MAX_DRAWS):
        champion, challenger = _any_pair(kind, versions, rng)
        gain = world.truth(challenger) - world.truth(champion)
        equal = abs(gain) <= EQUAL_SHARE * effect
        fits = {GOOD: gain >= effect, ROUTINE: equal, APART: equal}.get(kind, gain <= -effect)
        if fits:
            return champion, challenger
    raise NoSuchChallenger(
        f"no pair of versions for {kind} at a true difference of {effect:g}",
        field="effect",
        value=effect,
        allowed="a smaller effect, or more prompts to learn from",
    )


def _any_pair(kind: str, versions: Versions, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw champion and challenger of a kind, whatever they are worth."""
    if kind == ROUTINE:
        chain = versions.chains[int(rng.integers(len(versions.chains)))]
        older = int(rng.integers(len(chain) - 1))
        return chain[older], chain[older + 1]
    if kind == APART:
        one, other = rng.choice(len(versions.chains), size=2, replace=False)
        return pick(versions.chains[one], rng), pick(versions.chains[other], rng)
    newest = _newest(versions.chains)
    if kind == GOOD:
        return pick(versions.weak, rng), pick(newest, rng)
    return pick(newest, rng), pick(getattr(versions, kind), rng)


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
    limit = plan.good_within if kind == GOOD else Standards().max_decisions
    canary_limit = limit - plan.shadow_decisions
    standards = Standards(mode=plan.mode, margin=effect / 2, max_decisions=canary_limit)
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


def breach_after(
    plan: GatePlan, world: World, champion: Array, before: Array, rng: np.random.Generator
) -> int | None:
    """Put a new champion on probation beside its predecessor; return when it was sent back.

    Returns:
        After how many decisions, None where it passed.
    """
    guard = Guard()
    traffic = draw_traffic(world, champion, before, guard.decisions, share=plan.share, rng=rng)
    look = guard.min_units
    while True:
        look = min(look, guard.decisions)
        if breach(traffic.evidence(world, champion, before, look), guard) is not None:
            return look
        if look == guard.decisions:
            return None
        look = next_look(look)


def _chain(world: World, untrained: PolicyArtifact, rows: pa.Table) -> list[Array]:
    """Train as the service does: on most of the stream, then again and again on what is new."""
    start, step = int(len(rows) * CHAIN_START), int(len(rows) * CHAIN_STEP)
    version = world.trained(untrained, rows.slice(0, start))
    chain = [world.choices(version)]
    for first in range(start, len(rows) - step + 1, step):
        version = world.trained(version, rows.slice(first, step))
        chain.append(world.choices(version))
    return chain


def _newest(chains: Sequence[Sequence[Array]]) -> list[Array]:
    """Return the last version of each stream."""
    return [chain[-1] for chain in chains]


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


def _shuffled(choices: Array, seed: int) -> Array:
    """Confuse the arms of a version: each one's probability goes to another."""
    rng = np.random.default_rng([seed, 4])
    num_arms = choices.shape[2]
    order = rng.permutation(num_arms)
    moved = np.empty(num_arms, dtype=np.int64)
    moved[order] = np.roll(order, 1)
    return choices[:, :, moved]


def _repriced(rows: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Rewrite what calls cost as if each arm charged another price."""
    factors = {name: 10.0 ** rng.uniform(-1.5, 1.5) for name in sorted(_arms(rows))}
    cost = np.asarray(rows["cost_usd"]) * [factors[name] for name in rows["arm"].to_pylist()]
    position = rows.schema.get_field_index("cost_usd")
    return rows.set_column(position, rows.schema.field(position), pa.array(cost))


def _poisoned(rows: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Turn the quality of half of the arms upside down."""
    names = sorted(_arms(rows))
    poisoned = set(rng.permutation(names)[: (len(names) + 1) // 2].tolist())
    quality = np.asarray(rows["quality"], dtype=np.float64)
    is_poisoned = np.array([name in poisoned for name in rows["arm"].to_pylist()])
    position = rows.schema.get_field_index("quality")
    false = np.where(is_poisoned, 1.0 - quality, quality)
    return rows.set_column(position, rows.schema.field(position), pa.array(false))


def _arms(rows: pa.Table) -> set[str]:
    """Name the arms that rows went to."""
    return set(rows["arm"].unique().to_pylist())


def _caught(kinds: Sequence[Sequence[int | None]]) -> dict[str, Any]:
    """Count the probations that ended with a breach."""
    runs = [after for kind in kinds for after in kind]
    caught = [after for after in runs if after is not None]
    median = float(np.median(caught)) if caught else None
    return {"breaches": len(caught), "runs": len(runs), "median_decisions": median}


def _bad(tally: Tally) -> dict[str, int]:
    return {"promoted": tally.promoted, "runs": tally.runs}


def _timed(tally: Tally) -> dict[str, Any]:
    median = float(np.median(tally.decisions)) if tally.decisions else None
    return {**_bad(tally), "median_decisions": median}
