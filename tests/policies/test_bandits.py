"""The textbook bandits keep the promises of every policy, and find a better arm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from experiences import a_spec, prices_of, routed, some_arms
from hypothesis import given
from hypothesis import strategies as st

from policies.arms import Arm
from policies.artifact import PolicyArtifact
from policies.bandits import BANDITS, BanditLearner, BanditSettings, Kind, bandit_features
from policies.errors import ArtifactError
from policies.learners import load_policy
from policies.preference import Preference

ARMS = some_arms(0.001, 0.002, 0.003)
SETTINGS = BanditSettings(components=3)

each_bandit = pytest.mark.parametrize("kind", BANDITS)


def _trained(kind: Kind) -> PolicyArtifact:
    """Let a bandit route prompts on which the middle arm is best, whatever they are."""
    rng = np.random.default_rng(0)
    learner = BanditLearner(kind, SETTINGS)
    artifact = learner.initial(a_spec(ARMS))
    scores, costs = np.tile([0.2, 0.9, 0.3], (64, 1)), np.tile([0.001, 0.001, 0.003], (64, 1))
    for update in range(10):
        contexts = rng.normal(size=(64, 6)).astype(np.float32)
        first_seq = 1 + 64 * update
        policy = load_policy(artifact)
        rows = routed(policy, contexts, ARMS, scores, costs, rng=rng, first_seq=first_seq)
        artifact = learner.update(artifact, rows, prices_of(ARMS))
    return artifact


TRAINED = {kind: _trained(kind) for kind in BANDITS}


@each_bandit
@given(w=st.floats(0, 1), seed=st.integers(0, 1000), num=st.integers(1, 3))
def test_a_pmf_sums_to_one_above_its_floor(kind: Kind, w: float, seed: int, num: int) -> None:
    context = np.random.default_rng(seed).normal(size=6).astype(np.float32)
    pmf = load_policy(TRAINED[kind]).pmf(context, Preference(quality=w, cost=1 - w), ARMS[:num])
    assert pmf.sum() == pytest.approx(1.0)
    assert pmf.min() >= TRAINED[kind].exploration_total / num * (1 - 1e-9)


@each_bandit
def test_greedily_it_takes_the_arm_that_is_best(kind: Kind) -> None:
    policy = load_policy(TRAINED[kind])
    pmf = policy.greedy_pmf(np.zeros(6, dtype=np.float32), Preference(quality=1, cost=0), ARMS)
    np.testing.assert_array_equal(pmf, [0.0, 1.0, 0.0])


@each_bandit
def test_save_and_load_change_nothing(kind: Kind, tmp_path: Path) -> None:
    TRAINED[kind].save(tmp_path)
    loaded, context = PolicyArtifact.load(tmp_path), np.ones(6, dtype=np.float32)
    half = Preference(quality=0.5, cost=0.5)
    np.testing.assert_array_equal(
        load_policy(loaded).pmf(context, half, ARMS),
        load_policy(TRAINED[kind]).pmf(context, half, ARMS),
    )


@each_bandit
def test_an_arm_it_does_not_know_is_one_without_data(kind: Kind) -> None:
    arms = (*ARMS, Arm(name="new", usd_per_call=0.001))
    policy = load_policy(TRAINED[kind])
    pmf = policy.pmf(np.zeros(6, dtype=np.float32), Preference(quality=0.5, cost=0.5), arms)
    assert pmf.shape == (4,)
    assert pmf.sum() == pytest.approx(1.0)


def test_the_sums_are_those_of_ridge_regression() -> None:
    artifact = TRAINED["thompson"]
    assert artifact.weights["gram"][:, 0, 0].sum() == 640
    np.testing.assert_allclose(
        artifact.weights["gram"], np.swapaxes(artifact.weights["gram"], 1, 2)
    )


def test_crossed_features_hold_the_products() -> None:
    weights = {"centre": np.zeros(2), "projection": np.eye(2)}
    settings = BanditSettings(components=2, crossed=True)
    contexts = np.array([[2.0, 3.0]], dtype=np.float32)
    found = bandit_features(weights, contexts, np.array([0.5]), settings)
    np.testing.assert_allclose(found, [[1.0, 2.0, 3.0, 0.5, 1.0, 1.5]])


def test_other_weights_than_the_settings_say_are_refused() -> None:
    with pytest.raises(ArtifactError, match="do not fit"):
        load_policy(replace(TRAINED["linucb"], arms=("a",)))
