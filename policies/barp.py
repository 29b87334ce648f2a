"""BaRP's policy: one network over prompt and preference, softmax(head([h(x); phi(w)])).

After *Learning to Route LLMs from Bandit Feedback* (arXiv 2510.07429). `log_probs` is the only
place where a probability is computed: serving reads it through numpy, training through torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from types import ModuleType
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
    advantages,
    baseline_features,
    fit_baseline,
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
from policies.preference import Preference
from policies.reward import scalar_reward

KIND: Final = "barp"
HEADS: Final = ("head_weight", "head_bias")
PARAMETERS: Final = ("phi1_weight", "phi1_bias", "phi2_weight", "phi2_bias", *HEADS)
# Keeps the logarithm finite where a probability underflows and nothing explores.
TINY: Final = 1e-30
POOLS_KEPT: Final = 256


def log_probs(
    weights: Mapping[str, Any],
    context: Any,
    preference: Any,
    offered: Any,
    *,
    exploration_total: float,
    xp: ModuleType,
) -> Any:
    """Return the log-probability of every arm, exploration included.

    Written with what numpy and torch have in common, so that the pmf sampled from, the
    propensity logged and the loss cannot disagree.

    Args:
        weights: The arrays named in PARAMETERS.
        context: Encoded prompts, shape (..., context_dim).
        preference: Rows (w_quality, w_cost), shape (..., 2).
        offered: Which arms may be chosen, bool, shape (..., K), at least one a row.
        exploration_total: Probability shared evenly over the arms offered.
        xp: The array module, `numpy` or `torch`.

    Returns:
        Shape (..., K), -inf for arms not offered.
    """
    hidden = xp.tanh(preference @ weights["phi1_weight"].T + weights["phi1_bias"])
    phi = xp.tanh(hidden @ weights["phi2_weight"].T + weights["phi2_bias"])
    logits = linear_head(weights, xp.concatenate([context, phi], axis=-1))
    logits = xp.where(offered, logits, -xp.inf)
    unnormalised = xp.exp(logits - xp.amax(logits, axis=-1, keepdims=True))
    probs = unnormalised / unnormalised.sum(axis=-1, keepdims=True)
    even = offered * xp.ones_like(probs)
    even = even / even.sum(axis=-1, keepdims=True)
    mixed = (1.0 - exploration_total) * probs + exploration_total * even
    # The logarithm's argument is set apart before it is taken: log 0 would poison the gradient.
    return xp.where(offered, xp.log(xp.where(mixed > TINY, mixed, TINY)), -xp.inf)


def linear_head(weights: Mapping[str, Any], joint: Any) -> Any:
    """Map [h(x); phi(w)] to one logit an arm; BaRP found other heads little better."""
    return joint @ weights["head_weight"].T + weights["head_bias"]


class BarpPolicy:
    """Decides by the network's pmf, in numpy: serving needs no torch.

    An offered arm that the version does not know gets the mean logit of those it knows: traffic
    like an ordinary arm's, neither favoured nor starved, and what `BarpLearner` starts it with.
    """

    kind = KIND

    def __init__(self, artifact: PolicyArtifact) -> None:
        """Read an artifact of this kind; raises KeyError or ValueError where it is none."""
        self.encoder_id, self.context_dim = artifact.encoder_id, artifact.context_dim
        self._exploration_total = artifact.exploration_total
        self._weights = {n: artifact.weights[n].astype(np.float64) for n in PARAMETERS}
        expected = len(artifact.arms), artifact.context_dim + len(self._weights["phi2_bias"])
        if self._weights["head_weight"].shape != expected:
            raise ValueError(f"head_weight must be {expected}")
        self._index = {name: arm for arm, name in enumerate(artifact.arms)}
        self._offered_weights = lru_cache(maxsize=POOLS_KEPT)(self._weights_of)

    def pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Return the probability of each arm offered, float64, shape (num_offered,)."""
        return self._pmf(context, preference, offered, self._exploration_total)

    def greedy_pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Return the network's softmax by itself, float64, shape (num_offered,)."""
        return self._pmf(context, preference, offered, 0.0)

    def _pmf(
        self,
        context: NDArray[np.float32],
        preference: Preference,
        offered: Sequence[Arm],
        exploration_total: float,
    ) -> NDArray[np.float64]:
        """Read the network at one request."""
        probs = np.exp(
            log_probs(
                self._offered_weights(tuple(arm.name for arm in offered)),
                context,
                np.array([preference.quality, preference.cost]),
                np.ones(len(offered), dtype=np.bool_),
                exploration_total=exploration_total,
                xp=np,
            )
        )
        return np.asarray(probs / probs.sum(), dtype=np.float64)

    def expect(self, context: NDArray[np.float32], offered: Sequence[Arm]) -> None:
        """Return None: it learns what to choose, not what comes of it."""

    def _weights_of(self, names: tuple[str, ...]) -> dict[str, NDArray[np.float64]]:
        """Pick the head's rows for the arms offered."""
        rows = [self._index.get(name, len(self._index)) for name in names]
        return self._weights | {n: with_mean_rows(self._weights[n], 1)[rows] for n in HEADS}


def train_here(state: TrainingState, task: GradientTask) -> TrainingState:
    """Take the gradient steps in this process."""
    return train(log_probs, state, task)


@dataclass(frozen=True, slots=True)
class BarpLearner:
    """Follows the policy gradient over new interactions.

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
        """Start from the uniform policy: the head is zero, phi is random."""
        state = TrainingState.fresh(initial_parameters(spec, self.settings))
        baseline = {"baseline_gram": np.zeros((3, 3)), "baseline_moment": np.zeros(3)}
        return PolicyArtifact(
            kind=KIND,
            arms=tuple(arm.name for arm in spec.arms),
            encoder_id=spec.encoder_id,
            context_dim=spec.context_dim,
            cost_ceiling_usd=spec.cost_ceiling_usd,
            exploration_total=spec.exploration_total,
            price_version=spec.price_version,
            seed=spec.seed,
            hyperparameters=asdict(self.settings),
            weights=state.weights() | baseline,
        )

    def update(
        self, parent: PolicyArtifact, rows: pa.Table, prices: Mapping[int, PriceTable]
    ) -> PolicyArtifact:
        """Go on from the parent's network and optimiser; rows without both outcomes are skipped."""
        seen = experience(parent, rows)
        grown = replace(
            with_arms(parent, grown_arms(parent.arms, seen)),
            price_version=latest_price_version(parent, prices),
            training=lineage(parent, seen),
        )
        return self._trained(grown, seen.where(~np.isnan(seen.quality + seen.cost_usd)))

    def _trained(self, grown: PolicyArtifact, seen: Experience) -> PolicyArtifact:
        """Fit the baseline, then follow the gradient."""
        if len(seen) == 0:
            return grown
        reward = scalar_reward(
            seen.quality, seen.cost_usd, seen.w_quality, cost_ceiling_usd=grown.cost_ceiling_usd
        )
        basis = baseline_features(seen.w_quality)
        gram = grown.weights["baseline_gram"] + basis.T @ basis
        moment = grown.weights["baseline_moment"] + basis.T @ reward
        advantage = advantages(reward, seen.w_quality, fit_baseline(gram, moment))
        state = TrainingState.read(grown.weights, PARAMETERS)
        settings = BarpSettings(**dict(grown.hyperparameters))  # type: ignore[arg-type]  # numbers
        task = GradientTask(
            columns=columns(seen, grown.arms) | {"advantage": advantage},
            minibatches=shuffled(len(seen), settings, seed=[grown.seed, state.steps]),
            exploration_total=grown.exploration_total,
            settings=settings,
        )
        baseline = {"baseline_gram": gram, "baseline_moment": moment}
        return replace(grown, weights=self.train(state, task).weights() | baseline)


def initial_parameters(spec: LearnerSpec, settings: BarpSettings) -> dict[str, NDArray[np.float32]]:
    """Draw phi, one standard deviation over the square root of its inputs; zero the head."""
    generator, units = np.random.default_rng(spec.seed), settings.preference_units
    shapes = {
        "phi1_weight": (units, 2),
        "phi1_bias": (units,),
        "phi2_weight": (units, units),
        "phi2_bias": (units,),
        "head_weight": (len(spec.arms), spec.context_dim + units),
        "head_bias": (len(spec.arms),),
    }
    zeros = {name: np.zeros(shapes[name], dtype=np.float32) for name in PARAMETERS}
    for name in ("phi1_weight", "phi2_weight"):
        drawn = generator.normal(size=shapes[name]) / np.sqrt(shapes[name][-1])
        zeros[name] = drawn.astype(np.float32)
    return zeros


def columns(seen: Experience, arms: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Lay rows out for the loss; see GradientTask."""
    number = {name: k for k, name in enumerate(arms)}
    offered = np.zeros((len(seen), len(arms)), dtype=np.bool_)
    for row, names in enumerate(seen.offered):
        offered[row, [number[name] for name in names]] = True
    return {
        "context": seen.contexts,
        "preference": np.stack([seen.w_quality, 1.0 - seen.w_quality], 1).astype(np.float32),
        "offered": offered,
        "arm": np.array([number[name] for name in seen.arms], dtype=np.int64),
        "propensity": seen.propensity.astype(np.float32),
    }


def with_arms(parent: PolicyArtifact, arms: tuple[str, ...]) -> PolicyArtifact:
    """Append arms, each with the mean row of the head: the logit an unknown arm was served at."""
    missing = len(arms) - len(parent.arms)
    if missing == 0:
        return parent
    grown: dict[str, NDArray[Any]] = dict(parent.weights)
    for name in HEADS:
        grown[name] = with_mean_rows(parent.weights[name], missing)
        for moment in ("adam_mean", "adam_square"):
            value = parent.weights[f"{moment}.{name}"]
            grown[f"{moment}.{name}"] = np.append(
                value, np.zeros_like(value, shape=(missing, *value.shape[1:])), axis=0
            )
    return replace(parent, arms=arms, weights=grown)


def with_mean_rows(rows: NDArray[Any], missing: int) -> NDArray[Any]:
    """Append the mean row `missing` times; zero where there is no row yet."""
    mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1:])
    return np.concatenate([rows, np.broadcast_to(mean, (missing, *rows.shape[1:]))]).astype(
        rows.dtype
    )
