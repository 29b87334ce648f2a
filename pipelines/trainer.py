"""Retrains from live feedback: new rows, update, judge, register, promote; in that order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa

from pipelines.bootstrap import WHO, cutoff, first_versions, latest_versions, surroundings
from pipelines.events import EventSink
from pipelines.gate import Verdict, judge
from pipelines.lineage import lineage
from pipelines.nomination import held, nominate
from pipelines.rebuild import Rebuilt, rebuild
from pipelines.rows import (
    HeldOut,
    InteractionSource,
    bounded_by_tenant,
    last_seq,
    read_rows,
    split_rows,
)
from pipelines.training import TrainerStatus, TrainingPlan, TrainingResult
from pipelines.training_ports import RegistryPort
from pipelines.training_trace import trace_training
from policies.arms import PriceTable
from policies.artifact import PolicyArtifact
from policies.events import EventKind
from policies.learners import load_policy
from policies.learning import Learner
from policies.tracing import Tracing
from policies.versions import VersionInfo

logger = logging.getLogger(__name__)


class Trainer:
    """Makes the next version of each learner's policy. Not for several threads at once.

    Args:
        learners: Who learns; the first one's initial version is the first champion.
        source: Where interactions and prices are read.
        registry: Where versions are kept.
        plan: What to train, and when.
        code: The code's version, for the lineage.
        clock: Seconds since the epoch, UTC.
        events: Told of versions made, verdicts and failures.
        tracing: Told of trainings, with links to the newest decisions learned from.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        *,
        source: InteractionSource,
        registry: RegistryPort,
        plan: TrainingPlan,
        code: str,
        clock: Callable[[], float],
        events: EventSink,
        tracing: Tracing | None = None,
    ) -> None:
        self._events, self._tracing = events, tracing
        self._learners, self._source, self._registry = tuple(learners), source, registry
        self._plan, self._code, self._clock = plan, code, clock
        self._heldout = HeldOut(share=plan.holdout_share)
        self._trained_at = clock()
        self.status = TrainerStatus()

    def bootstrap(self) -> None:
        """See to it that each learner has a version and that one serves; then do nothing.

        Raises:
            Unavailable: Registry or keeper is away.
        """
        latest = first_versions(self._learners, self._registry, self._source, self._plan)
        cutoffs = [cutoff(version) for version in latest.values()]
        self.status.trained_to_seq = max([self.status.trained_to_seq, *cutoffs])

    def due(self) -> bool:
        """Say whether enough is new: by count, or by age with at least one; raises Unavailable."""
        new = self._source.last_seq() - self.status.trained_to_seq
        self.status.new_interactions = new
        old = self._clock() - self._trained_at >= self._plan.max_age_s
        return new >= self._plan.min_interactions or (new > 0 and old)

    def train(self) -> list[TrainingResult]:
        """Train every learner on what it has not seen; promote the best that the gate lets through.

        A learner that fails is counted and left out; its rows wait for its next turn.

        Raises:
            Unavailable: Registry or keeper is away.
        """
        newest = self._source.last_seq()
        self._heldout.refresh(self._source)
        latest = self._latest_versions()
        champion = self._registry.champion()
        results: list[TrainingResult] = []
        for learner in self._learners:
            try:
                results += self._train_learner(learner, latest[learner.kind], newest, champion)
            except Exception as error:
                logger.exception("learner %s failed", learner.kind)
                self.status.failed(learner.kind, error)
                why = self.status.last_failures[learner.kind]
                self._events.emit(EventKind.TRAINING_FAILED, who=WHO, why=why, learner=learner.kind)
        self.status.held = self.held()
        results = nominate(
            results, self._registry, self._plan, champion=champion, held=self.status.held
        )
        self._note(results, newest)
        return results

    def rebuild(self, version: int, learners: Sequence[Learner]) -> Rebuilt:
        """Make a version again from its lineage; see `pipelines.rebuild.rebuild`."""
        return rebuild(version, store=self._registry, source=self._source, learners=learners)

    def _train_learner(
        self, learner: Learner, parent: VersionInfo, up_to_seq: int, champion: int | None
    ) -> list[TrainingResult]:
        """Make, judge and register one version; none where nothing is new."""
        after_seq = cutoff(parent)
        read = read_rows(self._source, after_seq=after_seq, up_to_seq=up_to_seq)
        rows, _ = split_rows(read, share=self._plan.holdout_share)
        rows = bounded_by_tenant(rows, max_share=self._plan.max_tenant_share)
        if not len(rows):
            return []
        began = self._clock()
        updated = learner.update(self._registry.artifact(parent.version), rows, self._prices(rows))
        duration_s = self._clock() - began
        training = lineage(
            rows,
            parent_version=parent.version,
            after_seq=after_seq,
            last_seq=last_seq(read),
            holdout_share=self._plan.holdout_share,
            max_tenant_share=self._plan.max_tenant_share,
            num_learners=self._plan.num_learners,
            seed=self._plan.seed,
            trained_at=began,
            duration_s=duration_s,
            code_version=self._code,
        )
        around = surroundings(self._plan, self._source.prices())
        artifact = replace(updated, training={**updated.training, **around, **training})
        verdict = self._worded(self._judge(artifact, champion))
        tags = {"verdict": verdict.reason, "judged_against": str(champion)}
        version = self._registry.register(artifact, _metrics(verdict, rows, duration_s), tags)
        result = TrainingResult(
            kind=learner.kind,
            version=version,
            rows=len(rows),
            duration_s=duration_s,
            verdict=verdict,
            promoted=False,
        )
        logger.info("version %d of %s: %s", version, learner.kind, verdict.reason)
        self._tell(result, parent_version=parent.version, judged_against=champion)
        if self._tracing is not None:
            trace_training(self._tracing, result, rows, began_s=began, ended_s=self._clock())
        return [result]

    def _tell(
        self, result: TrainingResult, *, parent_version: int, judged_against: int | None
    ) -> None:
        """Make a training and its verdict events."""
        uplift = result.verdict.uplift
        self._events.emit(
            EventKind.TRAINING,
            who=WHO,
            why=f"{result.rows} new interactions",
            version=result.version,
            learner=result.kind,
            parent_version=parent_version,
            rows=result.rows,
            duration_s=round(result.duration_s, 3),
        )
        self._events.emit(
            EventKind.VERDICT,
            who="gate",
            why=result.verdict.reason,
            version=result.version,
            learner=result.kind,
            promote=result.verdict.promote,
            judged_against=judged_against,
            uplift=None if uplift is None else uplift.mean,
            decisions=result.verdict.rows,
        )

    def _judge(self, artifact: PolicyArtifact, champion: int | None) -> Verdict:
        """Let the gate compare a new policy with the champion."""
        if champion is None:
            return Verdict(promote=False, uplift=None, rows=0, reason="no champion to compare with")
        heldout, serving = self._heldout.rows, self._registry.artifact(champion)
        # More data is the tie-breaker: estimates of two versions of one learner differ by noise.
        tolerance = self._plan.tolerance if serving.kind == artifact.kind else 0.0
        return judge(
            load_policy(artifact),
            load_policy(serving),
            heldout,
            self._prices(heldout),
            cost_ceiling_usd=self._plan.cost_ceiling_usd,
            margin=-tolerance,
        )

    def _worded(self, verdict: Verdict) -> Verdict:
        """Say of an estimate that promotes nothing that it is one."""
        if not self._plan.on_evidence and self._plan.apprentice is None:
            return verdict
        reason = f"estimate on held-out decisions, which promotes nothing here: {verdict.reason}"
        return replace(verdict, promote=False, reason=reason)

    def held(self) -> str | None:
        """Say why nothing may be promoted by itself for now; see `nomination.held`."""
        return held(self._registry.last_move(), self._plan, now=self._clock())

    def _note(self, results: Sequence[TrainingResult], newest: int) -> None:
        """Remember how far this training came, so that the next one waits for more.

        Where no version was made that is `newest`: asking again at once would change nothing.
        """
        latest = self._latest_versions()
        read_to = (cutoff(latest[result.kind]) for result in results)
        self.status.trained_to_seq = max(read_to, default=newest)
        self.status.heldout_rows = len(self._heldout.rows)
        self.status.last_result = tuple(results)
        self.status.trainings += 1
        self._trained_at = self._clock()

    def _latest_versions(self) -> dict[str, VersionInfo]:
        """Return the newest version of each kind that training may go on from."""
        return latest_versions(self._registry, self._plan.encoder_id)

    def _prices(self, rows: pa.Table) -> dict[int, PriceTable]:
        """Read the price tables that rows name."""
        return self._source.price_history(rows.column("price_version").unique().to_pylist())


def _metrics(verdict: Verdict, rows: pa.Table, duration_s: float) -> dict[str, float]:
    """List the numbers that MLflow shows beside a version."""
    metrics = {"rows": len(rows), "duration_s": duration_s, "heldout_rows": verdict.rows}
    if verdict.uplift is not None:
        uplift = verdict.uplift
        metrics |= {"uplift": uplift.mean, "uplift_lower": uplift.lower}
        metrics |= {"uplift_upper": uplift.upper}
    return metrics
