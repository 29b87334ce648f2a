"""BaRP as published: the network's policy, and REINFORCE with a moving baseline to train it.

After *Learning to Route LLMs from Bandit Feedback* (arXiv 2510.07429): the baseline is the mean
reward so far and knows no preference, each sample is used once. It is kept as the reference and
collapses where METHOD says it does; `policies.barp_dr` is what we made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from policies.arms import Arm, PriceTable
from policies.artifact import PolicyArtifact
from policies.gradient import (
    BarpSettings,
    GradientTask,
    Train,
    TrainingState,
    policy_gradient_loss,
    shuffled,
    train,
)
from policies.learning import (
    Experience,
    LearnerSpec,
    experience,
    grown_arms,
    latest_price_version,
    lineage,
)
from policies.network import (
    ARM_ROWS,
    PARAMETERS,
    initial_parameters,
    log_probs,
    with_arm_rows,
    with_mean_rows,
)
from policies.policy import Assessment
from policies.preference import Preference
from policies.reward import scalar_reward

KIND: Final = "barp"
POOLS_KEPT: Final = 256


class BarpPolicy:
    """Decides by the network's pmf, in numpy: serving needs no torch.

    An offered arm that the version does not know gets the mean logit of those it knows: traffic
    like an ordinary arm's, and what a learner starts it with. A version with a frozen projection
    shows its network the projected context, any other the context itself.
    """

    def __init__(self, artifact: PolicyArtifact) -> None:
        """Read an artifact with a network; raises KeyError or ValueError where it has none."""
        self.kind, self.encoder_id = artifact.kind, artifact.encoder_id
        self.context_dim = artifact.context_dim
        self._exploration_total = artifact.exploration_total
        names = PARAMETERS[str(artifact.hyperparameters["head"])]
        self._weights = {n: artifact.weights[n].astype(np.float64) for n in names}
        if len(self._weights["head_weight"]) != len(artifact.arms):
            raise ValueError(f"head_weight must have {len(artifact.arms)} rows")
        arrays = artifact.weights
        projected = "projection" in arrays
        self._projection = (arrays["centre"], arrays["projection"]) if projected else None
        self._index = {name: arm for arm, name in enumerate(artifact.arms)}
        self._offered_weights = lru_cache(maxsize=POOLS_KEPT)(self._weights_of)

    def assess(
        self,
        contexts: NDArray[np.float32],
        preferences: Sequence[Preference],
        offered: Sequence[Arm],
    ) -> Assessment:
        """Return the pmf of several requests at once, shape (n, num_offered)."""
        return Assessment(pmf=self._pmf(contexts, preferences, offered, self._exploration_total))

    def pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Return the probability of each arm offered, float64, shape (num_offered,)."""
        [probs] = self._pmf(context[None], [preference], offered, self._exploration_total)
        return np.asarray(probs)

    def greedy_pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Return the network's softmax by itself, float64, shape (num_offered,)."""
        [probs] = self._pmf(context[None], [preference], offered, 0.0)
        return np.asarray(probs)

    def _pmf(
        self,
        contexts: NDArray[np.float32],
        preferences: Sequence[Preference],
        offered: Sequence[Arm],
        exploration_total: float,
    ) -> NDArray[np.float64]:
        """Read the network at several requests, shape (n, num_offered)."""
        seen: NDArray[Any] = contexts
        if self._projection is not None:
            centre, projection = self._projection
            seen = (contexts - centre) @ projection.T
        probs = np.exp(
            log_probs(
                self._offered_weights(tuple(arm.name for arm in offered)),
                seen,
                np.array([[wanted.quality, wanted.cost] for wanted in preferences]),
                np.ones(len(offered), dtype=np.bool_),
                exploration_total=exploration_total,
                xp=np,
            )
        )
        return np.asarray(probs / probs.sum(axis=-1, keepdims=True), dtype=np.float64)

    def _weights_of(self, names: tuple[str, ...]) -> dict[str, NDArray[np.float64]]:
        """Pick the head's rows for the arms offered."""
        rows = [self._index.get(name, len(self._index)) for name in names]
        picked = {
            name: with_mean_rows(self._weights[name], 1)[rows]
            for name in ARM_ROWS
            if name in self._weights
        }
        return self._weights | picked


def train_here(state: TrainingState, task: GradientTask) -> TrainingState:
    """Take the gradient steps in this process."""
    return train(log_probs, state, task)


@dataclass(frozen=True, slots=True)
class BarpLearner:
    """Follows the published policy gradient over new interactions.

    Attributes:
        settings: What first versions are set to; a later version keeps its parent's.
        train: Who takes the gradient steps: plain torch here, or RLlib's learners.
    """

    settings: BarpSettings = field(default_factory=BarpSettings)
    train: Train = train_here

    @property
    def kind(self) -> str:
        """Name in `PolicyArtifact.kind`."""
        return KIND

    def initial(self, spec: LearnerSpec) -> PolicyArtifact:
        """Start from the uniform policy."""
        parameters = initial_parameters(
            self.settings.head,
            num_arms=len(spec.arms),
            inputs=spec.context_dim,
            units=self.settings.preference_units,
            seed=spec.seed,
        )
        baseline = {"reward_sum": np.zeros(1), "reward_count": np.zeros(1)}
        return first_version(
            KIND, spec, asdict(self.settings), TrainingState.fresh(parameters).weights() | baseline
        )

    def update(
        self, parent: PolicyArtifact, rows: pa.Table, prices: Mapping[int, PriceTable]
    ) -> PolicyArtifact:
        """Go on from the parent's network and optimiser; rows without both outcomes are skipped."""
        seen = experience(parent, rows)
        grown = next_version(parent, seen, prices)
        return self._trained(grown, seen.where(~np.isnan(seen.quality + seen.cost_usd)))

    def _trained(self, grown: PolicyArtifact, seen: Experience) -> PolicyArtifact:
        """Move the baseline, then follow the gradient."""
        if len(seen) == 0:
            return grown
        reward = scalar_reward(
            seen.quality, seen.cost_usd, seen.w_quality, cost_ceiling_usd=grown.cost_ceiling_usd
        )
        baseline = {
            "reward_sum": grown.weights["reward_sum"] + reward.sum(),
            "reward_count": grown.weights["reward_count"] + len(reward),
        }
        mean = baseline["reward_sum"] / baseline["reward_count"]
        settings = BarpSettings(**dict(grown.hyperparameters))  # type: ignore[arg-type]  # its own
        state = TrainingState.read(grown.weights, PARAMETERS[settings.head])
        advantage = {"advantage": (reward - mean).astype(np.float32)}
        task = GradientTask(
            columns=columns(seen, grown.arms) | advantage,
            minibatches=shuffled(
                len(seen),
                epochs=settings.epochs,
                minibatch=settings.minibatch,
                seed=[grown.seed, state.steps],
            ),
            exploration_total=grown.exploration_total,
            learning_rate=settings.learning_rate,
            loss=partial(
                policy_gradient_loss,
                entropy_bonus=settings.entropy_bonus,
                max_importance=settings.max_importance,
            ),
        )
        return replace(grown, weights=self.train(state, task).weights() | baseline)


def first_version(
    kind: str,
    spec: LearnerSpec,
    hyperparameters: Mapping[str, Any],
    weights: Mapping[str, NDArray[Any]],
) -> PolicyArtifact:
    """Put a first version together."""
    return PolicyArtifact(
        kind=kind,
        arms=tuple(arm.name for arm in spec.arms),
        encoder_id=spec.encoder_id,
        context_dim=spec.context_dim,
        cost_ceiling_usd=spec.cost_ceiling_usd,
        exploration_total=spec.exploration_total,
        price_version=spec.price_version,
        seed=spec.seed,
        hyperparameters=hyperparameters,
        weights=weights,
    )


def next_version(
    parent: PolicyArtifact, seen: Experience, prices: Mapping[int, PriceTable]
) -> PolicyArtifact:
    """Go on from a parent: arms that rows name are added, nothing is learned yet."""
    return replace(
        with_arms(parent, grown_arms(parent.arms, seen)),
        price_version=latest_price_version(parent, prices),
        training=lineage(parent, seen),
    )


def with_arms(parent: PolicyArtifact, arms: tuple[str, ...]) -> PolicyArtifact:
    """Append arms, each with the mean row of the head: the logit an unknown arm was served at."""
    missing = len(arms) - len(parent.arms)
    if missing == 0:
        return parent
    return replace(parent, arms=arms, weights=with_arm_rows(parent.weights, missing))


def columns(seen: Experience, arms: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Lay rows out for a loss; see GradientTask."""
    number = {name: k for k, name in enumerate(arms)}
    offered = np.zeros((len(seen), len(arms)), dtype=np.bool_)
    for row, names in enumerate(seen.offered):
        offered[row, [number[name] for name in names]] = True
    return {
        "context": seen.contexts,
        "preference": preferences(seen.w_quality),
        "offered": offered,
        "arm": np.array([number[name] for name in seen.arms], dtype=np.int64),
        "propensity": seen.propensity.astype(np.float32),
    }


def preferences(w_quality: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return rows (w_quality, w_cost), shape (n, 2)."""
    return np.stack([w_quality, 1.0 - w_quality], axis=1).astype(np.float32)
