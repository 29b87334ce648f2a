"""What a rule earns: derived by hand on two prompts, then invariants."""

from __future__ import annotations

import numpy as np
import pytest
from experiences import some_arms
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from policies.performance import best_choices, choices_of, gap_closed, is_monotone, performance
from policies.preference import Preference, preference_grid
from policies.references import HeldOut, fixed_choices

GRID = (Preference(quality=0.0, cost=1.0), Preference(quality=1.0, cost=0.0))
# Two prompts, a cheap and a dear arm: the dear one is better on the first only.
WORLD = HeldOut(
    contexts=np.array([[1.0], [2.0]], dtype=np.float32),
    scores=np.array([[0.2, 1.0], [0.8, 0.6]]),
    costs=np.array([[0.0, 2.0], [0.0, 2.0]]),
    arms=some_arms(0.0, 2.0),
    cost_ceiling_usd=1.0,
)
shares = arrays(np.float64, (2, 2, 2), elements=st.floats(0.01, 1.0))


def test_performance_is_the_expectation_of_the_pmf() -> None:
    found = performance(np.full((2, 2, 2), 0.5), WORLD, GRID)
    np.testing.assert_allclose(found.reward, [-0.5, 0.65])
    np.testing.assert_allclose(found.quality, [[0.6, 0.7], [0.6, 0.7]])
    np.testing.assert_allclose(found.cost_usd, np.ones((2, 2)))
    np.testing.assert_allclose(found.arm_share, np.full((2, 2), 0.5))


def test_fixed_rules_are_exact() -> None:
    choices = fixed_choices(WORLD, WORLD.scores, WORLD.costs, GRID)
    earned = {name: performance(choice, WORLD, GRID) for name, choice in choices.items()}
    np.testing.assert_allclose(earned["uniform"].reward, [-0.5, 0.65])
    np.testing.assert_allclose(earned["cheapest"].reward, [0.0, 0.5])
    np.testing.assert_allclose(earned["largest"].reward, [-1.0, 0.8])
    np.testing.assert_allclose(earned["best_single"].reward, [0.0, 0.8])
    np.testing.assert_allclose(earned["oracle"].reward, [0.0, 0.9])


@given(shares)
def test_no_rule_beats_the_oracle(drawn: np.ndarray) -> None:
    choices = drawn / drawn.sum(axis=2, keepdims=True)
    oracle = fixed_choices(WORLD, WORLD.scores, WORLD.costs, GRID)["oracle"]
    best = performance(oracle, WORLD, GRID)
    assert (performance(choices, WORLD, GRID).reward <= best.reward + 1e-12).all()
    np.testing.assert_allclose(performance(choices, WORLD, GRID).arm_share.sum(axis=1), 1.0)


def test_a_perfect_prediction_is_the_oracle() -> None:
    choices = best_choices(WORLD.scores, np.minimum(WORLD.costs, 1.0), preference_grid())
    oracle = fixed_choices(WORLD, WORLD.scores, WORLD.costs, preference_grid())["oracle"]
    np.testing.assert_allclose(
        performance(choices, WORLD, preference_grid()).reward,
        performance(oracle, WORLD, preference_grid()).reward,
    )


def test_choices_ask_the_pmf_for_each_prompt_and_preference() -> None:
    choices = choices_of(lambda context, w: np.array([context[0], w.quality]), WORLD, GRID)
    np.testing.assert_array_equal(choices, [[[1, 0], [2, 0]], [[1, 1], [2, 1]]])


def test_gap_closed_is_a_ratio_of_means() -> None:
    """At the first preference there is nothing to gain; a mean of ratios would divide by 0."""
    best, oracle = np.array([0.5, 0.5]), np.array([0.5, 0.9])
    assert gap_closed(best, best_single=best, oracle=oracle) == 0.0
    assert gap_closed(oracle, best_single=best, oracle=oracle) == 1.0
    assert gap_closed(np.array([0.5, 0.6]), best_single=best, oracle=oracle) == pytest.approx(0.25)


def test_a_fall_beyond_noise_is_not_monotone() -> None:
    rising, noise = np.array([[0.1] * 50, [0.2] * 50]), np.linspace(-1, 1, 50)
    assert is_monotone(rising, rising)
    assert not is_monotone(rising[::-1], rising)
    assert not is_monotone(rising, rising[::-1])
    # The same fall of 0.1, but with a paired error of some 0.08.
    assert is_monotone(rising[::-1] + np.stack([noise, np.zeros(50)]), rising)
