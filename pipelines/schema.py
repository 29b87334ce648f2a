"""The ledger's tables, and how to open a database that keeps what it acknowledges.

A change here needs a revision in `pipelines/migrations`, which is what makes the tables.

Times are microseconds since the epoch, UTC; vectors are little-endian bytes. Each index is there
for one query, named beside it.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    false,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite

from policies.errors import Unavailable

# How long a transaction waits for another process that writes, seconds.
BUSY_TIMEOUT_S: Final = 30
SQLITE_SYNCHRONOUS_FULL: Final = 2
SQLITE_INCREMENTAL: Final = 2
# Execution option of an engine: its transactions take the write lock as they begin.
AT_ONCE: Final = "barp_at_once"

# A transaction of thousands of outcomes touches thousands of pages: SQLite's own 2 MB of cache
# would read them twice, and its checkpoints at 4 MB would write them as often.
SQLITE_CACHE_KB: Final = 32_768
SQLITE_CHECKPOINT_PAGES: Final = 8_192

metadata = MetaData()
_NUMBER: Final = BigInteger().with_variant(Integer(), "sqlite")

# Written once, read when outcomes join and when interactions leave. Nothing here is updated: a
# row is some 2 KB, and to change one number would be to write it all again.
decisions = Table(
    "decisions",
    metadata,
    Column("decision_id", Text, primary_key=True),
    Column("decided_at", BigInteger, nullable=False, index=True),  # Ledger.forget
    Column("tenant", Text, nullable=False),
    Column("session", Text),
    Column("prompt_hash", Text, nullable=False),
    Column("prompt_characters", Integer, nullable=False),
    Column("w_quality", Double, nullable=False),
    Column("w_cost", Double, nullable=False),
    Column("context", LargeBinary, nullable=False),  # float32
    Column("encoder_id", Text, nullable=False),
    Column("arms_offered", Text, nullable=False),  # JSON list of names
    Column("pmf", LargeBinary, nullable=False),  # float64
    Column("arm", Text, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("policy_version", Integer, nullable=False),
    Column("champion_version", Integer),
    Column("canary_version", Integer),
    Column("canary_share", Double, nullable=False, server_default=text("0")),
    Column("price_version", Integer, nullable=False),
    Column("closes_at", BigInteger, nullable=False),
    Column("deferred", Boolean, nullable=False, server_default=false()),
)

# Decisions that have not matured and whose wait window has not closed: a small table beside the
# wide one, with what joining needs to know, so that most outcomes never touch that.
open_decisions = Table(
    "open_decisions",
    metadata,
    Column("decision_id", Text, primary_key=True),
    Column("tenant", Text, nullable=False, server_default=""),
    Column("arm", Text, nullable=False, server_default=""),
    Column("price_version", Integer, nullable=False, server_default=text("0")),
    Column("closes_at", BigInteger, nullable=False, index=True),  # Ledger.mature_expired
    Column("deferred", Boolean, nullable=False, server_default=false()),
    sqlite_with_rowid=False,
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("decision_id", Text, primary_key=True),
    Column("event_id", Text, primary_key=True),
    Column("position", Integer, nullable=False),  # among the outcomes of its decision
    Column("received_at", BigInteger, nullable=False),
    Column("joined", Boolean, nullable=False),
    Column("quality", Double),
    Column("cost_usd", Double),
    Column("tokens_in", BigInteger),
    Column("tokens_out", BigInteger),
    Column("latency_ms", Double),
    Column("final", Boolean, nullable=False),
    Column("correction", Boolean, nullable=False, server_default=false()),
    Column("activate", Boolean, nullable=False, server_default=false()),
    sqlite_with_rowid=False,
)
# Ledger.counts: only those that wait are in it.
Index(
    "outcomes_waiting",
    outcomes.c.received_at,
    sqlite_where=outcomes.c.joined.is_(False),
    postgresql_where=outcomes.c.joined.is_(False),
)

interactions = Table(
    "interactions",
    metadata,
    # Ledger.interactions. SQLite calls it INTEGER where it is to be the row's own number.
    Column("seq", _NUMBER, primary_key=True, autoincrement=False),
    Column("decision_id", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("quality", Double),
    Column("cost_usd", Double),
    Column("latency_ms", Double),
    Column("matured_at", BigInteger, nullable=False),
    UniqueConstraint("decision_id", "revision"),  # joining finds the latest revision by it
)

price_tables = Table(
    "price_tables",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("created_at", BigInteger, nullable=False),
    Column("arms", Text, nullable=False),  # JSON, PriceTable.to_json
)

TOTALS: Final = ("decisions", "outcomes", "joined", "duplicates", "expired", "interactions")
# One row a shard: its totals, and the lock that its writing transactions take first.
tallies = Table(
    "tallies",
    metadata,
    Column("shard", Integer, primary_key=True, autoincrement=False),
    *(Column(name, BigInteger, nullable=False, default=0) for name in TOTALS),
    # Outcomes that left the ledger before their decision ever came; they still count as orphaned.
    Column("dropped", BigInteger, nullable=False, server_default=text("0")),
)

# One row: the sequence number given last, and what has left. Locked from the moment that numbers
# are taken to the commit, so that on PostgreSQL, too, the order of numbers is that of commits.
sequence = Table(
    "sequence",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last_seq", BigInteger, nullable=False),
    # How far retention has come: no interaction up to this number, and no decision of this moment
    # or an earlier one, is sure to be here any more.
    Column("forgotten_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("forgotten_at", BigInteger, nullable=False, server_default=text("0")),
)


def open_engine(url: str) -> Engine:
    """Get ready to connect to a database; `pipelines.migration` creates what is missing in it.

    Args:
        url: SQLAlchemy URL, `sqlite:///path` or `postgresql+psycopg://...`.

    Raises:
        Unavailable: It is neither of the two.
    """
    backend = make_url(url).get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise Unavailable(
            f"a ledger on {backend} is not supported",
            field="ledger_url",
            value=backend,
            allowed="sqlite or postgresql+psycopg",
        )
    # Without hide_parameters an error's text would carry contexts and outcomes into the logs.
    engine = create_engine(url, hide_parameters=True)
    if backend == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def is_durable(connection: Connection) -> bool:
    """Tell whether this connection's commits are on the disk when they return."""
    if connection.dialect.name == "sqlite":
        level = connection.execute(text("PRAGMA synchronous")).scalar_one()
        return int(level) >= SQLITE_SYNCHRONOUS_FULL
    shown = (connection.execute(text(f"SHOW {name}")) for name in ("fsync", "synchronous_commit"))
    return all(setting.scalar_one() != "off" for setting in shown)


def insert_new(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Build an insert that skips rows whose key is there already."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """Set up a new SQLite connection: write-ahead log, every commit flushed to disk."""
    # The driver would begin a transaction only at the first write; `_begin_sqlite` does it.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_S * 1000}",
        *_auto_vacuum(connection),
        "journal_mode = WAL",
        "synchronous = FULL",
        f"cache_size = -{SQLITE_CACHE_KB}",
        f"wal_autocheckpoint = {SQLITE_CHECKPOINT_PAGES}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _auto_vacuum(connection: Any) -> list[str]:
    """Set it before the first page; where it is set already that would wait for a writer."""
    (mode,) = connection.execute("PRAGMA auto_vacuum").fetchone()
    return [] if mode == SQLITE_INCREMENTAL else ["auto_vacuum = INCREMENTAL"]


def _begin_sqlite(connection: Connection) -> None:
    """Begin for real: the first statement of a writing transaction takes the lock."""
    at_once = connection.get_execution_options().get(AT_ONCE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if at_once else "BEGIN")
