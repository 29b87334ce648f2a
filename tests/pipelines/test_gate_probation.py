"""Simulated probations: harm and silence end them, and quiet hours are counted as they are."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from outcome_tables import some_outcomes

from pipelines.gate_probation import Watch, alarm, run_quiet_hours
from pipelines.gate_versions import Versions, make_versions
from pipelines.gate_world import World, make_world
from pipelines.guardrail import Guard

OUTCOMES = some_outcomes(400)
WATCH = Watch(guard=Guard(decisions=600, answer_within_s=2.0))


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(OUTCOMES, learner="posterior", seed=0)


@pytest.fixture(scope="module")
def versions(world: World) -> Versions:
    return make_versions(world)


def test_a_probation_lasts_until_the_answers_to_its_decisions_are_known() -> None:
    assert Watch().decisions == 2_000 + 30 * 200
    assert WATCH.decisions == 600 + 2 * 200


def test_a_harmful_champion_is_sent_back_for_its_reward(world: World, versions: Versions) -> None:
    sound, rng = versions.chains[0][-1], np.random.default_rng(0)
    harmful = min(versions.shuffled_arms, key=world.truth)
    raised = alarm(world, harmful, sound, WATCH, rng)
    assert raised is not None
    assert raised.what == "reward"
    # It is looked at once a second.
    assert raised.decisions in range(200, WATCH.decisions + 1, 200)
    assert alarm(world, sound, harmful, WATCH, rng) is None


def test_a_champion_whose_outcomes_come_too_late_is_sent_back_for_its_feedback(
    world: World,
) -> None:
    """Every outcome alike: only the time differs, three times as long for the last model."""
    alike = replace(world, outcomes=np.broadcast_to([0.5, -0.1], world.outcomes.shape))
    quick, slow = (np.zeros((11, *world.outcomes.shape[:2])) for _ in range(2))
    quick[..., 0], slow[..., -1] = 1.0, 1.0
    watch = replace(WATCH, delay_s=WATCH.guard.answer_within_s)
    raised = alarm(alike, slow, quick, watch, np.random.default_rng(1))
    assert raised is not None
    assert raised.what == "feedback"
    assert alarm(alike, quick, slow, watch, np.random.default_rng(1)) is None


def test_quiet_hours_are_all_probations_of_versions_as_good_as_each_other() -> None:
    seconds = 100.0
    watch = replace(WATCH, missing=0.1)
    found = run_quiet_hours(OUTCOMES, watch, hours=seconds / 3600, effect=0.04, seeds=2)
    assert found["probations"] == seconds * WATCH.rate / WATCH.decisions
    assert found["decisions"] == seconds * WATCH.rate
    assert len(found["seeds"]) == 2
    assert sum(one["alarms"] for one in found["seeds"]) <= 1
    assert found["collapses"] == 0
    assert json.loads(json.dumps(found)) == found
