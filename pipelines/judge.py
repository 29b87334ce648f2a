"""Watches what serves: tries challengers on a share of the traffic, and guards new champions.

One comparison runs at a time, of the champion with the version beside it. That is a challenger on
trial, which is promoted or rejected; or the predecessor of a champion on probation, its control:
where the champion is surely worse it goes back by itself. What a comparison rests on is in ledger
and registry, so a restart goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from pipelines.comparison import (
    AGAINST,
    COMPARED_AS,
    FINDING,
    FROM_SEQ,
    ON_PROBATION,
    Comparison,
    JudgePlan,
    JudgeRegistry,
    JudgeSource,
    JudgeStatus,
    id_before,
    read_held_out,
)
from pipelines.events import EventSink
from pipelines.evidence import MIN_ROWS, Evidence, EvidenceLog
from pipelines.guardrail import breach, exploration_collapse, silence
from pipelines.judgement import Finding, Judgement, Mode, Standards, decide, next_look, screen
from pipelines.probation import control_of, impossible, passed, quarantined
from pipelines.verdicts import WHO, conclude, tag_finding
from policies.errors import ArtifactError, Conflict, RouterError, UnknownVersion
from policies.events import EventKind
from policies.learners import load_policy
from policies.versions import CANARY, CHALLENGER, QUARANTINED, VersionInfo

logger = logging.getLogger(__name__)

GUARDRAIL: Final = "guardrail"


class Judge:
    """Takes one step whenever it is called. Not for several threads at once.

    Args:
        source: Where interactions and prices are read.
        registry: Where versions are kept.
        plan: What is asked of them.
        events: Told of canaries, verdicts, breaches and quarantines.
        held: Says why nothing may be promoted for now; None where nothing speaks against it.
    """

    def __init__(
        self,
        source: JudgeSource,
        registry: JudgeRegistry,
        *,
        plan: JudgePlan,
        events: EventSink,
        held: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._source, self._registry, self._plan = source, registry, plan
        self._events, self._held = events, held
        self._comparison: Comparison | None = None
        self._seen: tuple[int | None, int | None, int] | None = None
        self._probed: int | None = None
        self.status = JudgeStatus()

    def step(self) -> None:
        """Look at what has come since the last step, and do what follows.

        Raises:
            Unavailable: Registry or keeper is away.
        """
        champion, beside = self._registry.deciding()
        self.status.champion, self.status.beside = champion, beside
        if champion is None:
            return
        try:
            if beside is not None:
                self._compare(champion, beside)
            else:
                self._begin(champion)
        except Conflict as error:
            # Somebody moved the champion meanwhile: the next step sees what serves now.
            logger.info("comparison given up: %s", error)
            self._comparison = None

    def _begin(self, champion: int) -> None:
        """Start a comparison, if there is one to make."""
        self._comparison = None
        seen = (champion, None, self._source.last_seq())
        if seen == self._seen:
            return
        self._seen = seen
        known = {one.version: one for one in self._registry.versions()}
        control = control_of(champion, known, self._registry.last_move(), self._plan.guard)
        if control is not None:
            try:
                self._put_beside(control, champion, ON_PROBATION)
                return
            except (ArtifactError, UnknownVersion) as error:
                self._do_without(control, champion, error)
        challenger = self._challenger(champion, known)
        self.status.stage = "idle" if challenger is None else "shadow"
        if challenger is None or self._held() is not None:
            return
        self._shadow(challenger, known[champion])

    def _do_without(self, control: int, champion: int, error: RouterError) -> None:
        """Let a champion serve unguarded whose predecessor cannot decide here any more."""
        self.status.last = f"version {champion} has no probation: {error}"
        logger.warning("%s", self.status.last)
        self._registry.tag(champion, {ON_PROBATION: impossible(control)})
        self._events.emit(
            EventKind.ARTIFACT_REFUSED, who=GUARDRAIL, why=self.status.last, version=control
        )

    def _challenger(self, champion: int, known: Mapping[int, VersionInfo]) -> VersionInfo | None:
        """Name the version that asks to serve and was not judged against this champion yet."""
        for one in known.values():
            if CHALLENGER in one.aliases and one.version != champion:
                judged = FINDING in one.tags and one.tags.get(AGAINST) == str(champion)
                return None if judged or quarantined(one) else one
        return None

    def _shadow(self, challenger: VersionInfo, champion: VersionInfo) -> None:
        """Score a challenger on what came after both cut-offs, then screen it."""
        cutoff = max(int(one.tags.get("last_seq", 0)) for one in (challenger, champion))
        new = self._source.last_seq() - cutoff
        self.status.decisions, self.status.needed = new, self._plan.shadow_decisions
        if new < self._plan.shadow_decisions:
            return
        try:
            log = self._log(champion.version, challenger.version)
        except ArtifactError as error:
            refused = Finding.REJECT.value
            tag_finding(self._registry, challenger.version, champion.version, refused, str(error))
            return
        read_held_out(log, self._source, after_seq=cutoff, share=self._plan.holdout_share)
        if len(log) >= MIN_ROWS:
            evidence = log.evidence()
            found = screen(evidence, self._standards(champion, challenger))
            self.status.last = found.reason
            if found.finding is Finding.REJECT:
                self._conclude(found, evidence, challenger.version, champion.version)
                return
        self._put_beside(challenger.version, champion.version, CANARY)

    def _put_beside(self, version: int, champion: int, stage: str) -> None:
        """Let a version decide for its share, and note from where on that counts."""
        seq = str(self._source.last_seq())
        self._registry.tag(version, {FROM_SEQ: seq, AGAINST: str(champion), COMPARED_AS: stage})
        words = "on trial" if stage == CANARY else "as control of its probation"
        why = f"beside version {champion}, {words}"
        self._registry.start_canary(version, instead_of=champion, who=WHO, why=why)
        self._events.emit(EventKind.CANARY, who=WHO, why=why, version=version, champion=champion)

    def _compare(self, champion: int, beside: int) -> None:
        """Take up what is new of the comparison that runs; look where it is time."""
        try:
            comparison = self._running(champion, beside)
        except (ArtifactError, UnknownVersion) as error:
            self._give_up(champion, beside, error)
            return
        comparison.refresh(self._source)
        if comparison.is_control:
            within_s = self._plan.guard.answer_within_s
            comparison.hear(self._source, within_s=within_s)
        self.status.decisions = len(comparison.log)
        self.status.stage = ON_PROBATION if comparison.is_control else CANARY
        if len(comparison) < max(MIN_ROWS, comparison.look_at):
            return
        comparison.look_at = self.status.needed = next_look(len(comparison))
        if comparison.is_control:
            self._guard(comparison, champion, beside)
        else:
            self._try(comparison.log.evidence(), champion, beside)

    def _give_up(self, champion: int, beside: int, error: RouterError) -> None:
        """End a comparison that nothing can be learned from: a version's files are gone."""
        if beside < champion:
            self._do_without(beside, champion, error)
        else:
            refused = Finding.REJECT.value
            tag_finding(self._registry, beside, champion, refused, str(error))
        self._end(beside, str(error))

    def _running(self, champion: int, beside: int) -> Comparison:
        """Return the comparison of two versions, begun or taken up again."""
        if self._comparison is None or self._comparison.pair != (champion, beside):
            tags = next(one.tags for one in self._registry.versions() if one.version == beside)
            begun = tags.get(AGAINST) == str(champion) and FROM_SEQ in tags
            after_seq = int(tags[FROM_SEQ]) if begun else self._source.last_seq()
            # Whoever named a version beside the champion by hand: an older one is its control.
            role = ON_PROBATION if beside < champion else CANARY
            self._comparison = Comparison(
                self._log(champion, beside),
                champion=champion,
                beside=beside,
                after_seq=after_seq,
                after_id=id_before(self._source, self._registry.last_move(), after_seq),
                is_control=(tags.get(COMPARED_AS, role) if begun else role) == ON_PROBATION,
            )
        return self._comparison

    def _try(self, evidence: Evidence, champion: int, challenger: int) -> None:
        """Look at a challenger's evidence and do what follows."""
        known = {one.version: one for one in self._registry.versions()}
        found = decide(evidence, self._standards(known[champion], known[challenger]))
        self.status.last = found.reason
        if found.finding is Finding.UNDECIDED:
            return
        self._conclude(found, evidence, challenger, champion)
        if found.finding is Finding.PROMOTE and self._held() is None:
            self._registry.promote(challenger, who=WHO, why=found.reason, instead_of=champion)
        else:
            self._end(challenger, found.reason)

    def _end(self, beside: int, why: str) -> None:
        """Let the champion decide alone again, and tell it."""
        self._registry.stop_canary(who=WHO, why=why)
        self._events.emit(EventKind.CANARY, who=WHO, why=why, version=beside, share=0.0)

    def _guard(self, comparison: Comparison, champion: int, control: int) -> None:
        """Look at a new champion beside its predecessor; go back where it is surely worse."""
        reason, what = silence(comparison.answers, self._plan.guard), "feedback"
        if len(comparison.log) >= MIN_ROWS:
            evidence = comparison.log.evidence()
            self._probe(evidence, champion)
            if reason is None and (reason := breach(evidence, self._plan.guard)) is not None:
                what = reason.split()[0]
        # Feedback that is missing is known later than feedback that came.
        heard_of = min(len(comparison.log), len(comparison.answers))
        if reason is not None:
            self._go_back(champion, control, reason, what=what)
        elif heard_of >= self._plan.guard.decisions:
            self._registry.tag(champion, {ON_PROBATION: passed(control)})
            self.status.last = f"version {champion} passed its probation beside {control}"
            self._end(control, self.status.last)

    def _probe(self, evidence: Evidence, champion: int) -> None:
        """Tell once where a champion hardly explores any more."""
        collapsed = exploration_collapse(
            evidence.champion, exploration_total=self._plan.exploration_total
        )
        if collapsed is not None and self._probed != champion:
            self._probed = champion
            self._events.emit(
                EventKind.EXPLORATION_COLLAPSE, who=GUARDRAIL, why=collapsed, version=champion
            )

    def _go_back(self, champion: int, control: int, reason: str, *, what: str) -> None:
        """Move the alias back, then see to it that the version does not come again."""
        logger.warning("version %d breached the guardrail: %s", champion, reason)
        self.status.last = reason
        self._registry.tag(champion, {QUARANTINED: "true", "quarantine_reason": reason})
        self._registry.rollback(to=control, who=GUARDRAIL, why=reason)
        self._events.emit(
            EventKind.GUARDRAIL_BREACH,
            who=GUARDRAIL,
            why=reason,
            version=champion,
            back_to=control,
            what=what,
        )
        self._events.emit(EventKind.QUARANTINE, who=GUARDRAIL, why=reason, version=champion)
        self._comparison = None

    def _conclude(
        self, found: Judgement, evidence: Evidence, challenger: int, champion: int
    ) -> None:
        """Write a finding down, and tell it."""
        conclude(
            found,
            evidence,
            self._registry,
            self._events,
            challenger=challenger,
            champion=champion,
        )

    def _standards(self, champion: VersionInfo, challenger: VersionInfo) -> Standards:
        """A retraining of the champion's learner must not be worse, another learner better."""
        return Standards(
            mode=Mode.NONINFERIOR if champion.kind == challenger.kind else Mode.SUPERIOR,
            margin=self._plan.margin,
            max_decisions=self._plan.max_decisions,
        )

    def _log(self, champion: int, other: int) -> EvidenceLog:
        """Get ready to compare two versions; raises ArtifactError where that makes no sense."""
        serving, beside = (load_policy(self._registry.artifact(v)) for v in (champion, other))
        if serving.encoder_id != beside.encoder_id:
            raise ArtifactError(
                f"cannot be compared: the champion's encoder is {serving.encoder_id}",
                field="encoder_id",
                value=beside.encoder_id,
                allowed=serving.encoder_id,
            )
        return EvidenceLog(serving, beside, cost_ceiling_usd=self._plan.cost_ceiling_usd)
