"""What outcomes do to decisions: merge, mature, correct. Knows nothing of SQL.

A decision's outcomes are applied one after another, in the order they came, so that a group of
them in one transaction ends exactly as the same ones in many.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from policies.interaction import JoinStatus, Outcome

MAX_EVENT_ID_LENGTH: Final = 200
# Above it a count is no longer exact in JSON, nor would it fit the database's integers for long.
MAX_TOKENS: Final = 2**53

# PostgreSQL holds no NUL; half a surrogate pair has no UTF-8 form.
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
COMPONENTS: Final = ("quality", "cost_usd", "tokens_in", "tokens_out", "latency_ms")

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
    """

    tenant: str
    arm: str
    price_version: int
    closes_at: int


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
        now: Microseconds since the epoch.

    Attributes:
        histories: As given, brought up to date.
        now: As given.
        received: Outcomes to be stored, in order.
        matured: Interactions to be stored, in order.
        statuses: How many outcomes ended in which status.
    """

    def __init__(self, histories: Mapping[str, History], *, price: PriceCall, now: int) -> None:
        self.histories, self.now, self._price = histories, now, price
        self.received: list[Received] = []
        self.matured: list[Matured] = []
        self.statuses: Counter[JoinStatus] = Counter()

    def receive(self, tenant: str, outcome: Outcome) -> JoinStatus:
        """Apply one outcome; return what became of it."""
        status = self._receive(tenant, outcome)
        self.statuses[status] += 1
        return status

    def record(self, decision_id: str) -> int:
        """Join what came before the decision was recorded; return how many outcomes that is.

        They were acknowledged as pending, so that all are joined, however late the decision is.
        """
        self._mature(decision_id)
        return len(self.histories[decision_id].outcomes)

    def close(self, decision_id: str) -> None:
        """Mature with what is known, now that the wait window has closed."""
        self._mature(decision_id, closed=True)

    def _receive(self, tenant: str, outcome: Outcome) -> JoinStatus:
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
        if recorded is not None and self.now >= recorded.closes_at:
            return JoinStatus.EXPIRED
        position, joined = len(history.outcomes), recorded is not None
        self.received.append(Received(outcome=outcome, position=position, joined=joined))
        history.outcomes[outcome.event_id] = outcome
        if not joined:
            return JoinStatus.PENDING
        was_matured = history.matured is not None
        changed = self._mature(outcome.decision_id)
        return JoinStatus.SUPERSEDED if was_matured and changed else JoinStatus.JOINED

    def _mature(self, decision_id: str, *, closed: bool = False) -> bool:
        """Make an interaction, or a correction of it, if the values call for one."""
        history = self.histories[decision_id]
        assert history.recorded is not None
        values, final = merged(history.outcomes.values(), history.recorded, price=self._price)
        known = (values.quality is not None) + (values.cost_usd is not None)
        ripe = history.matured is not None or final or known == 2 or (closed and known == 1)
        if not ripe or values == history.matured:
            return False
        history.matured, history.revision = values, history.revision + 1
        self.matured.append(
            Matured(decision_id=decision_id, revision=history.revision, values=values)
        )
        return True


def merged(
    outcomes: Iterable[Outcome], recorded: Recorded, *, price: PriceCall
) -> tuple[Values, bool]:
    """Put a decision's outcomes together: the latest report of each component wins.

    A reported cost goes before one worked out from tokens, which takes both counts.

    Returns:
        The values, and whether a report said that it was the final one.
    """
    latest: dict[str, float | None] = dict.fromkeys(COMPONENTS)
    final = False
    for outcome in outcomes:
        final = final or outcome.final
        for name in latest:
            value = getattr(outcome, name)
            latest[name] = latest[name] if value is None else value
    cost_usd, tokens_in, tokens_out = (latest[name] for name in COMPONENTS[1:4])
    if cost_usd is None and tokens_in is not None and tokens_out is not None:
        cost_usd = price(recorded.price_version, recorded.arm, int(tokens_in), int(tokens_out))
    values = Values(quality=latest["quality"], cost_usd=cost_usd, latency_ms=latest["latency_ms"])
    return values, final


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
    values: dict[str, float | int | None] = {
        name: None if (value := getattr(outcome, name)) is None else value + 0.0
        for name in COMPONENTS
    }
    text = json.dumps({**values, "final": outcome.final}, sort_keys=True)
    return replace(outcome, event_id=hashlib.sha256(text.encode()).hexdigest())


def _is_storable(outcome: Outcome) -> bool:
    """Tell whether a database will take it; one that fails would fail its whole group."""
    event_id = outcome.event_id
    if event_id is not None and (
        not 0 < len(event_id) <= MAX_EVENT_ID_LENGTH or _UNSTORABLE.search(event_id)
    ):
        return False
    return max(outcome.tokens_in or 0, outcome.tokens_out or 0) <= MAX_TOKENS
