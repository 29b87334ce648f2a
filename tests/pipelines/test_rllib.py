"""RLlib's learners take the steps that plain torch takes, alone and shared."""

from __future__ import annotations

from functools import partial
from typing import get_args

import numpy as np
import pytest
from experiences import a_spec, prices_of, routed, some_arms

from pipelines.rllib import rllib_train, train
from policies.barp import BarpPolicy, train_here
from policies.barp_dr import BarpDrLearner, BarpDrSettings
from policies.gradient import (
    GradientTask,
    Loss,
    TrainingState,
    doubly_robust_loss,
    policy_gradient_loss,
    shuffled,
)
from policies.network import Head, initial_parameters

ARMS = some_arms(0.001, 0.003, 0.009)
LOSSES: dict[str, Loss] = {
    "barp": partial(policy_gradient_loss, entropy_bonus=0.01, max_importance=5.0),
    "barp-dr": partial(doubly_robust_loss, barrier=0.01, max_importance=2.0),
}
HEADS: tuple[Head, ...] = get_args(Head)


def _state(head: Head) -> TrainingState:
    """Start a network."""
    return TrainingState.fresh(initial_parameters(head, num_arms=3, inputs=6, units=16, seed=0))


def _task(seed: int, loss: str) -> GradientTask:
    """Draw 50 rows, with arms masked here and there."""
    rng = np.random.default_rng(seed)
    w, arm = rng.uniform(size=50), rng.integers(3, size=50)
    offered = rng.uniform(size=(50, 3)) < 0.7
    offered[np.arange(50), arm] = True
    return GradientTask(
        columns={
            "context": rng.normal(size=(50, 6)).astype(np.float32),
            "preference": np.stack([w, 1 - w], axis=1).astype(np.float32),
            "offered": offered,
            "arm": arm,
            "propensity": rng.uniform(0.1, 1.0, size=50).astype(np.float32),
            "advantage": rng.normal(size=50).astype(np.float32),
            "worth": rng.normal(size=(50, 3)).astype(np.float32),
            "residual": rng.normal(size=50).astype(np.float32),
        },
        minibatches=shuffled(50, epochs=2, minibatch=16, seed=[seed]),
        exploration_total=0.02,
        learning_rate=1e-2,
        loss=LOSSES[loss],
    )


def _assert_close(found: TrainingState, expected: TrainingState) -> None:
    """Compare network and optimiser, array by array."""
    assert found.weights().keys() == expected.weights().keys()
    for name, value in expected.weights().items():
        np.testing.assert_allclose(found.weights()[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("head", HEADS)
def test_a_local_learner_equals_plain_torch(head: Head, loss: str) -> None:
    """Twice in a row, so that the optimiser's state makes the round trip too."""
    here = train_here(train_here(_state(head), _task(0, loss)), _task(1, loss))
    through_rllib = train(train(_state(head), _task(0, loss)), _task(1, loss))
    _assert_close(through_rllib, here)


def test_training_leaves_its_state_untouched() -> None:
    state, same = _state("linear"), _state("linear")
    train(state, _task(0, "barp"))
    _assert_close(state, same)


def test_the_learner_makes_the_version_that_plain_torch_makes() -> None:
    settings = BarpDrSettings(max_steps=6)
    plain, shared = BarpDrLearner(settings), BarpDrLearner(settings, train=rllib_train(0))
    first = shared.initial(a_spec(ARMS))
    assert first.to_files() == plain.initial(a_spec(ARMS)).to_files()
    rng = np.random.default_rng(0)
    contexts = rng.normal(size=(80, 6)).astype(np.float32)
    scores, costs = rng.uniform(size=(80, 3)), np.full((80, 3), 0.004)
    rows = routed(BarpPolicy(first), contexts, ARMS, scores, costs, rng=rng)
    found = shared.update(first, rows, prices_of(ARMS))
    expected = plain.update(first, rows, prices_of(ARMS))
    for name, value in expected.weights.items():
        np.testing.assert_allclose(found.weights[name], value, rtol=1e-4, atol=1e-6)


def test_a_minibatch_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="num_learners=3"):
        train(_state("linear"), _task(0, "barp"), num_learners=3)


@pytest.mark.ray
@pytest.mark.parametrize(("num_learners", "loss"), [(1, "barp-dr"), (2, "barp-dr"), (2, "barp")])
def test_remote_learners_equal_plain_torch(ray_local: None, num_learners: int, loss: str) -> None:
    """Equal shares of every minibatch: the mean of their gradients is the gradient."""
    found = train(_state("linear"), _task(0, loss), num_learners=num_learners)
    _assert_close(found, train_here(_state("linear"), _task(0, loss)))
