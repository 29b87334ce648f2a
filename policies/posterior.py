"""The posterior learner: what each arm is worth and costs, believed apart, combined when deciding.

Quality is a hierarchical Bayesian logistic model, cost a linear one, as a ratio to what the arm's
calls usually cost (`policies.hierarchy`), on features of the context (`policies.feature_map`). The
preference enters only at the decision, so that every observation teaches every trade-off, and a
price change counts from the next request on.

Thompson sampling over fixed normal draws makes the pmf a pure function. In front of it stands a
sweep over the arms that may be best, the least known first, by inverse gap weighting (Foster and
Rakhlin 2020, arXiv 2002.04926), which fades as rows come. On top is a small exploration that goes
to arms which usually lose little; a part of it stays even, so that no arm's propensity vanishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from policies.arms import Arm
from policies.artifact import PolicyArtifact
from policies.draws import arm_draws
from policies.feature_map import FeatureMap
from policies.hierarchy import Beliefs
from policies.list_prices import TYPICAL_PROMPT_CHARACTERS, price_ratio
from policies.outcome_models import sigmoid
from policies.policy import Assessment, all_on
from policies.preference import Preference, preference_grid
from policies.reward import scaled_cost

Array = NDArray[np.float64]

KIND: Final = "posterior"
# Sets of offered arms whose arrays are kept ready: tenants' allow-lists and cost limits.
POOLS_KEPT: Final = 256
# The variance of a logit is bounded where a quality is read off its mean (probit approximation).
MAX_LOGIT_VARIANCE: Final = 4.0
# Requests whose draws are compared at once: 0.7 MB for 11 arms and 256 draws.
ROWS_AT_ONCE: Final = 32
# Rows to a step of expectation maximisation, and most steps of one update.
ROWS_A_ROUND: Final = 64
# How suddenly the sweep ends, and below which share it has ended.
SWEEP_POWER: Final = 6
LEAST_SWEEP: Final = 1e-3
# The preferences that an arm's usual gap is averaged over.
EXPLORED_GRID: Final = preference_grid()
MAX_ROUNDS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PosteriorSettings:
    """What the learner is set to; the same for every pool and encoder.

    Attributes:
        components: Principal components of the context, and the space of the kernel.
        landmarks: Points that carry the kernel.
        kernel_components: Components of the kernel.
        min_rows: Rows before the context is used at all.
        settled_rows: Up to here the features are fitted anew whenever the rows have doubled, from
            here on after as many more.
        capacity: Rows remembered and fitted to, half of them the newest.
        level_scale: Share of the levels' deviation that Thompson sampling starts with.
        slope_scale: The same of the slopes'.
        scale_floor: What both shares fall to, of themselves.
        scale_rows: Rows, times the root of the number of arms, at which half of the fall is done.
        sweep_rows: Rows, times the root of the number of arms, at which half of the requests are
            still part of the sweep.
        sweep_softness: Gap in reward at which an arm gets half the sweep of the best one.
        sweep_count: Rows of its own at which an arm gets half the sweep of one that has none.
        gap_softness: Mean gap over all preferences at which an arm gets a quarter of the
            exploration of the best one.
        even_part: Part of the exploration that is shared evenly.
        num_draws: Normal draws stored per arm.
    """

    components: int = 16
    landmarks: int = 64
    kernel_components: int = 24
    min_rows: int = 64
    settled_rows: int = 2_048
    capacity: int = 8_192
    level_scale: float = 1.5
    slope_scale: float = 0.3
    scale_floor: float = 0.2
    scale_rows: float = 200.0
    sweep_rows: float = 80.0
    sweep_softness: float = 0.05
    sweep_count: float = 2.0
    gap_softness: float = 0.02
    even_part: float = 0.1
    num_draws: int = 256

    @classmethod
    def read(cls, artifact: PolicyArtifact) -> PosteriorSettings:
        """Read what an artifact was made with."""
        return cls(**dict(artifact.hyperparameters))  # type: ignore[arg-type]  # numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedModels:
    """The models of m arms offered, laid out for few matrix products a decision.

    Attributes:
        means: Quality models, then cost models, shape (2m, p).
        level_variance: Variance of the levels of quality, shape (m,).
        level_slope: Covariance of level and slopes of quality, shape (m, p - 1).
        slope_covariance: Covariance of the slopes of quality, shape (m * (p - 1), p - 1).
        usual_cost: Scaled cost that the costs are departures from, shape (m,).
        price_ratios: List price now by the one the costs were learned at, shape (m,).
        scale: Share of the Thompson deviation of each arm, shape (m,).
        explored: Pmf of the exploration, the same for every request, shape (m,).
        untried: Weight in the sweep, the larger the fewer rows an arm has, shape (m,).
        draws: Normal draws, shape (m, num_draws).
    """

    means: Array
    level_variance: Array
    level_slope: Array
    slope_covariance: Array
    usual_cost: Array
    price_ratios: Array
    scale: Array
    explored: Array
    untried: Array
    draws: Array


class PosteriorPolicy:
    """Decides by the share of fixed Thompson draws that each arm wins, and explores on top."""

    kind = KIND

    def __init__(self, artifact: PolicyArtifact) -> None:
        """Read an artifact of this kind; raises KeyError or ValueError where it is none."""
        self._artifact = artifact
        self.encoder_id, self.context_dim = artifact.encoder_id, artifact.context_dim
        self._settings = PosteriorSettings.read(artifact)
        self._features = FeatureMap.read(artifact.weights)
        self._quality = Beliefs.read(artifact.weights, "quality")
        self._cost = Beliefs.read(artifact.weights, "cost")
        expected = len(artifact.arms), self._features.num_features
        if any(found.means.shape != expected for found in (self._quality, self._cost)):
            raise ValueError(f"means must be {expected}")
        self._index = {name: arm for arm, name in enumerate(artifact.arms)}
        self._models = lru_cache(maxsize=POOLS_KEPT)(self._models_of)
        self._sweep = sweep(artifact)

    def assess(
        self,
        contexts: NDArray[np.float32],
        preferences: Sequence[Preference],
        offered: Sequence[Arm],
    ) -> Assessment:
        """Return pmf and expectation of several requests at once; see `Policy.assess`."""
        models = self._models(tuple(offered))
        quality, cost, variance = self._predict(contexts, models)
        w = np.array([preference.quality for preference in preferences])[:, None]
        worth = w * quality - (1.0 - w) * cost
        chosen = win_shares(worth, models.scale * w * np.sqrt(variance), models.draws)
        if self._sweep > 0.0:
            swept = models.untried / (self._settings.sweep_softness + _gaps(worth))
            swept /= swept.sum(axis=1, keepdims=True)
            chosen = (1.0 - self._sweep) * chosen + self._sweep * swept
        total = self._artifact.exploration_total
        return Assessment(
            pmf=(1.0 - total) * chosen + total * models.explored,
            quality=quality,
            cost_usd=cost * self._artifact.cost_ceiling_usd,
        )

    def pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> Array:
        """Return the probability of each arm offered, float64, shape (num_offered,)."""
        [probs] = self.assess(context[None], [preference], offered).pmf
        return np.asarray(probs)

    def greedy_pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> Array:
        """Put all mass on the best expected worth, float64, shape (num_offered,)."""
        [quality], [cost], _ = self._predict(context[None], self._models(tuple(offered)))
        worth = preference.quality * quality - preference.cost * cost
        return all_on(int(worth.argmax()), len(worth))

    def _predict(
        self, contexts: NDArray[np.float32], models: OfferedModels
    ) -> tuple[Array, Array, Array]:
        """Return quality, scaled cost and quality's variance for Thompson, each (n, m)."""
        seen = self._features(contexts)
        mean = seen @ models.means.T
        plain, scaled = self._variances(seen[:, 1:], models)
        m = len(models.price_ratios)
        # The mean of a sigmoid of a normal variable, by the probit approximation.
        spread = np.minimum(plain, MAX_LOGIT_VARIANCE)
        quality = sigmoid(mean[:, :m] / np.sqrt(1.0 + np.pi / 8.0 * spread))
        cost = np.clip((models.usual_cost + mean[:, m:]) * models.price_ratios, 0.0, 1.0)
        return quality, cost, scaled * (quality * (1.0 - quality)) ** 2

    def _variances(self, slopes: Array, models: OfferedModels) -> tuple[Array, Array]:
        """Return the variance of each quality's logit, plain and for Thompson, (n, m)."""
        n, p = slopes.shape
        moved = (models.slope_covariance @ slopes.T).reshape(-1, p, n)
        of_slopes = (moved * slopes.T).sum(axis=1).T
        of_both = slopes @ models.level_slope.T
        level, slope = self._settings.level_scale, self._settings.slope_scale
        plain = models.level_variance + 2.0 * of_both + of_slopes
        scaled = level**2 * models.level_variance + 2.0 * level * slope * of_both
        # Rounding can leave a hair below zero where a variance all but vanishes.
        return np.maximum(plain, 0.0), np.maximum(scaled + slope**2 * of_slopes, 0.0)

    def _models_of(self, offered: tuple[Arm, ...]) -> OfferedModels:
        """Lay out what one set of offered arms needs; an unknown arm is one without data."""
        weights, artifact = self._artifact.weights, self._artifact
        arms = [self._index.get(arm.name) for arm in offered]
        now = np.array([arm.list_cost_usd(TYPICAL_PROMPT_CHARACTERS) for arm in offered])
        then = np.array(
            [now[i] if k is None else weights["list_cost_usd"][k] for i, k in enumerate(arms)]
        )
        quality, covariances = self._quality.of(arms)
        cost, _ = self._cost.of(arms)
        slopes, ratios = covariances[:, 1:, 1:], price_ratio(now, then)
        usual, unit = self._usual_costs(then, arms)
        cost = unit[:, None] * cost
        levels = np.clip((usual + cost[:, 0]) * ratios, 0.0, 1.0)
        since = [0 if k is None else self._rows_since(k) for k in arms]
        own = np.array([0 if k is None else weights["arm_rows"][k] for k in arms])
        draws = [
            self._fresh_draws(arm.name) if k is None else weights["draws"][k]
            for k, arm in zip(arms, offered, strict=True)
        ]
        return OfferedModels(
            means=np.concatenate([quality, cost]),
            level_variance=covariances[:, 0, 0],
            level_slope=covariances[:, 0, 1:],
            slope_covariance=np.ascontiguousarray(slopes.reshape(-1, slopes.shape[-1])),
            usual_cost=usual,
            price_ratios=ratios,
            scale=thompson_scale(np.array(since), len(artifact.arms), self._settings),
            explored=explored_shares(sigmoid(quality[:, 0]), levels, self._settings),
            untried=1.0 / (self._settings.sweep_count + own),
            draws=np.array(draws),
        )

    def _usual_costs(self, list_cost_usd: Array, arms: Sequence[int | None]) -> tuple[Array, Array]:
        """Return what the costs are departures from, and in which unit, scaled, (m,) each."""
        weights, ceiling = self._artifact.weights, self._artifact.cost_ceiling_usd
        listed = scaled_cost(list_cost_usd, cost_ceiling_usd=ceiling)
        if "cost_unit" not in weights:
            # Of an earlier release: departures from list price, on the scale of the ceiling.
            return listed, np.ones(len(arms))
        units = weights["cost_unit"]
        known = scaled_cost(weights["list_cost_usd"], cost_ceiling_usd=ceiling)
        priced = known > 0
        # A new arm is as far from its price as the others are from theirs.
        off = float((units[priced] / known[priced]).mean()) if priced.any() else 1.0
        unknown = np.where(listed > 0, off * listed, units.mean() if len(units) else 0.0)
        usual = np.array([unknown[i] if k is None else units[k] for i, k in enumerate(arms)])
        return usual, usual

    def _rows_since(self, arm: int) -> int:
        """Count the rows learned from since an arm came."""
        weights = self._artifact.weights
        return int(weights["rows_seen"][0] - weights["rows_before"][arm])

    def _fresh_draws(self, name: str) -> Array:
        """Draw for an arm the version does not know: its own, the same each time."""
        rows_seen = int(self._artifact.weights["rows_seen"][0])
        return arm_draws(
            name, seed=self._artifact.seed, rows_seen=rows_seen, num_draws=self._settings.num_draws
        )


def win_shares(worth: Array, deviation: Array, draws: Array) -> Array:
    """Return the share of draws that each arm wins, shape (n, m); of equals the first one wins.

    Args:
        worth: Expected worth, shape (n, m).
        deviation: What its draws are scaled with, shape (n, m).
        draws: Normal draws, shape (m, num_draws).
    """
    # Some rows at once: arrays beyond a megabyte would be given back to the system each time.
    parts = [
        _wins(worth[at : at + ROWS_AT_ONCE], deviation[at : at + ROWS_AT_ONCE], draws)
        for at in range(0, len(worth), ROWS_AT_ONCE)
    ]
    return np.asarray(np.concatenate(parts) / draws.shape[1])


def _wins(worth: Array, deviation: Array, draws: Array) -> NDArray[np.int64]:
    """Count the draws that each arm wins, shape (n, m).

    Arms come first and draws last: to compare long rows of numbers is several times faster than to
    look for the largest of a few, again and again.
    """
    drawn = deviation.T[:, :, None] * draws[:, None, :]
    drawn += worth.T[:, :, None]
    won = drawn == drawn.max(axis=0)
    counts = np.asarray(won.sum(axis=2).T, dtype=np.int64)
    if counts.sum() == len(worth) * draws.shape[1]:
        return counts
    # Equals: they have been counted for each of them.
    first, (n, m) = won.argmax(axis=0), worth.shape
    first += m * np.arange(n)[:, None]
    return np.bincount(first.ravel(), minlength=n * m).reshape(n, m)


def explored_shares(quality: Array, cost: Array, settings: PosteriorSettings) -> Array:
    """Share exploration by the squared inverse of an arm's mean gap, and a part of it evenly.

    The same for every request, so that an arm which only few would choose is still tried.

    Args:
        quality: Usual quality of each arm, shape (m,).
        cost: Usual scaled cost, shape (m,).
        settings: How soft, and how even.
    """
    w = np.array([preference.quality for preference in EXPLORED_GRID])[:, None]
    gap = _gaps(w * quality - (1.0 - w) * cost).mean(axis=0)
    by_gap = (settings.gap_softness + gap) ** -2.0
    even = settings.even_part / len(gap)
    return np.asarray((1.0 - settings.even_part) * by_gap / by_gap.sum() + even)


def sweep(artifact: PolicyArtifact) -> float:
    """Return the share of requests that the first broad sweep still takes.

    None where the operator has set exploration to none.
    """
    settings, num_arms = PosteriorSettings.read(artifact), max(len(artifact.arms), 1)
    if artifact.exploration_total == 0.0:
        return 0.0
    rows = float(artifact.weights["rows_seen"][0]) / (settings.sweep_rows * num_arms**0.5)
    share = 1.0 / (1.0 + rows**SWEEP_POWER)
    return share if share >= LEAST_SWEEP else 0.0


def thompson_scale(rows: NDArray[np.int64], num_arms: int, settings: PosteriorSettings) -> Array:
    """Return the share of their deviation that arms are drawn with, falling with rows seen.

    Args:
        rows: Rows learned from since each arm came, shape (m,).
        num_arms: K.
        settings: Floor and speed of the fall.
    """
    done = rows / (settings.scale_rows * max(num_arms, 1) ** 0.5)
    return np.asarray(settings.scale_floor + (1.0 - settings.scale_floor) / (1.0 + done**4))


def _gaps(worth: Array) -> Array:
    """Return how far each arm is below the best of its row."""
    return np.asarray(worth.max(axis=1, keepdims=True) - worth)
