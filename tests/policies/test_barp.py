"""BaRP: one pmf in numpy and torch whatever the head, the paper's gradient and baseline."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from experiences import a_spec, prices_of, routed, some_arms
from hypothesis import given
from hypothesis import strategies as st

from policies.arms import Arm
from policies.artifact import PolicyArtifact
from policies.barp import BarpLearner, BarpPolicy, with_arms
from policies.gradient import BarpSettings, TrainingState, policy_gradient_loss, shuffled
from policies.network import PARAMETERS, Head, initial_parameters, log_probs
from policies.preference import Preference

ARMS = some_arms(0.001, 0.009)
# The paper's step of 1e-4 needs its hundred epochs; these tests have one pass.
LEARNER = BarpLearner(BarpSettings(learning_rate=1e-2))
HEADS: tuple[Head, ...] = get_args(Head)
DEAR_BUT_GOOD = np.array([0.3, 0.9])


def _network(seed: int, head: Head = "linear") -> dict[str, np.ndarray]:
    """Draw every weight, the head's too."""
    rng = np.random.default_rng(seed)
    shapes = initial_parameters(head, num_arms=3, inputs=6, units=16, seed=0)
    return {name: rng.normal(size=value.shape) for name, value in shapes.items()}


def _rows(parent: PolicyArtifact, number: int, *, first_seq: int = 1) -> pa.Table:
    """Route prompts in a world with a good dear arm and a poor cheap one."""
    rng = np.random.default_rng(first_seq)
    return routed(
        BarpPolicy(parent),
        rng.normal(scale=0.3, size=(number, 6)).astype(np.float32),
        ARMS,
        np.tile(DEAR_BUT_GOOD, (number, 1)),
        np.tile([0.001, 0.009], (number, 1)),
        rng=rng,
        first_seq=first_seq,
    )


@given(
    seed=st.integers(0, 1000),
    head=st.sampled_from(HEADS),
    offered=st.sets(st.sampled_from(range(3)), min_size=1),
)
def test_numpy_and_torch_compute_one_pmf(seed: int, head: Head, offered: set[int]) -> None:
    rng, weights = np.random.default_rng(seed), _network(seed, head)
    context, w = rng.normal(size=(4, 6)), rng.uniform(size=(4, 1))
    preference = np.hstack([w, 1 - w])
    mask = np.tile([arm in offered for arm in range(3)], (4, 1))
    in_numpy = log_probs(weights, context, preference, mask, exploration_total=0.02, xp=np)
    tensors = {name: torch.tensor(value) for name, value in weights.items()}
    columns = (torch.tensor(context), torch.tensor(preference), torch.tensor(mask))
    in_torch = log_probs(tensors, *columns, exploration_total=0.02, xp=torch)
    np.testing.assert_allclose(in_numpy, in_torch.numpy(), rtol=1e-9)
    np.testing.assert_allclose(np.exp(in_numpy).sum(axis=1), 1.0)
    assert (np.exp(in_numpy)[~mask] == 0).all()


def test_a_masked_arm_leaves_the_gradient_finite() -> None:
    weights = {n: torch.tensor(v, requires_grad=True) for n, v in _network(0).items()}
    mask = torch.tensor([[True, False, True]])
    batch = {
        "arm": torch.tensor([0]),
        "propensity": torch.tensor([0.5]),
        "advantage": torch.tensor([1.0]),
        "offered": mask,
    }
    log_pmf = log_probs(
        weights,
        torch.ones(1, 6, dtype=torch.float64),
        torch.tensor([[0.7, 0.3]], dtype=torch.float64),
        mask,
        exploration_total=0.0,
        xp=torch,
    )
    loss = policy_gradient_loss(log_pmf, batch, entropy_bonus=0.01, max_importance=5.0)
    gradients = torch.autograd.grad(loss, weights)
    assert all(bool(torch.isfinite(value).all()) for value in gradients.values())
    assert not gradients["head_weight"][1].any()


def test_on_its_own_rows_the_gradient_is_the_papers() -> None:
    """Weight 1: -(r - b) grad log pi - beta grad H, by autograd of the formula as printed."""
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    arm, advantage = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0.5, -0.2, 0.1, 0.9, -0.7])
    pmf = logits.softmax(dim=-1)
    log_pmf = pmf.log()
    taken = log_pmf[torch.arange(5), arm]
    entropy = -(pmf * log_pmf).sum(dim=-1)
    paper = (-advantage * taken - 0.3 * entropy).mean()
    batch = {
        "arm": arm,
        "propensity": taken.detach().exp(),
        "advantage": advantage,
        "offered": torch.ones(5, 3, dtype=torch.bool),
    }
    ours = policy_gradient_loss(
        logits.log_softmax(dim=-1), batch, entropy_bonus=0.3, max_importance=5.0
    )
    (expected,) = torch.autograd.grad(paper, logits, retain_graph=True)
    (found,) = torch.autograd.grad(ours, logits)
    torch.testing.assert_close(found, expected)


def test_the_weight_of_another_policys_rows_is_bounded() -> None:
    log_pmf = torch.tensor([[0.9, 0.1]]).log()
    batch = {
        "arm": torch.tensor([0]),
        "propensity": torch.tensor([0.01]),
        "advantage": torch.tensor([1.0]),
        "offered": torch.ones(1, 2, dtype=torch.bool),
    }
    loss = policy_gradient_loss(log_pmf, batch, entropy_bonus=0.0, max_importance=5.0)
    torch.testing.assert_close(loss, -5.0 * log_pmf[0, 0])


def test_the_baseline_is_the_mean_reward_so_far() -> None:
    first = LEARNER.initial(a_spec(ARMS))
    second = LEARNER.update(first, _rows(first, 30), prices_of(ARMS))
    rows = _rows(second, 50, first_seq=31)
    third = LEARNER.update(second, rows, prices_of(ARMS))
    cost = np.minimum(rows["cost_usd"].to_numpy() / 0.01, 1.0)
    reward = rows["w_quality"].to_numpy() * rows["quality"].to_numpy()
    reward -= rows["w_cost"].to_numpy() * cost
    assert third.weights["reward_count"] == 80
    added = third.weights["reward_sum"] - second.weights["reward_sum"]
    np.testing.assert_allclose(added, reward.sum())


def test_every_row_is_seen_each_epoch() -> None:
    order = shuffled(70, epochs=3, minibatch=32, seed=[0, 0])
    assert order.shape == (3, 3, 32)
    for epoch in order:
        assert set(epoch.ravel()) == set(range(70))
    np.testing.assert_array_equal(order, shuffled(70, epochs=3, minibatch=32, seed=[0, 0]))


def test_it_learns_when_the_dear_arm_is_worth_its_price() -> None:
    """One network, every trade-off: the good arm for quality, the cheap one for cost."""
    artifact = LEARNER.initial(a_spec(ARMS))
    for step in range(24):
        rows = _rows(artifact, 200, first_seq=1 + 200 * step)
        artifact = LEARNER.update(artifact, rows, prices_of(ARMS))
    policy, context = BarpPolicy(artifact), np.zeros(6, dtype=np.float32)
    good_at = [
        policy.pmf(context, Preference(quality=w, cost=1 - w), ARMS)[1] for w in (0.05, 0.5, 0.95)
    ]
    assert good_at[0] < 0.2
    assert good_at[2] > 0.8
    assert good_at == sorted(good_at)


def test_training_goes_on_from_the_parents_optimiser() -> None:
    first = LEARNER.initial(a_spec(ARMS))
    second = LEARNER.update(first, _rows(first, 40), prices_of(ARMS))
    third = LEARNER.update(second, _rows(second, 40, first_seq=41), prices_of(ARMS))
    steps = [int(version.weights["adam_steps"][0]) for version in (first, second, third)]
    assert steps == [0, 2, 4]
    forgotten = replace(
        second,
        weights={
            **second.weights,
            **TrainingState.fresh({n: second.weights[n] for n in PARAMETERS["linear"]}).weights(),
        },
    )
    rows = _rows(second, 40, first_seq=41)
    afresh = LEARNER.update(forgotten, rows, prices_of(ARMS))
    assert not np.allclose(afresh.weights["head_bias"], third.weights["head_bias"])


def test_rows_without_both_outcomes_are_skipped() -> None:
    first = LEARNER.initial(a_spec(ARMS))
    rows = _rows(first, 40)
    place = rows.schema.get_field_index("quality")
    unknown = rows.set_column(place, rows.schema.field("quality"), pa.nulls(40, pa.float64()))
    child = LEARNER.update(first, unknown, prices_of(ARMS))
    for name, value in first.weights.items():
        np.testing.assert_array_equal(child.weights[name], value)


def test_a_new_arm_keeps_the_share_it_was_served_at() -> None:
    """Unknown or just appended, it has the mean logit: an update alone moves no traffic."""
    first = LEARNER.initial(a_spec(ARMS))
    parent = LEARNER.update(first, _rows(first, 100), prices_of(ARMS))
    new, context = Arm(name="new"), np.ones(6, dtype=np.float32)
    served = BarpPolicy(parent).pmf(context, Preference(quality=0.5, cost=0.5), (*ARMS, new))
    grown = with_arms(parent, ("a", "b", "new"))
    appended = BarpPolicy(grown).pmf(context, Preference(quality=0.5, cost=0.5), (*ARMS, new))
    np.testing.assert_allclose(appended, served, rtol=1e-5)


@pytest.mark.parametrize("module", ["torch", "sentence_transformers", "sklearn", "pandas"])
def test_serving_needs_no_heavy_library(module: str) -> None:
    """A replica that imported torch would start seconds later and be 200 MB larger."""
    code = f"import policies.learners, policies.encoder, sys; sys.exit({module!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
