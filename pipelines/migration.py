"""Brings a ledger's tables from one release to the next, and back, by Alembic's revisions.

The revisions are in `pipelines/migrations/versions`, one file each. They add; what another release
still reads is dropped by nobody but an operator, with `barp ledger migrate --to`.
"""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import OperationalError

from pipelines.schema import AT_ONCE, BUSY_TIMEOUT_S, metadata
from policies.errors import Conflict, InvalidRequest, Unavailable

logger = logging.getLogger(__name__)

# Of our own: MLflow's revisions, in `alembic_version`, may be in the same database.
VERSION_TABLE: Final = "ledger_version"
SCRIPTS: Final = Path(__file__).with_name("migrations")
# Any number, the same in every release: whoever holds it migrates, others wait.
POSTGRES_LOCK: Final = 0x6261_7270
# Less than its deadlock_timeout, 1 s unless somebody changed it.
POSTGRES_WAIT_MS: Final = 200
LOCK_NOT_AVAILABLE: Final = "55P03"

# Alembic hands the connection to its scripts by a global name.
_one_at_a_time: Final = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRevision:
    """How far a ledger's tables are.

    Attributes:
        current: Revision that they are at; None where there are no tables, or tables of a release
            that knew no revisions.
        newest: The last one that this release knows.
        pending: What this release would add, in order.
        is_known: Whether this release knows `current`; a newer one may have been here.
    """

    current: str | None
    newest: str
    pending: tuple[str, ...]
    is_known: bool


def bring_up(engine: Engine) -> None:
    """Create the tables that are missing, and what tables of an older release lack.

    Several processes may do it at once. A ledger that a newer release has been at is left alone:
    what it added has defaults.
    """
    found = ledger_revision(engine)
    if found.is_known and found.pending:
        migrate(engine)
    elif not found.is_known:
        logger.info("the ledger is at revision %s, of a newer release", found.current)


def migrate(engine: Engine, to: str | None = None) -> LedgerRevision:
    """Bring the tables to a revision, upward or downward, all in one transaction.

    Args:
        engine: From `open_engine`.
        to: The revision; None for the newest.

    Returns:
        How far they are now.

    Raises:
        InvalidRequest: There is no such revision.
        Conflict: The ledger is at a revision that this release does not know, or something in it
            would be lost on the way down.
        Unavailable: Others hold the tables for too long.
    """
    target = to or _newest()
    if target not in _known():
        raise InvalidRequest(
            f"there is no revision {target}",
            field="to",
            value=target,
            allowed=", ".join(_known()),
        )
    with _locked(engine) as connection:
        current = _current(connection)
        if current is not None and current not in _known():
            raise Conflict(
                f"the ledger is at revision {current}, which only a newer release knows",
                field="to",
                value=target,
                allowed="the newer release's own `barp ledger migrate`",
            )
        downward = current is not None and target < current
        config = _config()
        config.attributes["connection"] = connection
        with _one_at_a_time:
            (command.downgrade if downward else command.upgrade)(config, target)
    logger.info("the ledger went from revision %s to %s", current, target)
    return ledger_revision(engine)


def ledger_revision(engine: Engine) -> LedgerRevision:
    """Say how far a ledger's tables are; changes nothing."""
    with engine.connect() as connection:
        current = _current(connection)
    known = _known()
    return LedgerRevision(
        current=current,
        newest=known[-1],
        pending=tuple(one for one in known if current is None or one > current),
        is_known=current is None or current in known,
    )


def _current(connection: Connection) -> str | None:
    """Read the revision that the tables are at."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


@functools.cache
def _known() -> tuple[str, ...]:
    """List this release's revisions, oldest first; they are numbers of four digits."""
    scripts = ScriptDirectory.from_config(_config())
    return tuple(sorted(script.revision for script in scripts.walk_revisions()))


def _newest() -> str:
    """Name the last revision that this release knows."""
    return _known()[-1]


def _config() -> Config:
    """Tell Alembic where the revisions are; it logs nothing of its own and reads no file."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _locked(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that no other process migrates or writes beside.

    Raises:
        Unavailable: Others hold the tables for too long.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    with engine.execution_options(**{AT_ONCE: True}).connect() as connection:
        transaction = connection.begin()
        while not _has_locks(connection):
            transaction.rollback()
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the ledger's tables could not be locked within {BUSY_TIMEOUT_S} s",
                    field="ledger_url",
                )
            time.sleep(random.uniform(0.5, 1.5) * POSTGRES_WAIT_MS / 1000)
            transaction = connection.begin()
        with transaction:
            yield connection


def _has_locks(connection: Connection) -> bool:
    """Take all locks that revisions may need, or say that somebody holds one of them.

    Readers and writers take the tables in orders of their own. So nobody here waits as long as
    PostgreSQL lets two wait for each other: it would choose which of them fails.
    """
    if connection.dialect.name != "postgresql":
        return True
    present = set(inspect(connection).get_table_names())
    tables = ", ".join(table.name for table in metadata.sorted_tables if table.name in present)
    connection.execute(text(f"SET LOCAL lock_timeout = '{POSTGRES_WAIT_MS}ms'"))
    try:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"))
        if tables:
            connection.execute(text(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE"))
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        return False
    return True
