"""Off-policy estimators: exact expectations first, then the interval around them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from policies.evaluation import (
    ESTIMATORS,
    MIN_ESS,
    LoggedRows,
    doubly_robust,
    effective_sample_size,
    estimate,
    evaluate_as_asked,
    evaluate_on_grid,
    importance_weights,
    ips,
    preference_regions,
    snips,
)
from policies.preference import preference_grid

PROPENSITY = np.array([0.7, 0.2, 0.1])
TARGET = np.array([0.1, 0.1, 0.8])
REWARD = np.array([0.2, 0.9, 0.5])
TRUTH = float((TARGET * REWARD).sum())


def test_ips_is_unbiased() -> None:
    """Exact, not sampled: weigh every arm by the chance that it was logged."""
    expected = (PROPENSITY * ips(TARGET, PROPENSITY, REWARD)).sum()
    assert expected == pytest.approx(TRUTH)


@given(arrays(np.float64, 3, elements=st.floats(-1, 2)))
def test_doubly_robust_is_unbiased_whatever_the_model_predicts(predicted: np.ndarray) -> None:
    arm = np.arange(3)
    scores = doubly_robust(
        np.tile(TARGET, (3, 1)), PROPENSITY, REWARD, arm, np.tile(predicted, (3, 1))
    )
    assert (PROPENSITY * scores).sum() == pytest.approx(TRUTH)


def test_doubly_robust_with_a_perfect_model_has_no_noise() -> None:
    scores = doubly_robust(
        np.tile(TARGET, (3, 1)), PROPENSITY, REWARD, np.arange(3), np.tile(REWARD, (3, 1))
    )
    np.testing.assert_allclose(scores, TRUTH)


def test_snips_scores_average_to_the_ratio() -> None:
    weight = importance_weights(TARGET, PROPENSITY)
    scores = snips(TARGET, PROPENSITY, REWARD)
    assert scores.mean() == pytest.approx((weight * REWARD).sum() / weight.sum())


def test_snips_of_a_constant_reward_is_that_constant() -> None:
    """Where plain IPS depends on how many heavy rows were drawn."""
    np.testing.assert_allclose(snips(TARGET, PROPENSITY, np.full(3, 0.4)), 0.4)


def test_snips_refuses_a_log_the_target_never_takes() -> None:
    with pytest.raises(ValueError, match="none"):
        snips(np.zeros(3), PROPENSITY, REWARD)


def test_a_row_may_be_judged_at_another_preference() -> None:
    """The log was written at w, the policy is judged at w': exact over w and arm together.

    Quality and cost do not depend on the preference, so only the propensity at w counts.
    """
    logged = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])  # one pmf a logged preference
    chance_of_w = np.array([0.8, 0.2])[:, None]
    scores = ips(np.tile(TARGET, (2, 1)), logged, np.tile(REWARD, (2, 1)))
    assert (chance_of_w * logged * scores).sum() == pytest.approx(TRUTH)


def test_several_preferences_a_row_are_weighed_at_once() -> None:
    at_each = np.array([[0.5, 0.1], [0.2, 0.4]])
    weights = importance_weights(at_each, np.array([[0.5], [0.1]]))
    np.testing.assert_allclose(weights, [[1.0, 0.2], [2.0, 4.0]])


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        arm = rng.choice(3, size=1000, p=PROPENSITY)
        found = estimate(ips(TARGET[arm], PROPENSITY[arm], REWARD[arm]))
        covered += found.lower <= TRUTH <= found.upper
    assert 0.92 <= covered / 400 <= 0.98


def test_estimate_states_what_it_rests_on() -> None:
    found = estimate(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    assert (found.mean, found.n, found.ess) == (2.0, 2, 2.0)
    assert found.upper - found.mean == pytest.approx(1.96, abs=0.001)
    assert estimate(np.array([1.0])).upper == float("inf")
    with pytest.raises(ValueError, match="at least one"):
        estimate(np.array([]))


@given(arrays(np.float64, 5, elements=st.floats(0, 100)))
def test_effective_sample_size_is_at_most_the_sample(weights: np.ndarray) -> None:
    assert 0.0 <= effective_sample_size(weights) <= 5.0 + 1e-9


def _log(n: int, seed: int) -> tuple[LoggedRows, np.ndarray]:
    """Log rows at random under PROPENSITY; return them with their weights on quality."""
    rng = np.random.default_rng(seed)
    arm = rng.choice(3, size=n, p=PROPENSITY)
    log = LoggedRows(
        contexts=rng.normal(size=(n, 2)),
        arm=arm,
        propensity=PROPENSITY[arm],
        outcomes=np.stack([REWARD[arm], -0.5 * REWARD[arm]], axis=1),
        folds=np.arange(n) % 5,
    )
    return log, rng.uniform(size=n)


def test_as_asked_and_on_the_grid_find_the_truth_in_each_region() -> None:
    """Outcomes depend on the arm alone: the reward is (w - (1 - w) / 2) times the truth."""
    log, w = _log(4000, 0)
    grid = preference_grid()
    asked = evaluate_as_asked(np.tile(TARGET, (4000, 1)), log, w)
    on_grid = evaluate_on_grid(np.tile(TARGET, (11, 4000, 1)), log, grid)
    grid_w = np.array([point.quality for point in grid])
    for found, weights in ((asked, w), (on_grid, grid_w)):
        for region, points in preference_regions(weights).items():
            truth = TRUTH * (1.5 * weights[points] - 0.5).mean()
            for name in ESTIMATORS:
                assert found[region][name].mean == pytest.approx(truth, abs=0.05), (region, name)


def test_a_region_nobody_asked_for_is_left_out() -> None:
    log, w = _log(50, 1)
    found = evaluate_as_asked(np.tile(TARGET, (50, 1)), log, 0.1 * w)
    assert set(found) == {"overall", "cost"}


def test_too_few_effective_rows_are_flagged() -> None:
    log, w = _log(200, 2)
    even = evaluate_as_asked(np.tile(PROPENSITY, (200, 1)), log, w)["overall"]["dr"]
    rare = evaluate_as_asked(np.tile([0.0, 0.0, 1.0], (200, 1)), log, w)["overall"]["dr"]
    assert even.ess == pytest.approx(200)
    assert even.trusted
    assert rare.ess < MIN_ESS
    assert not rare.trusted
