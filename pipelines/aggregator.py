"""Where decisions meet their outcomes: the ledger behind an event loop, and its export.

Whatever touches the database runs in one of two threads, one that writes and one that reads, so
that calls never wait for each other in the loop; writes that come together share a transaction.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.answers import Answer
from pipelines.archive import Archive
from pipelines.dataset import InteractionDataset, export
from pipelines.earnings import Earned
from pipelines.events import EventOutbox, EventSink
from pipelines.group_commit import GroupCommit
from pipelines.ledger import MAX_CLOSED, Ledger
from pipelines.ledger_retention import MAX_FORGOTTEN
from pipelines.remote import call
from pipelines.tenants import Rulebook
from policies.arms import Arm, PriceTable, patched
from policies.errors import RouterError
from policies.events import EventKind
from policies.interaction import JoinStatus, LedgerCounts, Outcome

logger = logging.getLogger(__name__)

CLOSE_EVERY_S: Final = 1.0
COMPACT_EVERY_S: Final = 30.0
SWITCH_INTERVAL_S: Final = 0.0005
GC_THRESHOLDS: Final = (100_000, 20, 20)
# Rows in one transaction: a few hundred milliseconds, and 8 MB where they are decisions.
MAX_GROUP_ROWS: Final = 5_000

T = TypeVar("T")
Reports = Sequence[tuple[str, Outcome]]


class Aggregator:
    """Answers replicas and trainer from the ledger, closes wait windows, exports what matures.

    Args:
        ledger: Belongs to the aggregator from now on; `stop` closes it.
        dataset: Where matured interactions go; nobody else may write there.
        announce: Tells the replicas of a new price table; may block, may raise RouterError.
        events: Told of changed prices.
        export_every_s: How often matured interactions leave, seconds.
        close_every_s: How often wait windows are closed, seconds.
        retention_s: How long a decision stays in the ledger after the longest wait window; None
            keeps it for good.
        compact_every_s: How often old decisions leave and small parts are merged, seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        dataset: InteractionDataset,
        *,
        announce: Callable[[PriceTable], object],
        events: EventSink,
        export_every_s: float,
        close_every_s: float = CLOSE_EVERY_S,
        retention_s: float | None = None,
        compact_every_s: float = COMPACT_EVERY_S,
    ) -> None:
        self._ledger, self._dataset, self._announce = ledger, dataset, announce
        self._archive = Archive(ledger, dataset)
        self._retention_s, self._compact_every_s = retention_s, compact_every_s
        self._events = events
        self._export_every_s, self._close_every_s = export_every_s, close_every_s
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger-writer")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="ledger-reader")
        self._records: GroupCommit[pa.RecordBatch, int] = GroupCommit(
            ledger.record, thread=self._writer, size=len, max_size=MAX_GROUP_ROWS
        )
        self._submits: GroupCommit[Reports, list[JoinStatus]] = GroupCommit(
            self._submit_group, thread=self._writer, size=len, max_size=MAX_GROUP_ROWS
        )
        self._batches: GroupCommit[pa.RecordBatch, bytes] = GroupCommit(
            ledger.submit_batches, thread=self._writer, size=len, max_size=MAX_GROUP_ROWS
        )
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to export and to close wait windows; call within the event loop."""
        loops = (
            (self._export_every_s, self.export),
            (self._close_every_s, self.close_windows),
            (self._compact_every_s, self.compact),
        )
        self._loops = [asyncio.create_task(_repeat(work, every_s=s)) for s, work in loops]

    async def stop(self) -> None:
        """Commit what waits, export what has matured, and close the ledger."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._records.close()
        await self._submits.close()
        await self._batches.close()
        try:
            await self.export()
        finally:
            self._writer.shutdown()
            self._reader.shutdown()
            self._ledger.close()

    async def ready(self) -> None:
        """Return when the ledger is there, durable, and the dataset's own; raises Unavailable.

        Raises:
            DamagedDataset: The dataset is damaged, or another ledger's.
        """
        await self._read(self._ledger.check)
        await self._read(self._archive.check)

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

    async def decision(self, decision_id: str) -> dict[str, Any] | None:
        """Return all that is known of a decision as plain JSON values; see `Archive.decision`."""
        return await self._read(partial(self._archive.decision, decision_id))

    async def context(self, decision_id: str) -> NDArray[np.float32] | None:
        """Return a decision's context; see `Archive.context`."""
        return await self._read(partial(self._archive.context, decision_id))

    async def interactions(self, after_seq: int, limit: int) -> pa.Table:
        """Read matured interactions in sequence order, schema INTERACTION_SCHEMA."""
        return await self._read(partial(self._archive.interactions, after_seq, limit))

    async def earned(self, after_seq: int, up_to_seq: int, ceiling_usd: float) -> list[Earned]:
        """Sum what interactions brought by version; see `Archive.earned`."""
        return await self._read(partial(self._archive.earned, after_seq, up_to_seq, ceiling_usd))

    async def answers(
        self, champion: int, canary: int, after_id: str, within_s: float, limit: int
    ) -> list[Answer]:
        """Read which decisions of two versions got feedback in time; see `Ledger.answers`."""
        read = partial(self._ledger.answers, champion, canary)
        return await self._read(partial(read, after_id=after_id, within_s=within_s, limit=limit))

    async def counts(self) -> LedgerCounts:
        """Count what the ledger has seen."""
        return await self._read(self._ledger.counts)

    async def prices(self) -> PriceTable:
        """Return the price table of now; an empty one, version 0, before the first."""
        return await self._read(self._ledger.prices)

    async def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """Return price tables by version; a version that never was is left out."""
        return await self._read(partial(self._ledger.price_history, versions))

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

    async def export(self) -> int:
        """Copy what has matured into the dataset; return how many interactions that was."""
        await self._read(self._archive.check)
        return await self._read(partial(export, self._ledger.interactions, self._dataset))

    async def close_windows(self) -> int:
        """Close the wait windows that are over; return how many. Feedback gets in between."""
        closed = 0
        while True:
            some = await _in(self._writer, self._ledger.mature_expired)
            closed += some
            if some < MAX_CLOSED:
                return closed

    async def compact(self) -> int:
        """Let old decisions leave the ledger, and merge small parts of the dataset.

        Feedback gets in between the transactions, reads between the merges.

        Returns:
            How many decisions have left.
        """
        gone = 0
        if self._retention_s is not None:
            gone = await self._forget(self._retention_s)
        while await self._read(self._dataset.merge):
            pass
        return gone

    async def _forget(self, retention_s: float) -> int:
        """Delete decisions that have been in the ledger long enough, and give their space back."""
        await self._read(self._archive.check)
        exported_seq = await self._read(self._dataset.last_seq)
        forget = partial(self._ledger.forget, retention_s=retention_s, exported_seq=exported_seq)
        gone = 0
        while True:
            some = await _in(self._writer, forget)
            gone += some
            if some < MAX_FORGOTTEN:
                break
        while await _in(self._writer, self._ledger.shrink):
            pass
        return gone

    async def _change(self, change: Callable[[PriceTable], PriceTable], what: str) -> PriceTable:
        """Store a new price table and tell the replicas, and operators."""
        before = await self.prices()
        table = await _in(self._writer, partial(self._ledger.change_prices, change))
        if table.version != before.version:
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

    async def _read(self, query: Callable[[], T]) -> T:
        return await _in(self._reader, query)

    def _submit_group(self, groups: Sequence[Reports]) -> list[list[JoinStatus]]:
        """Store the outcomes of several callers in one transaction."""
        statuses = iter(self._ledger.submit([report for group in groups for report in group]))
        return [[next(statuses) for _ in group] for group in groups]


async def _in(thread: Executor, work: Callable[[], T]) -> T:
    """Run what blocks in a thread."""
    return await asyncio.get_running_loop().run_in_executor(thread, work)


async def _repeat(work: Callable[[], Awaitable[object]], *, every_s: float) -> None:
    """Do something again and again; a failure is logged, the next turn may do better."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("%s failed, again in %s s", getattr(work, "__name__", work), every_s)
        await asyncio.sleep(every_s)


class AggregatorActor:
    """The aggregator as a named Ray actor, which tells the publisher of new prices."""

    def __init__(
        self,
        ledger_url: str,
        dataset_dir: str,
        *,
        rules: Rulebook,
        orphan_after_s: float,
        export_every_s: float,
        retention_s: float | None = None,
        publisher: str = "publisher",
    ) -> None:
        """Start at once; a database that is away is asked again with every call."""
        # SQLite lets go of the interpreter at every row: the writer would wait 5 ms to get it back
        # whenever the exporter works.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        # The thousands of tuples of a transaction are no cycles: looking for some costs a third.
        gc.set_threshold(*GC_THRESHOLDS)
        ledger = Ledger(
            ledger_url,
            rules=rules,
            orphan_after_s=orphan_after_s,
            clock=time.time,
        )
        self._aggregator = Aggregator(
            ledger,
            InteractionDataset(dataset_dir),
            announce=partial(call, publisher, "publish_prices"),
            events=EventOutbox(),
            export_every_s=export_every_s,
            retention_s=retention_s,
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

    async def decision(self, decision_id: str) -> dict[str, Any] | None:
        """See `Aggregator.decision`."""
        return await self._aggregator.decision(decision_id)

    async def context(self, decision_id: str) -> NDArray[np.float32] | None:
        """See `Aggregator.context`."""
        return await self._aggregator.context(decision_id)

    async def interactions(self, after_seq: int, limit: int) -> pa.Table:
        """See `Aggregator.interactions`."""
        return await self._aggregator.interactions(after_seq, limit)

    async def earned(self, after_seq: int, up_to_seq: int, ceiling_usd: float) -> list[Earned]:
        """See `Aggregator.earned`."""
        return await self._aggregator.earned(after_seq, up_to_seq, ceiling_usd)

    async def answers(
        self, champion: int, canary: int, after_id: str, within_s: float, limit: int
    ) -> list[Answer]:
        """See `Aggregator.answers`."""
        return await self._aggregator.answers(champion, canary, after_id, within_s, limit)

    async def counts(self) -> LedgerCounts:
        """See `Aggregator.counts`."""
        return await self._aggregator.counts()

    async def prices(self) -> PriceTable:
        """See `Aggregator.prices`."""
        return await self._aggregator.prices()

    async def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """See `Aggregator.price_history`."""
        return await self._aggregator.price_history(versions)

    async def put_arm(self, arm: Arm) -> PriceTable:
        """See `Aggregator.put_arm`."""
        return await self._aggregator.put_arm(arm)

    async def patch_arm(self, name: str, changes: dict[str, float | int]) -> PriceTable:
        """See `Aggregator.patch_arm`."""
        return await self._aggregator.patch_arm(name, changes)

    async def delete_arm(self, name: str) -> PriceTable:
        """See `Aggregator.delete_arm`."""
        return await self._aggregator.delete_arm(name)

    async def stop(self) -> None:
        """See `Aggregator.stop`; nothing may be called after it."""
        await self._aggregator.stop()
