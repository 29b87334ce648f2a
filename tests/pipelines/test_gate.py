"""The gate: unbiased against the truth, careful without evidence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.gate import judge, should_promote, uplift_scores, usable_rows
from policies.arms import Arm, PriceTable
from policies.evaluation import estimate
from policies.interaction import INTERACTION_SCHEMA
from policies.policy import Assessment, assess_one_by_one, mix_exploration
from policies.preference import Preference, preference_grid

TAU_USD = 0.01
PRICES = PriceTable(version=1, arms=(Arm(name="cheap"), Arm(name="dear"), Arm(name="odd")))
LOGGED_AT = Preference(quality=0.7, cost=0.3)
MEAN_COST_USD = np.array([0.001, 0.009, 0.004])


class ScoredPolicy:
    """Prefers arms by a linear score of the context, more of the dear one for quality."""

    kind = "scored"
    context_dim = 4

    def __init__(self, *, seed: int, exploration: float, encoder_id: str = "e") -> None:
        self._weights = np.random.default_rng(seed).normal(size=(4, 3))
        self._exploration = exploration
        self.encoder_id = encoder_id

    def pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Return a softmax over the scores of the arms offered."""
        positions = [PRICES.names.index(arm.name) for arm in offered]
        scores = (context @ self._weights)[positions] + preference.quality * np.array(positions)
        probs = np.exp(scores - scores.max())
        return mix_exploration(probs / probs.sum(), exploration_total=self._exploration)

    def assess(
        self,
        contexts: NDArray[np.float32],
        preferences: Sequence[Preference],
        offered: Sequence[Arm],
    ) -> Assessment:
        """Ask `pmf` for each request."""
        return assess_one_by_one(self.pmf, contexts, preferences, offered)

    def greedy_pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Return the same; no test asks for less."""
        return self.pmf(context, preference, offered)


class World:
    """Full information: the quality and cost of every arm for every prompt."""

    def __init__(self, num_prompts: int, *, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.contexts = rng.normal(size=(num_prompts, 4)).astype(np.float32)
        slopes = np.array([[0.1, -0.1, 0.0], [0.0, 0.1, -0.1], [0.05, 0.0, 0.1], [0.0, 0.05, 0.0]])
        noise = rng.normal(scale=0.1, size=(num_prompts, 3))
        self.quality = np.clip(0.5 + self.contexts @ slopes + noise, 0.0, 1.0)
        self.cost = MEAN_COST_USD * rng.uniform(0.5, 1.5, size=(num_prompts, 3))

    def logged(self, policy: ScoredPolicy, *, seed: int) -> pa.Table:
        """Let a policy decide once a prompt."""
        rng = np.random.default_rng(seed)
        return self.rows(policy, [int(rng.choice(3, p=pmf)) for pmf in self.pmfs(policy)])

    def pmfs(self, policy: ScoredPolicy) -> list[NDArray[np.float64]]:
        """Ask for each prompt's pmf at the preference it was logged under."""
        return [policy.pmf(context, LOGGED_AT, PRICES.arms) for context in self.contexts]

    def rows(self, policy: ScoredPolicy, arms: Sequence[int]) -> pa.Table:
        """Write the log in which these arms were taken."""
        return table(
            *(
                row(
                    number,
                    context=self.contexts[number],
                    pmf=pmf,
                    arm=arm,
                    quality=float(self.quality[number, arm]),
                    cost_usd=float(self.cost[number, arm]),
                )
                for number, (pmf, arm) in enumerate(zip(self.pmfs(policy), arms, strict=True))
            )
        )

    def value(self, policy: ScoredPolicy, grid: Sequence[Preference]) -> float:
        """Return a policy's true mean reward over prompts and grid."""
        scaled = np.minimum(self.cost / TAU_USD, 1.0)
        total = 0.0
        for number, context in enumerate(self.contexts):
            for point in grid:
                reward = point.quality * self.quality[number] - point.cost * scaled[number]
                total += float(policy.pmf(context, point, PRICES.arms) @ reward)
        return total / (len(self.contexts) * len(grid))


def row(
    number: int,
    *,
    context: NDArray[np.float32] | None = None,
    pmf: NDArray[np.float64] | None = None,
    arm: int = 0,
    **columns: object,
) -> dict[str, object]:
    """Make one interaction."""
    pmf = np.full(3, 1 / 3) if pmf is None else pmf
    now = datetime(2026, 11, 23, tzinfo=UTC)
    return {
        "seq": number + 1,
        "revision": 0,
        "decision_id": f"d{number}",
        "decided_at": now,
        "tenant": "t",
        "session": None,
        "prompt_hash": f"p{number}",
        "prompt_characters": 10,
        "w_quality": LOGGED_AT.quality,
        "w_cost": LOGGED_AT.cost,
        "context": np.zeros(4, dtype=np.float32) if context is None else context,
        "encoder_id": "e",
        "arms_offered": list(PRICES.names),
        "pmf": pmf,
        "arm": PRICES.names[arm],
        "propensity": float(pmf[arm]),
        "policy_version": 1,
        "canary_share": 0.0,
        "price_version": 1,
        "quality": 0.5,
        "cost_usd": 0.001,
        "latency_ms": None,
        "matured_at": now,
    } | columns


def table(*rows: dict[str, object]) -> pa.Table:
    """Lay interactions out in columns."""
    return pa.Table.from_pylist(list(rows), schema=INTERACTION_SCHEMA)


CHAMPION = ScoredPolicy(seed=1, exploration=0.3)
CHALLENGER = ScoredPolicy(seed=2, exploration=0.02)


def test_the_uplift_is_unbiased_against_full_information() -> None:
    """Exact, not sampled: every log that could have been, weighed by its chance."""
    world, grid = World(4, seed=0), preference_grid(3)
    truth = world.value(CHALLENGER, grid) - world.value(CHAMPION, grid)
    pmfs = world.pmfs(CHAMPION)

    expected = 0.0
    for arms in itertools.product(range(3), repeat=4):
        scores = uplift_scores(
            CHALLENGER,
            CHAMPION,
            world.rows(CHAMPION, arms),
            {1: PRICES},
            cost_ceiling_usd=TAU_USD,
            grid=grid,
        )
        expected += scores.mean() * math.prod(pmf[arm] for pmf, arm in zip(pmfs, arms, strict=True))

    assert expected == pytest.approx(truth, abs=1e-12)
    assert abs(truth) > 1e-3


def test_the_better_of_two_policies_is_promoted_and_the_worse_is_not() -> None:
    world = World(800, seed=3)
    grid = preference_grid(3)
    better, worse = CHALLENGER, CHAMPION
    if world.value(better, grid) < world.value(worse, grid):
        better, worse = worse, better
    rows = world.logged(ScoredPolicy(seed=5, exploration=0.5), seed=1)

    up = judge(better, worse, rows, {1: PRICES}, cost_ceiling_usd=TAU_USD, grid=grid)
    down = judge(worse, better, rows, {1: PRICES}, cost_ceiling_usd=TAU_USD, grid=grid)

    assert up.promote
    assert not down.promote
    assert up.uplift is not None
    assert down.uplift is not None
    assert up.uplift.mean == pytest.approx(-down.uplift.mean)


def test_a_policy_has_no_uplift_over_itself() -> None:
    rows = World(50, seed=0).logged(CHAMPION, seed=0)

    verdict = judge(CHAMPION, CHAMPION, rows, {1: PRICES}, cost_ceiling_usd=TAU_USD)

    assert verdict.uplift is not None
    assert (verdict.uplift.mean, verdict.uplift.lower, verdict.uplift.upper) == (0.0, 0.0, 0.0)
    assert not verdict.promote


def test_too_few_rows_are_no_evidence() -> None:
    rows = World(29, seed=0).logged(CHAMPION, seed=0)

    verdict = judge(CHALLENGER, CHAMPION, rows, {1: PRICES}, cost_ceiling_usd=TAU_USD)

    assert (verdict.promote, verdict.uplift, verdict.rows) == (False, None, 29)
    assert verdict.reason == "too few held-out decisions: 29 of 30"


def test_the_newest_rows_are_the_ones_scored() -> None:
    rows = World(60, seed=0).logged(CHAMPION, seed=0)
    prices = {1: PRICES}

    verdict = judge(
        CHALLENGER, CHAMPION, rows, prices, cost_ceiling_usd=TAU_USD, min_rows=10, max_rows=40
    )

    newest = judge(
        CHALLENGER, CHAMPION, rows.slice(20), prices, cost_ceiling_usd=TAU_USD, min_rows=10
    )
    assert verdict == newest


def test_policies_of_two_encoders_are_not_compared() -> None:
    stranger = ScoredPolicy(seed=2, exploration=0.1, encoder_id="other")

    verdict = judge(stranger, CHAMPION, table(row(0)), {1: PRICES}, cost_ceiling_usd=TAU_USD)

    assert not verdict.promote
    assert "encoder" in verdict.reason


def test_only_rows_that_can_be_scored_are_used() -> None:
    rows = table(
        row(0),
        row(1, quality=None),
        row(2, cost_usd=None),
        row(3, encoder_id="other"),
        row(4, price_version=9),
        row(5, decision_id="d0", revision=1, quality=0.9),
    )

    usable = usable_rows(rows, {1: PRICES}, encoder_id="e")

    assert usable.column("seq").to_pylist() == [6]


def test_arms_not_offered_take_no_part() -> None:
    """A row that was offered two arms is scored by those two alone."""
    half = np.array([0.5, 0.5])
    rows = table(*(row(n, pmf=half, arms_offered=["cheap", "odd"]) for n in range(10)))

    scores = uplift_scores(CHALLENGER, CHAMPION, rows, {1: PRICES}, cost_ceiling_usd=TAU_USD)

    assert np.isfinite(scores).all()


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=50))
def test_promotion_needs_more_than_the_margin(scores: list[float]) -> None:
    uplift = estimate(np.array(scores))

    assert should_promote(uplift, margin=uplift.mean - 0.1)
    assert not should_promote(uplift, margin=uplift.mean)
