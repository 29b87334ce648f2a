"""The routing benchmark: learners beside every reference, on recorded outcomes, over seeds.

For each seed: part the prompts, play one stream to each contender, judge what it learned on the
held-out prompts. METHOD's protocols and metrics; what is printed of them is in `quality_report`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.contenders import PRICE_VERSION, Contender, LearnerContender
from pipelines.learner_settings import learner_named
from pipelines.outcomes import OutcomeTable, arms_with_prices
from pipelines.paretobandit import ParetoBanditContender
from pipelines.quality_plan import (
    QualityPlan,
    ReferenceSet,
    StreamDraws,
    delays,
    draw_stream,
    split_rows,
)
from pipelines.quality_stream import TrainingPart, play
from policies.bandits import BANDITS, BanditLearner, BanditSettings
from policies.errors import InvalidRequest
from policies.learning import Learner, LearnerSpec
from policies.performance import Performance, best_choices, choices_of, performance
from policies.predictors import FullInformation, predictions
from policies.preference import preference_grid
from policies.references import HeldOut, fixed_choices
from policies.reward import scaled_cost

Array = NDArray[np.float64]
Contexts = NDArray[np.float32]
# What is being done, steps done, steps in all.
Progress = Callable[[str, int, int], None]

GRID: Final = preference_grid()
PARETOBANDIT: Final = "paretobandit"
BANDIT_LEARNERS: Final[Mapping[str, Learner]] = {
    **{kind: BanditLearner(kind) for kind in BANDITS},
    # With what it lacks, products of preference and prompt, and the penalty of least regret.
    "linucb_crossed": BanditLearner("linucb", BanditSettings(crossed=True, ridge=10.0)),
}
PEERS: Final = (*BANDIT_LEARNERS, PARETOBANDIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedOutcomes:
    """Recorded outcomes with their prompts encoded.

    Attributes:
        table: The outcomes, n prompts and K arms.
        contexts: Float32, shape (n, context_dim).
        encoder_id: Which encoder made them.
        perturbed: Contexts of the same prompts written differently, by the way they are.
    """

    table: OutcomeTable
    contexts: Contexts
    encoder_id: str
    perturbed: Mapping[str, Contexts] = field(default_factory=dict)

    def take(self, rows: NDArray[np.int64]) -> EncodedOutcomes:
        """Keep some prompts."""
        return replace(
            self,
            table=self.table.take(rows),
            contexts=self.contexts[rows],
            perturbed={name: contexts[rows] for name, contexts in self.perturbed.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbedResult:
    """What became of choices, exploration off, on prompts written differently.

    Attributes:
        kept: Share of choices that stayed, over preferences and prompts.
        found: What they earned.
    """

    kept: float
    found: Performance


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineResult:
    """What one contender did in one seed.

    Attributes:
        regret: Of each request of its stream, shape (T,).
        greedy: What it had learned, exploration off, on the held-out prompts.
        served: The pmf as served there.
        perturbed: Choices on the same prompts written differently, by the way they are.
    """

    regret: Array
    greedy: Performance
    served: Performance
    perturbed: Mapping[str, PerturbedResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult:
    """Everything measured in one seed.

    Attributes:
        n_train: Training prompts.
        n_test: Held-out prompts.
        cost_ceiling_usd: tau, the mean cost of the dearest arm in the training part, USD.
        references: Rules that saw every outcome, or none, by name.
        peers: Bandits that learned online, by name.
        learners: Ours, by name.
    """

    n_train: int
    n_test: int
    cost_ceiling_usd: float
    references: Mapping[str, Performance]
    peers: Mapping[str, OnlineResult]
    learners: Mapping[str, OnlineResult]


def run_quality(
    plan: QualityPlan,
    train: EncodedOutcomes,
    test: EncodedOutcomes | None = None,
    *,
    references: ReferenceSet = "all",
    progress: Progress = lambda step, done, total: None,
) -> list[SeedResult]:
    """Measure, one result a seed.

    Args:
        plan: What to measure.
        train: What streams and training parts are drawn from.
        test: What to judge on instead of a part held out; the same arms in the same order.
        references: `bandits` leaves out full-information routers, `simple` peers too: most of the
            time.
        progress: Told each step.

    Raises:
        InvalidRequest: A learner or task that does not exist, or test outcomes of other arms.
    """
    learners = {name: learner_named(name, plan.settings) for name in plan.learners}
    if test is not None and test.table.arms != train.table.arms:
        raise InvalidRequest(
            f"test={', '.join(test.table.arms)} must hold the models of the training file",
            field="test",
            allowed=", ".join(train.table.arms),
        )
    peers = () if references == "simple" else PEERS
    names = [*peers, *learners]
    total = plan.seeds * (1 + len(names))
    results = []
    for run_number, seed in enumerate(plan.run_seeds):
        done = run_number * (1 + len(names))
        progress(f"seed {seed}: references", done, total)
        run = prepared(plan, train, test, seed=seed)
        found = _references(run, references)
        online = {}
        for number, name in enumerate(names, start=1):
            progress(f"seed {seed}: {name}", done + number, total)
            online[name] = _online(run, contender_of(name, learners.get(name), run))
        results.append(
            SeedResult(
                n_train=len(run.part.table),
                n_test=len(run.held_out.scores),
                cost_ceiling_usd=run.held_out.cost_ceiling_usd,
                references=found,
                peers={name: online[name] for name in peers},
                learners={name: online[name] for name in learners},
            )
        )
    progress("done", total, total)
    return results


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedRun:
    """One seed's parts and stream.

    Attributes:
        seed: The seed.
        plan: What is measured.
        part: What streams are made of.
        held_out: What is judged on.
        held_out_tasks: The tasks of its prompts, shape (n,).
        perturbed: Its contexts where the prompts are written differently.
        draws: Every chance of the stream.
    """

    seed: int
    plan: QualityPlan
    part: TrainingPart
    held_out: HeldOut
    held_out_tasks: tuple[str, ...]
    perturbed: Mapping[str, Contexts]
    draws: StreamDraws


def prepared(
    plan: QualityPlan, train: EncodedOutcomes, test: EncodedOutcomes | None, *, seed: int
) -> SeedRun:
    """Part the prompts, draw the stream; prices, and tau unless given, are the training part's."""
    if test is None:
        train_rows, test_rows = split_rows(plan, train.table, seed=seed)
        train, test = train.take(train_rows), train.take(test_rows)
    arms = arms_with_prices(train.table)
    ceiling_usd = plan.cost_ceiling_usd or float(train.table.costs.mean(axis=0).max())
    return SeedRun(
        seed=seed,
        plan=plan,
        part=TrainingPart(
            table=train.table,
            contexts=train.contexts,
            encoder_id=train.encoder_id,
            arms=arms,
            cost_ceiling_usd=ceiling_usd,
            delays=delays(plan, train.table),
        ),
        held_out=HeldOut(
            contexts=test.contexts,
            scores=test.table.scores,
            costs=test.table.costs,
            arms=arms,
            cost_ceiling_usd=ceiling_usd,
        ),
        held_out_tasks=test.table.datasets,
        perturbed=test.perturbed,
        draws=draw_stream(plan, len(train.table), seed=seed),
    )


def _references(run: SeedRun, which: ReferenceSet) -> dict[str, Performance]:
    """Judge every rule that learns nothing online."""
    table, held_out = run.part.table, run.held_out
    choices = fixed_choices(held_out, table.scores, table.costs, GRID, seed=run.seed)
    if which == "all":
        full = FullInformation(
            contexts=run.part.contexts,
            quality=table.scores,
            scaled_cost=scaled_cost(table.costs, cost_ceiling_usd=held_out.cost_ceiling_usd),
            tasks=np.array(table.datasets),
        )
        tasks = np.array(run.held_out_tasks)
        found = predictions(full, held_out.contexts, tasks, GRID, seed=run.seed)
        choices |= {name: best_choices(*outcomes, GRID) for name, outcomes in found.items()}
    return {name: performance(choice, held_out, GRID) for name, choice in choices.items()}


def contender_of(name: str, learner: Learner | None, run: SeedRun) -> Contender:
    """Make a peer, or a learner's run."""
    context_dim = run.part.contexts.shape[1]
    if name == PARETOBANDIT:
        return ParetoBanditContender(run.part.arms, context_dim=context_dim, seed=run.seed)
    spec = LearnerSpec(
        arms=run.part.arms,
        encoder_id=run.part.encoder_id,
        context_dim=context_dim,
        cost_ceiling_usd=run.part.cost_ceiling_usd,
        exploration_total=run.plan.exploration_total,
        price_version=PRICE_VERSION,
        seed=run.seed,
    )
    if learner is None:
        return LearnerContender(BANDIT_LEARNERS[name], spec)
    return LearnerContender(learner, spec, fresh_draws=run.plan.fresh_draws)


def _online(run: SeedRun, contender: Contender) -> OnlineResult:
    """Play the stream, then judge what was learned."""
    regret = play(contender, run.part, run.draws)
    held_out = run.held_out
    choices, served = (
        choices_of(pmf, held_out, GRID) for pmf in (contender.greedy_pmf, contender.pmf)
    )
    return OnlineResult(
        regret=regret,
        greedy=performance(choices, held_out, GRID),
        served=performance(served, held_out, GRID),
        perturbed={
            name: _perturbed(contender, replace(held_out, contexts=contexts), choices)
            for name, contexts in run.perturbed.items()
        },
    )


def _perturbed(contender: Contender, held_out: HeldOut, before: Array) -> PerturbedResult:
    """Choose again on other contexts of the same prompts."""
    after = choices_of(contender.greedy_pmf, held_out, GRID)
    return PerturbedResult(
        kept=float(np.minimum(before, after).sum(axis=2).mean()),
        found=performance(after, held_out, GRID),
    )
