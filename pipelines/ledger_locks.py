"""Who may change what in the ledger: locks that writers in any process take, in one order.

First the writer's own row of totals, then the slots of the decisions it touches, from the lowest,
then the prices; the numbers of interactions last (`pipelines.ledger_sql`). Each is held to the end
of the transaction. On SQLite whoever writes has the whole database, from the first of them on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

from sqlalchemy import Connection, bindparam, update

from pipelines.schema import tallies
from policies.sharding import SLOTS, slot_of

# Keeps our locks apart from those of others in the same database: "BaRP".
_SPACE: Final = 0x42615250
_PRICES: Final = SLOTS
_OWN: Final = (
    update(tallies).where(tallies.c.shard == bindparam("own")).values(shard=tallies.c.shard)
)
_WAIT: Final = "SELECT pg_advisory_xact_lock(%s, slot) FROM unnest(%s::int[]) AS slot"
_TRY: Final = "SELECT slot FROM unnest(%s::int[]) AS slot WHERE pg_try_advisory_xact_lock(%s, slot)"


def lock_shard(connection: Connection, shard: int) -> None:
    """Wait for other writers of this shard; on SQLite for all writers."""
    connection.execute(_OWN, {"own": shard})


def lock_decisions(connection: Connection, decision_ids: Iterable[str]) -> None:
    """Wait for whoever changes these decisions, whatever shard it thinks they belong to."""
    if connection.dialect.name == "postgresql":
        _lock(connection, {slot_of(decision_id) for decision_id in decision_ids})


def lock_all_decisions(connection: Connection) -> None:
    """Wait for whoever changes any decision."""
    if connection.dialect.name == "postgresql":
        _lock(connection, range(SLOTS))


def lock_prices(connection: Connection) -> None:
    """Wait for whoever changes the prices."""
    if connection.dialect.name == "postgresql":
        _lock(connection, [_PRICES])


def lock_free_slots(connection: Connection, decision_ids: Iterable[str]) -> Collection[int]:
    """Take the slots of these decisions that nobody else holds, without waiting; return them."""
    if connection.dialect.name == "sqlite":
        return range(SLOTS)
    slots = sorted({slot_of(decision_id) for decision_id in decision_ids})
    taken: Any = connection.exec_driver_sql(_TRY, (slots, _SPACE))
    return {int(slot) for (slot,) in taken}


def _lock(connection: Connection, slots: Iterable[int]) -> None:
    # In ascending order, so that no two wait for each other.
    connection.exec_driver_sql(_WAIT, (_SPACE, sorted(slots)))
