"""The ledger's database as its methods use it: transactions, and its errors as ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, SQLAlchemyError

from pipelines.ledger_locks import lock_shard
from pipelines.ledger_sql import ensure_rows, has_rows
from pipelines.migration import bring_up
from pipelines.schema import open_engine
from policies.errors import InvalidRequest, Unavailable


class LedgerDatabase:
    """Opens transactions on SQLite or PostgreSQL. Any thread may call.

    Args:
        url: SQLAlchemy URL, `sqlite:///path` or `postgresql+psycopg://...`.
        shard: Which of several writers this is.

    Raises:
        Unavailable: The URL is for another database. Every transaction raises it, too, with
            nothing changed, while the database is away, locked or full.
    """

    def __init__(self, url: str, *, shard: int) -> None:
        self._shard = shard
        self._preparing, self._prepared = threading.Lock(), False
        with _errors():
            self.engine = open_engine(url)

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that no other writer of this shard overlaps; commit at its end."""
        with _errors():
            self._prepare()
            with self.engine.begin() as connection:
                lock_shard(connection, self._shard)
                yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that changes nothing."""
        with _errors():
            self._prepare()
            with self.engine.connect() as connection:
                yield connection

    def _prepare(self) -> None:
        """Create what is missing in the database; not at once, for it may be away at the start."""
        with self._preparing:
            if self._prepared:
                return
            bring_up(self.engine)
            with self.engine.connect() as connection:
                found = has_rows(connection, self._shard)
            # Whoever only reads must not wait for a writer.
            if not found:
                with self.engine.begin() as connection:
                    ensure_rows(connection, self._shard)
            self._prepared = True


@contextmanager
def _errors() -> Iterator[None]:
    """Turn what the database says into our own errors, without the values it was given."""
    try:
        yield
    except DataError as error:
        raise InvalidRequest("the ledger's database cannot hold a value", field="ledger") from error
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or type(error).__name__)[:200]
        raise Unavailable(f"the ledger's database failed: {reason}", field="ledger") from error
