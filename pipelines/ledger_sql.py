"""The statements behind the ledger: each works inside a transaction that somebody else opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, Table, bindparam, func, select, update

from pipelines.joining import RECEIVED, Group, History, Recorded, Report, Values
from pipelines.ledger_bulk import delete_of, execute_for, fetch_all, insert_rows, rows_of
from pipelines.ledger_rows import DECISION_COLUMNS
from pipelines.schema import (
    TOTALS,
    decisions,
    insert_new,
    interactions,
    open_decisions,
    outcomes,
    sequence,
    tallies,
)
from policies.interaction import INTERACTION_SCHEMA, LedgerCounts

_first: Final = itemgetter(0)
_RECORDED: Final = ("decision_id", *Recorded._fields)
_OPEN: Final = ("decision_id", "tenant", "arm", "price_version", "closes_at", "deferred")
_OPEN_PART: Final = itemgetter(*(DECISION_COLUMNS.index(name) for name in _OPEN))
_VALUES: Final = Values._fields
_MATURED: Final = ("decision_id", "revision", *_VALUES, "seq", "matured_at")
# Columns of an interaction that are its own; the rest are its decision's.
_OWN: Final = ("seq", "revision", *_VALUES, "matured_at")


def _columns(table: Table, *names: str) -> Select[Any]:
    """Select some columns of a table by name."""
    return select(*(table.c[name] for name in names))


# Built once: to build one takes SQLAlchemy longer than the database to answer it.
_TAKE_NUMBERS: Final = (
    update(sequence)
    .values(last_seq=sequence.c.last_seq + bindparam("total"))
    .returning(sequence.c.last_seq)
)
_ADD_TOTALS: Final = (
    update(tallies)
    .where(tallies.c.shard == bindparam("own"))
    .values({name: tallies.c[name] + bindparam(f"add_{name}") for name in (*TOTALS, "dropped")})
)
_FORGOTTEN: Final = select(sequence.c.forgotten_seq, sequence.c.forgotten_at)
_DECIDED_AT: Final = DECISION_COLUMNS.index("decided_at")


def has_rows(connection: Connection, shard: int) -> bool:
    """Say whether the rows are there that are only ever updated."""
    own = select(tallies.c.shard).where(tallies.c.shard == shard)
    return all(connection.scalar(query) is not None for query in (own, select(sequence.c.id)))


def ensure_rows(connection: Connection, shard: int) -> None:
    """Create the rows that are only ever updated."""
    connection.execute(insert_new(connection, tallies).values(shard=shard))
    connection.execute(insert_new(connection, sequence).values(id=0, last_seq=0))


def insert_decisions(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> list[str]:
    """Store decisions that are not stored yet, as open ones; return their ids in order.

    One that is older than what has left the ledger is left out: it may have been there before.

    Args:
        connection: Within a transaction.
        rows: Columns as DECISION_COLUMNS.
    """
    by_id: dict[str, tuple[Any, ...]] = {}
    for row in rows:
        by_id.setdefault(row[0], row)
    # Nobody else adds any of them meanwhile: their slots are locked.
    for (stored,) in rows_of(connection, "decisions", ("decision_id",), by_id.keys()):
        del by_id[stored]
    # Read after the ids: what has left between the two statements is then known to have left.
    _, forgotten_at = select_forgotten(connection)
    if forgotten_at:
        by_id = {name: row for name, row in by_id.items() if row[_DECIDED_AT] > forgotten_at}
    new = list(by_id.values())
    insert_rows(connection, "decisions", DECISION_COLUMNS, new)
    insert_rows(connection, "open_decisions", _OPEN, list(map(_OPEN_PART, new)))
    return list(by_id)


def waiting_for(connection: Connection, decision_ids: Sequence[str]) -> list[str]:
    """Pick those decisions whose outcomes came before them, in the same order."""
    early = {found for (found,) in rows_of(connection, "outcomes", ("decision_id",), decision_ids)}
    return [decision_id for decision_id in decision_ids if decision_id in early]


def load_histories(connection: Connection, decision_ids: Collection[str]) -> dict[str, History]:
    """Read all that joining needs about some decisions."""
    histories = {decision_id: History() for decision_id in decision_ids}
    # Most are open, and an open one has not matured: the wide tables need not be asked.
    for name, *recorded in rows_of(connection, "open_decisions", _RECORDED, decision_ids):
        found = Recorded._make(recorded)
        # A release before this one, at work beside it, leaves all but the window's end empty.
        if found.arm:
            histories[name].recorded = found
    rest = [name for name, history in histories.items() if history.recorded is None]
    for name, *recorded in rows_of(connection, "decisions", _RECORDED, rest):
        histories[name].recorded = Recorded._make(recorded)
    reports = rows_of(connection, "outcomes", ("position", *Report._fields), decision_ids)
    for _, *reported in sorted(reports, key=_first):
        report = Report._make(reported)
        assert report.event_id is not None
        histories[report.decision_id].reports[report.event_id] = report
    matured = rows_of(connection, "interactions", ("revision", "decision_id", *_VALUES), rest)
    for revision, name, *values in matured:
        history = histories[name]
        if revision > history.revision:
            history.revision, history.matured = revision, Values._make(values)
    return histories


def store_group(connection: Connection, group: Group) -> None:
    """Write what a group has changed; sequence numbers are given here, just before the commit."""
    insert_rows(connection, "outcomes", RECEIVED, sorted(group.received, key=_first))
    if not group.matured:
        return
    close_decisions(connection, [one.decision_id for one in group.matured if one.revision == 0])
    # From here to the commit all writers wait for this one.
    total = len(group.matured)
    last_seq = connection.execute(_TAKE_NUMBERS, {"total": total}).scalar_one()
    matured = [
        (one.decision_id, one.revision, *one.values, seq, group.now)
        for seq, one in enumerate(group.matured, start=last_seq - total + 1)
    ]
    insert_rows(connection, "interactions", _MATURED, sorted(matured, key=_first))


def mark_joined(connection: Connection, decision_ids: Sequence[str]) -> None:
    """Note that the decisions of these outcomes have been recorded."""
    execute_for(connection, "UPDATE outcomes SET joined = TRUE", decision_ids)


def closing(connection: Connection, *, now: int, limit: int) -> list[str]:
    """List open decisions whose wait window is over, those first that closed first."""
    query = (
        select(open_decisions.c.decision_id)
        .where(open_decisions.c.closes_at <= now)
        .order_by(open_decisions.c.closes_at, open_decisions.c.decision_id)
        .limit(limit)
    )
    return list(connection.scalars(query))


def close_decisions(connection: Connection, decision_ids: Sequence[str]) -> None:
    """Take decisions off the list of the open ones."""
    delete_of(connection, "open_decisions", decision_ids)


def add_totals(connection: Connection, shard: int, totals: Mapping[str, int]) -> None:
    """Add to a shard's totals."""
    connection.execute(
        _ADD_TOTALS,
        {"own": shard} | {f"add_{name}": totals.get(name, 0) for name in (*TOTALS, "dropped")},
    )


def select_counts(connection: Connection, *, orphaned_before: int) -> LedgerCounts:
    """Count everything in one statement, so that the figures belong together."""
    waiting = select(func.count()).where(outcomes.c.joined.is_(False))
    is_orphaned = outcomes.c.received_at <= orphaned_before
    query = select(
        *(func.sum(tallies.c[name]).label(name) for name in TOTALS),
        waiting.where(~is_orphaned).scalar_subquery().label("pending"),
        (waiting.where(is_orphaned).scalar_subquery() + func.sum(tallies.c.dropped)).label(
            "orphaned"
        ),
        select(sequence.c.last_seq).scalar_subquery().label("last_seq"),
    )
    row = connection.execute(query).one()
    # PostgreSQL sums big integers as decimals.
    return LedgerCounts(**{name: int(number) for name, number in row._mapping.items()})


def select_last_seq(connection: Connection) -> int:
    """Return the sequence number given last."""
    return int(connection.execute(select(sequence.c.last_seq)).scalar_one())


def select_forgotten(connection: Connection) -> tuple[int, int]:
    """Return how far retention has come: a sequence number, and microseconds since the epoch."""
    forgotten_seq, forgotten_at = connection.execute(_FORGOTTEN).one()
    return int(forgotten_seq), int(forgotten_at)


def select_interactions(
    connection: Connection, *, after_seq: int, limit: int
) -> list[tuple[Any, ...]]:
    """Read interactions with their decisions, columns in the order of INTERACTION_SCHEMA."""
    columns = (
        (interactions if name in _OWN else decisions).c[name] for name in INTERACTION_SCHEMA.names
    )
    same_decision = interactions.c.decision_id == decisions.c.decision_id
    query = (
        select(*columns)
        .join_from(interactions, decisions, same_decision)
        .where(interactions.c.seq > after_seq)
        .order_by(interactions.c.seq)
        .limit(limit)
    )
    return fetch_all(connection, connection.execute(query).cursor)


def select_context(connection: Connection, decision_id: str) -> bytes | None:
    """Read a decision's context; None where there is none."""
    query = select(decisions.c.context).where(decisions.c.decision_id == decision_id)
    return connection.scalar(query)


def select_decision(
    connection: Connection, decision_id: str
) -> tuple[Row[Any], list[Row[Any]], Row[Any] | None] | None:
    """Read one decision, its outcomes in the order they came, and its latest interaction."""
    query = select(decisions).where(decisions.c.decision_id == decision_id)
    decision = connection.execute(query).one_or_none()
    if decision is None:
        return None
    reports = (
        _columns(outcomes, "received_at", *Report._fields)
        .where(outcomes.c.decision_id == decision_id)
        .order_by(outcomes.c.position)
    )
    latest = (
        _columns(interactions, *_OWN)
        .where(interactions.c.decision_id == decision_id)
        .order_by(interactions.c.revision.desc())
        .limit(1)
    )
    return decision, list(connection.execute(reports)), connection.execute(latest).one_or_none()
