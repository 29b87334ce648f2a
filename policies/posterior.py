"""The posterior learner: what each arm is worth and costs, believed apart, combined when deciding.

Per arm a Bayesian linear model of quality and one of scaled cost on a few components of the
context. The preference enters only at the decision, so that every observation teaches every
trade-off, and a price change counts from the next request on. Thompson sampling over fixed normal
draws makes the pmf a pure function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from policies.arms import Arm, PriceTable
from policies.artifact import PolicyArtifact
from policies.beliefs import (
    PosteriorSettings,
    Statistics,
    arm_draws,
    beliefs,
    deviations,
    feature_map,
    features,
    fit_projection,
)
from policies.learning import (
    Experience,
    LearnerSpec,
    experience,
    grown_arms,
    latest_price_version,
    lineage,
)
from policies.policy import Expectation, all_on, mix_exploration
from policies.preference import Preference
from policies.reward import scaled_cost

Array = NDArray[np.float64]

KIND: Final = "posterior"
TARGETS: Final = ("quality", "cost")
# The length of prompt that list prices are compared at; a request's own is not part of the pmf.
TYPICAL_PROMPT_CHARACTERS: Final = 1_000
# Sets of offered arms whose arrays are kept ready: tenants' allow-lists and cost limits.
POOLS_KEPT: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedModels:
    """The models of the arms offered, laid out for one matrix product a decision.

    Attributes:
        means: Quality models, then cost models, shape (2 * num_offered, features).
        covariances: Theirs, shape (2 * num_offered * features, features).
        price_ratios: List price now by the one the costs were learned at, shape (num_offered,).
        draws: Normal draws, shape (num_draws, num_offered).
    """

    means: Array
    covariances: Array
    price_ratios: Array
    draws: Array


class PosteriorPolicy:
    """Decides by the share of fixed Thompson draws that each arm wins."""

    kind = KIND

    def __init__(self, artifact: PolicyArtifact) -> None:
        """Read an artifact of this kind; raises KeyError or ValueError where it is none."""
        self._artifact = artifact
        self.encoder_id, self.context_dim = artifact.encoder_id, artifact.context_dim
        self._settings = _settings(artifact)
        self._statistics = {name: Statistics.read(artifact.weights, name) for name in TARGETS}
        self._matrix, self._offset = feature_map(
            artifact.weights["centre"], artifact.weights["projection"]
        )
        expected = len(artifact.arms), len(self._matrix)
        if any(sums.moment.shape != expected for sums in self._statistics.values()):
            raise ValueError(f"moments must be {expected}")
        self._index = {name: arm for arm, name in enumerate(artifact.arms)}
        self._models = lru_cache(maxsize=POOLS_KEPT)(self._models_of)

    def pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> Array:
        """Return the probability of each arm offered, float64, shape (num_offered,)."""
        models = self._models(tuple(offered))
        quality, cost, quality_var, cost_var = self._predict(context, models)
        w_quality, w_cost = preference.quality, preference.cost
        worth = w_quality * quality - w_cost * cost
        deviation = np.sqrt(w_quality**2 * quality_var + w_cost**2 * cost_var)
        best = (worth + deviation * models.draws).argmax(axis=1)
        wins = np.bincount(best, minlength=len(worth)) / len(best)
        return mix_exploration(wins, exploration_total=self._artifact.exploration_total)

    def greedy_pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> Array:
        """Return all mass on the arm of the best expected worth, shape (num_offered,)."""
        quality, cost, _, _ = self._predict(context, self._models(tuple(offered)))
        worth = preference.quality * quality - preference.cost * cost
        return all_on(int(worth.argmax()), len(worth))

    def expect(self, context: NDArray[np.float32], offered: Sequence[Arm]) -> Expectation:
        """Return the posterior means, in the units they are reported in."""
        quality, cost, _, _ = self._predict(context, self._models(tuple(offered)))
        ceiling = self._artifact.cost_ceiling_usd
        return Expectation(quality=np.clip(quality, 0.0, 1.0), cost_usd=cost * ceiling)

    def _predict(
        self, context: NDArray[np.float32], models: OfferedModels
    ) -> tuple[Array, Array, Array, Array]:
        """Return quality, scaled cost and the variance of both, each of shape (num_offered,)."""
        seen = self._matrix @ context + self._offset
        num = len(models.price_ratios)
        mean = models.means @ seen
        variance = (models.covariances @ seen).reshape(2 * num, -1) @ seen
        cost = np.minimum(np.maximum(mean[num:] * models.price_ratios, 0.0), 1.0)
        return mean[:num], cost, variance[:num], variance[num:] * models.price_ratios**2

    def _models_of(self, offered: tuple[Arm, ...]) -> OfferedModels:
        """Lay out what one set of offered arms needs; an unknown arm is one without data."""
        weights = self._artifact.weights
        arms = [self._index.get(arm.name) for arm in offered]
        now = np.array([arm.list_cost_usd(TYPICAL_PROMPT_CHARACTERS) for arm in offered])
        learned_at = np.array(
            [now[i] if k is None else weights["list_cost_usd"][k] for i, k in enumerate(arms)]
        )
        models = [self._beliefs(name, arms, learned_at) for name in TARGETS]
        means, covariances = (np.concatenate(parts) for parts in zip(*models, strict=True))
        draws = [
            weights["draws"][k] if k is not None else self._fresh_draws(arm.name)
            for k, arm in zip(arms, offered, strict=True)
        ]
        return OfferedModels(
            means=means,
            covariances=covariances.reshape(-1, means.shape[1]),
            price_ratios=price_ratio(now, learned_at),
            draws=np.ascontiguousarray(np.transpose(draws)),
        )

    def _beliefs(
        self, target: str, arms: Sequence[int | None], list_cost_usd: Array
    ) -> tuple[Array, Array]:
        """Believe in one target of the arms offered."""
        statistics, settings = self._statistics[target], self._settings
        known, pool = deviations(statistics, settings)
        deviation = np.array([pool if k is None else known[k] for k in arms])
        default = settings.prior_quality
        prior = np.full(len(arms), default if (m := statistics.pool_mean) is None else m)
        if target == "cost":
            ceiling = self._artifact.cost_ceiling_usd
            listed = scaled_cost(list_cost_usd, cost_ceiling_usd=ceiling)
            prior = np.where(list_cost_usd > 0, listed, prior)
        return beliefs(statistics.select(arms), prior, settings, deviation)

    def _fresh_draws(self, name: str) -> Array:
        """Draw for an arm the version does not know: its own, the same each time."""
        rows_seen = int(self._artifact.weights["rows_seen"][0])
        return arm_draws(
            name, seed=self._artifact.seed, rows_seen=rows_seen, num_draws=self._settings.num_draws
        )


def price_ratio(now_usd: Array, then_usd: Array) -> Array:
    """Divide list prices; 1 where one of them is not given."""
    given = (now_usd > 0) & (then_usd > 0)
    return np.where(given, now_usd / np.where(given, then_usd, 1.0), 1.0)


@dataclass(frozen=True, slots=True)
class PosteriorLearner:
    """Adds interactions to the sums of `PosteriorPolicy`'s models.

    Once the projection is frozen the order and size of updates do not matter:
    update(update(p, a), b) is update(p, a + b).
    """

    settings: PosteriorSettings = field(default_factory=PosteriorSettings)

    @property
    def kind(self) -> str:
        """Name in `PolicyArtifact.kind`."""
        return KIND

    def initial(self, spec: LearnerSpec) -> PolicyArtifact:
        """Believe in list prices, and the same of every arm's quality."""
        names = tuple(arm.name for arm in spec.arms)
        num_features = self.settings.components + 1
        empty = Statistics.empty(len(names), num_features)
        listed = [arm.list_cost_usd(TYPICAL_PROMPT_CHARACTERS) for arm in spec.arms]
        weights = {
            "centre": np.zeros(spec.context_dim),
            "projection": np.zeros((self.settings.components, spec.context_dim)),
            "list_cost_usd": np.array(listed, dtype=np.float64),
            **empty.weights("quality"),
            **empty.weights("cost"),
        }
        artifact = PolicyArtifact(
            kind=KIND,
            arms=names,
            encoder_id=spec.encoder_id,
            context_dim=spec.context_dim,
            cost_ceiling_usd=spec.cost_ceiling_usd,
            exploration_total=spec.exploration_total,
            price_version=spec.price_version,
            seed=spec.seed,
            hyperparameters=asdict(self.settings),
            weights=weights,
        )
        return with_draws(artifact, rows_seen=0)

    def update(
        self, parent: PolicyArtifact, rows: pa.Table, prices: Mapping[int, PriceTable]
    ) -> PolicyArtifact:
        """Add rows to the sums; fix the projection at the first update with rows enough."""
        seen = experience(parent, rows)
        arms = grown_arms(parent.arms, seen)
        costs = _list_costs(prices)
        new = _first_list_costs(arms[len(parent.arms) :], seen, costs)
        listed = np.append(parent.weights["list_cost_usd"], new)
        weights = {"list_cost_usd": listed, **self._projection(parent, seen)}
        rows_features = features(seen.contexts, weights["centre"], weights["projection"])
        number = {name: k for k, name in enumerate(arms)}
        rows_arms = np.array([number[name] for name in seen.arms], dtype=np.int64)
        cost_usd = _costs_at(listed[rows_arms], seen, costs)
        cost = scaled_cost(cost_usd, cost_ceiling_usd=parent.cost_ceiling_usd)
        known = [k if k < len(parent.arms) else None for k in range(len(arms))]
        for target, values in (("quality", seen.quality), ("cost", cost)):
            statistics = Statistics.read(parent.weights, target).select(known)
            weights |= statistics.plus(rows_arms, rows_features, values).weights(target)
        grown = replace(
            parent,
            arms=arms,
            price_version=latest_price_version(parent, prices),
            weights=weights,
            training=lineage(parent, seen),
        )
        return with_draws(grown, rows_seen=int(parent.weights["rows_seen"][0]) + len(seen))

    def _projection(self, parent: PolicyArtifact, seen: Experience) -> dict[str, Array]:
        """Keep the parent's projection; fit it where there is none yet and rows are enough."""
        settings = _settings(parent)
        centre, projection = parent.weights["centre"], parent.weights["projection"]
        if not projection.any() and len(seen) >= settings.min_rows_to_project:
            centre, projection = fit_projection(seen.contexts, components=settings.components)
        return {"centre": centre, "projection": projection}


def _settings(artifact: PolicyArtifact) -> PosteriorSettings:
    """Read what an artifact was made with."""
    return PosteriorSettings(**dict(artifact.hyperparameters))  # type: ignore[arg-type]  # numbers


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


def _list_costs(prices: Mapping[int, PriceTable]) -> dict[tuple[int, str], float]:
    """Price a typical call, USD, by price table version and arm."""
    return {
        (version, arm.name): arm.list_cost_usd(TYPICAL_PROMPT_CHARACTERS)
        for version, table in prices.items()
        for arm in table.arms
    }


def _first_list_costs(
    arms: Sequence[str], seen: Experience, costs: Mapping[tuple[int, str], float]
) -> list[float]:
    """Return the list price that new arms were first seen with, USD, 0 where it is not at hand."""
    first: dict[str, float] = {}
    for names, version in zip(seen.offered, seen.price_version.tolist(), strict=True):
        for name in names:
            first.setdefault(name, costs.get((version, name), 0.0))
    return [first[name] for name in arms]


def _costs_at(listed: Array, seen: Experience, costs: Mapping[tuple[int, str], float]) -> Array:
    """Return what each call would have cost at other list prices, USD, shape (n,).

    Args:
        listed: The list price that the row's arm is kept at, USD, shape (n,).
        seen: The rows.
        costs: The list prices they were decided under, by version and arm.
    """
    keys = zip(seen.price_version.tolist(), seen.arms, strict=True)
    then = np.array([costs.get(key, 0.0) for key in keys], dtype=np.float64)
    return seen.cost_usd * price_ratio(listed, then)
