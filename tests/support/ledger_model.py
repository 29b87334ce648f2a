"""A plain model of the ledger: what a few decisions and their outcomes must come to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
from clock import START_S
from ledgers import ARM, ORPHAN_AFTER_S, RULES, TENANT, WAIT_WINDOW_S, dated_id, decision

from pipelines.joining import Report
from policies.interaction import LedgerCounts, Outcome, decisions_to_batch

# Tenant of each decision, whether it is deferred, and when it is made, seconds after the start;
# three ids tell when they were issued.
DECISIONS = {
    "a": (TENANT, False, 0.0),
    dated_id("b"): (TENANT, True, 0.0),
    "c": ("mean", False, 200.0),
    dated_id("d", at=START_S + 200.0): ("zero", False, 200.0),
    dated_id("e", at=START_S + 400.0): ("earliest", True, 400.0),
}
RETENTION_S = 100.0

IDS = tuple(DECISIONS)
DATED = frozenset(i for i in IDS if len(i) > 1)

Values = tuple[float | None, float | None, float | None]


@dataclass
class Model:
    """The contract in plain Python: one decision and one report at a time, nothing durable."""

    recorded: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)
    reports: dict[str, list[Outcome]] = field(default_factory=lambda: {i: [] for i in IDS})
    received_at: list[tuple[str, float]] = field(default_factory=list)
    interactions: list[tuple[str, int, Values]] = field(default_factory=list)
    duplicates: int = 0
    expired: int = 0
    decisions: int = 0
    outcomes: int = 0
    dropped: int = 0
    exported: int = 0
    forgotten_at: float = 0.0

    def record(self, decision_id: str) -> None:
        """Record a decision, once."""
        if decision_id not in self.recorded and decided_at(decision_id) > self.forgotten_at:
            self.decisions += 1
            self.recorded.add(decision_id)
            self.open.add(decision_id)
            self.mature(decision_id)

    def report(self, outcome: Outcome, now: float) -> str:
        """Take a report; return what becomes of it."""
        known = self.reports[outcome.decision_id]
        if outcome.event_id is None and any(
            _values_of(r) == _values_of(outcome) for r in known if r.event_id is None
        ):
            self.duplicates += 1
            return "duplicate"
        same_event = [r for r in known if outcome.event_id and r.event_id == outcome.event_id]
        if same_event:
            self.duplicates += same_event == [outcome]
            return "duplicate" if same_event == [outcome] else "invalid"
        told = outcome.decision_id in self.recorded | DATED
        over = now >= closes_at(outcome.decision_id) or (
            outcome.decision_id not in self.recorded
            and decided_at(outcome.decision_id) <= self.forgotten_at
        )
        if told and over:
            self.expired += 1
            return "expired"
        known.append(outcome)
        self.outcomes += 1
        self.received_at.append((outcome.decision_id, now))
        if outcome.decision_id not in self.recorded:
            return "pending"
        return self.mature(outcome.decision_id)

    def mature(self, decision_id: str, *, closed: bool = False) -> str:
        """Add an interaction or a correction where one is due."""
        reports = self.reports[decision_id]
        tenant, deferred, _ = DECISIONS[decision_id]
        if deferred and not any(report.activate for report in reports):
            return "joined"
        cost_usd, tokens_in, tokens_out, latency_ms = (
            next((v for r in reversed(reports) if (v := getattr(r, name)) is not None), None)
            for name in ("cost_usd", "tokens_in", "tokens_out", "latency_ms")
        )
        if cost_usd is None and tokens_in is not None and tokens_out is not None:
            cost_usd = ARM.cost_usd(tokens_in=tokens_in, tokens_out=tokens_out)
        final = any(report.final for report in reports)
        quality = self.quality(reports, tenant)
        if quality is None and tenant == "zero" and (final or closed):
            quality = 0.0
        before = [values for i, _, values in self.interactions if i == decision_id]
        complete = quality is not None and cost_usd is not None
        something = quality is not None or cost_usd is not None
        if not (before or complete or final or (closed and something)):
            return "joined"
        values = (quality, cost_usd, latency_ms)
        if before and before[-1] == values:
            return "joined"
        self.open.discard(decision_id)
        self.interactions.append((decision_id, len(before), values))
        return "superseded" if before else "joined"

    def quality(self, reports: list[Outcome], tenant: str) -> float | None:
        """Put the qualities together, from the last correction on."""
        said = [report for report in reports if report.quality is not None]
        corrections = [index for index, report in enumerate(said) if report.correction]
        said = said[corrections[-1] :] if corrections else said
        values = [report.quality for report in said if report.quality is not None]
        if not values:
            return None
        if tenant == "mean":
            return sum(values) / len(values)
        return values[0] if tenant == "earliest" else values[-1]

    def close(self, now: float) -> int:
        """Close the windows that are over; return how many."""
        closing = sorted(
            (i for i in self.open if now >= closes_at(i)), key=lambda i: (closes_at(i), i)
        )
        for decision_id in closing:
            self.mature(decision_id, closed=True)
            self.open.discard(decision_id)
        return len(closing)

    def forget(self, now: float) -> set[str]:
        """Let go of what can change no more; return the decisions."""
        before = now - WAIT_WINDOW_S - RETENTION_S
        unexported = {decision_id for decision_id, _, _ in self.interactions[self.exported :]}
        gone = {
            i
            for i in self.recorded - self.open - unexported
            if decided_at(i) <= before and closes_at(i) <= now
        }
        self.forgotten_at = max([self.forgotten_at, *map(decided_at, gone)])
        last = {i: at for i, at in self.received_at if i not in self.recorded}
        orphans = {i for i, at in last.items() if at <= before - ORPHAN_AFTER_S}
        self.dropped += sum(i in orphans for i, _ in self.received_at)
        self.recorded -= gone
        self.received_at = [(i, at) for i, at in self.received_at if i not in gone | orphans]
        for i in gone | orphans:
            self.reports[i] = []
        return gone

    def counts(self, now: float) -> LedgerCounts:
        """Count as the ledger should."""
        waiting = [at for decision_id, at in self.received_at if decision_id not in self.recorded]
        orphaned = sum(at <= now - ORPHAN_AFTER_S for at in waiting)
        return LedgerCounts(
            decisions=self.decisions,
            outcomes=self.outcomes,
            joined=self.outcomes - len(waiting) - self.dropped,
            pending=len(waiting) - orphaned,
            orphaned=orphaned + self.dropped,
            duplicates=self.duplicates,
            expired=self.expired,
            interactions=len(self.interactions),
            last_seq=len(self.interactions),
        )


def _values_of(outcome: Outcome) -> tuple[object, ...]:
    return tuple(Report.of(outcome))[2:]


def closes_at(decision_id: str) -> float:
    """Return the moment at which a decision's wait window closes, seconds."""
    return decided_at(decision_id) + RULES.of(DECISIONS[decision_id][0]).wait_window_s


def decided_at(decision_id: str) -> float:
    """Return the moment at which a decision is made, seconds."""
    return START_S + DECISIONS[decision_id][2]


def batches(ids: Iterable[str]) -> list[pa.RecordBatch]:
    """Lay decisions out, each of its own tenant, in two batches."""
    made = [
        decision(i, at=decided_at(i), tenant=DECISIONS[i][0], deferred=DECISIONS[i][1]) for i in ids
    ]
    return [decisions_to_batch(made[:1]), decisions_to_batch(made[1:])]
