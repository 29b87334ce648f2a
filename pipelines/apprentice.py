"""What each learner would have gained, while one model decides everything and they only learn.

Every decision is scored by the learner's version that was newest among those that had not learned
from it, so nothing is judged by what it was trained on. What a version says of a decision is fixed
before its outcome is looked at, so the scores' running mean has the ends of `policies.sequences`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.bootstrap import RULE, cutoff
from pipelines.events import EventSink
from pipelines.evidence import MIN_ROWS, EvidenceLog
from pipelines.foregone import Foregone, foregone
from pipelines.judgement import next_look
from pipelines.rows import PAGE_ROWS, InteractionSource, last_seq
from policies.artifact import PolicyArtifact
from policies.errors import ArtifactError
from policies.events import EventKind
from policies.fixed import FIXED
from policies.learners import load_policy
from policies.policy import Policy
from policies.versions import VersionInfo

logger = logging.getLogger(__name__)

WHO: Final = "apprentice"
# 2 KB each; what is older says little of the versions of now.
MAX_DECISIONS: Final = 20_000


class ApprenticeRegistry(Protocol):
    """Where versions are kept. Every method raises Unavailable."""

    def deciding(self) -> tuple[int | None, int | None]:
        """Return the champion and the version beside it."""

    def versions(self) -> list[VersionInfo]:
        """List versions, newest first."""

    def artifact(self, version: int) -> PolicyArtifact:
        """Read a version's policy; raises ArtifactError."""

    def tag(self, version: int, words: Mapping[str, str]) -> None:
        """Set words on a version by name."""


@dataclass(slots=True, kw_only=True)
class ApprenticeStatus:
    """What is known so far.

    Attributes:
        model: The model that is to decide.
        reason: Why nothing can be said, None where the model decides.
        learners: What each learner would have gained, by kind.
    """

    model: str
    reason: str | None = "nothing was decided yet"
    learners: dict[str, Foregone] = field(default_factory=dict)


class _Line:
    """One learner's versions, and the decisions scored by them."""

    def __init__(self, rule: Policy, *, cost_ceiling_usd: float) -> None:
        self._rule, self._ceiling = rule, cost_ceiling_usd
        self._loaded: tuple[int, Policy | None] | None = None
        self.log: EvidenceLog | None = None
        self.version, self.look_at = 0, MIN_ROWS

    def add(
        self,
        rows: pa.Table,
        versions: Sequence[VersionInfo],
        source: InteractionSource,
        registry: ApprenticeRegistry,
    ) -> None:
        """Score rows, each by the version that was newest without having learned from it.

        Args:
            rows: Decisions of the rule, in sequence order.
            versions: The learner's, those that have learned something, oldest first.
            source: Where prices are read.
            registry: Where policies are read.
        """
        cutoffs = [cutoff(one) for one in versions]
        newest = np.searchsorted(cutoffs, rows["seq"].to_numpy(), side="left") - 1
        for index in np.unique(newest[newest >= 0]).tolist():
            policy = self._policy(versions[index].version, registry)
            if policy is None:
                continue
            mine = rows.filter(pa.array(newest == index))
            self.version = versions[index].version
            if self.log is None:
                self.log = EvidenceLog(self._rule, policy, cost_ceiling_usd=self._ceiling, grid=())
            self.log.challenged_by(policy)
            # A correction of what came before the window: the version has learned from that.
            first = pc.equal(mine["revision"], 0)
            seen = pa.array([name in self.log for name in mine["decision_id"].to_pylist()])
            mine = mine.filter(pc.or_(first, seen))
            self.log.add(mine, source.price_history(mine["price_version"].unique().to_pylist()))

    def _policy(self, version: int, registry: ApprenticeRegistry) -> Policy | None:
        """Load a version, None where it cannot judge the rule's decisions."""
        if self._loaded is None or self._loaded[0] != version:
            try:
                self._loaded = version, load_policy(registry.artifact(version))
            except ArtifactError as error:
                logger.warning("version %d is not scored: %s", version, error)
                self._loaded = version, None
        return self._loaded[1]


class Apprentice:
    """Takes one step whenever it is called. Not for several threads at once.

    Args:
        source: Where interactions and prices are read.
        registry: Where versions are kept.
        model: The model that is to decide.
        cost_ceiling_usd: USD at and above which a call counts as fully expensive.
        events: Told when it becomes known that a learner is better, or worse.
        max_decisions: How far back it looks.
    """

    def __init__(
        self,
        source: InteractionSource,
        registry: ApprenticeRegistry,
        *,
        model: str,
        cost_ceiling_usd: float,
        events: EventSink,
        max_decisions: int = MAX_DECISIONS,
    ) -> None:
        self._source, self._registry, self._events = source, registry, events
        self._ceiling, self._max_decisions = cost_ceiling_usd, max_decisions
        self._lines: dict[str, _Line] = {}
        self._champion: int | None = None
        self._read_to: int | None = None
        self.status = ApprenticeStatus(model=model)

    def step(self) -> None:
        """Take up what has come since the last step.

        Raises:
            Unavailable: Registry or keeper is away.
        """
        newest = self._source.last_seq()
        champion, _ = self._registry.deciding()
        if (champion, newest) == (self._champion, self._read_to):
            return
        known = self._registry.versions()
        rule = next((one for one in known if one.version == champion), None)
        if champion != self._champion or self._outgrown():
            self._lines, self._champion = {}, champion
            self._read_to = max(0, newest - self._max_decisions // 2)
        if rule is None or rule.kind != FIXED or rule.tags.get(RULE) != self.status.model:
            self.status.reason = f"version {champion} decides, not {self.status.model}"
            self.status.learners, self._read_to = {}, newest
            return
        self.status.reason = None
        self._take_up(rule, known)
        for kind, line in self._lines.items():
            if line.log is not None and len(line.log) >= line.look_at:
                line.look_at = next_look(len(line.log))
                self._look(kind, line.version, line.log)

    def _outgrown(self) -> bool:
        """Say whether so much was laid out that the older half is to be let go."""
        logs = (line.log for line in self._lines.values() if line.log is not None)
        return max(map(len, logs), default=0) > self._max_decisions

    def _take_up(self, rule: VersionInfo, known: Sequence[VersionInfo]) -> None:
        """Read the rule's new decisions and have every learner score them."""
        policy = load_policy(self._registry.artifact(rule.version))
        learned = [one for one in reversed(known) if one.kind != FIXED and cutoff(one) > 0]
        by_kind = {
            kind: [one for one in learned if one.kind == kind and _same_encoder(one, rule)]
            for kind in sorted({one.kind for one in learned})
        }
        read_to = 0 if self._read_to is None else self._read_to
        while len(page := self._source.interactions(read_to, PAGE_ROWS)):
            alone = pc.and_(
                pc.equal(page["policy_version"], rule.version), pc.is_null(page["canary_version"])
            )
            rows = page.filter(alone)
            for kind, versions in by_kind.items():
                if versions and len(rows):
                    made = _Line(policy, cost_ceiling_usd=self._ceiling)
                    self._lines.setdefault(kind, made).add(
                        rows, versions, self._source, self._registry
                    )
            read_to = self._read_to = last_seq(page)

    def _look(self, kind: str, version: int, log: EvidenceLog) -> None:
        """Estimate anew, and tell where something has become known."""
        before = self.status.learners.get(kind)
        found = foregone(log.evidence(), cost_ceiling_usd=self._ceiling, version=version)
        # A new one: the status may be read by another thread meanwhile.
        self.status.learners = {**self.status.learners, kind: found}
        if found.finding == (before.finding if before is not None else None):
            return
        self._registry.tag(version, {"apprentice": found.reason})
        if found.finding in ("better", "worse"):
            self._events.emit(
                EventKind.VERDICT,
                who=WHO,
                why=found.reason,
                version=version,
                learner=kind,
                promote=False,
                judged_against=self._champion,
                finding=found.finding,
                decisions=found.decisions,
                ess=found.ess,
            )


def _same_encoder(one: VersionInfo, rule: VersionInfo) -> bool:
    """Say whether a version sees the contexts that the rule's decisions have."""
    return one.tags.get("encoder_id") == rule.tags.get("encoder_id")
