"""The posterior learner: exact sums, prices at decision time, and a pass over real outcomes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from experiences import TAU_USD, a_spec, prices_of, routed, some_arms
from numpy.typing import NDArray

from policies.arms import Arm
from policies.artifact import PolicyArtifact
from policies.beliefs import (
    PosteriorSettings,
    Statistics,
    arm_draws,
    beliefs,
    feature_map,
    features,
    fit_projection,
)
from policies.learning import LearnerSpec
from policies.posterior import PosteriorLearner, PosteriorPolicy
from policies.preference import Preference, preference_grid
from policies.references import HeldOut, arm_share, heldout_reward, reference_rewards

ARMS = some_arms(0.001, 0.004, 0.009)
LEARNER = PosteriorLearner()
BALANCED = Preference(quality=0.5, cost=0.5)
CONTEXT = np.zeros(6, dtype=np.float32)


def _rows(
    parent: PolicyArtifact, number: int, *, first_seq: int = 1, missing: str = ""
) -> pa.Table:
    """Route prompts whose best arm is in the context; one kind of outcome may never come."""
    rng = np.random.default_rng(first_seq)
    contexts = rng.normal(size=(number, 6)).astype(np.float32)
    scores = 1.0 / (1.0 + np.exp(-3.0 * contexts[:, :3].astype(np.float64)))
    costs = np.array([0.001, 0.004, 0.009]) * rng.uniform(0.5, 1.5, size=(number, 1))
    unknown = np.full((number, 3), np.nan)
    return routed(
        PosteriorPolicy(parent),
        contexts,
        ARMS,
        unknown if missing == "quality" else scores,
        unknown if missing == "cost" else costs,
        rng=rng,
        first_seq=first_seq,
    )


def _updated(parent: PolicyArtifact, rows: pa.Table) -> PolicyArtifact:
    """Update with the usual prices."""
    return LEARNER.update(parent, rows, prices_of(ARMS))


@pytest.fixture(scope="module")
def trained() -> PolicyArtifact:
    first = LEARNER.initial(a_spec(ARMS))
    return _updated(first, _rows(first, 200))


def test_updates_add_up(trained: PolicyArtifact) -> None:
    """Two updates equal one of both, once the projection is frozen."""
    one, two = _rows(trained, 70, first_seq=201), _rows(trained, 50, first_seq=271)
    apart = _updated(_updated(trained, one), two)
    together = _updated(trained, pa.concat_tables([one, two]))
    assert apart.weights.keys() == together.weights.keys()
    for name, value in together.weights.items():
        np.testing.assert_allclose(apart.weights[name], value, rtol=1e-9, atol=1e-12)


def test_the_projection_waits_for_rows_and_then_stays() -> None:
    first = LEARNER.initial(a_spec(ARMS))
    few = _updated(first, _rows(first, 63))
    assert not few.weights["projection"].any()
    enough = _updated(few, _rows(few, 64, first_seq=64))
    assert enough.weights["projection"].any()
    later = _updated(enough, _rows(enough, 64, first_seq=128))
    np.testing.assert_array_equal(later.weights["projection"], enough.weights["projection"])


def test_only_the_last_revision_of_a_decision_counts(trained: PolicyArtifact) -> None:
    rows = _rows(trained, 40, first_seq=300)
    seq = pa.array(np.arange(400, 440))
    corrected = rows.set_column(0, rows.schema.field("seq"), seq)
    twice = _updated(trained, pa.concat_tables([rows, corrected]))
    np.testing.assert_allclose(
        twice.weights["cost.gram"], _updated(trained, rows).weights["cost.gram"]
    )


def test_rows_of_another_encoder_are_left_out(trained: PolicyArtifact) -> None:
    """Even where their contexts have another length."""
    rng = np.random.default_rng(0)
    other = replace(
        LEARNER.initial(replace(a_spec(ARMS, context_dim=4), encoder_id="another")), seed=1
    )
    strange = routed(
        PosteriorPolicy(other),
        rng.normal(size=(9, 4)).astype(np.float32),
        ARMS,
        np.full((9, 3), 0.5),
        np.full((9, 3), 0.001),
        rng=rng,
        first_seq=900,
    )
    own = _rows(trained, 30, first_seq=300)
    mixed = _updated(trained, pa.concat_tables([own, strange]))
    for name, value in _updated(trained, own).weights.items():
        np.testing.assert_array_equal(mixed.weights[name], value)


@pytest.mark.parametrize(("missing", "kept"), [("quality", "cost"), ("cost", "quality")])
def test_a_missing_outcome_still_teaches_the_other(
    trained: PolicyArtifact, missing: str, kept: str
) -> None:
    child = _updated(trained, _rows(trained, 30, first_seq=300, missing=missing))
    before, after = trained.weights, child.weights
    np.testing.assert_array_equal(after[f"{missing}.gram"], before[f"{missing}.gram"])
    counted = after[f"{kept}.gram"][:, 0, 0].sum() - before[f"{kept}.gram"][:, 0, 0].sum()
    assert counted == 30


def test_beliefs_are_ridge_regression() -> None:
    """Against the normal equations written out for one arm."""
    rng = np.random.default_rng(0)
    design = np.hstack([np.ones((50, 1)), rng.normal(size=(50, 2))])
    target = rng.normal(size=50)
    settings = PosteriorSettings(prior_weight=2.0, context_precision=10.0, deviation_scale=1.0)
    sums = Statistics.empty(1, 3).plus(np.zeros(50, dtype=np.int64), design, target)
    mean, covariance = beliefs(sums, np.array([0.7]), settings, np.array([0.3]))
    prior = np.diag([2.0, 10.0, 10.0])
    precision = design.T @ design + prior
    expected = np.linalg.solve(precision, design.T @ target + prior @ [0.7, 0.0, 0.0])
    np.testing.assert_allclose(mean[0], expected)
    np.testing.assert_allclose(covariance[0], 0.09 * np.linalg.inv(precision))


def test_one_contexts_features_are_its_row_of_the_batchs() -> None:
    contexts = np.random.default_rng(0).normal(size=(90, 12)).astype(np.float32)
    centre, projection = fit_projection(contexts, components=4)
    rows = features(contexts, centre, projection)
    matrix, offset = feature_map(centre, projection)
    np.testing.assert_allclose(matrix @ contexts[5] + offset, rows[5], atol=1e-6)
    np.testing.assert_allclose(np.cov(rows[:, 1:].T), np.eye(4), atol=1e-6)


def test_contexts_that_span_too_little_leave_components_empty() -> None:
    """As with prompts that are all the same: nothing is divided by zero."""
    _, projection = fit_projection(np.ones((70, 12), dtype=np.float32), components=4)
    assert projection.shape == (4, 12)
    assert not projection.any()


def test_draws_are_normal_and_each_arms_own() -> None:
    draws = [arm_draws(name, seed=0, rows_seen=9, num_draws=256) for name in "ab"]
    np.testing.assert_allclose([np.mean(draws), np.std(draws[0])], [0.0, 1.0], atol=0.02)
    assert abs(float(draws[0] @ draws[1])) / 256 < 0.2
    np.testing.assert_array_equal(draws[0], arm_draws("a", seed=0, rows_seen=9, num_draws=256))


def test_a_price_change_counts_from_the_next_decision(trained: PolicyArtifact) -> None:
    """No retraining: the arm's learned cost moves with its list price."""
    policy = PosteriorPolicy(trained)
    dearer = (*ARMS[:1], replace(ARMS[1], usd_per_call=0.008), *ARMS[2:])
    before, after = policy.expect(CONTEXT, ARMS), policy.expect(CONTEXT, dearer)
    np.testing.assert_allclose(after.cost_usd[1], 2 * before.cost_usd[1])
    np.testing.assert_allclose(after.quality, before.quality)
    share = [policy.pmf(CONTEXT, BALANCED, arms)[1] for arms in (ARMS, dearer)]
    assert share[1] <= share[0]


def test_costs_under_another_price_teach_the_same(trained: PolicyArtifact) -> None:
    """A call that was charged twice the list price of an arm's first table counts half."""
    rows = _rows(trained, 40, first_seq=300)
    doubled = tuple(replace(arm, usd_per_call=2 * arm.usd_per_call) for arm in ARMS)
    place = rows.schema.get_field_index("cost_usd")
    twice = pa.array(2 * rows["cost_usd"].to_numpy())
    charged = rows.set_column(place, rows.schema.field("cost_usd"), twice)
    child = LEARNER.update(trained, charged, prices_of(doubled))
    np.testing.assert_allclose(
        child.weights["cost.moment"], _updated(trained, rows).weights["cost.moment"]
    )


def test_a_new_arm_is_expected_at_its_price_and_the_pools_quality(trained: PolicyArtifact) -> None:
    new = Arm(name="new", usd_per_call=0.003)
    expected = PosteriorPolicy(trained).expect(CONTEXT, (*ARMS, new))
    pool = trained.weights["quality.moment"][:, 0].sum() / 200
    assert expected.quality[-1] == pytest.approx(pool)
    assert expected.cost_usd[-1] == pytest.approx(0.003)


def test_expected_costs_stay_within_the_ceiling(trained: PolicyArtifact) -> None:
    dear = tuple(replace(arm, usd_per_call=1.0) for arm in ARMS)
    assert PosteriorPolicy(trained).expect(CONTEXT, dear).cost_usd.max() <= TAU_USD


def test_one_pass_over_real_outcomes_beats_chance_and_heeds_the_preference(
    real_outcomes: HeldOut,
) -> None:
    """600 prompts, each routed once; what comes back is judged on 200 others."""
    rng, arms = np.random.default_rng(0), real_outcomes.arms
    spec = LearnerSpec(
        arms=arms,
        encoder_id="minilm",
        context_dim=real_outcomes.contexts.shape[1],
        cost_ceiling_usd=real_outcomes.cost_ceiling_usd,
        price_version=1,
    )
    artifact = LEARNER.initial(spec)
    for start in range(0, 600, 100):
        part = _part(real_outcomes, np.arange(start, start + 100))
        policy = PosteriorPolicy(artifact)
        rows = routed(policy, part.contexts, arms, part.scores, part.costs, rng=rng)
        artifact = LEARNER.update(artifact, rows, prices_of(arms))
    held_out, policy = _part(real_outcomes, np.arange(600, 800)), PosteriorPolicy(artifact)
    grid = preference_grid()
    references = reference_rewards(
        held_out, real_outcomes.scores[:600], real_outcomes.costs[:600], grid
    )
    reward = float(heldout_reward(policy, held_out, grid).mean())
    reach = references.best_single - references.random
    assert (reward - references.random) / reach > 0.9
    shares = [arm_share(policy, held_out, w.quality) for w in grid]
    assert len({max(share, key=share.__getitem__) for share in shares}) > 1


def _part(world: HeldOut, rows: NDArray[np.int64]) -> HeldOut:
    """Keep some prompts."""
    return replace(
        world,
        contexts=world.contexts[rows],
        scores=world.scores[rows],
        costs=world.costs[rows],
    )
