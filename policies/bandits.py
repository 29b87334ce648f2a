"""Textbook linear bandits on the reward itself: what the learners are measured against.

Each arm has one ridge regression of the scalar reward on [1, components of the context, w_q], after
LinUCB (Li et al. 2010, arXiv 1003.0146) and linear Thompson sampling (Agrawal and Goyal 2013,
arXiv 1209.3352). They keep the promises of every policy here, a floor under each probability
included, so that they run and are judged like the learners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from policies.arms import Arm, PriceTable
from policies.artifact import PolicyArtifact
from policies.learning import (
    Experience,
    LearnerSpec,
    experience,
    grown_arms,
    latest_price_version,
    lineage,
)
from policies.policy import Assessment, all_on, assess_one_by_one, mix_exploration
from policies.preference import Preference
from policies.projection import fit_projection
from policies.reward import scalar_reward

Array = NDArray[np.float64]
Kind = Literal["linucb", "thompson", "epsilon_greedy"]

BANDITS: Final[tuple[Kind, ...]] = ("linucb", "thompson", "epsilon_greedy")


@dataclass(frozen=True, slots=True, kw_only=True)
class BanditSettings:
    """What the three bandits are set to, the same for every pool.

    Chosen by looking at the data sets they are reported on, see docs/results.md: light penalties
    close more of the gap, heavy ones lower the regret of one pass.

    Attributes:
        components: Principal components of the context that the models see.
        min_rows_to_project: Rows the components are fitted on at least.
        ridge: Penalty on the coefficients.
        bonus: LinUCB's alpha: how many standard deviations count in favour of an arm.
        deviation: Thompson's v: standard deviation of the reward it believes in.
        epsilon: Share of requests that epsilon-greedy spreads evenly.
        num_draws: Normal draws behind Thompson's pmf.
        crossed: Whether the models also see the products of w_q and the components.
    """

    components: int = 8
    min_rows_to_project: int = 64
    ridge: float = 1.0
    bonus: float = 0.3
    deviation: float = 0.2
    epsilon: float = 0.05
    num_draws: int = 256
    crossed: bool = False


class BanditPolicy:
    """Decides by one arm's upper bound, by draws, or by the best mean, whichever its kind says."""

    def __init__(self, artifact: PolicyArtifact) -> None:
        """Read an artifact of one of the kinds; raises KeyError or ValueError where it is none."""
        self.kind, self.encoder_id = artifact.kind, artifact.encoder_id
        self.context_dim, self._exploration = artifact.context_dim, artifact.exploration_total
        self._settings, self._weights = _settings(artifact), artifact.weights
        expected = len(artifact.arms), num_features(self._settings)
        if self._weights["moment"].shape != expected:
            raise ValueError(f"moment must be {expected}")
        self._index = {name: arm for arm, name in enumerate(artifact.arms)}
        self._models = lru_cache(maxsize=256)(self._models_of)

    def pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> Array:
        """Return the probability of each arm offered, float64, shape (num_offered,)."""
        mean, deviation, draws = self._predict(context, preference, offered)
        settings, exploration = self._settings, self._exploration
        if self.kind == "thompson":
            best = (mean + settings.deviation * deviation * draws).argmax(axis=1)
            probs = np.bincount(best, minlength=len(mean)) / len(draws)
        elif self.kind == "linucb":
            probs = all_on(int((mean + settings.bonus * deviation).argmax()), len(mean))
        else:
            probs = all_on(int(mean.argmax()), len(mean))
            exploration = max(exploration, settings.epsilon)
        return mix_exploration(probs, exploration_total=exploration)

    def assess(
        self,
        contexts: NDArray[np.float32],
        preferences: Sequence[Preference],
        offered: Sequence[Arm],
    ) -> Assessment:
        """Return the pmf of several requests at once, shape (n, num_offered)."""
        return assess_one_by_one(self.pmf, contexts, preferences, offered)

    def greedy_pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> Array:
        """Return all mass on the arm of the best expected reward, shape (num_offered,)."""
        mean, _, _ = self._predict(context, preference, offered)
        return all_on(int(mean.argmax()), len(mean))

    def _predict(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> tuple[Array, Array, Array]:
        """Return each arm's mean and deviation, (num_offered,), and the draws."""
        means, inverses, draws = self._models(tuple(arm.name for arm in offered))
        (seen,) = bandit_features(
            self._weights, context[None], np.array([preference.quality]), self._settings
        )
        variance = np.maximum((inverses @ seen) @ seen, 0.0)
        return means @ seen, np.sqrt(variance), draws

    def _models_of(self, names: tuple[str, ...]) -> tuple[Array, Array, Array]:
        """Solve the regressions of the arms offered; an unknown arm is one without data."""
        size = num_features(self._settings)
        gram, moment = np.zeros((len(names), size, size)), np.zeros((len(names), size))
        for row, name in enumerate(names):
            if (arm := self._index.get(name)) is not None:
                gram[row], moment[row] = self._weights["gram"][arm], self._weights["moment"][arm]
        precisions = gram + self._settings.ridge * np.eye(size)
        inverses = np.asarray(np.linalg.inv(precisions), dtype=np.float64)
        means = (inverses @ moment[:, :, None])[:, :, 0]
        seed = int(self._weights["seed"][0])
        draws = np.random.default_rng(seed).normal(size=(self._settings.num_draws, len(names)))
        return means, inverses, draws


@dataclass(frozen=True, slots=True)
class BanditLearner:
    """Adds interactions to the sums of `BanditPolicy`'s regressions.

    Attributes:
        kind: Which bandit; names the policy that reads the artifact.
        settings: What first versions are set to; a later version keeps its parent's.
    """

    kind: Kind
    settings: BanditSettings = field(default_factory=BanditSettings)

    def initial(self, spec: LearnerSpec) -> PolicyArtifact:
        """Know nothing of any arm."""
        size, num_arms = num_features(self.settings), len(spec.arms)
        return PolicyArtifact(
            kind=self.kind,
            arms=tuple(arm.name for arm in spec.arms),
            encoder_id=spec.encoder_id,
            context_dim=spec.context_dim,
            cost_ceiling_usd=spec.cost_ceiling_usd,
            exploration_total=spec.exploration_total,
            price_version=spec.price_version,
            seed=spec.seed,
            hyperparameters=asdict(self.settings),
            weights={
                "centre": np.zeros(spec.context_dim),
                "projection": np.zeros((self.settings.components, spec.context_dim)),
                "gram": np.zeros((num_arms, size, size)),
                "moment": np.zeros((num_arms, size)),
                "seed": np.array([spec.seed]),
            },
        )

    def update(
        self, parent: PolicyArtifact, rows: pa.Table, prices: Mapping[int, PriceTable]
    ) -> PolicyArtifact:
        """Add rows to the sums; rows that lack quality or cost are left out."""
        seen = experience(parent, rows)
        arms = grown_arms(parent.arms, seen)
        weights = _grown(parent.weights, len(arms)) | _projection(parent, seen)
        known = seen.where(~np.isnan(seen.quality + seen.cost_usd))
        reward = scalar_reward(
            known.quality, known.cost_usd, known.w_quality, cost_ceiling_usd=parent.cost_ceiling_usd
        )
        rows_features = bandit_features(weights, known.contexts, known.w_quality, _settings(parent))
        taken = np.array([arms.index(name) for name in known.arms], dtype=np.int64)
        np.add.at(weights["gram"], taken, rows_features[:, :, None] * rows_features[:, None, :])
        np.add.at(weights["moment"], taken, rows_features * reward[:, None])
        weights["seed"] = parent.weights["seed"] + 1
        return replace(
            parent,
            arms=arms,
            weights=weights,
            price_version=latest_price_version(parent, prices),
            training=lineage(parent, seen),
        )


def num_features(settings: BanditSettings) -> int:
    """Count what the models see: 1, the components, w_q, and the products where asked for."""
    return 2 + settings.components * (2 if settings.crossed else 1)


def bandit_features(
    weights: Mapping[str, NDArray[Any]],
    contexts: NDArray[np.float32],
    w_quality: Array,
    settings: BanditSettings,
) -> Array:
    """Lay out what the models see, shape (n, features).

    Args:
        weights: Centre and projection of the components.
        contexts: Float32, shape (n, context_dim).
        w_quality: Weights on quality, shape (n,).
        settings: Which features there are.
    """
    projected = (contexts - weights["centre"]) @ weights["projection"].T
    parts = [np.ones((len(contexts), 1)), projected, w_quality[:, None]]
    if settings.crossed:
        parts.append(projected * w_quality[:, None])
    return np.hstack(parts)


def _projection(parent: PolicyArtifact, seen: Experience) -> dict[str, Array]:
    """Keep the parent's components; fit them where there are none yet and rows are enough."""
    settings = _settings(parent)
    centre, projection = parent.weights["centre"], parent.weights["projection"]
    if not projection.any() and len(seen) >= settings.min_rows_to_project:
        centre, projection = fit_projection(seen.contexts, components=settings.components)
    return {"centre": centre, "projection": projection}


def _grown(weights: Mapping[str, NDArray[Any]], num_arms: int) -> dict[str, NDArray[Any]]:
    """Copy the sums and append empty ones for new arms."""
    missing = num_arms - len(weights["moment"])
    return {
        name: np.pad(weights[name], [(0, missing)] + [(0, 0)] * (weights[name].ndim - 1))
        for name in ("gram", "moment")
    }


def _settings(artifact: PolicyArtifact) -> BanditSettings:
    """Read what an artifact was made with."""
    return BanditSettings(**dict(artifact.hyperparameters))  # type: ignore[arg-type]  # numbers
