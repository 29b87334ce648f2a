"""Full-information routers: each finds what there is to find, settings chosen by what they earn."""

from __future__ import annotations

import numpy as np
import pytest

from policies.performance import best_choices
from policies.predictors import FullInformation, fit_ridge, predictions, task_table, tuned
from policies.preference import preference_grid

GRID = preference_grid(3)
METHODS = ("ridge", "ridge_components", "knn", "mlp", "task_mix", "task_table")


def _world(num: int, seed: int) -> FullInformation:
    """Two tasks, two arms, each good at one; the task shows in the context."""
    rng = np.random.default_rng(seed)
    task = rng.integers(2, size=num)
    contexts = rng.normal(scale=0.3, size=(num, 6)).astype(np.float32)
    contexts[:, 0] += 2.0 * task - 1.0
    solved = np.where(task[:, None] == np.arange(2), 0.9, 0.1)
    return FullInformation(
        contexts=contexts,
        quality=(rng.uniform(size=(num, 2)) < solved).astype(np.float64),
        scaled_cost=np.tile([0.1, 0.2], (num, 1)),
        tasks=np.array(["first", "second"])[task],
    )


TRAIN, TEST = _world(300, 0), _world(200, 1)
FOUND = predictions(TRAIN, TEST.contexts, TEST.tasks, GRID, seed=0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_arm_of_the_task(method: str) -> None:
    quality, cost = FOUND[method]
    assert quality.shape == cost.shape == (200, 2)
    chosen = best_choices(quality, cost, GRID)[-1].argmax(axis=1)
    assert (chosen == (TEST.tasks == "second")).mean() > 0.95


def test_every_method_is_there() -> None:
    assert set(FOUND) == set(METHODS)


def test_the_same_seed_predicts_the_same() -> None:
    again = predictions(TRAIN, TEST.contexts, TEST.tasks, GRID, seed=0)
    for method in METHODS:
        np.testing.assert_array_equal(again[method][0], FOUND[method][0])


def test_settings_are_chosen_by_reward_on_other_folds() -> None:
    """A penalty that flattens every prediction loses to one that does not."""
    assert tuned(fit_ridge, (1.0, 1e9), TRAIN, GRID, seed=0) == 1.0


def test_ridge_with_a_tiny_penalty_fits_a_linear_world() -> None:
    exact = TRAIN.contexts[:, :2].astype(np.float64)
    linear = FullInformation(
        contexts=TRAIN.contexts, quality=exact, scaled_cost=exact, tasks=TRAIN.tasks
    )
    ((quality, _),) = fit_ridge(linear, TEST.contexts, [1e-9])
    np.testing.assert_allclose(quality, TEST.contexts[:, :2], atol=1e-5)


def test_an_unknown_task_gets_the_mean_of_all() -> None:
    quality, cost = task_table(TRAIN, np.array(["elsewhere"]))
    np.testing.assert_allclose(quality[0], TRAIN.quality.mean(axis=0))
    np.testing.assert_allclose(cost[0], [0.1, 0.2])


def test_one_task_alone_needs_no_guess() -> None:
    one = TRAIN.take(np.flatnonzero(TRAIN.tasks == "first"))
    found = predictions(one, TEST.contexts, TEST.tasks, GRID, seed=0)
    np.testing.assert_allclose(found["task_mix"][0], np.tile(one.quality.mean(axis=0), (200, 1)))
