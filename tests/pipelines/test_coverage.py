"""The coverage study: logs are drawn as stated, and its truth is the pool's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from outcome_tables import some_outcomes

from pipelines.coverage import CoveragePlan, Pool, draw_log, make_pool, run_coverage, write_log
from policies.evaluation import ESTIMATORS

OUTCOMES = some_outcomes(300)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return make_pool(CoveragePlan(), OUTCOMES)


def test_target_and_logging_policy_never_saw_the_pool(pool: Pool) -> None:
    assert pool.n_train == len(pool.features) == 150
    np.testing.assert_allclose(pool.target.sum(axis=2), 1.0)
    np.testing.assert_allclose(pool.logging.sum(axis=2), 1.0)


def test_propensities_are_those_drawn_from(pool: Pool) -> None:
    drawn = draw_log(pool, 20_000, exploration_total=0.2, rng=np.random.default_rng(0))
    assert drawn.log.propensity.min() == pytest.approx(0.2 / 3)
    # Weighted by 1 / propensity each arm counts the same.
    mass = np.bincount(drawn.log.arm, weights=1 / drawn.log.propensity) / 20_000
    np.testing.assert_allclose(mass, 1.0, atol=0.1)


def test_the_truth_is_what_endless_logs_would_say(pool: Pool) -> None:
    """IPS on a long log comes near it, overall."""
    drawn = draw_log(pool, 200_000, exploration_total=1.0, rng=np.random.default_rng(1))
    trade_offs = np.stack([drawn.w_quality, 1 - drawn.w_quality], axis=1)
    reward = (drawn.log.outcomes * trade_offs).sum(axis=1)
    taken = drawn.target_as_asked[np.arange(200_000), drawn.log.arm]
    estimate = (taken / drawn.log.propensity * reward).mean()
    assert estimate == pytest.approx(pool.truth()["overall"], abs=0.01)


def test_a_learners_log_keeps_its_own_propensities(pool: Pool) -> None:
    plan = CoveragePlan(rows=300)
    drawn = write_log(plan, pool, exploration_total=0.3, rng=np.random.default_rng(0))
    assert len(drawn.log.arm) == 300
    # A tenth of the exploration is spread evenly, come what may.
    assert drawn.log.propensity.min() >= 0.1 * 0.3 / 3 - 1e-9
    # Later rows are decided by a policy that has learned, not by the first one.
    assert len(np.unique(drawn.log.propensity)) > 50
    np.testing.assert_allclose(drawn.target_as_asked.sum(axis=1), 1.0)


def test_the_object_printed_has_every_figure() -> None:
    plan = CoveragePlan(repetitions=5, rows=200, learning_repetitions=2)
    found = json.loads(json.dumps(run_coverage(plan, OUTCOMES), allow_nan=False))
    assert list(found["explorations"]) == ["0.2", "0.05"]
    for ways in found["explorations"].values():
        assert list(ways) == ["as_asked", "on_grid", "learning_log"]
        for regions in ways.values():
            assert set(regions) == {"overall", "cost", "balanced", "quality"}
            for estimators in regions.values():
                assert set(estimators) == set(ESTIMATORS)
                assert all(0.0 <= one["coverage"] <= 1.0 for one in estimators.values())
