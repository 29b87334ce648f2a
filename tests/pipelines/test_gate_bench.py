"""The gate's benchmark: its traffic is what it says, its pairs differ as they should, it counts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from outcome_tables import some_outcomes

from pipelines.gate_bench import GatePlan, run_gate_bench
from pipelines.gate_versions import (
    BAD_KINDS,
    NoSuchChallenger,
    Versions,
    draw_pair,
    loss_in_reach,
    make_versions,
)
from pipelines.gate_world import Lateness, World, draw_traffic, make_world
from policies.evaluation import estimate, ips

OUTCOMES = some_outcomes(400)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(OUTCOMES, learner="posterior", seed=0)


@pytest.fixture(scope="module")
def versions(world: World) -> Versions:
    return make_versions(world)


def test_each_versions_value_estimated_from_the_mixed_log_agrees_with_the_truth(
    world: World, versions: Versions
) -> None:
    champion, challenger = versions.weak[0], versions.chains[0][-1]
    rng = np.random.default_rng(0)
    traffic = draw_traffic(world, champion, challenger, 30_000, share=0.2, rng=rng)
    log = traffic.evidence(world, champion, challenger, 30_000)
    trade_offs = np.stack([log.w_quality, 1 - log.w_quality], axis=1)
    reward = (log.log.outcomes * trade_offs).sum(axis=1)
    rows = np.arange(len(log))
    for choices, pmf in ((champion, log.champion), (challenger, log.challenger)):
        found = estimate(ips(pmf[rows, log.log.arm], log.log.propensity, reward), level=0.999)
        assert found.lower < world.truth(choices) < found.upper
        assert found.upper - found.lower < 0.1


def test_sessions_go_to_one_side(world: World, versions: Versions) -> None:
    """Champion and canary that never take the same arm show who decided."""
    num_prompts, num_arms = world.outcomes.shape[:2]
    first, last = (np.zeros((11, num_prompts, num_arms)) for _ in range(2))
    first[..., 0], last[..., -1] = 1.0, 1.0
    rng = np.random.default_rng(1)
    traffic = draw_traffic(world, first, last, 5_000, share=0.2, rng=rng)
    on_canary = traffic.arm == num_arms - 1
    of_unit = np.bincount(traffic.units, weights=on_canary) / np.maximum(
        np.bincount(traffic.units), 1
    )
    assert set(np.unique(of_unit)) == {0.0, 1.0}
    assert on_canary.mean() == pytest.approx(0.2, abs=0.05)
    np.testing.assert_allclose(traffic.propensity, np.where(on_canary, 0.2, 0.8))


@pytest.mark.parametrize("kind", [*BAD_KINDS, "good", "routine", "routine_apart"])
def test_pairs_differ_in_truth_as_their_kind_asks(
    world: World, versions: Versions, kind: str
) -> None:
    is_equal = kind.startswith("routine")
    effect = 0.04 if is_equal else 0.004
    champion, challenger = draw_pair(kind, world, versions, effect, np.random.default_rng(2))
    gain = world.truth(challenger) - world.truth(champion)
    assert abs(gain) <= effect / 10 if is_equal else (gain if kind == "good" else -gain) >= effect


def test_pairs_apart_come_from_two_streams(world: World, versions: Versions) -> None:
    streams = [{id(version) for version in chain} for chain in versions.chains]
    rng = np.random.default_rng(3)
    for _ in range(20):
        pair = draw_pair("routine_apart", world, versions, 0.5, rng)
        [one, other] = [next(n for n, ids in enumerate(streams) if id(v) in ids) for v in pair]
        assert one != other


def test_late_outcomes_are_no_evidence_before_they_are_known(
    world: World, versions: Versions
) -> None:
    champion, challenger = versions.chains[0][:2]
    rng, lateness = np.random.default_rng(4), Lateness(delay=100.0, missing=0.2)
    traffic = draw_traffic(
        world, champion, challenger, 4_000, share=0.2, rng=rng, lateness=lateness
    )
    of_first = traffic.evidence(world, champion, challenger, 1_000)
    of_all = traffic.evidence(world, champion, challenger, 4_000)
    assert 600 < len(of_first) < 800
    assert 0.7 < len(of_all) / 4_000 < 0.8
    waited = traffic.known_at - np.arange(1, 4_001)
    dear, cheap = traffic.arm == world.outcomes.shape[1] - 1, traffic.arm == 0
    never = np.isinf(waited)
    assert waited.min() >= 0
    assert waited[dear & ~never].mean() > 2 * waited[cheap & ~never].mean()
    assert never.mean() == pytest.approx(0.2, abs=0.03)


def test_a_trial_of_which_too_little_is_heard_ends_without_a_finding() -> None:
    plan = GatePlan(runs=1, effect=0.04, lateness=Lateness(missing=0.995))
    found = run_gate_bench(plan, OUTCOMES)
    assert found["findings"]["good"] == {"inconclusive": 1} == found["findings"]["routine"]


def test_an_effect_that_no_version_has_is_an_error_that_says_so(
    world: World, versions: Versions
) -> None:
    with pytest.raises(NoSuchChallenger, match="shuffled_arms"):
        draw_pair("shuffled_arms", world, versions, 5.0, np.random.default_rng(0))


@pytest.mark.parametrize("kind", BAD_KINDS)
def test_where_no_version_loses_enough_those_that_lose_most_are_tried(
    world: World, versions: Versions, kind: str
) -> None:
    reached = loss_in_reach(kind, world, versions, 5.0)
    assert 0.0 < reached < 5.0
    assert loss_in_reach(kind, world, versions, reached) == reached
    champion, challenger = draw_pair(kind, world, versions, reached, np.random.default_rng(5))
    assert world.truth(champion) - world.truth(challenger) >= reached


def test_the_object_has_the_agreed_form() -> None:
    found = run_gate_bench(GatePlan(runs=2, effect=0.04), OUTCOMES)
    assert set(found) >= {"bad", "good", "routine", "routine_apart", "coverage"}
    assert (found["effect"], found["equal_within"]) == (0.04, 0.004)
    assert set(found["bad"]) == set(BAD_KINDS)
    assert all(one["runs"] == 2 and one["least_loss"] > 0 for one in found["bad"].values())
    assert set(found["good"]) == {"promoted", "runs", "median_decisions"} == set(found["routine"])
    assert set(found["routine_apart"]) == set(found["routine"])
    assert found["guardrail"]["quiet"]["runs"] == 4
    assert found["guardrail"]["harmful"]["runs"] == 6
    assert found["guardrail"]["harmful"]["breaches"] > 0
    assert set(found["coverage"]) == {"ips", "snips", "dr"}
    assert json.loads(json.dumps(found)) == found
