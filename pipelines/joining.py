"""What outcomes do to decisions: merge, mature, correct, activate. Knows nothing of SQL.

A decision's outcomes are applied one after another, in the order they came, so that a group of
them in one transaction ends exactly as the same ones in many.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pipelines.tenants import Rulebook, Signals, TenantRules
from policies.interaction import JoinStatus, Outcome, issued_at

MICROSECONDS: Final = 1_000_000
MAX_EVENT_ID_LENGTH: Final = 200

# PostgreSQL holds no NUL; half a surrogate pair has no UTF-8 form.
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")

# Prices a call: (price table version, arm, tokens in, tokens out) to USD, None if it cannot.
PriceCall = Callable[[int, str, int, int], float | None]


class Report(NamedTuple):
    """One outcome as it is stored: the fields of an `Outcome`; a tuple, for there are thousands."""

    decision_id: str
    event_id: str | None
    quality: float | None
    cost_usd: float | None
    tokens_in: int | None
    tokens_out: int | None
    latency_ms: float | None
    final: bool
    correction: bool
    activate: bool

    @classmethod
    def of(cls, outcome: Outcome) -> Report:
        """Take an outcome over; whole numbers become floats, and -0.0 becomes 0.0."""
        names = ("quality", "cost_usd", "latency_ms")
        values = {name: getattr(outcome, name) for name in cls._fields}
        floats = {n: value + 0.0 for n in names if (value := values[n]) is not None}
        return cls(**values | floats)


RECEIVED: Final = (*Report._fields, "position", "joined", "received_at")


class Recorded(NamedTuple):
    """What joining needs of a decision that is recorded.

    Attributes:
        tenant: Whose it is.
        arm: The arm it went to.
        price_version: The price table it was decided under.
        closes_at: When its wait window closes, microseconds since the epoch.
        deferred: Whether it matures only once a report activates it.
    """

    tenant: str
    arm: str
    price_version: int
    closes_at: int
    deferred: bool


class Values(NamedTuple):
    """What is known of one decision: its quality, cost (USD) and latency (ms)."""

    quality: float | None
    cost_usd: float | None
    latency_ms: float | None


@dataclass(slots=True)
class History:
    """All that is stored about one decision.

    Attributes:
        recorded: The decision, None while it is not recorded.
        reports: Its outcomes by event id, in the order they came.
        matured: What its latest interaction says, None while it has none.
        revision: Of that interaction; -1 while there is none.
    """

    recorded: Recorded | None = None
    reports: dict[str, Report] = field(default_factory=dict)
    matured: Values | None = None
    revision: int = -1


class Matured(NamedTuple):
    """An interaction to be stored: the decision it closes or corrects, and what came of it."""

    decision_id: str
    revision: int
    values: Values


class Group:
    """The decisions one transaction touches, and what it changes.

    Args:
        histories: What is stored about each decision, by id; all that will be touched.
        price: Prices a call by its tokens.
        rules: What each tenant's feedback is held to.
        now: Microseconds since the epoch.
        forgotten_at: Decisions of this moment or before may have left the ledger, microseconds
            since the epoch.

    Attributes:
        histories: As given, brought up to date.
        now: As given.
        received: Outcomes to be stored, in order, columns as in RECEIVED.
        joined: How many of them have a decision that is recorded.
        matured: Interactions to be stored, in order.
    """

    def __init__(
        self,
        histories: Mapping[str, History],
        *,
        price: PriceCall,
        rules: Rulebook,
        now: int,
        forgotten_at: int = 0,
    ) -> None:
        self.histories, self.now, self._forgotten_at = histories, now, forgotten_at
        self._price, self._rules = price, rules
        self.received: list[tuple[Any, ...]] = []
        self.joined = 0
        self.matured: list[Matured] = []

    def receive(self, tenant: str, report: Report) -> JoinStatus:
        """Apply one outcome; return what became of it."""
        history = self.histories[report.decision_id]
        recorded = history.recorded
        if recorded is not None and recorded.tenant != tenant:
            return JoinStatus.UNKNOWN
        event_id = report.event_id
        if event_id is None:
            event_id = derived_event_id(report)
            report = Report(report.decision_id, event_id, *report[2:])
        elif not _is_storable(event_id):
            return JoinStatus.INVALID
        known = history.reports.get(event_id)
        if known is not None:
            return JoinStatus.DUPLICATE if known == report else JoinStatus.INVALID
        if self._is_late(tenant, report, recorded):
            return JoinStatus.EXPIRED
        # What is stored with it: its place among its decision's reports, and whether that is here.
        self.received.append((*report, len(history.reports), recorded is not None, self.now))
        history.reports[event_id] = report
        if recorded is None:
            return JoinStatus.PENDING
        self.joined += 1
        was_matured = history.matured is not None
        changed = self._mature(report.decision_id)
        return JoinStatus.SUPERSEDED if was_matured and changed else JoinStatus.JOINED

    def record(self, decision_id: str) -> int:
        """Join what came before the decision was recorded; return how many outcomes that is.

        They were acknowledged as pending, so that all are joined, however late the decision is.
        """
        self._mature(decision_id)
        return len(self.histories[decision_id].reports)

    def close(self, decision_id: str) -> None:
        """Mature with what is known, now that the wait window has closed."""
        self._mature(decision_id, closed=True)

    def _is_late(self, tenant: str, report: Report, recorded: Recorded | None) -> bool:
        """Tell whether the wait window is over.

        That of a decision that is not recorded, or no more, is told by its id.
        """
        if recorded is not None:
            return self.now >= recorded.closes_at
        issued = issued_at(report.decision_id)
        window = round(self._rules.of(tenant).wait_window_s * MICROSECONDS)
        return issued is not None and (self.now >= issued + window or issued <= self._forgotten_at)

    def _mature(self, decision_id: str, *, closed: bool = False) -> bool:
        """Make an interaction, or a correction of it, if the values call for one."""
        history = self.histories[decision_id]
        recorded, reports = history.recorded, history.reports.values()
        assert recorded is not None
        if recorded.deferred and not any(report.activate for report in reports):
            return False
        rules = self._rules.of(recorded.tenant)
        values, final = merged(reports, recorded, rules=rules, price=self._price, closed=closed)
        known = (values.quality is not None) + (values.cost_usd is not None)
        ripe = history.matured is not None or final or known == 2 or (closed and known == 1)
        if not ripe or values == history.matured:
            return False
        history.matured, history.revision = values, history.revision + 1
        self.matured.append(Matured(decision_id, history.revision, values))
        return True


def merged(
    reports: Collection[Report],
    recorded: Recorded,
    *,
    rules: TenantRules,
    price: PriceCall,
    closed: bool,
) -> tuple[Values, bool]:
    """Put a decision's outcomes together.

    Of several qualities the tenant's rules say which counts; of all else the latest does. A
    correction replaces all that was reported before of what it names. A reported cost goes before
    one worked out from tokens, which takes both counts.

    Args:
        reports: In the order they came.
        recorded: Their decision.
        rules: Its tenant's.
        price: Prices a call by its tokens.
        closed: Whether the wait window is over: then, or where a report says that it was the
            final one, the tenant's default quality stands in for one that nobody reported.

    Returns:
        The values, and whether a report said that it was the final one.
    """
    cost_usd = tokens_in = tokens_out = latency_ms = None
    final = False
    qualities: list[float] = []
    for report in reports:
        final = final or report.final
        cost_usd = cost_usd if report.cost_usd is None else report.cost_usd
        tokens_in = tokens_in if report.tokens_in is None else report.tokens_in
        tokens_out = tokens_out if report.tokens_out is None else report.tokens_out
        latency_ms = latency_ms if report.latency_ms is None else report.latency_ms
        if report.quality is not None:
            qualities = [*([] if report.correction else qualities), report.quality]
    if cost_usd is None and tokens_in is not None and tokens_out is not None:
        cost_usd = price(recorded.price_version, recorded.arm, tokens_in, tokens_out)
    quality = signalled(qualities, rules.quality_signals)
    if quality is None and (closed or final):
        quality = rules.default_quality
    return Values(quality, cost_usd, latency_ms), final


def signalled(qualities: Sequence[float], signals: Signals) -> float | None:
    """Make one quality of several, in the order they came; None where there is none.

    >>> signalled([0.0, 1.0, 0.5], "mean"), signalled([0.0, 1.0], "earliest")
    (0.5, 0.0)
    """
    if not qualities:
        return None
    if signals == "mean":
        return math.fsum(qualities) / len(qualities)
    return qualities[0 if signals == "earliest" else -1]


def derived_event_id(report: Report) -> str:
    """Make an id of a report's values: the same report twice is one event.

    128 bits of BLAKE2b over their text, in a fixed order.

    >>> one = Report.of(Outcome(decision_id="d", quality=1))
    >>> derived_event_id(one) == derived_event_id(Report.of(Outcome(decision_id="d", quality=1.0)))
    True
    """
    return hashlib.blake2b(repr(report[2:]).encode(), digest_size=16).hexdigest()


def _is_storable(event_id: str) -> bool:
    """Tell whether a database will take it; one that fails would fail its whole group."""
    return 0 < len(event_id) <= MAX_EVENT_ID_LENGTH and not _UNSTORABLE.search(event_id)
