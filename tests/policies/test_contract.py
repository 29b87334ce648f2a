"""What every policy promises, whichever learner made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from experiences import ENCODER_ID, a_spec, prices_of, routed, some_arms
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.arms import Arm
from policies.artifact import PolicyArtifact, digest
from policies.barp import BarpLearner
from policies.barp_dr import BarpDrLearner, BarpDrSettings
from policies.errors import ArtifactError
from policies.gradient import BarpSettings
from policies.learners import load_policy
from policies.learning import Learner
from policies.posterior_learner import PosteriorLearner
from policies.preference import Preference

ARMS = some_arms(0.001, 0.004, 0.009)
NEW_ARM = Arm(name="new", usd_per_call=0.002)
# Under the kind it is made by; a head of its own each.
LEARNERS: Mapping[str, Learner] = {
    "posterior": PosteriorLearner(),
    "barp": BarpLearner(BarpSettings(head="bilinear")),
    "barp-dr": BarpDrLearner(),
    "barp-dr mlp": BarpDrLearner(BarpDrSettings(head="mlp", capacity=100)),
}

each_learner = pytest.mark.parametrize("kind", LEARNERS)
weights_on_quality = st.floats(0.0, 1.0)
seeds = st.integers(0, 2**32 - 1)


def _trained(kind: str) -> PolicyArtifact:
    """Train one version on 150 rows of a world whose best arm depends on the prompt."""
    rng = np.random.default_rng(1)
    contexts = rng.normal(size=(150, 6)).astype(np.float32)
    scores = 1.0 / (1.0 + np.exp(-3.0 * contexts[:, :3].astype(np.float64)))
    costs = np.tile([0.001, 0.004, 0.009], (150, 1))
    learner = LEARNERS[kind]
    first = learner.initial(a_spec(ARMS))
    rows = routed(load_policy(first), contexts, ARMS, scores, costs, rng=rng)
    return learner.update(first, rows, prices_of(ARMS))


TRAINED = {kind: _trained(kind) for kind in LEARNERS}


def _context(seed: int) -> np.ndarray:
    """Draw a context."""
    return np.random.default_rng(seed).normal(size=6).astype(np.float32)


def _preference(w_quality: float) -> Preference:
    """Make a preference of its weight on quality."""
    return Preference(quality=w_quality, cost=1.0 - w_quality)


@each_learner
@given(w=weights_on_quality, seed=seeds, offered=st.sets(st.sampled_from(range(3)), min_size=1))
def test_a_pmf_sums_to_one_over_the_arms_offered(
    kind: str, w: float, seed: int, offered: set[int]
) -> None:
    """And none of them falls below a tenth of an even share of the exploration."""
    arms = tuple(ARMS[i] for i in sorted(offered))
    pmf = load_policy(TRAINED[kind]).pmf(_context(seed), _preference(w), arms)
    assert pmf.shape == (len(arms),)
    assert pmf.dtype == np.float64
    assert pmf.sum() == pytest.approx(1.0, abs=1e-12)
    assert pmf.min() >= 0.1 * TRAINED[kind].exploration_total / len(arms) * (1 - 1e-6)


@each_learner
@given(w=weights_on_quality, seed=seeds)
def test_the_greedy_pmf_is_the_pmf_without_its_floor(kind: str, w: float, seed: int) -> None:
    """It sums to one, and served it is mixed with an even share for each arm."""
    artifact, context = TRAINED[kind], _context(seed)
    greedy = load_policy(artifact).greedy_pmf(context, _preference(w), ARMS)
    assert greedy.sum() == pytest.approx(1.0, abs=1e-12)
    assert greedy.min() >= 0.0
    quiet = load_policy(replace(artifact, exploration_total=0.5))
    np.testing.assert_array_equal(quiet.greedy_pmf(context, _preference(w), ARMS), greedy)


@each_learner
def test_a_batch_of_n_equals_n_of_one_bit_for_bit(kind: str) -> None:
    """A pmf depends on nothing decided before it: shuffled and fresh, the same bits."""
    policy = load_policy(TRAINED[kind])
    requests = [(_context(i), _preference(i / 40)) for i in range(40)]
    together = [policy.pmf(context, preference, ARMS) for context, preference in requests]
    for i in np.random.default_rng(0).permutation(40):
        context, preference = requests[i]
        alone = load_policy(TRAINED[kind]).pmf(context, preference, ARMS)
        np.testing.assert_array_equal(alone, together[i])


@each_learner
def test_the_order_of_the_arms_offered_does_not_matter(kind: str) -> None:
    policy = load_policy(TRAINED[kind])
    forward = policy.pmf(_context(3), _preference(0.5), ARMS)
    backward = policy.pmf(_context(3), _preference(0.5), ARMS[::-1])
    np.testing.assert_allclose(forward, backward[::-1], atol=1e-12)


@each_learner
@settings(max_examples=25)
@given(w=weights_on_quality, seed=seeds)
def test_deciding_leaves_its_inputs_untouched(kind: str, w: float, seed: int) -> None:
    before, context = digest(TRAINED[kind]), _context(seed)
    kept = context.copy()
    context.flags.writeable = False
    load_policy(TRAINED[kind]).pmf(context, _preference(w), ARMS)
    np.testing.assert_array_equal(context, kept)
    assert digest(TRAINED[kind]) == before


@each_learner
def test_save_and_load_change_nothing(kind: str, tmp_path: Path) -> None:
    TRAINED[kind].save(tmp_path)
    loaded = PolicyArtifact.load(tmp_path)
    assert loaded.to_files() == TRAINED[kind].to_files()
    for w in (0.0, 0.3, 1.0):
        np.testing.assert_array_equal(
            load_policy(loaded).pmf(_context(7), _preference(w), ARMS),
            load_policy(TRAINED[kind]).pmf(_context(7), _preference(w), ARMS),
        )


@each_learner
def test_the_same_rows_make_the_same_bytes(kind: str) -> None:
    assert _trained(kind).to_files() == TRAINED[kind].to_files()


@each_learner
def test_a_first_version_favours_nobody_much_and_another_seed_differs(kind: str) -> None:
    """Nothing is learned yet: at a weight of 1 on quality every arm gets its chance."""
    first = LEARNERS[kind].initial(a_spec(ARMS))
    assert load_policy(first).pmf(_context(0), _preference(1.0), ARMS).min() > 0.2
    assert digest(first) != digest(LEARNERS[kind].initial(a_spec(ARMS, seed=1)))


@each_learner
def test_an_arm_the_version_does_not_know_gets_a_share(kind: str) -> None:
    pmf = load_policy(TRAINED[kind]).pmf(_context(0), _preference(0.5), (*ARMS, NEW_ARM))
    assert pmf.sum() == pytest.approx(1.0)
    assert pmf[-1] >= TRAINED[kind].exploration_total / 4


@each_learner
def test_arms_that_rows_name_are_added(kind: str) -> None:
    parent, arms = TRAINED[kind], (*ARMS, NEW_ARM)
    contexts = np.stack([_context(i) for i in range(30)])
    rows = routed(
        load_policy(parent),
        contexts,
        arms,
        np.full((30, 4), 0.5),
        np.full((30, 4), 0.002),
        rng=np.random.default_rng(0),
    )
    child = LEARNERS[kind].update(parent, rows, prices_of(arms, version=2))
    assert child.arms == ("a", "b", "c", "new")
    assert child.price_version == 2
    assert load_policy(child).pmf(contexts[0], _preference(0.5), arms).shape == (4,)


@each_learner
def test_an_update_with_no_rows_changes_no_decision(kind: str) -> None:
    parent = TRAINED[kind]
    empty = routed(
        load_policy(parent),
        np.zeros((0, 6), dtype=np.float32),
        ARMS,
        np.zeros((0, 3)),
        np.zeros((0, 3)),
        rng=np.random.default_rng(0),
    )
    child = LEARNERS[kind].update(parent, empty, {})
    np.testing.assert_array_equal(
        load_policy(child).pmf(_context(0), _preference(0.5), ARMS),
        load_policy(parent).pmf(_context(0), _preference(0.5), ARMS),
    )


@each_learner
def test_a_policy_names_its_kind_and_encoder(kind: str) -> None:
    policy = load_policy(TRAINED[kind])
    assert policy.kind == LEARNERS[kind].kind
    assert (policy.encoder_id, policy.context_dim) == (ENCODER_ID, 6)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ArtifactError, match="not known"):
        load_policy(replace(TRAINED["barp"], kind="oracle"))


@each_learner
def test_an_artifact_that_loads_can_decide(kind: str) -> None:
    whole, arms = TRAINED[kind], [Arm(name=name) for name in TRAINED[kind].arms]
    for name, value in whole.weights.items():
        for broken in (value[1:], value[..., :-1], value * np.float64("nan")):
            if np.array_equal(broken, value):
                continue
            try:
                policy = load_policy(replace(whole, weights={**whole.weights, name: broken}))
            except ArtifactError:
                continue
            pmf = policy.pmf(_context(1), _preference(0.5), arms)
            assert pmf.sum() == pytest.approx(1.0), name


@each_learner
def test_weights_that_do_not_fit_are_refused(kind: str) -> None:
    with pytest.raises(ArtifactError, match="do not fit"):
        load_policy(replace(TRAINED[kind], arms=("a", "b")))
    with pytest.raises(ArtifactError, match="do not fit"):
        load_policy(replace(TRAINED[kind], weights={}))
