"""What the benchmark found, over all seeds: means, intervals, and the object it prints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.quality import GRID, OnlineResult, SeedResult
from pipelines.quality_plan import QualityPlan
from policies.performance import Performance, gap_closed, is_monotone

Array = NDArray[np.float64]

LEVEL: Final = 0.95
CURVE_POINTS: Final = 25
USD_PER_1K: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedMean:
    """A mean over seeds.

    Attributes:
        values: One number a seed, shape (seeds,).
    """

    values: Array

    @property
    def mean(self) -> float:
        """The mean."""
        return float(self.values.mean())

    @property
    def half_width(self) -> float | None:
        """Half the 95 % interval by Student's t; None with one seed, which has no spread."""
        from scipy.stats import t

        num = len(self.values)
        if num < 2:
            return None
        error = float(self.values.std(ddof=1)) / math.sqrt(num)
        return float(t.ppf(0.5 + LEVEL / 2, num - 1)) * error

    def to_json(self) -> dict[str, Any]:
        """Return mean, interval and the values behind them, which pair with any other's."""
        half = self.half_width
        interval = None if half is None else [self.mean - half, self.mean + half]
        return {"mean": self.mean, "ci95": interval, "per_seed": self.values.tolist()}


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """The results of all seeds, and what they were asked for.

    Attributes:
        data: The training file.
        test: The test file, where there was one.
        arms: The models.
        encoder_id: Whose contexts were used.
        plan: What was measured.
        results: One a seed.
    """

    data: str
    test: str | None
    arms: tuple[str, ...]
    encoder_id: str
    plan: QualityPlan
    results: Sequence[SeedResult]

    @property
    def default(self) -> str:
        """The learner named first."""
        return self.plan.learners[0]

    def over_seeds(self, number: Callable[[SeedResult], float]) -> SeedMean:
        """Take one number from each seed."""
        return SeedMean(values=np.array([number(result) for result in self.results]))

    def gap(self, of: Callable[[SeedResult], Performance]) -> SeedMean:
        """Return the gap that a rule closes."""
        return self.over_seeds(
            lambda result: gap_closed(
                of(result).reward,
                best_single=result.references["best_single"].reward,
                oracle=result.references["oracle"].reward,
            )
        )

    def online(self, name: str) -> list[OnlineResult]:
        """Return a learner's or peer's results, one a seed."""
        return [{**result.peers, **result.learners}[name] for result in self.results]

    def regret(self, name: str) -> SeedMean:
        """Return the online regret per request of a learner or peer."""
        return SeedMean(values=np.array([one.regret.mean() for one in self.online(name)]))

    @property
    def contenders(self) -> tuple[str, ...]:
        """All that learned online, learners first."""
        return (*self.results[0].learners, *self.results[0].peers)

    def regret_to_lowest(self) -> tuple[str, SeedMean]:
        """Name the contender of least regret; return the default learner's minus its, paired."""
        regrets = {name: self.regret(name) for name in self.contenders}
        lowest = min(regrets, key=lambda name: regrets[name].mean)
        return lowest, SeedMean(values=regrets[self.default].values - regrets[lowest].values)

    def regret_against(self) -> dict[str, SeedMean]:
        """Return the default learner's regret minus each other contender's, paired by seed."""
        mine = self.regret(self.default).values
        others = (name for name in self.contenders if name != self.default)
        return {name: SeedMean(values=mine - self.regret(name).values) for name in others}

    def to_json(self) -> dict[str, Any]:
        """Return the object that `barp bench quality --json` prints."""
        first = self.results[0]
        references: dict[str, Any] = {
            name: self._reference(lambda result, name=name: result.references[name])  # type: ignore[misc]  # a default binds the loop's name
            for name in first.references
        }
        for name in first.peers:
            references[name] = self._reference(
                lambda result, name=name: result.peers[name].greedy  # type: ignore[misc]  # likewise
            ) | {"online_regret": self.regret(name).to_json(), "curve": self._curve(name)}
        lowest, difference = self.regret_to_lowest()
        plan = self.plan
        return {
            "data": self.data,
            "test": self.test,
            "n_train": first.n_train,
            "n_test": first.n_test,
            "arms": list(self.arms),
            "encoder": self.encoder_id,
            "tau": self.over_seeds(lambda result: result.cost_ceiling_usd).mean,
            "protocol": plan.protocol,
            "stream": plan.stream,
            "seeds": plan.seeds,
            "first_seed": plan.first_seed,
            "delay": plan.delay,
            "passes": plan.passes,
            "missing": plan.missing,
            "holdout_tasks": list(plan.holdout_tasks),
            "exploration_total": plan.exploration_total,
            "settings": list(plan.settings),
            "fresh_draws": plan.fresh_draws,
            "references": references,
            "learners": {name: self._learner(name) for name in first.learners},
            "default": self.default,
            "lowest_regret": {"name": lowest, "default_minus_lowest": difference.to_json()},
            "regret_default_minus": {
                name: one.to_json() for name, one in self.regret_against().items()
            },
        }

    def _reference(self, of: Callable[[SeedResult], Performance]) -> dict[str, Any]:
        """Describe a rule by its means."""
        return {
            "reward": self.over_seeds(lambda result: float(of(result).reward.mean())).mean,
            "gap_closed": self.gap(of).mean,
            **self._at_1(of),
        }

    def _learner(self, name: str) -> dict[str, Any]:
        """Describe a learner with its intervals."""

        def greedy(result: SeedResult) -> Performance:
            return result.learners[name].greedy

        return {
            "gap_closed": self.gap(greedy).to_json(),
            "gap_closed_served": self.gap(lambda result: result.learners[name].served).to_json(),
            "reward": self.over_seeds(lambda result: float(greedy(result).reward.mean())).to_json(),
            "online_regret": self.regret(name).to_json(),
            "curve": self._curve(name),
            **self._at_1(greedy),
            "perturbed": {
                kind: self._perturbed(name, kind) for kind in self.online(name)[0].perturbed
            },
            "arm_share": self.arm_share(name),
            "monotone": self.monotone(name),
        }

    def _at_1(self, of: Callable[[SeedResult], Performance]) -> dict[str, float]:
        """Describe a rule where only quality counts, also against always the largest model."""

        def over_largest(result: SeedResult) -> float:
            return score_at_1(of(result)) / score_at_1(result.references["largest"]) - 1.0

        return {
            "score_at_1": self.over_seeds(lambda result: score_at_1(of(result))).mean,
            "score_at_1_over_largest": self.over_seeds(over_largest).mean,
            "cost_per_1k_at_1": self.over_seeds(lambda result: cost_per_1k_at_1(of(result))).mean,
        }

    def _perturbed(self, name: str, kind: str) -> dict[str, Any]:
        """Say what a learner's choices are worth on prompts written differently."""
        online = self.online(name)
        lost = [
            one.greedy.reward.mean() - one.perturbed[kind].found.reward.mean() for one in online
        ]
        return {
            "choices_kept": SeedMean(
                values=np.array([one.perturbed[kind].kept for one in online])
            ).to_json(),
            "reward_lost": SeedMean(values=np.array(lost)).to_json(),
            "gap_closed": self.gap(
                lambda result: result.learners[name].perturbed[kind].found
            ).to_json(),
        }

    def arm_share(self, name: str) -> dict[str, dict[str, float]]:
        """Return each arm's mean probability, exploration off, by weight on quality."""
        share = np.mean([one.greedy.arm_share for one in self.online(name)], axis=0)
        return {
            f"{point.quality:.1f}": dict(zip(self.arms, row.tolist(), strict=True))
            for point, row in zip(GRID, share, strict=True)
        }

    def monotone(self, name: str) -> bool:
        """Say whether the pmf as served is monotone, over the held-out prompts of all seeds."""
        served = [one.served for one in self.online(name)]
        return is_monotone(
            np.hstack([one.quality for one in served]), np.hstack([one.cost_usd for one in served])
        )

    def _curve(self, name: str) -> dict[str, list[float]]:
        """Return the mean regret of all requests so far, at some points of the stream."""
        at, running = regret_curve(np.array([one.regret for one in self.online(name)]))
        return {"requests": at.tolist(), "mean_regret": running.mean(axis=0).tolist()}


def regret_curve(regret: Array) -> tuple[NDArray[np.int64], Array]:
    """Return numbers of requests, shape (p,), and the mean regret up to each, shape (seeds, p)."""
    length = regret.shape[1]
    at = np.unique(np.linspace(1, length, CURVE_POINTS).astype(np.int64))
    return at, np.cumsum(regret, axis=1)[:, at - 1] / at


def score_at_1(found: Performance) -> float:
    """Return the mean quality where only quality counts."""
    return float(found.quality[-1].mean())


def cost_per_1k_at_1(found: Performance) -> float:
    """Return USD per 1,000 requests where only quality counts."""
    return float(found.cost_usd[-1].mean()) * USD_PER_1K


def means_by_name(results: Sequence[Mapping[str, Performance]]) -> dict[str, tuple[Array, Array]]:
    """Return cost per 1,000 requests, USD, and score over the grid, each (G,), by rule."""
    return {
        name: (
            np.mean([one[name].cost_usd.mean(axis=1) for one in results], axis=0) * USD_PER_1K,
            np.mean([one[name].quality.mean(axis=1) for one in results], axis=0),
        )
        for name in results[0]
    }
