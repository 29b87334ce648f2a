"""BaRP's learning rule: REINFORCE from logged decisions, with a baseline that knows the preference.

loss = -(r - b(w)) log pi(a | x, w) - beta H(pi), after BaRP (arXiv 2510.07429). The log may have
been written by another version or another learner: each row is weighted by pi / mu, clipped. On
rows of its own the weight is 1 and the rule is the paper's. Torch is imported only to train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from policies.artifact import Weights

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]
# Ridge on the baseline: keeps it solvable while every row has the same preference.
BASELINE_RIDGE: Final = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class BarpSettings:
    """What the policy gradient is set to.

    Attributes:
        preference_units: Width of phi, the network over the preference.
        learning_rate: Adam's step. The paper's 1e-4 needs its hundred epochs, one pass has less.
        epochs: Passes over the new rows of one update.
        minibatch: Rows a step, shared by all learners.
        entropy_bonus: The paper's beta.
        max_importance: Bound on pi / mu, for a bounded variance.
    """

    preference_units: int = 16
    learning_rate: float = 1e-2
    epochs: int = 4
    minibatch: int = 32
    entropy_bonus: float = 0.01
    max_importance: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """A network and its optimiser between two updates; all dicts have the same keys and shapes.

    Attributes:
        parameters: The network's arrays by name.
        mean: Adam's running mean of their gradients.
        square: Adam's running mean of the squared gradients.
        steps: Steps taken so far.
    """

    parameters: Mapping[str, Floats]
    mean: Mapping[str, Floats]
    square: Mapping[str, Floats]
    steps: int

    @classmethod
    def fresh(cls, parameters: Mapping[str, Floats]) -> TrainingState:
        """Start training a network."""
        zeros = {name: np.zeros_like(value) for name, value in parameters.items()}
        return cls(parameters=parameters, mean=zeros, square=zeros, steps=0)

    @classmethod
    def read(cls, weights: Weights, names: tuple[str, ...]) -> TrainingState:
        """Take the state out of an artifact."""
        return cls(
            parameters={name: weights[name] for name in names},
            mean={name: weights[f"adam_mean.{name}"] for name in names},
            square={name: weights[f"adam_square.{name}"] for name in names},
            steps=int(weights["adam_steps"][0]),
        )

    def weights(self) -> dict[str, NDArray[Any]]:
        """Name the state for an artifact."""
        return {
            **self.parameters,
            **{f"adam_mean.{name}": value for name, value in self.mean.items()},
            **{f"adam_square.{name}": value for name, value in self.square.items()},
            "adam_steps": np.array([self.steps], dtype=np.int64),
        }

    def adam(self) -> dict[int, dict[str, Tensor]]:
        """Return the optimiser's `state`, by position of the parameter."""
        from torch import tensor

        return {
            position: {
                "step": tensor(float(self.steps)),
                "exp_avg": tensor(self.mean[name]),
                "exp_avg_sq": tensor(self.square[name]),
            }
            for position, name in enumerate(self.parameters)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientTask:
    """The steps of one update.

    Attributes:
        columns: Rows to learn from: `context` (n, context_dim), `preference` (n, 2), `offered`
            (n, K) bool, `arm` (n,) its index, `propensity` (n,), `advantage` (n,).
        minibatches: Row numbers, shape (epochs, steps, minibatch): all steps are of equal size,
            so that learners which share them average to the same gradient.
        exploration_total: Part of the pmf that is learned about.
        settings: The learning rule's numbers.
    """

    columns: Mapping[str, NDArray[Any]]
    minibatches: NDArray[np.int64]
    exploration_total: float
    settings: BarpSettings


Train = Callable[[TrainingState, GradientTask], TrainingState]
LogProbs = Callable[..., Any]


def advantages(
    reward: NDArray[np.float64], w_quality: NDArray[np.float64], baseline: NDArray[np.float64]
) -> Floats:
    """Subtract the reward usual at each preference, shape (n,).

    The reward's level moves with w far more than with the arm: with a baseline that does not
    know w the policy collapses on one arm.
    """
    return np.asarray(reward - baseline_features(w_quality) @ baseline, dtype=np.float32)


def baseline_features(w_quality: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1, w, w^2 a row, shape (n, 3): a policy that adapts to w earns a curve in w."""
    return np.stack([np.ones_like(w_quality), w_quality, w_quality**2], axis=1)


def fit_baseline(gram: NDArray[np.float64], moment: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve for the baseline's three coefficients from running sums over all rows so far."""
    ridge = BASELINE_RIDGE * np.eye(len(moment))
    return np.asarray(np.linalg.solve(gram + ridge, moment), dtype=np.float64)


def shuffled(num_rows: int, settings: BarpSettings, *, seed: list[int]) -> NDArray[np.int64]:
    """Order rows for every epoch, shape (epochs, steps, minibatch); the last step is filled up."""
    generator = np.random.default_rng(seed)
    steps = -(-num_rows // settings.minibatch)
    orders = [
        np.resize(generator.permutation(num_rows), steps * settings.minibatch)
        for _ in range(settings.epochs)
    ]
    return np.reshape(orders, (settings.epochs, steps, settings.minibatch))


def policy_gradient_loss(
    log_pmf: Tensor, batch: Mapping[str, Tensor], settings: BarpSettings
) -> Tensor:
    """Weigh log-probabilities by advantage, and reward entropy.

    Args:
        log_pmf: `log_probs` of every arm, shape (batch, K), -inf where not offered.
        batch: Columns `arm`, `propensity`, `advantage`, `offered` of a GradientTask.
        settings: Entropy bonus and bound on the importance weights.

    Returns:
        The mean over the batch, a scalar.
    """
    log_prob = log_pmf.gather(-1, batch["arm"].long().unsqueeze(-1)).squeeze(-1)
    weight = (log_prob.detach().exp() / batch["propensity"]).clamp(max=settings.max_importance)
    finite = log_pmf.masked_fill(~batch["offered"].bool(), 0.0)
    entropy = -(log_pmf.exp() * finite).sum(dim=-1)
    gain = weight * batch["advantage"] * log_prob + settings.entropy_bonus * entropy
    return -gain.mean()


def train(log_probs: LogProbs, state: TrainingState, task: GradientTask) -> TrainingState:
    """Take the steps of a task in plain torch, one after another, in this process.

    Args:
        log_probs: The network, as `policies.barp.log_probs`.
        state: Network and optimiser to go on from; not changed.
        task: The rows and their order.
    """
    import torch

    parameters = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in state.parameters.items()}
    adam = torch.optim.Adam(parameters.values(), lr=task.settings.learning_rate)
    adam.load_state_dict({**adam.state_dict(), "state": state.adam()})
    columns = {name: torch.from_numpy(value) for name, value in task.columns.items()}
    for rows in task.minibatches.reshape(-1, task.minibatches.shape[-1]):
        batch = {name: column[rows] for name, column in columns.items()}
        log_pmf = log_probs(
            parameters,
            batch["context"],
            batch["preference"],
            batch["offered"],
            exploration_total=task.exploration_total,
            xp=torch,
        )
        adam.zero_grad()
        policy_gradient_loss(log_pmf, batch, task.settings).backward()  # type: ignore[no-untyped-call]  # torch's
        adam.step()
    return trained_state(
        {name: value.detach().numpy() for name, value in parameters.items()},
        {
            position: {name: value.numpy() for name, value in moments.items()}
            for position, moments in adam.state_dict()["state"].items()
        },
    )


def trained_state(
    parameters: Mapping[str, Floats], adam: Mapping[int, Mapping[str, Any]]
) -> TrainingState:
    """Copy a network and its optimiser's `state`, both as arrays, into what an artifact keeps."""
    named = list(zip(parameters, (adam[position] for position in range(len(adam))), strict=True))
    return TrainingState(
        parameters={name: np.array(value) for name, value in parameters.items()},
        mean={name: np.array(moments["exp_avg"]) for name, moments in named},
        square={name: np.array(moments["exp_avg_sq"]) for name, moments in named},
        steps=int(named[0][1]["step"]),
    )
