"""What leaves the ledger: decisions that can change no more, and reports nobody will ever claim.

Each works inside a transaction that somebody else opened, on few rows: feedback waits for it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, exists, select, update

from pipelines.ledger_bulk import delete_of, rows_of
from pipelines.schema import decisions, interactions, open_decisions, outcomes, sequence

# Some 20 ms on SQLite.
MAX_FORGOTTEN: Final = 500

# Unused pages up to this share of the file stay in it: the next decisions take them again.
SPARE_SHARE: Final = 0.25
# 8 MB a transaction.
MAX_PAGES: Final = 2_000
_INCREMENTAL: Final = 2


def delete_decisions(
    connection: Connection, *, before: int, now: int, exported_seq: int, limit: int
) -> int:
    """Delete the oldest decisions with outcomes and interactions; return how many there were.

    Args:
        connection: Within a transaction.
        before: Only decisions of this moment or before, microseconds since the epoch.
        now: Only those whose wait window is over by now, and was closed.
        exported_seq: Only those without interactions above this number.
        limit: Most decisions.
    """
    own = decisions.c.decision_id
    is_open = exists().where(open_decisions.c.decision_id == own)
    is_unexported = exists().where(
        interactions.c.decision_id == own, interactions.c.seq > exported_seq
    )
    query = (
        select(own, decisions.c.decided_at)
        .where(decisions.c.decided_at <= before, decisions.c.closes_at <= now)
        .where(~is_open, ~is_unexported)
        .order_by(decisions.c.decided_at)
        .limit(limit)
    )
    found = connection.execute(query).all()
    ids = [name for name, _ in found]
    if not ids:
        return 0
    seqs = [seq for (seq,) in rows_of(connection, "interactions", ("seq",), ids)]
    for table in ("outcomes", "interactions", "decisions"):
        delete_of(connection, table, ids)
    _raise_mark(connection, "forgotten_at", max(at for _, at in found))
    _raise_mark(connection, "forgotten_seq", max(seqs, default=0))
    return len(ids)


def delete_orphans(connection: Connection, *, before: int, limit: int) -> int:
    """Delete outcomes whose decision never came; return how many there were.

    All of a decision or none: those that stay must keep their places among its outcomes.

    Args:
        connection: Within a transaction.
        before: Only where the last of them came at this moment or before, microseconds.
        limit: Most decisions.
    """
    later = outcomes.alias()
    query = (
        select(outcomes.c.decision_id)
        .distinct()
        .where(outcomes.c.joined.is_(False), outcomes.c.received_at <= before)
        .where(
            ~exists().where(
                later.c.decision_id == outcomes.c.decision_id, later.c.received_at > before
            )
        )
        .limit(limit)
    )
    return delete_of(connection, "outcomes", list(connection.scalars(query)))


def give_back(connection: Connection) -> int:
    """Give unused pages back to the file system; return how many, 0 when enough are.

    PostgreSQL does so by itself. A SQLite file that an older release made only uses them again.
    """
    if connection.dialect.name != "sqlite":
        return 0
    free, total, mode = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
        for name in ("freelist_count", "page_count", "auto_vacuum")
    )
    # So many that the share is right afterwards, when the file is smaller.
    pages = min(int((free - total * SPARE_SHARE) / (1 - SPARE_SHARE)), MAX_PAGES)
    if mode != _INCREMENTAL or pages <= 0:
        return 0
    # It frees a page with each step. Of a statement without columns the driver takes one step; a
    # script it takes to its end, in a transaction of its own: ours ends here, with nothing changed.
    driver = connection.connection.driver_connection
    assert driver is not None
    # The file is no smaller before its write-ahead log, 34 MB at most, is written back into it.
    driver.executescript(f"PRAGMA incremental_vacuum({pages}); PRAGMA wal_checkpoint(PASSIVE)")
    left = int(connection.exec_driver_sql("PRAGMA freelist_count").scalar_one())
    return free - left


def _raise_mark(connection: Connection, name: str, value: int) -> None:
    """Say that retention has come so far, where it had not."""
    column = sequence.c[name]
    connection.execute(update(sequence).where(column < value).values({name: value}))
