"""Outcomes on their way to the ledger: checked, their ids verified, acknowledged when durable."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from pydantic import ValidationError

from policies.errors import Conflict, InvalidRequest, RouterError, UnknownDecision
from policies.interaction import JoinStatus, Outcome
from services.actors import AggregatorPort
from services.decision_ids import DecisionIds
from services.door import ANYBODY, Caller
from services.metrics import ReplicaMetrics
from services.refusals import Expired, detail_of, invalid
from services.wire import MAX_LABEL, FeedbackIn, FeedbackListOut, FeedbackOut

_REUSED: Final = "event_id was used before with other values"
_LATE: Final = "the wait window of this decision has closed"


class Feedback:
    """Takes outcomes in; nothing is acknowledged that the ledger has not stored."""

    def __init__(
        self,
        aggregator: AggregatorPort,
        decision_ids: DecisionIds,
        *,
        max_items: int,
        metrics: ReplicaMetrics,
    ) -> None:
        """Take its parts; `max_items` bounds a list."""
        self._aggregator, self._ids = aggregator, decision_ids
        self._max_items, self._metrics = max_items, metrics

    async def one(self, body: dict[str, Any], *, caller: Caller = ANYBODY) -> FeedbackOut:
        """Store one outcome.

        Raises:
            InvalidRequest: It cannot be true, or has a key that is not known.
            UnknownDecision: Its decision id is forged or another tenant's.
            Forbidden: It names another tenant than the caller's.
            Conflict: Its event_id was used before with other values, or it came too late.
            Unavailable: The ledger is away; nothing was acknowledged.
        """
        try:
            tenant, outcome = self._checked(body, caller)
        except RouterError as error:
            self._metrics.reported(_status_of(error))
            raise
        [status] = await self._aggregator.submit(tenant, [outcome])
        self._metrics.reported(status)
        if (refused := _refused(status, outcome)) is not None:
            raise refused
        return FeedbackOut(decision_id=outcome.decision_id, status=status)

    async def many(self, bodies: list[Any], *, caller: Caller = ANYBODY) -> FeedbackListOut:
        """Store each outcome of a list by itself; one bad item spoils no other.

        Raises:
            InvalidRequest: The list is too long.
            Unavailable: The ledger is away; nothing was acknowledged.
        """
        if len(bodies) > self._max_items:
            raise InvalidRequest(
                f"{len(bodies)} outcomes in one list",
                field="body",
                value=len(bodies),
                allowed=f"at most {self._max_items}",
            )
        results: dict[int, FeedbackOut] = {}
        by_tenant: dict[str, dict[int, Outcome]] = defaultdict(dict)
        for index, body in enumerate(bodies):
            try:
                tenant, outcome = self._checked(body, caller)
                by_tenant[tenant][index] = outcome
            except RouterError as error:
                results[index] = _result(_named(body), _status_of(error), error)
        for tenant, outcomes in by_tenant.items():
            statuses = await self._aggregator.submit(tenant, list(outcomes.values()))
            for (index, outcome), status in zip(outcomes.items(), statuses, strict=True):
                results[index] = _result(outcome.decision_id, status, _refused(status, outcome))
        for result in results.values():
            self._metrics.reported(JoinStatus(result.status))
        return FeedbackListOut(results=[results[index] for index in range(len(bodies))])

    def _checked(self, body: Any, caller: Caller) -> tuple[str, Outcome]:
        """Return tenant and outcome; raises InvalidRequest, UnknownDecision or Forbidden."""
        try:
            report = FeedbackIn.model_validate(body)
        except ValidationError as error:
            raise invalid(error, FeedbackIn) from error
        outcome, tenant = report.to_outcome(), caller.acts_for(report.tenant)
        self._ids.verify(report.decision_id, tenant)
        return tenant, outcome


def _result(decision_id: str | None, status: JoinStatus, error: RouterError | None) -> FeedbackOut:
    """Say what became of one item of a list."""
    detail = None if error is None else detail_of(error)
    return FeedbackOut(decision_id=decision_id, status=status, error=detail)


def _named(body: Any) -> str | None:
    """Return the decision id an item names, cut, where it names one at all."""
    name = body.get("decision_id") if isinstance(body, dict) else None
    return name[:MAX_LABEL] if isinstance(name, str) else None


def _status_of(error: RouterError) -> JoinStatus:
    """Return the status of an outcome that was refused at the door."""
    return JoinStatus.UNKNOWN if isinstance(error, UnknownDecision) else JoinStatus.INVALID


def _refused(status: JoinStatus, outcome: Outcome) -> RouterError | None:
    """Return the error that a status of the ledger stands for; None where it was stored."""
    if status is JoinStatus.INVALID:
        return Conflict(_REUSED, field="event_id", value=outcome.event_id, allowed="a new event_id")
    if status is JoinStatus.EXPIRED:
        return Expired(_LATE, field="decision_id", value=outcome.decision_id)
    if status is JoinStatus.UNKNOWN:
        return UnknownDecision("no such decision", field="decision_id", value=outcome.decision_id)
    return None
