"""Routers that saw every arm's outcome on every training prompt.

What learning from bandit feedback is up against. Each predicts quality and scaled cost of all
arms; the preference enters only at the decision. Hyperparameters are chosen by cross-validation
inside the training part, by the reward that routing on the predictions earns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from policies.performance import best_choices
from policies.preference import Preference

Array = NDArray[np.float64]
# Two arrays of shape (n, K): quality and scaled cost.
Outcomes = tuple[Array, Array]

FOLDS: Final = 3
RIDGES: Final = tuple(10.0**power for power in range(-1, 4))
RANKS: Final = (8, 32, 128, 384)
NEIGHBOURS: Final = (10, 20, 40, 80, 160)
TASK_PRIOR: Final = 5.0
INVERSE_PENALTIES: Final = (1.0, 10.0, 100.0)
MLP_PENALTIES: Final = (10.0, 30.0, 100.0)
MLP_UNITS: Final = 64
MLP_STEP: Final = 3e-3
MLP_EPOCHS: Final = 30
MLP_INPUT_NORM: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FullInformation:
    """What each of K arms was worth and cost on m training prompts.

    Attributes:
        contexts: The encoded prompts, float32, shape (m, context_dim).
        quality: Quality in [0, 1], shape (m, K).
        scaled_cost: Cost by the ceiling, clipped to [0, 1], shape (m, K).
        tasks: The task of each prompt, shape (m,).
    """

    contexts: NDArray[np.float32]
    quality: Array
    scaled_cost: Array
    tasks: NDArray[np.str_]

    def take(self, rows: NDArray[np.int64]) -> FullInformation:
        """Keep some prompts."""
        return FullInformation(
            contexts=self.contexts[rows],
            quality=self.quality[rows],
            scaled_cost=self.scaled_cost[rows],
            tasks=self.tasks[rows],
        )

    @property
    def targets(self) -> Array:
        """Quality and scaled cost side by side, shape (m, 2 K)."""
        return np.hstack([self.quality, self.scaled_cost])


# From a training part and contexts, shape (n, context_dim), to outcomes for each setting tried.
Fit = Callable[[FullInformation, NDArray[np.float32], Sequence[float]], list[Outcomes]]


def predictions(
    train: FullInformation,
    contexts: NDArray[np.float32],
    tasks: NDArray[np.str_],
    grid: Sequence[Preference],
    *,
    seed: int,
) -> dict[str, Outcomes]:
    """Predict the outcomes of held-out prompts by every method, each tuned by itself.

    Args:
        train: The training part.
        contexts: Held-out contexts, float32, shape (n, context_dim).
        tasks: Their tasks, shape (n,); only `task_table` looks at them.
        grid: The preferences that settings are chosen for.
        seed: Of folds and initial weights.
    """
    fits: Mapping[str, tuple[Fit, Sequence[float]]] = {
        "ridge": (fit_ridge, RIDGES),
        "ridge_components": (fit_components, RANKS),
        "knn": (fit_neighbours, NEIGHBOURS),
        "mlp": (lambda *given: fit_mlp(*given, seed=seed), MLP_PENALTIES),
        "task_mix": (fit_task_mix, INVERSE_PENALTIES),
    }
    found = {
        name: fit(train, contexts, [tuned(fit, settings, train, grid, seed=seed)])[0]
        for name, (fit, settings) in fits.items()
    }
    return found | {"task_table": task_table(train, tasks)}


def tuned(
    fit: Fit,
    settings: Sequence[float],
    train: FullInformation,
    grid: Sequence[Preference],
    *,
    seed: int,
) -> float:
    """Choose the setting that earns most on the folds it was not fitted to."""
    order = np.random.default_rng(seed).permutation(len(train.contexts))
    earned = np.zeros(len(settings))
    for test in np.array_split(order, FOLDS):
        others = train.take(np.setdiff1d(order, test))
        asked = fit(others, train.contexts[test], settings)
        earned += [_earned(one, train.take(test), grid) for one in asked]
    return settings[int(earned.argmax())]


def _earned(expected: Outcomes, truth: FullInformation, grid: Sequence[Preference]) -> float:
    """Return the summed reward of routing on what was expected."""
    weight = np.array([preference.quality for preference in grid])[:, None, None]
    worth = weight * truth.quality - (1.0 - weight) * truth.scaled_cost
    return float((best_choices(*expected, grid) * worth).sum())


def fit_ridge(
    train: FullInformation, contexts: NDArray[np.float32], settings: Sequence[float]
) -> list[Outcomes]:
    """Fit linear models by ridge regression, for each penalty."""
    centre, level = train.contexts.mean(axis=0), train.targets.mean(axis=0)
    left, sizes, directions = _svd(train.contexts - centre)
    scores, seen = left.T @ (train.targets - level), (contexts - centre) @ directions.T
    return [
        _split(level + (seen * (sizes / (sizes**2 + penalty))) @ scores) for penalty in settings
    ]


def fit_components(
    train: FullInformation, contexts: NDArray[np.float32], settings: Sequence[float]
) -> list[Outcomes]:
    """Fit linear models on the leading principal components, for each number of them."""
    centre, level = train.contexts.mean(axis=0), train.targets.mean(axis=0)
    left, sizes, directions = _svd(train.contexts - centre)
    scores, seen = left.T @ (train.targets - level), (contexts - centre) @ directions.T
    kept = [np.arange(len(sizes)) < rank for rank in settings]
    return [_split(level + (seen * (keep / (sizes + 1e-6))) @ scores) for keep in kept]


def fit_neighbours(
    train: FullInformation, contexts: NDArray[np.float32], settings: Sequence[float]
) -> list[Outcomes]:
    """Average the nearest training prompts by cosine, for each number of them."""
    most = min(int(max(settings)), len(train.contexts))
    nearness = _unit(contexts) @ _unit(train.contexts).T
    nearest = np.argpartition(-nearness, most - 1, axis=1)[:, :most]
    order = np.take_along_axis(nearness, nearest, axis=1).argsort(axis=1)[:, ::-1]
    targets = train.targets[np.take_along_axis(nearest, order, axis=1)]
    return [_split(targets[:, : int(number)].mean(axis=1)) for number in settings]


def fit_mlp(
    train: FullInformation,
    contexts: NDArray[np.float32],
    settings: Sequence[float],
    *,
    seed: int,
) -> list[Outcomes]:
    """Fit one network with a hidden layer, for each weight penalty."""
    from sklearn.neural_network import MLPRegressor

    centre, level = train.contexts.mean(axis=0), train.targets.mean(axis=0)
    scale = MLP_INPUT_NORM / np.linalg.norm(train.contexts - centre, axis=1).mean()
    found = []
    for penalty in settings:
        network = MLPRegressor(
            hidden_layer_sizes=(MLP_UNITS,),
            alpha=penalty,
            learning_rate_init=MLP_STEP,
            max_iter=MLP_EPOCHS,
            n_iter_no_change=MLP_EPOCHS,
            random_state=seed,
        )
        with _quiet():
            network.fit((train.contexts - centre) * scale, train.targets - level)
        found.append(_split(network.predict((contexts - centre) * scale) + level))
    return found


def fit_task_mix(
    train: FullInformation, contexts: NDArray[np.float32], settings: Sequence[float]
) -> list[Outcomes]:
    """Guess the task by logistic regression, then mix the tables of the tasks."""
    from sklearn.linear_model import LogisticRegression

    names = np.unique(train.tasks)
    table = np.hstack(task_table(train, names))
    if len(names) == 1:
        return [_split(np.repeat(table, len(contexts), axis=0)) for _ in settings]
    found = []
    for inverse_penalty in settings:
        guess = LogisticRegression(C=inverse_penalty, max_iter=200)
        with _quiet():
            guess.fit(train.contexts, train.tasks)
        found.append(_split(guess.predict_proba(contexts) @ table))
    return found


def task_table(train: FullInformation, tasks: NDArray[np.str_]) -> Outcomes:
    """Look up each arm's mean in the task, shrunk toward its mean in all; shape (n, K) each."""
    level = train.targets.mean(axis=0)
    table = {}
    for name in np.unique(tasks):
        mine = train.targets[train.tasks == name]
        table[name] = (mine.sum(axis=0) + TASK_PRIOR * level) / (len(mine) + TASK_PRIOR)
    return _split(np.array([table[name] for name in tasks]))


def _split(both: Array) -> Outcomes:
    """Part quality from scaled cost."""
    num_arms = both.shape[1] // 2
    return both[:, :num_arms], both[:, num_arms:]


def _svd(centred: NDArray[np.float32]) -> tuple[Array, Array, Array]:
    left, sizes, directions = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    return left, sizes, directions


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length one."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), dtype=np.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep scikit-learn from warning that a fixed number of steps is not convergence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
