"""How `policies.posterior` learns: remembers rows, fits features where due, then both models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from policies.arms import PriceTable
from policies.artifact import PolicyArtifact
from policies.draws import arm_draws
from policies.feature_map import FeatureMap, fit_features
from policies.hierarchy import Beliefs
from policies.learning import (
    Experience,
    LearnerSpec,
    experience,
    grown_arms,
    latest_price_version,
    lineage,
)
from policies.list_prices import (
    TYPICAL_PROMPT_CHARACTERS,
    costs_at,
    first_list_costs,
    list_costs,
)
from policies.memory import Memory
from policies.outcome_models import QUALITY_GUESS, RELATIVE_COSTS, Rows, fit_cost, fit_quality
from policies.posterior import KIND, PosteriorSettings
from policies.reward import scaled_cost

Array = NDArray[np.float64]

# Steps of expectation maximisation of an update, and of one that has new features.
ROUNDS: Final = 3
ROUNDS_ANEW: Final = 20
# Calls that a list price counts as, beside those that were charged.
PRICE_ROWS: Final = 20.0
# So that a free arm's costs can be divided by what they usually are, of scaled cost.
LEAST_UNIT: Final = 1e-6


@dataclass(frozen=True, slots=True)
class PosteriorLearner:
    """Fits `PosteriorPolicy`'s models to the rows it remembers, new interactions included."""

    settings: PosteriorSettings = field(default_factory=PosteriorSettings)

    @property
    def kind(self) -> str:
        """Name in `PolicyArtifact.kind`."""
        return KIND

    def initial(self, spec: LearnerSpec) -> PolicyArtifact:
        """Believe in list prices, and the same of every arm's quality."""
        names, settings = tuple(arm.name for arm in spec.arms), self.settings
        blank = FeatureMap.blank(
            context_dim=spec.context_dim,
            components=settings.components,
            landmarks=settings.landmarks,
            kernel_components=settings.kernel_components,
        )
        listed = [arm.list_cost_usd(TYPICAL_PROMPT_CHARACTERS) for arm in spec.arms]
        memory = Memory.empty(inputs=spec.context_dim, num_arms=len(names))
        artifact = PolicyArtifact(
            kind=KIND,
            arms=names,
            encoder_id=spec.encoder_id,
            context_dim=spec.context_dim,
            cost_ceiling_usd=spec.cost_ceiling_usd,
            exploration_total=spec.exploration_total,
            price_version=spec.price_version,
            seed=spec.seed,
            hyperparameters=asdict(settings),
            weights={
                **blank.weights(),
                **_priors(len(names), blank),
                **memory.weights(),
                "list_cost_usd": np.array(listed, dtype=np.float64),
                "cost_unit": cost_units(np.array(listed) / spec.cost_ceiling_usd, memory),
                "rows_before": np.zeros(len(names), dtype=np.int64),
                "arm_rows": np.zeros(len(names), dtype=np.int64),
                "fit_features_at": np.array([settings.min_rows], dtype=np.int64),
            },
        )
        return with_draws(artifact, rows_seen=0)

    def update(
        self, parent: PolicyArtifact, rows: pa.Table, prices: Mapping[int, PriceTable]
    ) -> PolicyArtifact:
        """Remember the rows, fit the features anew where that is due, then fit the models."""
        seen = experience(parent, rows)
        arms, costs = grown_arms(parent.arms, seen), list_costs(prices)
        new = first_list_costs(arms[len(parent.arms) :], seen, costs)
        listed = np.append(parent.weights["list_cost_usd"], new)
        rows_before = int(parent.weights["rows_seen"][0])
        since = np.append(parent.weights["rows_before"], np.full(len(new), rows_before))
        cost_usd = costs_at(listed, arms, seen, costs)
        cost = scaled_cost(cost_usd, cost_ceiling_usd=parent.cost_ceiling_usd)
        memory = _remembered(parent, arms, seen, cost)
        grown = replace(
            parent,
            arms=arms,
            price_version=latest_price_version(parent, prices),
            weights={
                **parent.weights,
                **memory.weights(),
                "list_cost_usd": listed,
                "cost_unit": cost_units(listed / parent.cost_ceiling_usd, memory),
                "rows_before": since.astype(np.int64),
                "arm_rows": _arm_rows(parent, arms, seen),
            },
            training=lineage(parent, seen),
        )
        learned = len(seen) > 0 and len(memory) > 0
        if "cost_unit" not in parent.weights:
            grown = replace(grown, weights={**grown.weights, **_without_costs(grown)})
        fitted = _fitted(grown, memory, new_rows=len(seen)) if learned else grown
        return with_draws(fitted, rows_seen=rows_before + len(seen))


def _remembered(
    parent: PolicyArtifact, arms: tuple[str, ...], seen: Experience, cost: Array
) -> Memory:
    """Add rows with an outcome to what the parent remembers."""
    index = {name: k for k, name in enumerate(arms)}
    number = np.array([index[name] for name in seen.arms], dtype=np.int16)
    known = np.flatnonzero(~np.isnan(seen.quality) | ~np.isnan(cost))
    rng = np.random.default_rng([parent.seed, int(parent.weights["rows_seen"][0])])
    newer = Memory(
        context=seen.contexts[known].astype(np.float16),
        arm=number[known],
        # Which other arms could have been taken is of no matter to a model of each arm's outcomes.
        offered=np.zeros((len(known), len(arms)), dtype=np.bool_),
        propensity=seen.propensity[known].astype(np.float32),
        outcome=np.stack([seen.quality, cost], axis=1)[known].astype(np.float32),
        rank=rng.random(len(known)),
    )
    older = Memory.read(parent.weights).with_arms(len(arms))
    return older.plus(newer, capacity=PosteriorSettings.read(parent).capacity)


def _arm_rows(parent: PolicyArtifact, arms: tuple[str, ...], seen: Experience) -> NDArray[np.int64]:
    """Count the rows of each arm, all that were ever learned from."""
    before = np.append(parent.weights["arm_rows"], np.zeros(len(arms) - len(parent.arms)))
    index = {name: k for k, name in enumerate(arms)}
    new = np.bincount([index[name] for name in seen.arms], minlength=len(arms))
    return np.asarray(before + new, dtype=np.int64)


def _fitted(artifact: PolicyArtifact, memory: Memory, *, new_rows: int) -> PolicyArtifact:
    """Fit features, where that is due, and both models to what is remembered."""
    settings, weights = PosteriorSettings.read(artifact), dict(artifact.weights)
    total = int(weights["rows_seen"][0]) + new_rows
    features = FeatureMap.read(weights)
    rounds = ROUNDS
    if total >= int(weights["fit_features_at"][0]):
        features = fit_features(
            memory.context,
            components=settings.components,
            landmarks=settings.landmarks,
            kernel_components=settings.kernel_components,
            seed=artifact.seed,
        )
        weights |= features.weights() | _forgetting_slopes(weights, features, len(artifact.arms))
        weights["fit_features_at"] = np.array([total + min(total, settings.settled_rows)])
        rounds = ROUNDS_ANEW
    values, arm = features(memory.context.astype(np.float64)), memory.arm.astype(np.int64)
    quality, cost = memory.outcome.astype(np.float64).T
    targets = {"quality": quality, "cost": cost / weights["cost_unit"][arm] - 1.0}
    fit_relative = partial(fit_cost, prior=RELATIVE_COSTS)
    for target, fit in (("quality", fit_quality), ("cost", fit_relative)):
        rows = Rows.sorted(values, arm, targets[target], num_arms=len(artifact.arms))
        beliefs = Beliefs.read(weights, target).with_arms(len(artifact.arms))
        if len(rows.target):
            beliefs = fit(beliefs, rows, features.blocks, rounds)
        weights |= beliefs.weights(target)
    return replace(artifact, weights=weights)


def cost_units(listed: Array, memory: Memory) -> Array:
    """Say what a call of each arm usually costs, scaled: its list price, then what was charged.

    An arm without a list price starts from the mean of all that was charged.

    Args:
        listed: Scaled list cost, 0 where no price is given, shape (K,).
        memory: Rows with the costs that came back.
    """
    cost = memory.outcome[:, 1].astype(np.float64)
    known = np.flatnonzero(~np.isnan(cost))
    arm, charged = memory.arm[known].astype(np.int64), cost[known]
    sums = np.bincount(arm, charged, minlength=len(listed))
    count = np.bincount(arm, minlength=len(listed))
    usual = charged.mean() if len(charged) else 0.0
    trust = np.where(listed > 0, PRICE_ROWS, 1.0)
    start = np.where(listed > 0, np.minimum(listed, 1.0), usual)
    return np.asarray(np.maximum((trust * start + sums) / (trust + count), LEAST_UNIT))


def _without_costs(artifact: PolicyArtifact) -> dict[str, NDArray[np.float64]]:
    """Forget beliefs of costs that an earlier release held in other units; the rows are there."""
    priors = _priors(len(artifact.arms), FeatureMap.read(artifact.weights))
    return {name: value for name, value in priors.items() if name.startswith("cost.")}


def _forgetting_slopes(
    weights: Mapping[str, NDArray[Any]], features: FeatureMap, num_arms: int
) -> dict[str, NDArray[Any]]:
    """Keep what does not depend on the features; nothing where there are fewer of them now."""
    if weights["quality.means"].shape[1] != features.num_features:
        return _priors(num_arms, features)
    kept: dict[str, NDArray[Any]] = {}
    for target in ("quality", "cost"):
        beliefs = Beliefs.read(weights, target).with_arms(num_arms)
        kept |= beliefs.forgetting_slopes().weights(target)
    return kept


def _priors(num_arms: int, features: FeatureMap) -> dict[str, NDArray[np.float64]]:
    """Believe nothing yet of quality and cost."""
    guesses = {"quality": QUALITY_GUESS, "cost": RELATIVE_COSTS.guess}
    named = (
        Beliefs.prior(guess, num_arms=num_arms, blocks=features.blocks).weights(target)
        for target, guess in guesses.items()
    )
    return {name: value for weights in named for name, value in weights.items()}


def with_draws(artifact: PolicyArtifact, *, rows_seen: int) -> PolicyArtifact:
    """Store the version's Thompson draws, seeded by how much it has seen."""
    num_draws = int(artifact.hyperparameters["num_draws"])
    draws = [
        arm_draws(name, seed=artifact.seed, rows_seen=rows_seen, num_draws=num_draws)
        for name in artifact.arms
    ]
    drawn = {
        "draws": np.reshape(draws, (len(draws), num_draws)),
        "rows_seen": np.array([rows_seen], dtype=np.int64),
    }
    return replace(artifact, weights={**artifact.weights, **drawn})
