"""Policy gradient steps through RLlib's learners: here, or shared by n remote ones.

The only file that imports RLlib. The losses are `policies.gradient`'s and the network
`policies.network`'s, so that RLlib adds how the work is spread and nothing to what is learned. Its
checkpoints are pickles: only plain arrays come back from here.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Final, cast

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from policies.gradient import GradientTask, Loss, Train, TrainingState, trained_state
from policies.network import log_probs

LOG_PMF: Final = "log_pmf"
LOSS: Final = "loss"


class BarpModule(TorchRLModule):
    """`policies.network.log_probs` as an RLModule; its parameters carry the artifact's names."""

    def setup(self) -> None:
        """Make parameters of the shapes given; their values are set from outside."""
        for name, shape in self._given("shapes").items():
            self.register_parameter(name, torch.nn.Parameter(torch.zeros(*shape)))

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, torch.Tensor]:
        """Return the log-probability of every arm."""
        log_pmf = log_probs(
            dict(self.named_parameters()),
            batch["context"],
            batch["preference"],
            batch["offered"].bool(),
            exploration_total=self._given("exploration_total"),
            xp=torch,
        )
        return {LOG_PMF: log_pmf}

    def _given(self, name: str) -> Any:
        """Read what `learner_group` set."""
        return cast("dict[str, Any]", self.model_config)[name]


class BarpTorchLearner(TorchLearner):
    """Minimises the loss of a GradientTask."""

    def build(self) -> None:
        """Use one thread: learners are the way to use more cores, and sums stay in one order."""
        torch.set_num_threads(1)
        super().build()

    def compute_loss_for_module(
        self,
        *,
        module_id: str,
        config: AlgorithmConfig,
        batch: dict[str, Any],
        fwd_out: dict[str, Any],
    ) -> torch.Tensor:
        """Return the loss of one minibatch, or of this learner's share of it."""
        loss: Loss = config.learner_config_dict[LOSS]
        return loss(fwd_out[LOG_PMF], batch)


class BarpConfig(AlgorithmConfig):
    """Names module and learner; RLlib asks a subclass for both."""

    def get_default_learner_class(self) -> type[BarpTorchLearner]:
        """Return the learner."""
        return BarpTorchLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the module; `learner_group` adds its shapes."""
        return RLModuleSpec(module_class=BarpModule)


def rllib_train(num_learners: int, *, learner_cpus: float = 0.0) -> Train:
    """Have RLlib take a learner's gradient steps: `BarpDrLearner(train=rllib_train(2))`.

    Args:
        num_learners: Remote learners that share each step; 0 takes it in this process.
        learner_cpus: CPUs that each of them reserves.
    """
    return partial(train, num_learners=num_learners, learner_cpus=learner_cpus)


def train(
    state: TrainingState,
    task: GradientTask,
    *,
    num_learners: int = 0,
    learner_cpus: float = 0.0,
) -> TrainingState:
    """Take the steps of a task through a LearnerGroup.

    Equal to `policies.gradient.train` up to rounding, whatever the number of learners.

    Args:
        state: Network and optimiser to go on from; not changed.
        task: The rows and their order.
        num_learners: Remote learners, started for this task; 0 trains in this process.
        learner_cpus: CPUs that each of them reserves.

    Raises:
        ValueError: The minibatch cannot be shared evenly, which would weigh rows unequally.
    """
    shares = max(num_learners, 1)
    size = task.minibatches.shape[-1]
    if size % shares:
        raise ValueError(f"minibatch={size} cannot be shared by num_learners={num_learners}")
    group = learner_group(state, task, num_learners=num_learners, learner_cpus=learner_cpus)
    try:
        set_state(group, state)
        for epoch in task.minibatches:
            batches = [_batch(task, rows) for rows in np.split(epoch, shares, axis=1)]
            data = {"batches": batches} if num_learners else {"batch": batches[0]}
            group.update(**data, num_epochs=1, minibatch_size=size // shares)
        return get_state(group, tuple(state.parameters))
    finally:
        group.shutdown()  # type: ignore[no-untyped-call]  # RLlib's


def learner_group(
    state: TrainingState, task: GradientTask, *, num_learners: int, learner_cpus: float = 0.0
) -> LearnerGroup:
    """Build learners for a network of these shapes."""
    num_arms, inputs = len(state.parameters["head_bias"]), task.columns["context"].shape[1]
    model_config = {
        "shapes": {name: value.shape for name, value in state.parameters.items()},
        "exploration_total": task.exploration_total,
    }
    config = (
        BarpConfig()
        .framework("torch")
        # RLlib wants spaces; the module reads its own columns.
        .environment(
            observation_space=Box(-math.inf, math.inf, (inputs,), np.float32),
            action_space=Discrete(num_arms),
        )
        .rl_module(model_config=model_config)
        .learners(
            num_learners=num_learners,
            num_cpus_per_learner=learner_cpus,
            num_gpus_per_learner=0,
            learner_config_dict={LOSS: task.loss},
        )
        .training(lr=task.learning_rate)
    )
    return config.build_learner_group()


def set_state(group: LearnerGroup, state: TrainingState) -> None:
    """Give every learner the network and the optimiser to go on from."""
    group.set_weights({DEFAULT_MODULE_ID: dict(state.parameters)})
    optimisers = _optimisers(group)
    for optimiser in optimisers.values():
        optimiser["state"]["state"] = state.adam()
    group.set_state({"learner": {"optimizer": optimisers}})


def get_state(group: LearnerGroup, names: tuple[str, ...]) -> TrainingState:
    """Read network and optimiser back as plain arrays."""
    arrays = group.get_weights()[DEFAULT_MODULE_ID]
    (optimiser,) = _optimisers(group).values()
    return trained_state({name: arrays[name] for name in names}, optimiser["state"]["state"])


def _optimisers(group: LearnerGroup) -> dict[str, Any]:
    """Return the optimisers' states by name; there is one."""
    state = group.get_state(components="learner/optimizer")
    return dict(state["learner"]["optimizer"])


def _batch(task: GradientTask, rows: NDArray[np.int64]) -> MultiAgentBatch:
    """Lay one learner's share of an epoch end to end; it is cut into minibatches there."""
    flat = rows.reshape(-1)
    named = {name: column[flat] for name, column in task.columns.items()}
    columns = SampleBatch(named)  # type: ignore[no-untyped-call]  # RLlib's
    return MultiAgentBatch({DEFAULT_MODULE_ID: columns}, env_steps=len(flat))
