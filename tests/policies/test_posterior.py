"""The posterior learner: what it remembers, prices at decision time, a pass over real outcomes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from experiences import TAU_USD, a_spec, prices_of, routed, some_arms
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from policies.arms import Arm
from policies.artifact import PolicyArtifact, digest
from policies.draws import arm_draws
from policies.learning import LearnerSpec
from policies.posterior import (
    ROWS_AT_ONCE,
    PosteriorPolicy,
    PosteriorSettings,
    explored_shares,
    sweep,
    thompson_scale,
    win_shares,
)
from policies.posterior_learner import PosteriorLearner, with_draws
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


def test_the_context_waits_for_rows_and_features_are_fitted_anew_as_they_double() -> None:
    first = LEARNER.initial(a_spec(ARMS))
    few = _updated(first, _rows(first, 63))
    assert not few.weights["features.projection"].any()
    assert few.weights["quality.means"][:, 0].any(), "levels are learned from the first row on"
    enough = _updated(few, _rows(few, 1, first_seq=64))
    assert enough.weights["features.projection"].any()
    assert enough.weights["fit_features_at"][0] == 128
    kept = _updated(enough, _rows(enough, 30, first_seq=65))
    for name in ("features.projection", "features.landmarks"):
        np.testing.assert_array_equal(kept.weights[name], enough.weights[name])
    anew = _updated(kept, _rows(kept, 34, first_seq=95))
    assert anew.weights["fit_features_at"][0] == 256
    assert (anew.weights["features.projection"] != enough.weights["features.projection"]).any()


def test_an_update_is_a_pure_function(trained: PolicyArtifact) -> None:
    rows, before = _rows(trained, 70, first_seq=201), digest(trained)
    assert digest(_updated(trained, rows)) == digest(_updated(trained, rows))
    assert digest(trained) == before


def test_what_is_remembered_is_bounded() -> None:
    learner = PosteriorLearner(PosteriorSettings(capacity=100))
    artifact = learner.initial(a_spec(ARMS))
    for turn in range(3):
        rows = _rows(artifact, 80, first_seq=1 + 80 * turn)
        artifact = learner.update(artifact, rows, prices_of(ARMS))
    assert len(artifact.weights["memory.arm"]) == 100
    assert artifact.weights["rows_seen"][0] == 240


def test_only_the_last_revision_of_a_decision_counts(trained: PolicyArtifact) -> None:
    rows = _rows(trained, 40, first_seq=300)
    seq = pa.array(np.arange(400, 440))
    corrected = rows.set_column(0, rows.schema.field("seq"), seq)
    twice = _updated(trained, pa.concat_tables([rows, corrected]))
    once = _updated(trained, rows)
    assert len(twice.weights["memory.arm"]) == len(once.weights["memory.arm"])


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
    number = {"quality": 0, "cost": 1}
    outcome = child.weights["memory.outcome"][-30:]
    assert np.isnan(outcome[:, number[missing]]).all()
    assert not np.isnan(outcome[:, number[kept]]).any()
    assert np.isfinite(child.weights[f"{missing}.means"]).all()


def test_a_batch_is_assessed_as_its_requests_one_by_one(trained: PolicyArtifact) -> None:
    policy, rng = PosteriorPolicy(trained), np.random.default_rng(0)
    contexts = rng.normal(size=(20, 6)).astype(np.float32)
    preferences = [Preference(quality=w, cost=1.0 - w) for w in rng.random(20).tolist()]
    found = policy.assess(contexts, preferences, ARMS)
    assert found.quality is not None
    assert found.cost_usd is not None
    for row, (context, preference) in enumerate(zip(contexts, preferences, strict=True)):
        np.testing.assert_allclose(found.pmf[row], policy.pmf(context, preference, ARMS))
        quality, cost_usd = _expected(policy, ARMS, context)
        np.testing.assert_allclose(found.quality[row], quality)
        np.testing.assert_allclose(found.cost_usd[row], cost_usd)


def test_win_shares_count_the_draws_that_an_arm_is_best_in() -> None:
    draws = np.array([[0.0, 1.0, -1.0, -3.0], [0.0, -1.0, 1.0, 3.0]])
    worth, deviation = np.array([[0.5, 0.0], [0.0, 0.0]]), np.array([[0.1, 0.1], [1.0, 1.0]])
    np.testing.assert_allclose(win_shares(worth, deviation, draws), [[0.75, 0.25], [0.5, 0.5]])


@given(
    n=st.sampled_from([1, 2, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 100]),
    m=st.integers(1, 5),
    num_draws=st.integers(1, 30),
    levels=st.sampled_from([2, 3, 1_000_000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_of_equals_the_first_arm_wins_a_draw(
    n: int, m: int, num_draws: int, levels: int, seed: int
) -> None:
    """Few levels make equals; deviations are zero for arms that are known for sure."""
    rng = np.random.default_rng(seed)
    worth, deviation = rng.integers(0, levels, (2, n, m)).astype(float)
    draws = rng.integers(-levels, levels, (m, num_draws)).astype(float)
    wanted = np.zeros((n, m))
    for row in range(n):
        for draw in range(num_draws):
            wanted[row, np.argmax(worth[row] + deviation[row] * draws[:, draw])] += 1.0
    np.testing.assert_array_equal(win_shares(worth, deviation, draws), wanted / num_draws)


def test_the_sweep_fades_and_an_operator_can_forbid_it() -> None:
    first = LEARNER.initial(a_spec(ARMS))
    assert sweep(first) == 1.0
    assert sweep(replace(first, exploration_total=0.0)) == 0.0
    settings = PosteriorSettings()
    many = int(settings.sweep_rows * 3**0.5)
    halfway = with_draws(first, rows_seen=many)
    assert sweep(halfway) == pytest.approx(0.5, abs=0.02)
    assert sweep(with_draws(first, rows_seen=10 * many)) == 0.0
    scales = thompson_scale(np.array([0, 10**6]), 3, settings)
    np.testing.assert_allclose(scales, [1.0, settings.scale_floor])


def test_exploration_prefers_arms_that_lose_little_and_forgets_none() -> None:
    settings = PosteriorSettings()
    shares = explored_shares(np.array([0.9, 0.88, 0.1]), np.array([0.5, 0.5, 0.5]), settings)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0] > shares[1] > shares[2] >= settings.even_part / 3


def test_draws_are_normal_and_each_arms_own() -> None:
    draws = [arm_draws(name, seed=0, rows_seen=9, num_draws=256) for name in "ab"]
    np.testing.assert_allclose([np.mean(draws), np.std(draws[0])], [0.0, 1.0], atol=0.02)
    assert abs(float(draws[0] @ draws[1])) / 256 < 0.2
    np.testing.assert_array_equal(draws[0], arm_draws("a", seed=0, rows_seen=9, num_draws=256))


def test_a_price_change_counts_from_the_next_decision(trained: PolicyArtifact) -> None:
    """No retraining: the arm's learned cost moves with its list price."""
    policy = PosteriorPolicy(trained)
    dearer = (*ARMS[:1], replace(ARMS[1], usd_per_call=0.008), *ARMS[2:])
    before, after = _expected(policy, ARMS), _expected(policy, dearer)
    np.testing.assert_allclose(after[1][1], 2 * before[1][1])
    np.testing.assert_allclose(after[0], before[0])
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
    once = _updated(trained, rows)
    for name in ("memory.outcome", "cost.means"):
        np.testing.assert_allclose(child.weights[name], once.weights[name], atol=1e-6)


def test_a_new_arm_is_expected_at_its_price_and_the_pools_quality(trained: PolicyArtifact) -> None:
    new = Arm(name="new", usd_per_call=0.003)
    policy = PosteriorPolicy(trained)
    quality, cost_usd = _expected(policy, (*ARMS, new))
    # Less sure than of any arm that was tried, so that it will be.
    deviations = [policy._models((arm,)).level_variance[0] for arm in (*ARMS, new)]
    assert max(deviations) == deviations[-1]
    assert quality[-1] == pytest.approx(quality[:-1].mean(), abs=0.1)
    # At list price, but for how far the others are from theirs.
    off = (trained.weights["cost_unit"] * TAU_USD / trained.weights["list_cost_usd"]).mean()
    departure = trained.weights["cost.shared_mean"][0]
    assert abs(off - 1.0) < 0.2
    assert abs(departure) < 0.2
    assert cost_usd[-1] == pytest.approx(0.003 * off * (1.0 + departure), rel=0.2)


def test_a_list_price_that_is_far_off_is_corrected_by_what_was_charged() -> None:
    """Half of the arms state a tenth of what their calls cost, one states nothing."""
    stated = some_arms(0.0001, 0.0004, 0.0)
    artifact = LEARNER.initial(a_spec(stated))
    for turn in range(4):
        rows = _rows(artifact, 60, first_seq=1 + 60 * turn)
        artifact = LEARNER.update(artifact, rows, prices_of(stated))
    _, cost_usd = _expected(PosteriorPolicy(artifact), stated)
    np.testing.assert_allclose(cost_usd, [0.001, 0.004, 0.009], rtol=0.3)


def test_a_version_of_an_earlier_release_decides_as_it_did_and_learns_on(
    trained: PolicyArtifact,
) -> None:
    """It holds costs as departures from list price, on the scale of the ceiling."""
    weights = dict(trained.weights)
    del weights["cost_unit"]
    older = replace(trained, weights=weights)
    _, cost_usd = _expected(PosteriorPolicy(older), ARMS)
    context = PosteriorPolicy(older)._features(CONTEXT[None])
    listed = trained.weights["list_cost_usd"] / TAU_USD
    stated = np.clip(listed + (context @ weights["cost.means"].T)[0], 0.0, 1.0) * TAU_USD
    np.testing.assert_allclose(cost_usd, stated)
    child = _updated(older, _rows(trained, 40, first_seq=300))
    _, cost_usd = _expected(PosteriorPolicy(child), ARMS)
    np.testing.assert_allclose(cost_usd, [0.001, 0.004, 0.009], rtol=0.3)


def test_expected_costs_stay_within_the_ceiling(trained: PolicyArtifact) -> None:
    dear = tuple(replace(arm, usd_per_call=1.0) for arm in ARMS)
    assert _expected(PosteriorPolicy(trained), dear)[1].max() <= TAU_USD


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


def _expected(
    policy: PosteriorPolicy, arms: tuple[Arm, ...], context: NDArray[np.float32] = CONTEXT
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the quality and cost, USD, that are expected of each arm."""
    found = policy.assess(context[None], [BALANCED], arms)
    assert found.quality is not None
    assert found.cost_usd is not None
    return found.quality[0], found.cost_usd[0]


def _part(world: HeldOut, rows: NDArray[np.int64]) -> HeldOut:
    """Keep some prompts."""
    return replace(
        world,
        contexts=world.contexts[rows],
        scores=world.scores[rows],
        costs=world.costs[rows],
    )
