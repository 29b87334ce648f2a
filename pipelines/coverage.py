"""How often the intervals of off-policy estimates hold the truth, where the truth is known.

One repetition draws prompts with replacement from a pool that the target policy was not trained
on, and preferences and arms anew under a fixed logging policy; the truth is the mean over the
pool. With the prompts held fixed an interval that counts their variance would cover always.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.contenders import PRICE_VERSION, Contender, LearnerContender
from pipelines.learner_settings import learner_named
from pipelines.quality import GRID, EncodedOutcomes, contender_of, prepared
from pipelines.quality_plan import QualityPlan, StreamDraws, delays, first_requests, split_rows
from pipelines.quality_stream import TrainingPart, play
from policies.evaluation import (
    ESTIMATORS,
    MIN_ESS,
    Estimate,
    LoggedRows,
    evaluate_as_asked,
    evaluate_on_grid,
    preference_regions,
)
from policies.learning import LearnerSpec
from policies.performance import choices_of
from policies.projection import features, fit_projection
from policies.reward import scaled_cost

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
# What is being done, steps done, steps in all.
Progress = Callable[[str, int, int], None]

FOLDS: Final = 5
MODEL_COMPONENTS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CoveragePlan:
    """What to repeat, and how often.

    Attributes:
        learner: The target is what it learned from one half of the prompts, the logging policy
            what it had learned halfway.
        repetitions: How many logs are drawn.
        rows: Interactions in each.
        learning_repetitions: How many logs are written by the learner as it learns, from nothing.
        explorations: Shares of the logging policy's requests that are spread evenly.
        seed: Of the split and of all draws.
    """

    learner: str = "posterior"
    repetitions: int = 400
    rows: int = 1_000
    learning_repetitions: int = 0
    explorations: tuple[float, ...] = (0.2, 0.05)
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The prompts that logs are drawn from: n of them, K arms, G preferences.

    Attributes:
        features: What the reward model sees, shape (n, features).
        outcomes: Quality and minus scaled cost, shape (n, K, 2).
        target: The target's pmf, shape (G, n, K).
        logging: The logging policy's choice before exploration, shape (G, n, K).
        stream: The same prompts as something to route, for a log that a learner writes.
        n_train: Prompts that target and logging policy were trained on, none of the pool's.
        cost_ceiling_usd: tau, USD.
    """

    features: Array
    outcomes: Array
    target: Array
    logging: Array
    stream: TrainingPart
    n_train: int
    cost_ceiling_usd: float

    def truth(self) -> dict[str, float]:
        """Return the target's true mean reward by region, each preference as likely as another."""
        trade_offs = np.array([[point.quality, point.cost] for point in GRID])
        rewards = np.einsum("nko,go->gnk", self.outcomes, trade_offs)
        at_each = (self.target * rewards).sum(axis=2).mean(axis=1)
        regions = preference_regions(trade_offs[:, 0])
        return {name: float(at_each[points].mean()) for name, points in regions.items()}


def make_pool(plan: CoveragePlan, outcomes: EncodedOutcomes) -> Pool:
    """Train target and logging policy on one half of the prompts; the other half is the pool."""
    learner = learner_named(plan.learner)
    run = prepared(QualityPlan(learners=(plan.learner,), split=0.5), outcomes, None, seed=plan.seed)
    target, logging = (contender_of(plan.learner, learner, run) for _ in range(2))
    play(target, run.part, run.draws)
    play(logging, run.part, first_requests(run.draws, len(run.draws.rows) // 2))
    held_out = run.held_out
    scaled = scaled_cost(held_out.costs, cost_ceiling_usd=held_out.cost_ceiling_usd)
    centre, projection = fit_projection(run.part.contexts, components=MODEL_COMPONENTS)
    _, rows = split_rows(run.plan, outcomes.table, seed=plan.seed)
    table = outcomes.table.take(rows)
    return Pool(
        features=features(held_out.contexts, centre, projection)[:, 1:],
        outcomes=np.stack([held_out.scores, -scaled], axis=2),
        target=choices_of(target.pmf, held_out, GRID),
        logging=choices_of(logging.greedy_pmf, held_out, GRID),
        stream=replace(
            run.part,
            table=replace(table, sample_ids=tuple(str(row) for row in range(len(table)))),
            contexts=held_out.contexts,
            delays=delays(run.plan, table),
        ),
        n_train=len(run.part.table),
        cost_ceiling_usd=held_out.cost_ceiling_usd,
    )


def run_coverage(
    plan: CoveragePlan,
    outcomes: EncodedOutcomes,
    *,
    progress: Progress = lambda step, done, total: None,
) -> dict[str, Any]:
    """Repeat, and return the object that `barp bench coverage --json` prints."""
    pool = make_pool(plan, outcomes)
    truth = pool.truth()
    found = {}
    for exploration in plan.explorations:
        step, asked, on_grid = f"exploration {exploration:.0%}", [], []
        for repetition in range(plan.repetitions):
            rng = np.random.default_rng([plan.seed, repetition])
            drawn = draw_log(pool, plan.rows, exploration_total=exploration, rng=rng)
            asked.append(evaluate_as_asked(drawn.target_as_asked, drawn.log, drawn.w_quality))
            on_grid.append(evaluate_on_grid(drawn.target, drawn.log, GRID))
            progress(step, repetition + 1, plan.repetitions)
        found[f"{exploration:g}"] = {
            "as_asked": summary(asked, truth),
            "on_grid": summary(on_grid, truth),
        }
        if plan.learning_repetitions:
            learned = []
            for repetition in range(plan.learning_repetitions):
                rng = np.random.default_rng([plan.seed, repetition, 1])
                drawn = write_log(plan, pool, exploration_total=exploration, rng=rng)
                learned.append(evaluate_as_asked(drawn.target_as_asked, drawn.log, drawn.w_quality))
                progress(f"{step}, learning", repetition + 1, plan.learning_repetitions)
            found[f"{exploration:g}"]["learning_log"] = summary(learned, truth)
    return {
        "n_train": pool.n_train,
        "n_pool": len(pool.features),
        "arms": list(outcomes.table.arms),
        "encoder": outcomes.encoder_id,
        "tau": pool.cost_ceiling_usd,
        "learner": plan.learner,
        "repetitions": plan.repetitions,
        "rows": plan.rows,
        "truth": truth,
        "explorations": found,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnLog:
    """One repetition's log and what the target would do on it.

    Attributes:
        log: The interactions, n of them.
        w_quality: Weight on quality of each, shape (n,).
        target: The target's pmf at each preference of the grid, shape (G, n, K).
        target_as_asked: At each row's own, shape (n, K).
    """

    log: LoggedRows
    w_quality: Array
    target: Array
    target_as_asked: Array


def draw_log(
    pool: Pool, rows: int, *, exploration_total: float, rng: np.random.Generator
) -> DrawnLog:
    """Draw prompts, preferences and arms under the logging policy."""
    num_points, num_prompts, num_arms = pool.target.shape
    prompts = rng.integers(num_prompts, size=rows)
    asked = rng.integers(num_points, size=rows)
    pmf = (1.0 - exploration_total) * pool.logging[asked, prompts] + exploration_total / num_arms
    below = pmf.cumsum(axis=1) <= rng.uniform(size=(rows, 1))
    arm = np.minimum(below.sum(axis=1), num_arms - 1)
    log = LoggedRows(
        contexts=pool.features[prompts],
        arm=arm,
        propensity=pmf[np.arange(rows), arm],
        outcomes=pool.outcomes[prompts, arm],
        folds=prompts % FOLDS,
    )
    return DrawnLog(
        log=log,
        w_quality=np.array([GRID[point].quality for point in asked]),
        target=pool.target[:, prompts],
        target_as_asked=pool.target[asked, prompts],
    )


class _Recorder:
    """A learner's run that keeps every interaction it is taught."""

    def __init__(self, contender: Contender) -> None:
        self._contender, self.rows = contender, list[pa.Table]()
        self.pmf, self.greedy_pmf = contender.pmf, contender.greedy_pmf

    def learn(self, rows: pa.Table) -> None:
        """Keep the rows and hand them on."""
        self.rows.append(rows)
        self._contender.learn(rows)


def write_log(
    plan: CoveragePlan, pool: Pool, *, exploration_total: float, rng: np.random.Generator
) -> DrawnLog:
    """Let the learner write the log while it learns; reported only, no promise covers it."""
    asked = rng.integers(len(GRID), size=plan.rows)
    w_quality = np.array([GRID[point].quality for point in asked])
    draws = StreamDraws(
        rows=rng.integers(len(pool.features), size=plan.rows),
        w_quality=w_quality,
        uniforms=rng.uniform(size=plan.rows),
        is_missing=np.zeros(plan.rows, dtype=np.bool_),
    )
    spec = LearnerSpec(
        arms=pool.stream.arms,
        encoder_id=pool.stream.encoder_id,
        context_dim=pool.stream.contexts.shape[1],
        cost_ceiling_usd=pool.cost_ceiling_usd,
        exploration_total=exploration_total,
        price_version=PRICE_VERSION,
    )
    recorder = _Recorder(LearnerContender(learner_named(plan.learner), spec))
    play(recorder, pool.stream, draws)
    rows = pa.concat_tables(recorder.rows)
    numbers = rows["decision_id"].cast(pa.int64()).to_numpy()
    prompts = rows["prompt_hash"].cast(pa.int64()).to_numpy()
    index = {name: arm for arm, name in enumerate(pool.stream.table.arms)}
    arm = np.array([index[name] for name in rows["arm"].to_pylist()])
    log = LoggedRows(
        contexts=pool.features[prompts],
        arm=arm,
        propensity=rows["propensity"].to_numpy(),
        outcomes=pool.outcomes[prompts, arm],
        folds=prompts % FOLDS,
    )
    return DrawnLog(
        log=log,
        w_quality=w_quality[numbers],
        target=pool.target[:, prompts],
        target_as_asked=pool.target[asked[numbers], prompts],
    )


def summary(
    repeated: Sequence[Mapping[str, Mapping[str, Estimate]]], truth: Mapping[str, float]
) -> dict[str, dict[str, dict[str, float]]]:
    """Compare the estimates of all repetitions with the truth, by region and estimator."""
    return {
        region: {
            name: _against([one[region][name] for one in repeated], value) for name in ESTIMATORS
        }
        for region, value in truth.items()
    }


def _against(estimates: Sequence[Estimate], truth: float) -> dict[str, float]:
    """Say how often the truth was covered, and how far off the estimates were."""
    means = np.array([one.mean for one in estimates])
    covered = [one.lower <= truth <= one.upper for one in estimates]
    return {
        "coverage": float(np.mean(covered)),
        "bias": float(means.mean() - truth),
        "rmse": float(np.sqrt(((means - truth) ** 2).mean())),
        "mean_width": float(np.mean([one.upper - one.lower for one in estimates])),
        "mean_ess": float(np.mean([one.ess for one in estimates])),
        "untrusted_share": float(np.mean([one.ess < MIN_ESS for one in estimates])),
    }
