"""What outcomes do to decisions: merge, mature, correct, activate. Knows nothing of SQL.

A decision's outcomes are applied one after another, in the order they came, so that a group of
them in one transaction ends exactly as the same ones in many.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from pipelines.tenants import Rulebook, Signals, TenantRules
from policies.interaction import JoinStatus, Outcome, issued_at

MICROSECONDS: Final = 1_000_000
MAX_EVENT_ID_LENGTH: Final = 200

# PostgreSQL holds no NUL; half a surrogate pair has no UTF-8 form.
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
COMPONENTS: Final = ("quality", "cost_usd", "tokens_in", "tokens_out", "latency_ms")
FLAGS: Final = ("final", "correction", "activate")

# Prices a call: (price table version, arm, tokens in, tokens out) to USD, None if it cannot.
PriceCall = Callable[[int, str, int, int], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What is known of one decision: its latest quality, cost (USD) and latency (ms)."""

    quality: float | None
    cost_usd: float | None
    latency_ms: float | None


@dataclass(slots=True, kw_only=True)
class History:
    """All that is stored about one decision.

    Attributes:
        recorded: The decision, None while it is not recorded.
        outcomes: Its outcomes by event id, in the order they came.
        matured: What its latest interaction says, None while it has none.
        revision: Of that interaction; -1 while there is none.
    """

    recorded: Recorded | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    matured: Values | None = None
    revision: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """An outcome to be stored.

    Attributes:
        outcome: With its event id.
        position: How many outcomes of the same decision came before it.
        joined: Whether its decision is recorded.
    """

    outcome: Outcome
    position: int
    joined: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Matured:
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

    Attributes:
        histories: As given, brought up to date.
        now: As given.
        received: Outcomes to be stored, in order.
        matured: Interactions to be stored, in order.
    """

    def __init__(
        self, histories: Mapping[str, History], *, price: PriceCall, rules: Rulebook, now: int
    ) -> None:
        self.histories, self.now = histories, now
        self._price, self._rules = price, rules
        self.received: list[Received] = []
        self.matured: list[Matured] = []

    def receive(self, tenant: str, outcome: Outcome) -> JoinStatus:
        """Apply one outcome; return what became of it."""
        history = self.histories[outcome.decision_id]
        recorded = history.recorded
        if recorded is not None and recorded.tenant != tenant:
            return JoinStatus.UNKNOWN
        if not _is_storable(outcome):
            return JoinStatus.INVALID
        outcome = identified(outcome)
        assert outcome.event_id is not None
        known = history.outcomes.get(outcome.event_id)
        if known is not None:
            return JoinStatus.DUPLICATE if known == outcome else JoinStatus.INVALID
        if self._is_late(tenant, outcome, recorded):
            return JoinStatus.EXPIRED
        position, joined = len(history.outcomes), recorded is not None
        self.received.append(Received(outcome=outcome, position=position, joined=joined))
        history.outcomes[outcome.event_id] = outcome
        if not joined:
            return JoinStatus.PENDING
        was_matured = history.matured is not None
        changed = self._mature(outcome.decision_id)
        return JoinStatus.SUPERSEDED if was_matured and changed else JoinStatus.JOINED

    def record(self, decision_id: str) -> int:
        """Join what came before the decision was recorded; return how many outcomes that is.

        They were acknowledged as pending, so that all are joined, however late the decision is.
        """
        self._mature(decision_id)
        return len(self.histories[decision_id].outcomes)

    def close(self, decision_id: str) -> None:
        """Mature with what is known, now that the wait window has closed."""
        self._mature(decision_id, closed=True)

    def _is_late(self, tenant: str, outcome: Outcome, recorded: Recorded | None) -> bool:
        """Tell whether the wait window is over.

        That of a decision that is not recorded, or no more, is told by its id.
        """
        if recorded is not None:
            return self.now >= recorded.closes_at
        issued = issued_at(outcome.decision_id)
        window = round(self._rules.of(tenant).wait_window_s * MICROSECONDS)
        return issued is not None and self.now >= issued + window

    def _mature(self, decision_id: str, *, closed: bool = False) -> bool:
        """Make an interaction, or a correction of it, if the values call for one."""
        history = self.histories[decision_id]
        recorded, reports = history.recorded, history.outcomes.values()
        assert recorded is not None
        if recorded.deferred and not any(report.activate for report in reports):
            return False
        settled = closed or any(report.final for report in reports)
        rules = self._rules.of(recorded.tenant)
        values = merged(reports, recorded, rules=rules, price=self._price, settled=settled)
        known = (values.quality is not None) + (values.cost_usd is not None)
        final = settled and not closed
        ripe = history.matured is not None or final or known == 2 or (closed and known == 1)
        if not ripe or values == history.matured:
            return False
        history.matured, history.revision = values, history.revision + 1
        self.matured.append(
            Matured(decision_id=decision_id, revision=history.revision, values=values)
        )
        return True


def merged(
    outcomes: Iterable[Outcome],
    recorded: Recorded,
    *,
    rules: TenantRules,
    price: PriceCall,
    settled: bool,
) -> Values:
    """Put a decision's outcomes together.

    Of several qualities the tenant's rules say which counts; of all else the latest does. A
    correction replaces all that was reported before of what it names. A reported cost goes before
    one worked out from tokens, which takes both counts.

    Args:
        outcomes: In the order they came.
        recorded: Their decision.
        rules: Its tenant's.
        price: Prices a call by its tokens.
        settled: Whether nothing more will come, so that a default quality stands in.
    """
    latest: dict[str, float | None] = dict.fromkeys(COMPONENTS)
    qualities: list[float] = []
    for outcome in outcomes:
        for name in COMPONENTS:
            value = getattr(outcome, name)
            latest[name] = latest[name] if value is None else value
        if outcome.quality is not None:
            qualities = [*([] if outcome.correction else qualities), outcome.quality]
    cost_usd, tokens_in, tokens_out = (latest[name] for name in COMPONENTS[1:4])
    if cost_usd is None and tokens_in is not None and tokens_out is not None:
        cost_usd = price(recorded.price_version, recorded.arm, int(tokens_in), int(tokens_out))
    quality = signalled(qualities, rules.quality_signals)
    if quality is None and settled:
        quality = rules.default_quality
    return Values(quality=quality, cost_usd=cost_usd, latency_ms=latest["latency_ms"])


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


def identified(outcome: Outcome) -> Outcome:
    """Give an outcome that names no event an id made of its values.

    The SHA-256 over their canonical JSON: the same report twice is one event.

    >>> first = identified(Outcome(decision_id="d", quality=1))
    >>> first == identified(Outcome(decision_id="d", quality=1.0))
    True
    """
    if outcome.event_id is not None:
        return outcome
    # Adding 0.0 makes 1 and 1.0, and 0.0 and -0.0, the same text.
    values: dict[str, float | int | bool | None] = {
        name: None if (value := getattr(outcome, name)) is None else value + 0.0
        for name in COMPONENTS
    }
    values |= {name: getattr(outcome, name) for name in FLAGS}
    text = json.dumps(values, sort_keys=True)
    return replace(outcome, event_id=hashlib.sha256(text.encode()).hexdigest())


def _is_storable(outcome: Outcome) -> bool:
    """Tell whether a database will take it; one that fails would fail its whole group."""
    event_id = outcome.event_id
    return event_id is None or (
        0 < len(event_id) <= MAX_EVENT_ID_LENGTH and not _UNSTORABLE.search(event_id)
    )
