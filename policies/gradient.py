"""The learning rules of the policy gradient, as published and doubly robust, and their steps.

A loss here is a mean over rows of log-probabilities and columns, so that learners which share a
minibatch average to the same gradient. Torch is imported only to train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from policies.artifact import Weights
from policies.network import Head

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class BarpSettings:
    """What the published policy gradient is set to; the paper's numbers where they are known.

    Attributes:
        head: Decision head; the paper found the linear one close to the others.
        preference_units: Width of phi, the network over the preference.
        learning_rate: Adam's step.
        epochs: How often one sample is used: once. The paper's hundred epochs draw new samples.
        minibatch: Rows a step, shared by all learners.
        entropy_bonus: The paper's beta, whose value is not known.
        max_importance: Bound on pi / mu of rows that another policy logged.
    """

    head: Head = "linear"
    preference_units: int = 16
    learning_rate: float = 1e-4
    epochs: int = 1
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
        columns: Rows to learn from: `context` (n, inputs), `preference` (n, 2), `offered` (n, K)
            bool, `arm` (n,) its index, `propensity` (n,), and what the loss asks for beside.
        minibatches: Row numbers, shape (epochs, steps, minibatch): all steps are of equal size,
            so that learners which share them average to the same gradient.
        exploration_total: Part of the pmf that is learned about.
        learning_rate: Adam's step.
        loss: From log-probabilities (batch, K) and a minibatch of columns to a scalar.
    """

    columns: Mapping[str, NDArray[Any]]
    minibatches: NDArray[np.int64]
    exploration_total: float
    learning_rate: float
    loss: Loss


Loss = Callable[["Tensor", Mapping[str, "Tensor"]], "Tensor"]
Train = Callable[[TrainingState, GradientTask], TrainingState]
LogProbs = Callable[..., Any]


def shuffled(num_rows: int, *, epochs: int, minibatch: int, seed: list[int]) -> NDArray[np.int64]:
    """Order rows for every epoch, shape (epochs, steps, minibatch); the last step is filled up."""
    generator = np.random.default_rng(seed)
    steps = -(-num_rows // minibatch)
    orders = [np.resize(generator.permutation(num_rows), steps * minibatch) for _ in range(epochs)]
    return np.reshape(orders, (epochs, steps, minibatch))


def policy_gradient_loss(
    log_pmf: Tensor, batch: Mapping[str, Tensor], *, entropy_bonus: float, max_importance: float
) -> Tensor:
    """Weigh log-probabilities by advantage, and reward entropy.

    loss = -(r - b) log pi(a | x, w) - beta H(pi), after BaRP (arXiv 2510.07429). Rows that
    another policy logged are weighted by pi / mu, clipped; on its own rows the weight is 1 and
    the rule is the paper's.

    Args:
        log_pmf: `log_probs` of every arm, shape (batch, K), -inf where not offered.
        batch: Columns `arm`, `propensity`, `advantage`, `offered` of a GradientTask.
        entropy_bonus: The paper's beta.
        max_importance: Bound on pi / mu.

    Returns:
        The mean over the batch, a scalar.
    """
    log_prob, weight = _taken(log_pmf, batch, max_importance)
    entropy = -(log_pmf.exp() * _finite(log_pmf, batch)).sum(dim=-1)
    gain = weight * batch["advantage"] * log_prob + entropy_bonus * entropy
    return -gain.mean()


def doubly_robust_loss(
    log_pmf: Tensor, batch: Mapping[str, Tensor], *, barrier: float, max_importance: float
) -> Tensor:
    """Follow the modelled reward of every arm, corrected by what the arm taken brought instead.

    gain = sum_a pi(a | x, w') v(a) + min(pi / mu, c) (r - v(taken)) log pi(taken)
           + lambda mean_a log pi(a)

    The gradient of the first two terms is that of the doubly robust value (Dudik, Langford, Li
    2011, arXiv 1103.4601), weights clipped. The third is the log barrier under which a softmax
    policy gradient cannot stall in a corner (Agarwal, Kakade, Lee, Mahajan 2021, arXiv
    1908.00261); where the first two rest, pi is inverse gap weighting: pi(a) is lambda over
    K gap(a), up to a constant (Foster and Rakhlin 2020, arXiv 2002.04926).

    Args:
        log_pmf: `log_probs` of every arm, shape (batch, K), -inf where not offered.
        batch: Columns `arm`, `propensity`, `offered` of a GradientTask, and at the preference
            w' of the row `worth`, v of every arm, (batch, K), `residual`, r - v(taken), (batch,).
        barrier: The lambda, in units of reward.
        max_importance: Bound on pi / mu.

    Returns:
        The mean over the batch, a scalar.
    """
    log_prob, weight = _taken(log_pmf, batch, max_importance)
    modelled = (log_pmf.exp() * batch["worth"]).sum(dim=-1)
    even = _finite(log_pmf, batch).sum(dim=-1) / batch["offered"].sum(dim=-1)
    gain = modelled + weight * batch["residual"] * log_prob + barrier * even
    return -gain.mean()


def _taken(
    log_pmf: Tensor, batch: Mapping[str, Tensor], max_importance: float
) -> tuple[Tensor, Tensor]:
    """Return log-probability and clipped importance weight of the arm taken, both (batch,)."""
    log_prob = log_pmf.gather(-1, batch["arm"].long().unsqueeze(-1)).squeeze(-1)
    weight = (log_prob.detach().exp() / batch["propensity"]).clamp(max=max_importance)
    return log_prob, weight


def _finite(log_pmf: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Put 0 where an arm is not offered, so that sums over arms stay finite."""
    return log_pmf.masked_fill(~batch["offered"].bool(), 0.0)


def train(log_probs: LogProbs, state: TrainingState, task: GradientTask) -> TrainingState:
    """Take the steps of a task in plain torch, one after another, in this process.

    Args:
        log_probs: The network, as `policies.network.log_probs`.
        state: Network and optimiser to go on from; not changed.
        task: The rows and their order.
    """
    import torch

    parameters = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in state.parameters.items()}
    adam = torch.optim.Adam(parameters.values(), lr=task.learning_rate)
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
        task.loss(log_pmf, batch).backward()  # type: ignore[no-untyped-call]  # torch's
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
