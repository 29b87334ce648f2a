"""Keeps decisions, outcomes, matured interactions and prices; each public method is a transaction.

What a method has returned is on the disk. The rules of joining are in `pipelines.joining`, the
tables in `pipelines.schema`, the statements in `pipelines.ledger_sql`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import Connection

from pipelines import ledger_sql as sql
from pipelines.answers import Answer, select_answers
from pipelines.earnings import Earned, select_earned
from pipelines.joining import MICROSECONDS, Group, Report
from pipelines.ledger_database import LedgerDatabase
from pipelines.ledger_locks import (
    lock_all_decisions,
    lock_decisions,
    lock_free_slots,
    lock_prices,
)
from pipelines.ledger_prices import insert_prices, select_price_history, select_prices
from pipelines.ledger_retention import (
    MAX_FORGOTTEN,
    delete_decisions,
    delete_orphans,
    give_back,
)
from pipelines.ledger_rows import (
    VECTORS,
    decision_json,
    decision_rows,
    interaction_table,
    report_rows,
)
from pipelines.schema import is_durable
from pipelines.tenants import Rulebook
from policies.arms import PriceTable
from policies.errors import Unavailable, UnknownArm
from policies.interaction import MAX_COST_USD, JoinStatus, LedgerCounts, Outcome
from policies.reports import pack_statuses
from policies.sharding import slot_of

logger = logging.getLogger(__name__)

# Bounds the time that feedback waits for windows that close all at once.
MAX_CLOSED: Final = 10_000


class Ledger:
    """The durable join of decisions with what came back, on SQLite or PostgreSQL.

    Any number of processes may write: transactions that touch the same decisions follow one
    another, so a decision need not always go to the same shard. Any thread may call.

    Args:
        url: SQLAlchemy URL, `sqlite:///path` or `postgresql+psycopg://...`.
        rules: What each tenant's feedback is held to.
        orphan_after_s: An outcome without its decision counts as orphaned after this, seconds.
        clock: Seconds since the epoch, UTC.
        shard: Which of several writers this is.

    Raises:
        Unavailable: The URL is for another database. Every method raises it, too, with nothing
            changed, while the database is away, locked or full.
    """

    def __init__(
        self,
        url: str,
        *,
        rules: Rulebook,
        orphan_after_s: float,
        clock: Callable[[], float],
        shard: int = 0,
    ) -> None:
        self._rules, self._orphan_after_s = rules, orphan_after_s
        self._clock, self._shard = clock, shard
        # Never out of date: a price table does not change once it has a version.
        self._prices: dict[int, PriceTable] = {}
        self._database = LedgerDatabase(url, shard=shard)

    def check(self) -> None:
        """Raise Unavailable where the database is away, or could lose what it acknowledges."""
        with self._database.reading() as connection:
            durable = is_durable(connection)
        if not durable:
            raise Unavailable(
                "the ledger's database does not flush its commits to disk",
                field="ledger_url",
                allowed="SQLite with synchronous=FULL; PostgreSQL with fsync, synchronous_commit",
            )

    def close(self) -> None:
        """Give the connections back."""
        self._database.close()

    def record(self, batches: Sequence[pa.RecordBatch]) -> list[int]:
        """Store decisions and join the outcomes that came before them.

        Args:
            batches: Schema DECISION_SCHEMA; a decision that is stored already stays as it is.

        Returns:
            How many decisions of each batch are new.

        Raises:
            InvalidRequest: Another schema, or a text that the database cannot hold.
        """
        rows = [decision_rows(batch, rules=self._rules) for batch in batches]
        with self._database.writing() as connection:
            lock_decisions(connection, (row[0] for batch in rows for row in batch))
            new = [sql.insert_decisions(connection, batch) for batch in rows]
            ids = [decision_id for batch in new for decision_id in batch]
            early = sql.waiting_for(connection, ids)
            group = self._load(connection, early)
            joined = sum(group.record(decision_id) for decision_id in early)
            sql.mark_joined(connection, early)
            self._store(connection, group, {"decisions": len(ids), "joined": joined})
        return [len(batch) for batch in new]

    def submit(self, reports: Sequence[tuple[str, Outcome]]) -> list[JoinStatus]:
        """Store outcomes, one after another.

        Args:
            reports: Tenant and outcome; the caller has verified that the decision id is theirs.

        Returns:
            What became of each, in order.
        """
        tenants = [tenant for tenant, _ in reports]
        return self._submit(tenants, [Report.of(outcome) for _, outcome in reports])

    def submit_batches(self, batches: Sequence[pa.RecordBatch]) -> list[bytes]:
        """Store outcomes that come in columns; to the same end as `submit`, several times as fast.

        Args:
            batches: Schema REPORT_SCHEMA; the caller has verified that the decision ids are
                their tenants'.

        Returns:
            What became of each report of each batch, see `policies.reports.unpack_statuses`.

        Raises:
            InvalidRequest: Another schema.
        """
        tenants: list[str] = []
        reports: list[Report] = []
        for batch in batches:
            added, rows = report_rows(batch)
            tenants += added
            reports += rows
        packed = pack_statuses(self._submit(tenants, reports))
        ends = accumulate(map(len, batches), initial=0)
        return [packed[start:end] for start, end in pairwise(ends)]

    def _submit(self, tenants: Sequence[str], reports: Sequence[Report]) -> list[JoinStatus]:
        """Apply reports one after another, and store what they change."""
        with self._database.writing() as connection:
            ids = {report.decision_id for report in reports}
            lock_decisions(connection, ids)
            group = self._load(connection, ids)
            statuses = list(map(group.receive, tenants, reports))
            totals = {
                "outcomes": len(group.received),
                "joined": group.joined,
                "duplicates": statuses.count(JoinStatus.DUPLICATE),
                "expired": statuses.count(JoinStatus.EXPIRED),
            }
            self._store(connection, group, totals)
        return statuses

    def mature_expired(self, *, limit: int = MAX_CLOSED) -> int:
        """Close wait windows that are over: what is known by then is learned from.

        Those of decisions that another process is at work on are left to it, or to the next call.

        Args:
            limit: Most windows to close in this transaction.

        Returns:
            How many were closed.
        """
        with self._database.writing() as connection:
            now = self._now()
            due = sql.closing(connection, now=now, limit=limit)
            free = lock_free_slots(connection, due)
            # Read once more: some may have been closed before the locks were ours.
            due = sql.closing(connection, now=now, limit=limit)
            ids = [decision_id for decision_id in due if slot_of(decision_id) in free]
            group = self._load(connection, ids)
            for decision_id in ids:
                group.close(decision_id)
            self._store(connection, group, {})
            sql.close_decisions(connection, ids)
        return len(ids)

    def forget(self, *, retention_s: float, exported_seq: int, limit: int = MAX_FORGOTTEN) -> int:
        """Delete decisions that can change no more, with all that came of them.

        Those are older than the longest wait window and the retention together; their windows are
        closed and their interactions exported. Outcomes whose decision never came go as early.

        Args:
            retention_s: How long decisions stay after the longest wait window, seconds.
            exported_seq: Interactions up to this sequence number are safe elsewhere.
            limit: Most decisions to delete in this transaction.

        Returns:
            How many decisions went; as many as `limit` means that there may be more.
        """
        with self._database.writing() as connection:
            lock_all_decisions(connection)
            now = self._now()
            before = now - round((self._rules.longest_window_s + retention_s) * MICROSECONDS)
            gone = delete_decisions(
                connection, before=before, now=now, exported_seq=exported_seq, limit=limit
            )
            orphaned_before = before - round(self._orphan_after_s * MICROSECONDS)
            dropped = delete_orphans(connection, before=orphaned_before, limit=limit)
            sql.add_totals(connection, self._shard, {"dropped": dropped})
        return gone

    def shrink(self) -> int:
        """Give some unused space back to the file system; return the pages, 0 when it is done."""
        with self._database.writing() as connection:
            return give_back(connection)

    def forgotten_seq(self) -> int:
        """Return the number up to which interactions may have left the ledger, 0 for none."""
        with self._database.reading() as connection:
            return sql.select_forgotten(connection)[0]

    def interactions(self, after_seq: int, limit: int) -> pa.Table:
        """Read matured interactions in sequence order, schema INTERACTION_SCHEMA.

        Args:
            after_seq: Only those with a higher sequence number.
            limit: Most rows to return.
        """
        with self._database.reading() as connection:
            rows = sql.select_interactions(connection, after_seq=after_seq, limit=limit)
        return interaction_table(rows)

    def last_seq(self) -> int:
        """Return the sequence number given last, 0 where there is none."""
        with self._database.reading() as connection:
            return sql.select_last_seq(connection)

    def decision(self, decision_id: str) -> dict[str, Any] | None:
        """Return all that is known of a decision as plain JSON values; None where nothing is.

        The columns of DECISION_SCHEMA but the context, `closes_at` (end of its wait window),
        `outcomes` in the order they came, and `interaction` (seq, revision, quality, cost_usd,
        latency_ms, matured_at), None until it has matured.
        """
        with self._database.reading() as connection:
            found = sql.select_decision(connection, decision_id)
        return None if found is None else decision_json(*found)

    def context(self, decision_id: str) -> NDArray[np.float32] | None:
        """Return a decision's context, shape (context_dim,); None where it is not kept."""
        with self._database.reading() as connection:
            stored = sql.select_context(connection, decision_id)
        return None if stored is None else np.frombuffer(stored, dtype=VECTORS["context"])

    def earned(self, after_seq: int, up_to_seq: int, cost_ceiling_usd: float) -> list[Earned]:
        """Sum what interactions brought by version; see `select_earned`."""
        with self._database.reading() as connection:
            return select_earned(
                connection,
                after_seq=after_seq,
                up_to_seq=up_to_seq,
                cost_ceiling_usd=cost_ceiling_usd,
            )

    def answers(
        self, champion: int, canary: int, *, after_id: str, within_s: float, limit: int
    ) -> list[Answer]:
        """Read which decisions of two versions got feedback in time; see `select_answers`."""
        with self._database.reading() as connection:
            return select_answers(
                connection,
                champion=champion,
                canary=canary,
                after_id=after_id,
                within_s=within_s,
                now_us=self._now(),
                limit=limit,
            )

    def counts(self) -> LedgerCounts:
        """Count what the ledger has seen, all shards together."""
        orphaned_before = self._now() - round(self._orphan_after_s * MICROSECONDS)
        with self._database.reading() as connection:
            return sql.select_counts(connection, orphaned_before=orphaned_before)

    def prices(self) -> PriceTable:
        """Return the newest price table; an empty one, version 0, before the first."""
        with self._database.reading() as connection:
            return select_prices(connection)

    def price_history(self, versions: Collection[int]) -> dict[int, PriceTable]:
        """Return price tables by version; a version that never was is left out."""
        with self._database.reading() as connection:
            return select_price_history(connection, versions)

    def change_prices(self, change: Callable[[PriceTable], PriceTable]) -> PriceTable:
        """Store a changed price table; a change that changes nothing makes no version.

        Args:
            change: Returns the present table as the next version, or raises.

        Returns:
            The newest table.
        """
        with self._database.writing() as connection:
            lock_prices(connection)
            present = select_prices(connection)
            changed = change(present)
            if changed.arms == present.arms:
                return present
            insert_prices(connection, changed, now=self._now())
        return changed

    def _load(self, connection: Connection, decision_ids: Collection[str]) -> Group:
        """Read what is stored about some decisions, ready to be joined."""
        histories = sql.load_histories(connection, decision_ids)
        versions = {h.recorded.price_version for h in histories.values() if h.recorded}
        unread = versions - self._prices.keys()
        if unread:
            self._prices |= select_price_history(connection, unread)
        _, forgotten_at = sql.select_forgotten(connection)
        return Group(
            histories,
            price=self._price,
            rules=self._rules,
            now=self._now(),
            forgotten_at=forgotten_at,
        )

    def _store(self, connection: Connection, group: Group, totals: dict[str, int]) -> None:
        """Write what a group has changed, and count it."""
        sql.store_group(connection, group)
        totals = totals | {"interactions": len(group.matured)}
        sql.add_totals(connection, self._shard, totals)

    def _price(self, version: int, arm: str, tokens_in: int, tokens_out: int) -> float | None:
        """Price a call by its tokens; None where its price table is not known here."""
        try:
            priced = self._prices[version].arm(arm)
        except (KeyError, UnknownArm):
            logger.warning("price table %d does not know the arm: its cost stays open", version)
            return None
        cost_usd = priced.cost_usd(tokens_in=tokens_in, tokens_out=tokens_out)
        if cost_usd <= MAX_COST_USD:
            return cost_usd
        logger.warning("price table %d: tokens worth over %g USD stay open", version, MAX_COST_USD)
        return None

    def _now(self) -> int:
        """Return the time in microseconds since the epoch."""
        return round(self._clock() * MICROSECONDS)
