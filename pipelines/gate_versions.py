"""Versions of known truth to put through the gate: sound ones, weak ones, and three kinds of harm.

Pairs are drawn until they differ in truth as their kind asks: bad challengers lose by at least an
effect, good ones gain as much over a weak champion, routine ones are equal to within a tenth of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.gate_world import World, pick
from policies.artifact import PolicyArtifact
from policies.errors import RouterError

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
# Where none does: of the largest loss there is.
REACHED_SHARE: Final = 0.8
# A chain's first version has seen this share of the stream, each further one so much more.
CHAIN_START: Final = 0.5
CHAIN_STEP: Final = 0.1


class NoSuchChallenger(RouterError):
    """No pair of versions differs by what a kind of trial asks for."""

    code = "no_such_challenger"


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


def usual_effect(world: World) -> float:
    """Return the true difference that makes a version bad or good, by what routing is worth."""
    return EFFECT if world.stakes() >= SMALL_STAKES else SMALL_EFFECT


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


def with_worse(versions: Versions, world: World, effect: float) -> Versions:
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


def loss_in_reach(kind: str, world: World, versions: Versions, effect: float) -> float:
    """Return the loss to ask of a bad kind: the effect, or most of the largest that there is.

    Raises:
        NoSuchChallenger: No version of that kind is worse than any sound one.
    """
    best = max(world.truth(one) for one in _newest(versions.chains))
    largest = best - min(world.truth(one) for one in getattr(versions, kind))
    if largest <= 0.0:
        raise _no_pair(kind, effect)
    return effect if largest >= effect else REACHED_SHARE * largest


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
    raise _no_pair(kind, effect)


def _no_pair(kind: str, effect: float) -> NoSuchChallenger:
    """Say that nothing differs by what a kind of trial asks for."""
    return NoSuchChallenger(
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
