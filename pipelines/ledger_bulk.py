"""Statements about thousands of rows at once, as plain SQL: rows in and out are tuples.

SQLAlchemy's own way makes a dictionary of every row, which takes longer than the database does.
Names of tables and columns are ours, never a caller's.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import OperationalError


def insert_rows(
    connection: Connection, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert rows, in order of their first column or any other: what fits the table's index."""
    if not rows:
        return
    place = "?" if connection.dialect.name == "sqlite" else "%s"
    places = ", ".join([place] * len(columns))
    names = ", ".join(columns)
    connection.exec_driver_sql(f"INSERT INTO {table} ({names}) VALUES ({places})", list(rows))


def fetch_all(connection: Connection, cursor: DBAPICursor | None) -> list[tuple[Any, ...]]:
    """Fetch rows past SQLAlchemy's own, for there may be 20,000 of them; its errors all the same.

    Raises:
        OperationalError: The driver fails half-way, as on a damaged page.
    """
    assert cursor is not None
    try:
        return list(cursor.fetchall())
    except connection.dialect.loaded_dbapi.Error as error:
        raise OperationalError(None, None, error) from error


def rows_of(
    connection: Connection, table: str, columns: Sequence[str], decision_ids: Collection[str]
) -> Iterator[tuple[Any, ...]]:
    """Read some columns of all rows of some decisions, in no order."""
    if not decision_ids:
        return iter(())
    where, parameters = _among(connection, decision_ids)
    query = f"SELECT {', '.join(columns)} FROM {table} WHERE {where}"
    return iter(fetch_all(connection, connection.exec_driver_sql(query, parameters).cursor))


def delete_of(connection: Connection, table: str, decision_ids: Collection[str]) -> int:
    """Delete all rows of some decisions; return how many they were."""
    return execute_for(connection, f"DELETE FROM {table}", decision_ids)


def execute_for(connection: Connection, statement: str, decision_ids: Collection[str]) -> int:
    """Run a statement for the rows of some decisions; return how many it changed.

    Args:
        connection: Within a transaction.
        statement: As far as its WHERE.
        decision_ids: Whose rows.
    """
    if not decision_ids:
        return 0
    where, parameters = _among(connection, decision_ids)
    return connection.exec_driver_sql(f"{statement} WHERE {where}", parameters).rowcount


def _among(
    connection: Connection, decision_ids: Collection[str]
) -> tuple[str, tuple[str | list[str], ...]]:
    """Write that a row is of one of some decisions: one parameter, however many they are."""
    # In order of the index, so that neighbours are found on one page.
    ids = sorted(decision_ids)
    if connection.dialect.name == "sqlite":
        return "decision_id IN (SELECT value FROM json_each(?))", (json.dumps(ids),)
    return "decision_id = ANY(%s)", (ids,)
