"""The statements behind the ledger: each works inside a transaction that somebody else opened."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    Connection,
    Executable,
    Row,
    Select,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from pipelines.joining import COMPONENTS, FLAGS, Group, History, Received, Recorded, Values
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
from policies.interaction import INTERACTION_SCHEMA, LedgerCounts, Outcome

# SQLite takes at most 32,766 parameters in a statement.
MAX_PARAMETERS: Final = 10_000

_RECORDED: Final = ("tenant", "arm", "price_version", "closes_at", "deferred")
_REPORTED: Final = ("decision_id", "event_id", *COMPONENTS, *FLAGS)
_VALUES: Final = ("quality", "cost_usd", "latency_ms")
# Columns of an interaction that are its own; the rest are its decision's.
_OWN: Final = ("seq", "revision", *_VALUES, "matured_at")


def _columns(table: Table, *names: str) -> Select[Any]:
    """Select some columns of a table by name."""
    return select(*(table.c[name] for name in names))


# Built once: to build one takes SQLAlchemy longer than the database to answer it.
_IDS: Final[BindParameter[Any]] = bindparam("ids", expanding=True)
_STORED: Final = _columns(decisions, "decision_id").where(decisions.c.decision_id.in_(_IDS))
_WAITING: Final = outcomes.c.decision_id.in_(_IDS) & outcomes.c.joined.is_(False)
_SELECT_WAITING: Final = select(outcomes.c.decision_id).where(_WAITING).distinct()
_MARK_JOINED: Final = update(outcomes).where(_WAITING).values(joined=True)
_SELECT_RECORDED: Final = _columns(decisions, "decision_id", *_RECORDED).where(
    decisions.c.decision_id.in_(_IDS)
)
_SELECT_REPORTS: Final = _columns(outcomes, *_REPORTED, "position").where(
    outcomes.c.decision_id.in_(_IDS)
)
_SELECT_MATURED: Final = _columns(interactions, "decision_id", "revision", *_VALUES).where(
    interactions.c.decision_id.in_(_IDS)
)
_CLOSE: Final = delete(open_decisions).where(open_decisions.c.decision_id.in_(_IDS))
_LOCK: Final = (
    update(tallies).where(tallies.c.shard == bindparam("own")).values(shard=tallies.c.shard)
)
_TAKE_NUMBERS: Final = (
    update(sequence)
    .values(last_seq=sequence.c.last_seq + bindparam("total"))
    .returning(sequence.c.last_seq)
)
_ADD_TOTALS: Final = (
    update(tallies)
    .where(tallies.c.shard == bindparam("own"))
    .values({name: tallies.c[name] + bindparam(f"add_{name}") for name in TOTALS})
)


def lock_shard(connection: Connection, shard: int) -> None:
    """Wait for the other writers of this shard; on SQLite for all writers."""
    connection.execute(_LOCK, {"own": shard})


def ensure_rows(connection: Connection, shard: int) -> None:
    """Create the rows that are only ever updated."""
    connection.execute(insert_new(connection, tallies).values(shard=shard))
    connection.execute(insert_new(connection, sequence).values(id=0, last_seq=0))


def insert_decisions(connection: Connection, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Store decisions that are not stored yet, as open ones; return their ids in order."""
    by_id: dict[str, dict[str, Any]] = {}
    for row in rows:
        by_id.setdefault(row["decision_id"], row)
    # Nobody else adds any of them meanwhile: they are this shard's, and the shard is locked.
    for stored in _rows_of(connection, _STORED, list(by_id)):
        del by_id[stored.decision_id]
    new = list(by_id.values())
    if new:
        connection.execute(insert(decisions), new)
        names = ("decision_id", "closes_at")
        connection.execute(insert(open_decisions), [{n: row[n] for n in names} for row in new])
    return [row["decision_id"] for row in new]


def waiting_for(connection: Connection, decision_ids: Sequence[str]) -> list[str]:
    """Pick those decisions whose outcomes came before them, in the same order."""
    early = {row.decision_id for row in _rows_of(connection, _SELECT_WAITING, decision_ids)}
    return [decision_id for decision_id in decision_ids if decision_id in early]


def load_histories(connection: Connection, decision_ids: Collection[str]) -> dict[str, History]:
    """Read all that joining needs about some decisions."""
    ids = list(decision_ids)
    histories = {decision_id: History() for decision_id in ids}
    for row in _rows_of(connection, _SELECT_RECORDED, ids):
        histories[row.decision_id].recorded = Recorded(**_fields(row, _RECORDED))
    reports = _rows_of(connection, _SELECT_REPORTS, ids)
    for row in sorted(reports, key=lambda report: int(report.position)):
        history = histories[row.decision_id]
        history.outcomes[row.event_id] = Outcome(**_fields(row, _REPORTED))
    for row in _rows_of(connection, _SELECT_MATURED, ids):
        history = histories[row.decision_id]
        if row.revision > history.revision:
            history.revision, history.matured = row.revision, Values(**_fields(row, _VALUES))
    return histories


def store_group(connection: Connection, group: Group) -> None:
    """Write what a group has changed; sequence numbers are given here, just before the commit."""
    if group.received:
        connection.execute(
            insert(outcomes), [_outcome_row(r, now=group.now) for r in group.received]
        )
    if not group.matured:
        return
    total = len(group.matured)
    last_seq = connection.execute(_TAKE_NUMBERS, {"total": total}).scalar_one()
    rows = [
        {
            "seq": seq,
            "decision_id": matured.decision_id,
            "revision": matured.revision,
            "matured_at": group.now,
            **{name: getattr(matured.values, name) for name in _VALUES},
        }
        for seq, matured in enumerate(group.matured, start=last_seq - total + 1)
    ]
    connection.execute(insert(interactions), rows)
    first = [matured.decision_id for matured in group.matured if matured.revision == 0]
    close_decisions(connection, first)


def mark_joined(connection: Connection, decision_ids: Sequence[str]) -> None:
    """Note that the decisions of these outcomes have been recorded."""
    _execute_for(connection, _MARK_JOINED, decision_ids)


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
    _execute_for(connection, _CLOSE, decision_ids)


def add_totals(connection: Connection, shard: int, totals: Mapping[str, int]) -> None:
    """Add to a shard's totals."""
    connection.execute(
        _ADD_TOTALS,
        {"own": shard} | {f"add_{name}": totals.get(name, 0) for name in TOTALS},
    )


def select_counts(connection: Connection, *, orphaned_before: int) -> LedgerCounts:
    """Count everything in one statement, so that the figures belong together."""
    waiting = select(func.count()).where(outcomes.c.joined.is_(False))
    is_orphaned = outcomes.c.received_at <= orphaned_before
    query = select(
        *(func.sum(tallies.c[name]).label(name) for name in TOTALS),
        waiting.where(~is_orphaned).scalar_subquery().label("pending"),
        waiting.where(is_orphaned).scalar_subquery().label("orphaned"),
        select(sequence.c.last_seq).scalar_subquery().label("last_seq"),
    )
    row = connection.execute(query).one()
    # PostgreSQL sums big integers as decimals.
    return LedgerCounts(**{name: int(number) for name, number in row._mapping.items()})


def select_last_seq(connection: Connection) -> int:
    """Return the sequence number given last."""
    return int(connection.execute(select(sequence.c.last_seq)).scalar_one())


def select_interactions(connection: Connection, *, after_seq: int, limit: int) -> list[Row[Any]]:
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
    return list(connection.execute(query))


def select_decision(
    connection: Connection, decision_id: str
) -> tuple[Row[Any], list[Row[Any]], Row[Any] | None] | None:
    """Read one decision, its outcomes in the order they came, and its latest interaction."""
    query = select(decisions).where(decisions.c.decision_id == decision_id)
    decision = connection.execute(query).one_or_none()
    if decision is None:
        return None
    reports = (
        _columns(outcomes, "received_at", *_REPORTED)
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


def _rows_of(
    connection: Connection, query: Select[Any], decision_ids: Sequence[str]
) -> Iterator[Row[Any]]:
    """Run a query for some decisions, in as many statements as the parameters take."""
    for ids in _chunks(decision_ids):
        yield from connection.execute(query, {"ids": ids})


def _execute_for(
    connection: Connection, statement: Executable, decision_ids: Sequence[str]
) -> None:
    """Run a statement that returns nothing for some decisions, likewise."""
    for ids in _chunks(decision_ids):
        connection.execute(statement, {"ids": ids})


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), MAX_PARAMETERS):
        yield values[start : start + MAX_PARAMETERS]


def _fields(row: Row[Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _outcome_row(received: Received, *, now: int) -> dict[str, Any]:
    """Lay an outcome out as a row of the table `outcomes`."""
    reported = {name: getattr(received.outcome, name) for name in _REPORTED}
    return {
        **reported,
        "position": received.position,
        "received_at": now,
        "joined": received.joined,
    }
