"""Outcomes on their way to the ledger: checked, their ids verified, acknowledged when durable."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import to_json

from policies.errors import Conflict, InvalidRequest, RouterError, UnknownDecision
from policies.interaction import JoinStatus, Outcome
from policies.reports import reports_to_batch, unpack_statuses
from services.actors import AggregatorPort
from services.bulk import BulkReports, arrow_answer, bulk_answer, read_reports
from services.decision_ids import DecisionIds
from services.door import ANYBODY, Caller
from services.metrics import ReplicaMetrics
from services.refusals import Expired, detail_of, invalid
from services.wire import MAX_LABEL, FeedbackIn, FeedbackListOut, FeedbackOut

SUBMIT_ROWS: Final = 10_000  # of a stream, in one transaction
_REFUSED: Final = frozenset({JoinStatus.INVALID, JoinStatus.EXPIRED, JoinStatus.UNKNOWN})
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
        if (refused := _refused(status, outcome.decision_id, outcome.event_id)) is not None:
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
        reports: dict[int, tuple[str, Outcome]] = {}
        for index, body in enumerate(bodies):
            try:
                reports[index] = self._checked(body, caller)
            except RouterError as error:
                results[index] = _result(_named(body), _status_of(error), error)
        if reports:
            packed = await self._aggregator.submit_batch(reports_to_batch(list(reports.values())))
            for (index, (_, one)), status in zip(
                reports.items(), unpack_statuses(packed), strict=True
            ):
                refused = _refused(status, one.decision_id, one.event_id)
                results[index] = _result(one.decision_id, status, refused)
        for result in results.values():
            self._metrics.reported(JoinStatus(result.status))
        return FeedbackListOut(results=[results[index] for index in range(len(bodies))])

    async def arrow(self, body: bytes, *, caller: Caller, as_arrow: bool) -> bytes:
        """Store the outcomes of an Arrow IPC stream; a bad row spoils no other.

        Args:
            body: See `services.bulk.read_reports`.
            caller: Who sent it; pays for every row.
            as_arrow: Whether to answer row by row, as Arrow, or in JSON, with counts.

        Raises:
            MalformedArrow: It is no such stream; nothing was stored.
            Unavailable: The ledger is away; what was stored by then is a duplicate next time.
        """
        # Thousands of signatures to verify must not hold up those who route.
        reports = await asyncio.to_thread(self._read_arrow, body, caller)
        caller.spend(len(reports.table) - 1)
        ids = reports.table.column("decision_id").to_pylist()
        errors = {row: detail_of(error) for row, error in reports.errors.items()}
        statuses = [JoinStatus.INVALID] * len(ids)
        for row, error in reports.errors.items():
            statuses[row] = _status_of(error)
        rows, batch = reports.good()
        events = batch.column("event_id")
        for start in range(0, len(rows), SUBMIT_ROWS):
            packed = await self._aggregator.submit_batch(batch.slice(start, SUBMIT_ROWS))
            for index, status in enumerate(unpack_statuses(packed), start):
                row = int(rows[index])
                statuses[row] = status
                if status in _REFUSED:
                    refused = _refused(status, ids[row], events[index].as_py())
                    errors |= {} if refused is None else {row: detail_of(refused)}
        for status, number in Counter(statuses).items():
            self._metrics.reported(status, number=number)
        if as_arrow:
            return await asyncio.to_thread(arrow_answer, ids, statuses, errors)
        return to_json(bulk_answer(ids, statuses, errors))

    def _read_arrow(self, body: bytes, caller: Caller) -> BulkReports:
        """Read a stream, and verify the decision id of every row."""
        reports = read_reports(body, acts_for=caller.acts_for)
        names = ("decision_id", "tenant")
        pairs = zip(*(reports.table.column(name).to_pylist() for name in names), strict=True)
        for row, (decision_id, tenant) in enumerate(pairs):
            if row not in reports.errors:
                try:
                    self._ids.verify(decision_id, tenant)
                except UnknownDecision as error:
                    reports.errors[row] = error
        return reports

    def _checked(self, body: Any, caller: Caller) -> tuple[str, Outcome]:
        """Return tenant and outcome; raises InvalidRequest, UnknownDecision or Forbidden.

        What could not even be parsed comes as the error that says so.
        """
        if isinstance(body, RouterError):
            raise body
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


def _refused(status: JoinStatus, decision_id: str, event_id: str | None) -> RouterError | None:
    """Return the error that a status of the ledger stands for; None where it was stored."""
    if status is JoinStatus.INVALID:
        return Conflict(_REUSED, field="event_id", value=event_id, allowed="a new event_id")
    if status is JoinStatus.EXPIRED:
        return Expired(_LATE, field="decision_id", value=decision_id)
    if status is JoinStatus.UNKNOWN:
        return UnknownDecision("no such decision", field="decision_id", value=decision_id)
    return None
