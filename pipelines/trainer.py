"""Retrains from live feedback: new rows, update, judge, register, promote; in that order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import pyarrow as pa

from pipelines.comparison import AGAINST, FINDING
from pipelines.events import EventSink
from pipelines.gate import Verdict, judge
from pipelines.lineage import lineage
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
from policies.arms import PriceTable
from policies.artifact import PolicyArtifact
from policies.errors import Conflict
from policies.events import EventKind
from policies.learners import load_policy
from policies.learning import Learner, LearnerSpec
from policies.versions import CHALLENGER, QUARANTINED, AliasMove, VersionInfo

logger = logging.getLogger(__name__)

WHO: Final = "trainer"


class RegistryPort(Protocol):
    """Where versions are kept. Every method raises Unavailable."""

    def register(
        self, artifact: PolicyArtifact, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> int:
        """Store a version; return its number."""

    def challenge(self, version: int) -> None:
        """Point the alias `challenger` at a version."""

    def promote(self, version: int, *, who: str, why: str, instead_of: int | None) -> AliasMove:
        """Make a version the champion; raises Conflict where `instead_of` is not it any more."""

    def last_move(self) -> AliasMove | None:
        """Return the newest move of the champion."""

    def versions(self) -> list[VersionInfo]:
        """List versions, newest first."""

    def artifact(self, version: int) -> PolicyArtifact:
        """Read a version's policy; raises ArtifactError."""

    def champion(self) -> int | None:
        """Return the version that serves."""


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
    ) -> None:
        self._events = events
        self._learners, self._source, self._registry = tuple(learners), source, registry
        self._plan, self._code, self._clock = plan, code, clock
        self._heldout = HeldOut(share=plan.holdout_share)
        self._trained_at = clock()
        self.status = TrainerStatus()

    def bootstrap(self) -> None:
        """See to it that each learner has a version and that one serves; then do nothing.

        A service that was given another encoder goes on with the newest version of that one: what
        was learned from other contexts fits nothing here.

        Raises:
            Unavailable: Registry or aggregator is away.
        """
        latest = self._latest_versions()
        for learner in self._learners:
            if learner.kind not in latest:
                prices = self._source.prices()
                initial = learner.initial(self._spec(prices))
                untrained = replace(initial, training=self._surroundings(prices))
                version = self._registry.register(untrained, {}, {})
                logger.info("version %d: first of %s", version, learner.kind)
        latest = self._latest_versions()
        champion = self._registry.champion()
        if champion is None or champion not in {one.version for one in self._fitting()}:
            why = "first champion: nothing is learned yet"
            if champion is not None:
                why = f"version {champion} does not fit encoder {self._plan.encoder_id}"
            first = latest[self._learners[0].kind].version
            self._registry.promote(first, who=WHO, why=why, instead_of=None)
        cutoffs = [_cutoff(version) for version in latest.values()]
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
            Unavailable: Registry or aggregator is away.
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
        results = self._promote_best(results, champion)
        self._note(results, newest)
        return results

    def rebuild(self, version: int, learners: Sequence[Learner]) -> Rebuilt:
        """Make a version again from its lineage; see `pipelines.rebuild.rebuild`."""
        return rebuild(version, store=self._registry, source=self._source, learners=learners)

    def _train_learner(
        self, learner: Learner, parent: VersionInfo, up_to_seq: int, champion: int | None
    ) -> list[TrainingResult]:
        """Make, judge and register one version; none where nothing is new."""
        after_seq = _cutoff(parent)
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
        surroundings = self._surroundings(self._source.prices())
        artifact = replace(updated, training={**updated.training, **surroundings, **training})
        verdict = self._judge(artifact, champion)
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

    def _promote_best(
        self, results: list[TrainingResult], champion: int | None
    ) -> list[TrainingResult]:
        """Name the best one challenger; promote it if the gate lets it through."""
        judged = [result for result in results if result.verdict.uplift is not None]
        if not judged:
            return results
        best = max(judged, key=_uplift)
        self.status.held = self.held()
        if self._plan.on_evidence:
            self._name_challenger(best, champion)
            return results
        self._registry.challenge(best.version)
        if not best.verdict.promote or self.status.held is not None:
            return results
        why = best.verdict.reason
        try:
            self._registry.promote(best.version, who=WHO, why=why, instead_of=champion)
        except Conflict as error:
            # Somebody moved the champion while we trained: the verdict is about another one.
            logger.info("not promoted: %s", error)
            return results
        return [replace(one, promoted=one is best) for one in results]

    def _name_challenger(self, best: TrainingResult, champion: int | None) -> None:
        """Name who is tried next, unless one is named that was not judged yet."""
        for one in self._registry.versions():
            waits = CHALLENGER in one.aliases and one.version != champion
            judged = FINDING in one.tags and one.tags.get(AGAINST) == str(champion)
            if waits and not judged and one.tags.get(QUARANTINED) != "true":
                return
        self._registry.challenge(best.version)

    def held(self) -> str | None:
        """Say why nothing may be promoted: somebody went back lately, and their word stands."""
        last = self._registry.last_move()
        if last is None or last.who == WHO or last.version >= (last.previous or 0):
            return None
        until = datetime.fromisoformat(last.at).timestamp() + self._plan.rollback_hold_s
        if self._clock() >= until:
            return None
        ends = datetime.fromtimestamp(until, tz=UTC).isoformat(timespec="seconds")
        return f"{last.who} went back to version {last.version}; held until {ends}"

    def _note(self, results: Sequence[TrainingResult], newest: int) -> None:
        """Remember how far this training came, so that the next one waits for more.

        Where no version was made that is `newest`: asking again at once would change nothing.
        """
        latest = self._latest_versions()
        read_to = (_cutoff(latest[result.kind]) for result in results)
        self.status.trained_to_seq = max(read_to, default=newest)
        self.status.heldout_rows = len(self._heldout.rows)
        self.status.last_result = tuple(results)
        self.status.trainings += 1
        self._trained_at = self._clock()

    def _latest_versions(self) -> dict[str, VersionInfo]:
        """Return the newest version of each kind that fits and is not in quarantine."""
        usable = [one for one in self._fitting() if one.tags.get(QUARANTINED) != "true"]
        return {version.kind: version for version in reversed(usable)}

    def _fitting(self) -> list[VersionInfo]:
        """List the versions of this service's encoder, newest first."""
        encoder_id = self._plan.encoder_id
        return [
            one for one in self._registry.versions() if one.tags.get("encoder_id") == encoder_id
        ]

    def _prices(self, rows: pa.Table) -> dict[int, PriceTable]:
        """Read the price tables that rows name."""
        return self._source.price_history(rows.column("price_version").unique().to_pylist())

    def _surroundings(self, prices: PriceTable) -> dict[str, Any]:
        """Note what a version needs beside itself to answer prompts outside of the service."""
        return {"encoder_dir": self._plan.encoder_dir, "prices": prices.to_json()}

    def _spec(self, prices: PriceTable) -> LearnerSpec:
        """Say what a first version is made from: the arms and prices of now."""
        plan = self._plan
        return LearnerSpec(
            arms=prices.arms,
            encoder_id=plan.encoder_id,
            context_dim=plan.context_dim,
            cost_ceiling_usd=plan.cost_ceiling_usd,
            exploration_total=plan.exploration_total,
            price_version=prices.version,
            seed=plan.seed,
        )


def _cutoff(version: VersionInfo) -> int:
    """Return the last sequence number that a version has read, 0 for one that learned nothing."""
    return int(version.tags.get("last_seq", 0))


def _uplift(result: TrainingResult) -> float:
    """Order results by what the gate estimated."""
    uplift = result.verdict.uplift
    return float("-inf") if uplift is None else uplift.mean


def _metrics(verdict: Verdict, rows: pa.Table, duration_s: float) -> dict[str, float]:
    """List the numbers that MLflow shows beside a version."""
    metrics = {"rows": len(rows), "duration_s": duration_s, "heldout_rows": verdict.rows}
    if verdict.uplift is not None:
        uplift = verdict.uplift
        metrics |= {"uplift": uplift.mean, "uplift_lower": uplift.lower}
        metrics |= {"uplift_upper": uplift.upper}
    return metrics
