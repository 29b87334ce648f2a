"""References where every outcome is known: derived by hand on two prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from experiences import some_arms
from numpy.typing import NDArray

from policies.arms import Arm
from policies.policy import Assessment, assess_one_by_one
from policies.preference import Preference, preference_grid
from policies.references import HeldOut, arm_share, heldout_reward, reference_rewards

ONLY_QUALITY, ONLY_COST = Preference(quality=1.0, cost=0.0), Preference(quality=0.0, cost=1.0)
# Two prompts, a cheap and a dear arm: the dear one is better on the first only.
WORLD = HeldOut(
    contexts=np.array([[1.0], [2.0]], dtype=np.float32),
    scores=np.array([[0.2, 1.0], [0.8, 0.6]]),
    costs=np.array([[0.0, 1.0], [0.0, 1.0]]),
    arms=some_arms(0.0, 1.0),
    cost_ceiling_usd=1.0,
)


class FirstArm:
    """Takes the first arm nine times of ten, whatever is asked."""

    kind, encoder_id, context_dim = "first", "e", 1

    def pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Return the same for every request."""
        return np.array([0.9, 0.1])

    def assess(
        self,
        contexts: NDArray[np.float32],
        preferences: Sequence[Preference],
        offered: Sequence[Arm],
    ) -> Assessment:
        """Ask `pmf` for each request."""
        return assess_one_by_one(self.pmf, contexts, preferences, offered)

    def greedy_pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Return the same; no test asks for less."""
        return self.pmf(context, preference, offered)


def test_references_are_exact() -> None:
    grid = (ONLY_COST, ONLY_QUALITY)
    found = reference_rewards(WORLD, WORLD.scores, WORLD.costs, grid)
    # All cost: 0 and -1. All quality: means of 0.5 and 0.8, the better of each prompt 0.9.
    assert found.random == pytest.approx((-0.5 + 0.65) / 2)
    assert found.cheapest == pytest.approx((0.0 + 0.5) / 2)
    assert found.largest == pytest.approx((-1.0 + 0.8) / 2)
    assert found.best_single == pytest.approx((0.0 + 0.8) / 2)
    assert found.oracle == pytest.approx((0.0 + 0.9) / 2)
    assert found.gap_closed(found.best_single) == 0.0
    assert found.gap_closed(found.oracle) == 1.0


def test_best_single_is_chosen_in_training_and_judged_held_out() -> None:
    """A choice that was lucky in training is not lucky twice."""
    found = reference_rewards(WORLD, WORLD.scores[1:], WORLD.costs[1:], (ONLY_QUALITY,))
    assert found.best_single == pytest.approx(0.5)


def test_heldout_reward_is_the_expectation_of_the_pmf() -> None:
    rewards = heldout_reward(FirstArm(), WORLD, (ONLY_COST, ONLY_QUALITY))
    np.testing.assert_allclose(rewards, [-0.1, 0.9 * 0.5 + 0.1 * 0.8])


def test_arm_share_names_the_arms() -> None:
    assert arm_share(FirstArm(), WORLD, 0.5) == pytest.approx({"a": 0.9, "b": 0.1})


def test_order_of_the_oracle_best_single_and_random() -> None:
    found = reference_rewards(WORLD, WORLD.scores, WORLD.costs, preference_grid())
    assert found.oracle >= found.best_single >= found.random


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="must be"):
        dataclasses.replace(WORLD, scores=WORLD.scores[:1])
