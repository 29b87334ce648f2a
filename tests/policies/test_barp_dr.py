"""The doubly robust policy gradient: its gradient, its memory, and that it does not collapse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from experiences import ENCODER_ID, a_spec, prices_of, routed, some_arms
from numpy.typing import NDArray

from policies.arms import Arm
from policies.artifact import PolicyArtifact
from policies.barp import BarpPolicy
from policies.barp_dr import (
    BarpDrLearner,
    BarpDrSettings,
    control_variate,
    stratified,
)
from policies.control_variate import constant, modelled
from policies.evaluation import doubly_robust
from policies.gradient import doubly_robust_loss
from policies.memory import Memory
from policies.policy import Assessment
from policies.preference import Preference
from policies.priced_memory import Priced

ARMS = some_arms(0.0005, 0.004, 0.01)


def _batch(rows: int, *, seed: int) -> dict[str, torch.Tensor]:
    """Draw what the loss reads, three arms."""
    rng = np.random.default_rng(seed)
    return {
        "arm": torch.tensor(rng.integers(3, size=rows)),
        "propensity": torch.tensor(rng.uniform(0.3, 1.0, size=rows)),
        "worth": torch.tensor(rng.normal(size=(rows, 3))),
        "residual": torch.tensor(rng.normal(size=rows)),
        "offered": torch.ones(rows, 3, dtype=torch.bool),
    }


def test_the_gradient_is_that_of_the_doubly_robust_value() -> None:
    """By finite differences of `policies.evaluation.doubly_robust`, nothing clipped."""
    batch = _batch(4, seed=0)
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    arm, worth = batch["arm"].numpy(), batch["worth"].numpy()
    reward = worth[np.arange(4), arm] + batch["residual"].numpy()

    def value(at: np.ndarray) -> float:
        pmf = np.exp(at) / np.exp(at).sum(axis=1, keepdims=True)
        scores = doubly_robust(pmf, batch["propensity"].numpy(), reward, arm, worth)
        return float(scores.mean())

    differences, step = np.zeros((4, 3)), 1e-6
    for place in np.ndindex(4, 3):
        moved = np.zeros((4, 3))
        moved[place] = step
        up, down = value(logits.numpy() + moved), value(logits.numpy() - moved)
        differences[place] = (up - down) / (2 * step)
    leaf = logits.clone().requires_grad_()
    loss = doubly_robust_loss(leaf.log_softmax(-1), batch, barrier=0.0, max_importance=1e9)
    (gradient,) = torch.autograd.grad(loss, leaf)
    np.testing.assert_allclose(-gradient.numpy(), differences, atol=1e-8)


def test_the_barrier_pulls_out_of_a_corner() -> None:
    """A policy sure of the worst arm: without the barrier hardly any gradient, with it enough."""
    batch = _batch(1, seed=1) | {"worth": torch.tensor([[0.0, 1.0, 1.0]])}
    batch["residual"] = torch.zeros(1)

    def pull(barrier: float) -> float:
        logits = torch.tensor([[30.0, 0.0, 0.0]], requires_grad=True)
        loss = doubly_robust_loss(
            logits.log_softmax(-1), batch, barrier=barrier, max_importance=1.0
        )
        (gradient,) = torch.autograd.grad(loss, logits)
        return float(gradient[0, 0])

    assert abs(pull(0.0)) < 1e-9
    assert pull(0.03) == pytest.approx(0.03 * 2 / 3, rel=1e-3)


def test_where_it_rests_it_weighs_by_inverse_gap() -> None:
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    worth = torch.tensor([[0.5, 0.3, 0.1]], dtype=torch.float64)
    batch = _batch(1, seed=2) | {"worth": worth, "residual": torch.zeros(1)}
    optimiser = torch.optim.Adam([logits], lr=0.01)
    for _ in range(3000):
        optimiser.zero_grad()
        loss = doubly_robust_loss(logits.log_softmax(-1), batch, barrier=0.02, max_importance=1.0)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        optimiser.step()
    pmf = logits.softmax(-1)[0].detach()
    gap = (pmf * worth).sum() - worth[0]
    torch.testing.assert_close(pmf, 0.02 / 3 / (gap + 0.02), rtol=1e-3, atol=1e-5)


def test_a_cost_residual_is_what_a_model_without_the_row_leaves() -> None:
    """Leverage instead of refitting; the variances, which all rows make, hardly move by one."""
    rng, n = np.random.default_rng(0), 400
    features = np.hstack([np.ones((n, 1)), rng.normal(size=(n, 2)) / 2**0.5])
    arm, listed = rng.integers(2, size=n), np.array([0.2, 0.6])
    cost = listed[arm] + 0.1 * features[:, 1] + 0.05 * rng.normal(size=n)
    outcome = np.stack([(rng.random(n) < 0.6).astype(np.float64), cost], axis=1)
    model = modelled(features, arm, outcome, listed=listed)
    without = modelled(features[1:], arm[1:], outcome[1:], listed=listed)
    # Another row at the same place is predicted by the model that never saw the first.
    twin = modelled(
        np.vstack([features[1:], features[:1]]),
        np.append(arm[1:], arm[0]),
        np.vstack([outcome[1:], [[np.nan, np.nan]]]),
        listed=listed,
    )
    assert len(without.residual) == n - 1
    expected = outcome[0] - twin.expected[-1, arm[0]]
    np.testing.assert_allclose(model.residual[0], expected, atol=2e-3)


def test_without_a_model_the_baseline_still_knows_the_preference() -> None:
    outcome = np.array([[1.0, 0.2], [0.0, 0.4]])
    model = constant(outcome, num_arms=3)
    w = np.array([0.75, 0.25])
    np.testing.assert_allclose(model.worth(w, bonus=1.0)[:, 0], w * 0.5 - (1 - w) * 0.3)
    reward = w * outcome[:, 0] - (1 - w) * outcome[:, 1]
    np.testing.assert_allclose(model.surprise(w), reward - model.worth(w, bonus=0.0)[:, 0])


def test_preferences_are_drawn_one_in_each_part() -> None:
    drawn = stratified(50, 4, np.random.default_rng(0)).reshape(50, 4)
    assert (np.floor(drawn * 4) == np.arange(4)).all()


def _memory(first: int, number: int) -> Memory:
    """Remember rows that are told apart by their propensity."""
    rng = np.random.default_rng(first)
    return Memory(
        context=np.zeros((number, 2), dtype=np.float16),
        arm=np.zeros(number, dtype=np.int16),
        offered=np.ones((number, 2), dtype=np.bool_),
        propensity=np.arange(first, first + number, dtype=np.float32),
        outcome=np.zeros((number, 2), dtype=np.float32),
        rank=rng.uniform(size=number),
    )


def test_memory_keeps_the_newest_and_an_even_sample_of_the_rest() -> None:
    memory = Memory.empty(inputs=2, num_arms=2)
    for first in range(0, 4000, 40):
        memory = memory.plus(_memory(first, 40), capacity=200)
    kept = memory.propensity
    assert len(memory) == 200
    np.testing.assert_array_equal(kept[100:], np.arange(3900, 4000))
    assert (np.diff(kept) > 0).all()
    # An even sample of 0 … 3899: its mean has a standard error of 113.
    assert abs(kept[:100].mean() - 1950) < 3 * 113


def test_memory_is_carried_by_the_version() -> None:
    learner = BarpDrLearner(BarpDrSettings(max_steps=2, capacity=100))
    artifact = learner.initial(a_spec(ARMS))
    for step in range(3):
        artifact = _next(learner, artifact, 80, step=step)
    assert len(Memory.read(PolicyArtifact.from_files(artifact.to_files()).weights)) == 100


def test_what_is_remembered_before_a_projection_teaches_levels() -> None:
    learner = BarpDrLearner(BarpDrSettings(max_steps=2))
    artifact = _next(learner, learner.initial(a_spec(ARMS)), 20, step=0)
    assert not artifact.weights["projection"].any()
    memory = Memory.read(artifact.weights)
    model = control_variate(memory, learner.settings, Priced.read(artifact))
    np.testing.assert_allclose(model.expected, model.expected[:1].repeat(20, axis=0))


@pytest.mark.parametrize("model", [True, False])
def test_it_keeps_to_different_arms_for_different_preferences(model: bool) -> None:
    """No collapse: the cheap arm for cost, for quality the one that suits the prompt."""
    learner = BarpDrLearner(
        BarpDrSettings(control_variate=model, max_importance=0.2 if model else 2.0)
    )
    artifact = learner.initial(a_spec(ARMS))
    for step in range(12):
        artifact = _next(learner, artifact, 100, step=step)
    policy, one = BarpPolicy(artifact), np.eye(6, dtype=np.float32)[0]
    for_cost = policy.pmf(one, Preference(quality=0.0, cost=1.0), ARMS)
    hard = policy.pmf(2 * one, Preference(quality=1.0, cost=0.0), ARMS)
    easy = policy.pmf(-2 * one, Preference(quality=1.0, cost=0.0), ARMS)
    assert for_cost[0] > 0.8
    assert hard[2] > 0.8
    assert easy[1] > 0.5


def test_after_a_price_change_what_is_remembered_costs_what_it_would_now() -> None:
    """The dear arm becomes the cheapest: remembered calls of it are priced anew."""
    learner = BarpDrLearner()
    artifact = learner.initial(a_spec(ARMS))
    for step in range(6):
        artifact = _next(learner, artifact, 100, step=step)
    before = Priced.read(artifact).outcome(Memory.read(artifact.weights))
    cheap = (*ARMS[:2], replace(ARMS[2], usd_per_call=0.0001))
    for step in range(6, 9):
        artifact = _next(learner, artifact, 60, step=step, arms=cheap, version=2)
    memory = Memory.read(artifact.weights)
    after = Priced.read(artifact).outcome(memory)[: len(before)]
    dear = memory.arm[: len(before)] == 2
    np.testing.assert_allclose(after[dear, 1], before[dear, 1] / 100, rtol=1e-5)
    np.testing.assert_array_equal(after[~dear], before[~dear])
    pmf = BarpPolicy(artifact).pmf(
        np.zeros(6, dtype=np.float32), Preference(quality=0.0, cost=1.0), cheap
    )
    assert pmf.argmax() == 2


def test_costs_are_remembered_at_one_price_whatever_was_charged() -> None:
    learner = BarpDrLearner(BarpDrSettings(max_steps=1))
    parent = _next(learner, learner.initial(a_spec(ARMS)), 100, step=0)
    doubled = tuple(replace(arm, usd_per_call=2 * arm.usd_per_call) for arm in ARMS)
    once, twice = (
        _next(learner, parent, 50, step=1, arms=arms, version=2) for arms in (ARMS, doubled)
    )
    np.testing.assert_allclose(
        twice.weights["memory.outcome"], once.weights["memory.outcome"], rtol=1e-6
    )


def test_an_arm_hardly_tried_is_believed_to_cost_its_list_price() -> None:
    """A few rows, all of the cheap arm: the caller who wants only low cost is sent there."""
    learner = BarpDrLearner()
    artifact = learner.initial(a_spec(ARMS))
    rng, cheap = np.random.default_rng(0), np.tile([1.0, 0.0, 0.0], (40, 1))
    always = FixedPolicy(probs=cheap[0])
    for step in range(8):
        rows = routed(
            always,
            rng.normal(size=(40, 6)).astype(np.float32),
            ARMS,
            0.6 * cheap,
            0.0005 * cheap,
            rng=rng,
            first_seq=1 + 40 * step,
        )
        artifact = learner.update(artifact, rows, prices_of(ARMS))
    one = np.zeros(6, dtype=np.float32)
    for_cost = BarpPolicy(artifact).pmf(one, Preference(quality=0.0, cost=1.0), ARMS)
    assert for_cost[0] > for_cost[1] > for_cost[2]
    assert for_cost[0] > 0.6


@dataclass(frozen=True, kw_only=True)
class FixedPolicy:
    """Decides by one pmf, whatever is asked."""

    probs: NDArray[np.float64]
    kind: str = "fixed"
    encoder_id: str = ENCODER_ID
    context_dim: int = 6

    def pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Return it."""
        return self.probs

    greedy_pmf = pmf

    def assess(
        self,
        contexts: NDArray[np.float32],
        preferences: Sequence[Preference],
        offered: Sequence[Arm],
    ) -> Assessment:
        """Repeat it."""
        return Assessment(pmf=np.tile(self.probs, (len(contexts), 1)))


def _next(
    learner: BarpDrLearner,
    parent: PolicyArtifact,
    number: int,
    *,
    step: int,
    arms: tuple[Arm, ...] = ARMS,
    version: int = 1,
) -> PolicyArtifact:
    """Route prompts whose better half suits the dear arm, the other the middle one."""
    rng = np.random.default_rng(step)
    contexts = rng.normal(size=(number, 6)).astype(np.float32)
    good = np.where(contexts[:, :1] > 0, [0.2, 0.3, 0.9], [0.2, 0.9, 0.5])
    costs = np.tile([arm.usd_per_call for arm in arms], (number, 1))
    rows = routed(
        BarpPolicy(parent),
        contexts,
        ARMS,
        good,
        costs,
        rng=rng,
        first_seq=1 + step * number,
        price_version=version,
    )
    return learner.update(parent, rows, prices_of(arms, version=version))
