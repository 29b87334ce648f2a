"""What judging stands on: versions and aliases, a plan, and the decisions two versions share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

import pyarrow.compute as pc

from pipelines.answers import Answer
from pipelines.evidence import EvidenceLog
from pipelines.guardrail import Guard
from pipelines.rows import PAGE_ROWS, InteractionSource, heldout_mask, last_seq
from policies.artifact import PolicyArtifact
from policies.interaction import first_id_at, issued_at
from policies.versions import AliasMove, VersionInfo

# Replicas, which name decisions, may run on other machines than the registry.
CLOCKS_APART_MS: Final = 60_000
# Tags on a version: what became of it, and where its comparison began.
FINDING: Final = "finding"
FROM_SEQ: Final = "compared_from_seq"
AGAINST: Final = "compared_with"
COMPARED_AS: Final = "compared_as"
ON_PROBATION: Final = "probation"


class JudgeSource(InteractionSource, Protocol):
    """Where interactions, prices and feedback are read. Every method raises Unavailable."""

    def answers(
        self, champion: int, canary: int, *, after_id: str, within_s: float, limit: int
    ) -> list[Answer]:
        """Read which decisions of two versions got feedback in time, in order of their ids."""


class JudgeRegistry(Protocol):
    """Where versions are kept. Every method raises Unavailable."""

    def deciding(self) -> tuple[int | None, int | None]:
        """Return the champion and the version beside it."""

    def versions(self) -> list[VersionInfo]:
        """List versions, newest first."""

    def artifact(self, version: int) -> PolicyArtifact:
        """Read a version's policy; raises ArtifactError."""

    def last_move(self) -> AliasMove | None:
        """Return the newest move of the champion."""

    def tag(self, version: int, words: Mapping[str, str]) -> None:
        """Set words on a version by name."""

    def start_canary(self, version: int, *, instead_of: int, who: str, why: str) -> None:
        """Let a version decide beside the champion; raises Conflict."""

    def stop_canary(self, *, who: str, why: str) -> None:
        """Let the champion decide alone."""

    def promote(self, version: int, *, who: str, why: str, instead_of: int | None) -> AliasMove:
        """Make a version the champion; raises Conflict."""

    def rollback(self, *, to: int | None, who: str, why: str) -> AliasMove:
        """Make an older version the champion again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePlan:
    """What is asked of challengers and of new champions.

    Attributes:
        cost_ceiling_usd: USD at and above which a call counts as fully expensive.
        exploration_total: Probability that versions are to explore with.
        holdout_share: Share of prompts never trained on, which the screen looks at.
        shadow_decisions: Decisions that a challenger is scored on, unserved, before its canary.
        margin: Reward by which a challenger may be worse and still count as not inferior.
        max_decisions: Decisions after which a trial ends without a finding.
        guard: What a champion on probation is held to.
    """

    cost_ceiling_usd: float
    exploration_total: float
    holdout_share: float
    shadow_decisions: int = 200
    margin: float = 0.01
    max_decisions: int = 20_000
    guard: Guard = field(default_factory=Guard)


@dataclass(slots=True, kw_only=True)
class JudgeStatus:
    """What is being compared, as last looked.

    Attributes:
        champion: The version that serves.
        beside: The version beside it, None where it serves alone.
        stage: `idle`, `shadow`, `canary` or `probation`.
        decisions: Decisions that the comparison rests on.
        needed: Decisions at which the next look is taken.
        last: The last finding in words.
    """

    champion: int | None = None
    beside: int | None = None
    stage: str = "idle"
    decisions: int = 0
    needed: int = 0
    last: str | None = None


class Comparison:
    """Reads the decisions of champion and the version beside it, as they mature."""

    def __init__(
        self,
        log: EvidenceLog,
        *,
        champion: int,
        beside: int,
        after_seq: int,
        after_id: str,
        is_control: bool,
    ) -> None:
        self.log, self.pair, self._read_to = log, (champion, beside), after_seq
        self.is_control, self._answered_to = is_control, after_id
        self.answers: list[Answer] = []
        self.look_at = 0

    def __len__(self) -> int:
        """Count the decisions that something is known of."""
        return max(len(self.log), len(self.answers))

    def hear(self, source: JudgeSource, *, within_s: float) -> None:
        """Take up which decisions got feedback in time; raises Unavailable."""
        while found := source.answers(
            *self.pair, after_id=self._answered_to, within_s=within_s, limit=PAGE_ROWS
        ):
            self.answers += found
            self._answered_to = found[-1].decision_id

    def refresh(self, source: InteractionSource) -> None:
        """Take up what has matured since; raises Unavailable."""
        while len(page := source.interactions(self._read_to, PAGE_ROWS)):
            champion, beside = self.pair
            mine = pc.and_(
                pc.equal(page["champion_version"], champion),
                pc.equal(page["canary_version"], beside),
            )
            rows = page.filter(pc.fill_null(mine, False))
            if len(rows):
                versions = rows["price_version"].unique().to_pylist()
                self.log.add(rows, source.price_history(versions))
            self._read_to = last_seq(page)


def read_held_out(
    log: EvidenceLog, source: InteractionSource, *, after_seq: int, share: float
) -> None:
    """Add the decisions on prompts that nothing is trained on.

    Args:
        log: Where to.
        source: Where from.
        after_seq: Only those with a higher sequence number.
        share: Share of prompts that is held out.
    """
    while len(page := source.interactions(after_seq, PAGE_ROWS)):
        rows = page.filter(heldout_mask(page, share=share))
        if len(rows):
            versions = rows["price_version"].unique().to_pylist()
            log.add(rows, source.price_history(versions))
        after_seq = last_seq(page)


def id_before(source: InteractionSource, move: AliasMove | None, after_seq: int) -> str:
    """Return an id that sorts before those of a comparison's decisions, and not long before.

    They were made after the champion was moved, and after whatever had matured at their beginning.

    Args:
        source: Where interactions are read.
        move: The newest move of the champion.
        after_seq: The sequence number given last when the comparison began.
    """
    moved_ms = 0.0 if move is None else datetime.fromisoformat(move.at).timestamp() * 1000
    first = first_id_at(max(0.0, moved_ms - CLOCKS_APART_MS))
    rows = source.interactions(after_seq - 1, 1) if after_seq > 0 else None
    if rows is None or not len(rows) or rows["seq"][0].as_py() != after_seq:
        return first
    decided_at = issued_at(rows["decision_id"][0].as_py())
    return first if decided_at is None else max(first, first_id_at(decided_at / 1000))
