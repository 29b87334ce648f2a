"""Hierarchical models: what arms share is found in the data, the unknown is like the pool."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from policies.hierarchy import Beliefs
from policies.outcome_models import (
    COST_GUESS,
    QUALITY_GUESS,
    Rows,
    fit_cost,
    fit_quality,
    sigmoid,
)

BLOCKS = (slice(1, 3), slice(3, 5))


def world(*, arms: int, rows: int, own: float, seed: int = 0) -> tuple[Rows, np.ndarray]:
    """Draw rows of a logistic world; `own` is how far arms depart from what they share."""
    rng = np.random.default_rng(seed)
    truth = np.array([0.5, 1.0, -1.0, 0.0, 0.0]) + own * rng.normal(size=(arms, 5))
    features = np.hstack([np.ones((rows, 1)), rng.normal(size=(rows, 4)) / 2**0.5])
    arm = rng.integers(arms, size=rows)
    quality = (rng.random(rows) < sigmoid((features * truth[arm]).sum(axis=1))).astype(np.float64)
    return Rows.sorted(features, arm, quality, num_arms=arms), truth


def prior(arms: int) -> Beliefs:
    return Beliefs.prior(QUALITY_GUESS, num_arms=arms, blocks=BLOCKS)


def test_plenty_of_data_gives_the_truth() -> None:
    rows, truth = world(arms=3, rows=30_000, own=0.5)
    found = fit_quality(prior(3), rows, BLOCKS, rounds=8)
    np.testing.assert_allclose(found.means, truth, atol=0.12)


def test_variances_follow_how_much_arms_differ() -> None:
    alike, _ = world(arms=12, rows=6_000, own=0.02)
    apart, _ = world(arms=12, rows=6_000, own=0.8)
    found = [fit_quality(prior(12), rows, BLOCKS, rounds=10) for rows in (alike, apart)]
    assert found[0].own_variance[1] < 0.1 < found[1].own_variance[1]


def test_arms_that_are_alike_borrow_from_one_another() -> None:
    """An arm with 20 rows of its own is known better beside eleven of its kind."""
    rows, truth = world(arms=12, rows=3_000, own=0.05)
    keep = np.flatnonzero(rows.arm > 0)
    few = np.append(np.flatnonzero(rows.arm == 0)[:20], keep)
    thin = Rows.sorted(rows.features[few], rows.arm[few], rows.target[few], num_arms=12)
    alone = Rows.sorted(
        rows.features[few[:20]], rows.arm[few[:20]], rows.target[few[:20]], num_arms=1
    )
    with_others = fit_quality(prior(12), thin, BLOCKS, rounds=6).means[0]
    by_itself = fit_quality(prior(1), alone, BLOCKS, rounds=6).means[0]
    assert np.abs(with_others - truth[0]).mean() < np.abs(by_itself - truth[0]).mean()


def test_one_step_is_the_exact_joint_posterior() -> None:
    """Against the Gaussian posterior of all coefficients at once, written out."""
    rng = np.random.default_rng(3)
    features, arm = rng.normal(size=(30, 5)), rng.integers(2, size=30)
    features[:, 0] = 1.0
    rows = Rows.sorted(features, arm, rng.normal(size=30), num_arms=2)
    start = Beliefs.prior(COST_GUESS, num_arms=2, blocks=BLOCKS)
    found = fit_cost(start, rows, BLOCKS, rounds=0)

    residual = (rows.target - rows.predicted(start.means)) ** 2
    common = (4 * 0.02 + residual.sum()) / (4 + 30)
    noise = (8 * common + rows.by_arm(residual)) / (8 + rows.count)
    # Unknowns: what is shared, then each arm's model; the latter are normal around the former.
    own, shared = np.diag(1 / start.own_variance), np.diag(1 / start.shared_variance)
    precision = np.zeros((15, 15))
    precision[:5, :5] = shared + 2 * own
    right = np.zeros(15)
    for k in range(2):
        part, mine = slice(5 * k + 5, 5 * k + 10), rows.arm == k
        gram = rows.features[mine].T @ rows.features[mine] / noise[k]
        precision[part, part] = own + gram
        precision[:5, part] = precision[part, :5] = -own
        right[part] = rows.features[mine].T @ rows.target[mine] / noise[k]
    covariance = np.linalg.inv(precision)
    expected = covariance @ right
    for k in range(2):
        part = slice(5 * k + 5, 5 * k + 10)
        np.testing.assert_allclose(found.means[k], expected[part])
        np.testing.assert_allclose(found.covariances[k], covariance[part, part])
    np.testing.assert_allclose(found.shared_mean, expected[:5])


def test_an_arm_nobody_tried_is_believed_to_be_like_the_others() -> None:
    rows, _ = world(arms=4, rows=2_000, own=0.3)
    found = fit_quality(prior(4), rows, BLOCKS, rounds=5)
    grown = found.with_arms(5)
    np.testing.assert_array_equal(grown.means[:4], found.means)
    np.testing.assert_array_equal(grown.means[4], found.shared_mean)
    assert grown.covariances[4, 0, 0] > found.covariances[:, 0, 0].max()


def test_rows_without_an_outcome_are_left_out() -> None:
    rows, _ = world(arms=2, rows=100, own=0.3)
    target = rows.target.copy()
    target[::2] = np.nan
    half = Rows.sorted(rows.features, rows.arm, target, num_arms=2)
    assert len(half.target) == 50
    assert half.count.sum() == 50


@pytest.mark.parametrize("quality", [0.0, 1.0, 0.5])
def test_outcomes_that_are_all_the_same_stay_finite(quality: float) -> None:
    features = np.random.default_rng(0).normal(size=(40, 5))
    rows = Rows.sorted(features, np.zeros(40, dtype=np.int64), np.full(40, quality), num_arms=2)
    found = fit_quality(prior(2), rows, BLOCKS, rounds=20)
    assert np.isfinite(found.means).all()
    assert np.linalg.eigvalsh(found.covariances).min() > 0


@pytest.mark.parametrize("rounds", [0, 1, 3, 8])
def test_rows_that_contradict_what_was_believed_are_believed_and_no_more(rounds: int) -> None:
    """A model that was near perfect is suddenly near useless: no step may overshoot."""
    rng = np.random.default_rng(0)
    features = np.hstack([np.ones((300, 1)), rng.normal(size=(300, 4)) / 2**0.5])
    arm = np.zeros(300, dtype=np.int64)

    def rows(share: float) -> Rows:
        quality = (rng.random(300) < share).astype(np.float64)
        return Rows.sorted(features, arm, quality, num_arms=1)

    sure = fit_quality(prior(1), rows(0.99), BLOCKS, rounds=12)
    found = fit_quality(sure, rows(0.1), BLOCKS, rounds=rounds)
    expected = sigmoid(features @ found.means[0])
    assert 0.02 < expected.mean() < 0.6
    if rounds == 8:
        assert expected.mean() == pytest.approx(0.1, abs=0.04)


def test_rounds_never_make_the_fit_worse() -> None:
    rows, _ = world(arms=3, rows=500, own=1.0, seed=4)
    upside_down = Rows.sorted(rows.features, rows.arm, 1.0 - rows.target, num_arms=3)
    start = fit_quality(prior(3), upside_down, BLOCKS, rounds=15)

    def loss(found: Beliefs) -> float:
        quality = np.clip(sigmoid(rows.predicted(found.means)), 1e-9, 1 - 1e-9)
        return float(
            -(rows.target * np.log(quality) + (1 - rows.target) * np.log(1 - quality)).sum()
        )

    losses = [loss(fit_quality(start, rows, BLOCKS, rounds=n)) for n in range(6)]
    assert losses[0] < loss(start)
    assert all(after <= before + 1.0 for before, after in itertools.pairwise(losses))
