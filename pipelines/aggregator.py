"""Where decisions meet their outcomes: the ledger's writer behind an event loop.

Whatever touches the database runs in one thread, so that the loop never waits for it; writes that
come together share a transaction. There may be several aggregators, shards by decision id, and
beside them one keeper, which reads (`pipelines.keeper`).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import pyarrow as pa

from pipelines.events import EventOutbox, EventSink
from pipelines.group_commit import GroupCommit
from pipelines.ledger import MAX_CLOSED, Ledger
from pipelines.ledger_retention import MAX_FORGOTTEN
from pipelines.remote import call
from pipelines.tenants import Rulebook
from pipelines.turns import in_thread, repeat
from policies.arms import Arm, PriceTable, patched
from policies.errors import RouterError
from policies.events import EventKind
from policies.interaction import JoinStatus, Outcome

logger = logging.getLogger(__name__)

CLOSE_EVERY_S: Final = 1.0
# The thousands of tuples of a transaction are no cycles: looking for some costs a third.
GC_THRESHOLDS: Final = (100_000, 20, 20)
# The event loop waits for the interpreter as often as the writer's thread lets go of it.
SWITCH_INTERVAL_S: Final = 0.0005
# Rows in one transaction: a few hundred milliseconds, and 8 MB where they are decisions.
MAX_GROUP_ROWS: Final = 5_000
# Transactions of one call of `forget`: some 2 s, in which feedback gets in between.
FORGET_TRANSACTIONS: Final = 100

Reports = Sequence[tuple[str, Outcome]]


class Aggregator:
    """Records decisions, joins outcomes, closes wait windows, changes prices.

    Args:
        ledger: Belongs to the aggregator from now on; `stop` closes it.
        announce: Tells the replicas of a new price table; may block, may raise RouterError.
        events: Told of changed prices.
        close_every_s: How often wait windows are closed, seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        announce: Callable[[PriceTable], object],
        events: EventSink,
        close_every_s: float = CLOSE_EVERY_S,
    ) -> None:
        self._ledger, self._announce, self._events = ledger, announce, events
        self._close_every_s = close_every_s
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger-writer")
        self._records: GroupCommit[pa.RecordBatch, int] = GroupCommit(
            ledger.record, thread=self._writer, size=len, max_size=MAX_GROUP_ROWS
        )
        self._submits: GroupCommit[Reports, list[JoinStatus]] = GroupCommit(
            self._submit_group, thread=self._writer, size=len, max_size=MAX_GROUP_ROWS
        )
        self._batches: GroupCommit[pa.RecordBatch, bytes] = GroupCommit(
            ledger.submit_batches, thread=self._writer, size=len, max_size=MAX_GROUP_ROWS
        )
        self._closing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to close wait windows; call within the event loop."""
        self._closing = asyncio.create_task(repeat(self.close_windows, every_s=self._close_every_s))

    async def stop(self) -> None:
        """Commit what waits, and close the ledger."""
        if self._closing is not None:
            self._closing.cancel()
            await asyncio.gather(self._closing, return_exceptions=True)
        for groups in (self._records, self._submits, self._batches):
            await groups.close()
        self._writer.shutdown()
        self._ledger.close()

    async def ready(self) -> None:
        """Return when the ledger is there, and durable; raises Unavailable."""
        # Beside the writer: who asks whether we live must not wait for a transaction.
        await asyncio.to_thread(self._ledger.check)

    async def record(self, batch: pa.RecordBatch) -> int:
        """Store decisions, schema DECISION_SCHEMA; return how many were new."""
        return await self._records.add(batch)

    async def submit(self, tenant: str, outcomes: Sequence[Outcome]) -> list[JoinStatus]:
        """Store outcomes, durable when it returns; one status each, in order.

        Args:
            tenant: Who reports; the caller has verified that the decision ids are theirs.
            outcomes: What came back.
        """
        return await self._submits.add([(tenant, outcome) for outcome in outcomes])

    async def submit_batch(self, reports: pa.RecordBatch) -> bytes:
        """Store outcomes that come in columns, durable when it returns.

        Args:
            reports: Schema REPORT_SCHEMA; the caller has verified the decision ids.

        Returns:
            One byte a report, see `policies.reports.unpack_statuses`.
        """
        return await self._batches.add(reports)

    async def put_arm(self, arm: Arm) -> PriceTable:
        """Add an arm, or replace the one of that name; return the new table."""
        return await self._change(
            lambda table: table.with_arm(arm, version=table.version + 1), f"{arm.name} set"
        )

    async def patch_arm(self, name: str, changes: dict[str, float | int]) -> PriceTable:
        """Change some prices of an arm; return the new table. Raises UnknownArm, InvalidArm."""
        return await self._change(
            lambda table: table.with_arm(
                patched(table.arm(name), changes), version=table.version + 1
            ),
            f"{name}: {', '.join(changes)} changed",
        )

    async def delete_arm(self, name: str) -> PriceTable:
        """Take an arm out; return the new table. Raises UnknownArm."""
        return await self._change(
            lambda table: table.without(name, version=table.version + 1), f"{name} removed"
        )

    async def close_windows(self) -> int:
        """Close the wait windows that are over; return how many. Feedback gets in between."""
        closed = 0
        while True:
            some = await in_thread(self._writer, self._ledger.mature_expired)
            closed += some
            if some < MAX_CLOSED:
                return closed

    async def forget(self, retention_s: float, exported_seq: int) -> int:
        """Let old decisions leave the ledger, and give their space back; see `Ledger.forget`.

        Feedback gets in between the transactions.

        Returns:
            How many have left. There may be more unless it is 0.
        """
        forget = partial(self._ledger.forget, retention_s=retention_s, exported_seq=exported_seq)
        gone = 0
        for _ in range(FORGET_TRANSACTIONS):
            some = await in_thread(self._writer, forget)
            gone += some
            if some < MAX_FORGOTTEN:
                break
        while await in_thread(self._writer, self._ledger.shrink):
            pass
        return gone

    async def _change(self, change: Callable[[PriceTable], PriceTable], what: str) -> PriceTable:
        """Store a new price table and tell the replicas, and operators."""
        before, table = await in_thread(self._writer, partial(self._store_prices, change))
        if table.version != before:
            self._events.emit(
                EventKind.PRICE_CHANGE,
                who="models API",
                why=what,
                price_version=table.version,
                models=len(table.arms),
            )
        try:
            await asyncio.to_thread(self._announce, table)
        except RouterError as error:
            # Stored all the same: the publisher reads prices back when it starts.
            logger.warning("price table %d not announced: %s", table.version, error)
        return table

    def _store_prices(self, change: Callable[[PriceTable], PriceTable]) -> tuple[int, PriceTable]:
        """Store a changed price table; return the version before, and the table."""
        return self._ledger.prices().version, self._ledger.change_prices(change)

    def _submit_group(self, groups: Sequence[Reports]) -> list[list[JoinStatus]]:
        """Store the outcomes of several callers in one transaction."""
        statuses = iter(self._ledger.submit([report for group in groups for report in group]))
        return [[next(statuses) for _ in group] for group in groups]


class AggregatorActor:
    """One aggregator as a named Ray actor, which tells the publisher of new prices."""

    def __init__(
        self,
        ledger_url: str,
        *,
        rules: Rulebook,
        orphan_after_s: float,
        shard: int = 0,
        publisher: str = "publisher",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start at once; a database that is away is asked again with every call."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.set_threshold(*GC_THRESHOLDS)
        ledger = Ledger(
            ledger_url,
            rules=rules,
            orphan_after_s=orphan_after_s,
            clock=clock,
            shard=shard,
        )
        self._aggregator = Aggregator(
            ledger, announce=partial(call, publisher, "publish_prices"), events=EventOutbox()
        )
        self._aggregator.start()

    async def ready(self) -> None:
        """See `Aggregator.ready`."""
        await self._aggregator.ready()

    async def record(self, batch: pa.RecordBatch) -> int:
        """See `Aggregator.record`."""
        return await self._aggregator.record(batch)

    async def submit(self, tenant: str, outcomes: Sequence[Outcome]) -> list[JoinStatus]:
        """See `Aggregator.submit`."""
        return await self._aggregator.submit(tenant, outcomes)

    async def submit_batch(self, reports: pa.RecordBatch) -> bytes:
        """See `Aggregator.submit_batch`."""
        return await self._aggregator.submit_batch(reports)

    async def put_arm(self, arm: Arm) -> PriceTable:
        """See `Aggregator.put_arm`."""
        return await self._aggregator.put_arm(arm)

    async def patch_arm(self, name: str, changes: dict[str, float | int]) -> PriceTable:
        """See `Aggregator.patch_arm`."""
        return await self._aggregator.patch_arm(name, changes)

    async def delete_arm(self, name: str) -> PriceTable:
        """See `Aggregator.delete_arm`."""
        return await self._aggregator.delete_arm(name)

    async def forget(self, retention_s: float, exported_seq: int) -> int:
        """See `Aggregator.forget`."""
        return await self._aggregator.forget(retention_s, exported_seq)

    async def stop(self) -> None:
        """See `Aggregator.stop`; nothing may be called after it."""
        await self._aggregator.stop()
