"""The price tables in the ledger's database: one row a version, never changed."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, insert, select

from pipelines.schema import price_tables
from policies.arms import PriceTable

NO_PRICES: Final = PriceTable(version=0, arms=())


def select_prices(connection: Connection) -> PriceTable:
    """Read the newest price table; an empty one, version 0, where there is none."""
    query = select(price_tables.c.arms).order_by(price_tables.c.version.desc()).limit(1)
    stored = connection.scalar(query)
    return NO_PRICES if stored is None else PriceTable.from_json(json.loads(stored))


def select_price_history(
    connection: Connection, versions: Collection[int]
) -> dict[int, PriceTable]:
    """Read price tables by version; a version that never was is left out."""
    query = select(price_tables.c.arms).where(price_tables.c.version.in_(list(versions)))
    tables = [PriceTable.from_json(json.loads(stored)) for stored in connection.scalars(query)]
    return {table.version: table for table in tables}


def insert_prices(connection: Connection, table: PriceTable, *, now: int) -> None:
    """Store a price table under its version."""
    stored = json.dumps(table.to_json(), sort_keys=True)
    row = {"version": table.version, "created_at": now, "arms": stored}
    connection.execute(insert(price_tables), [row])
