"""What `barp bench quality` is asked for, and every chance of one of its streams drawn ahead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.outcomes import OutcomeTable
from pipelines.replay_plan import DEFAULT_QUALITY_WEIGHT, TYPICAL_SHARE, Stream
from policies.errors import InvalidRequest
from policies.policy import DEFAULT_EXPLORATION_TOTAL

Protocol = Literal["deployment", "simulated"]
ReferenceSet = Literal["all", "bandits", "simple"]
Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# Prompts between two updates of a learner.
UPDATE_EVERY: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityPlan:
    """What to measure.

    Attributes:
        learners: Names of the learners, the default one first.
        protocol: `deployment` shows each training prompt once, `simulated` in every pass again.
        stream: Preferences: `uniform` on [0, 1], or `typical`, 70 % at 0.7.
        seeds: How many runs; each redraws split, order, preferences and draws.
        split: Share of the prompts that is held out, where there is no test file.
        delay: Prompts decided between a decision and its feedback.
        passes: Passes over the training part.
        missing: Share of outcomes that never come; above 0 the delay also depends on the answer.
        holdout_tasks: Tasks left out of training; only their prompts are judged on.
        exploration_total: Probability each learner shares over the arms.
        first_seed: The first of the runs' seeds; settings are chosen on others than are reported.
        settings: Changed settings of learners, as `learner.setting=value`.
        cost_ceiling_usd: tau, USD; None takes the mean cost of the dearest arm in training.
        fresh_draws: Draw anew for each request what a Thompson policy has stored in its version.
    """

    learners: tuple[str, ...]
    protocol: Protocol = "deployment"
    stream: Stream = "uniform"
    seeds: int = 10
    split: float = 0.2
    delay: int = 64
    passes: int = 1
    missing: float = 0.0
    holdout_tasks: tuple[str, ...] = ()
    exploration_total: float = DEFAULT_EXPLORATION_TOTAL
    first_seed: int = 0
    settings: tuple[str, ...] = ()
    cost_ceiling_usd: float | None = None
    fresh_draws: bool = False

    @property
    def run_seeds(self) -> range:
        """The seed of each run."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def __post_init__(self) -> None:
        """Refuse numbers that make no measurement; raises InvalidRequest."""
        _check("seeds", self.seeds, ">= 1", self.seeds >= 1)
        _check("first_seed", self.first_seed, ">= 0", self.first_seed >= 0)
        ceiling = self.cost_ceiling_usd
        given = ceiling is None or 0 < ceiling < math.inf
        _check("cost_ceiling_usd", ceiling, "above 0 USD, finite", given)
        _check("split", self.split, "above 0 and below 1", 0 < self.split < 1)
        _check("delay", self.delay, ">= 0 prompts", self.delay >= 0)
        _check("passes", self.passes, ">= 1", self.passes >= 1)
        _check("missing", self.missing, "at least 0 and below 1", 0 <= self.missing < 1)
        once = self.protocol == "simulated" or self.passes == 1
        _check("passes", self.passes, "1 with protocol deployment, any with simulated", once)


def _check(field: str, value: Any, allowed: str, holds: bool) -> None:
    """Raise InvalidRequest unless it holds."""
    if not holds:
        raise InvalidRequest(
            f"{field}={value} must be {allowed}", field=field, value=value, allowed=allowed
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamDraws:
    """Every chance of one stream of T requests, drawn before the first is decided.

    Attributes:
        rows: Which training prompt each request is, shape (T,).
        w_quality: Its weight on quality, shape (T,).
        uniforms: The random number its arm is drawn with, in [0, 1), shape (T,).
        is_missing: Whether its outcome never comes, shape (T,).
    """

    rows: Indices
    w_quality: Array
    uniforms: Array
    is_missing: NDArray[np.bool_]


def first_requests(draws: StreamDraws, number: int) -> StreamDraws:
    """Cut a stream short."""
    return StreamDraws(
        rows=draws.rows[:number],
        w_quality=draws.w_quality[:number],
        uniforms=draws.uniforms[:number],
        is_missing=draws.is_missing[:number],
    )


def draw_stream(plan: QualityPlan, num_prompts: int, *, seed: int) -> StreamDraws:
    """Draw order, preferences, arms' chances and losses; every learner of a seed meets the same."""
    rng = np.random.default_rng([seed, 1])
    rows = np.concatenate([rng.permutation(num_prompts) for _ in range(plan.passes)])
    w_quality = rng.uniform(size=len(rows))
    if plan.stream == "typical":
        w_quality[rng.uniform(size=len(rows)) < TYPICAL_SHARE] = DEFAULT_QUALITY_WEIGHT
    return StreamDraws(
        rows=rows,
        w_quality=w_quality,
        uniforms=rng.uniform(size=len(rows)),
        is_missing=rng.uniform(size=len(rows)) < plan.missing,
    )


def delays(plan: QualityPlan, table: OutcomeTable) -> Array:
    """Return how many prompts later each arm's outcome comes, shape (n, K).

    With losses, longer answers take longer: twice the rank of the answer's length, or of its cost
    where lengths are not recorded, among all answers, so that the mean stays the same.
    """
    if plan.missing == 0:
        return np.full(table.costs.shape, float(plan.delay))
    known = table.tokens_out is not None and not np.isnan(table.tokens_out).any()
    length = table.tokens_out if known and table.tokens_out is not None else table.costs
    rank = length.ravel().argsort().argsort().reshape(length.shape)
    return np.floor(2.0 * plan.delay * (rank + 0.5) / rank.size)


def split_rows(plan: QualityPlan, table: OutcomeTable, *, seed: int) -> tuple[Indices, Indices]:
    """Part the prompts into training and held out.

    Raises:
        InvalidRequest: A task to leave out does not exist, or nothing is left of a part.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(table))
    tasks = np.array(table.datasets)
    for task in plan.holdout_tasks:
        _check("holdout_tasks", task, f"one of {', '.join(sorted(set(tasks)))}", task in tasks)
    if plan.holdout_tasks:
        left_out = np.isin(tasks[order], plan.holdout_tasks)
        train, test = order[~left_out], order[left_out]
        # Another draw of training prompts for each seed; those left over are of known tasks.
        train = train[: max(1, round(len(train) * (1.0 - plan.split)))]
    else:
        cut = round(len(order) * plan.split)
        test, train = order[:cut], order[cut:]
    _check("split", plan.split, "such that both parts hold a prompt", len(train) * len(test) > 0)
    return train, test
