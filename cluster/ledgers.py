"""`barp ledger`: how far the ledger's tables are, and the way to another revision of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cluster.console import JsonOption, console, print_json
from cluster.doctor import Check
from cluster.options import load_settings
from cluster.places import places
from cluster.settings import Settings
from policies.errors import NotFound, RouterError, Unavailable

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from pipelines.migration import LedgerRevision

ledger = typer.Typer(help="The ledger's tables and their revisions.", no_args_is_help=True)

StateDir = Annotated[
    Path | None, typer.Option(help="Folder of the service, which its ledger is in.")
]
LedgerUrl = Annotated[
    str | None, typer.Option(help="SQLAlchemy URL of the ledger; default is SQLite in state_dir.")
]


@ledger.command("revision")
def revision(
    state_dir: StateDir = None, ledger_url: LedgerUrl = None, json: JsonOption = False
) -> None:
    """Say which revision the tables are at, and what this release would add; changes nothing."""
    from pipelines.migration import ledger_revision

    with _opened(load_settings(state_dir=state_dir, ledger_url=ledger_url)) as engine:
        _show(ledger_revision(engine), json=json)


@ledger.command("migrate")
def migrate(
    to: Annotated[
        str | None, typer.Option(help="Revision to go to, upward or downward; the newest if none.")
    ] = None,
    state_dir: StateDir = None,
    ledger_url: LedgerUrl = None,
    json: JsonOption = False,
) -> None:
    """Bring the tables to a revision, all in one transaction.

    Upward a running service goes on, and does the same at its start by itself. Downward drops what
    later releases added: stop every one of them first, and take a backup.
    """
    from pipelines.migration import migrate as migrate_tables

    with _opened(load_settings(state_dir=state_dir, ledger_url=ledger_url)) as engine:
        _show(migrate_tables(engine, to), json=json)


def check_revision(settings: Settings) -> Check:
    """Hold a ledger's tables against this release; one that is not there yet is fine."""
    from pipelines.migration import ledger_revision

    name, needed = "ledger tables", "of this release, or brought there at the start"
    try:
        with _opened(settings) as engine:
            found = ledger_revision(engine)
    except NotFound:
        return Check(name, "none yet", needed, True)
    except RouterError as error:
        return Check(name, str(error)[:200], needed, False)
    if not found.is_known:
        return Check(name, f"revision {found.current}, of a newer release", needed, True, look=True)
    waiting = f", {', '.join(found.pending)} to come" if found.pending else ""
    return Check(name, f"revision {found.current or 'none'}{waiting}", needed, True)


def _show(found: LedgerRevision, *, json: bool) -> None:
    """Print how far the tables are."""
    table = Table("tables at", "newest", "to come")
    current = (
        (found.current or "none") if found.is_known else f"{found.current}, of a newer release"
    )
    table.add_row(current, found.newest, ", ".join(found.pending) or "nothing")
    console.print(table)
    if json:
        print_json(asdict(found))


@contextmanager
def _opened(settings: Settings) -> Iterator[Engine]:
    """Open the ledger of these settings; what its database says is one line.

    Raises:
        NotFound: It is a file that does not exist; none is made by asking.
        Unavailable: The database is away, or does something else than asked.
    """
    # Here, and not for every other command of `barp`.
    from sqlalchemy import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from pipelines.schema import open_engine

    url = make_url(places(settings).ledger_url)
    file = url.database if url.get_backend_name() == "sqlite" else None
    if file is not None and not Path(file).is_file():
        raise NotFound(f"there is no ledger at {file}", field="ledger_url", value=file)
    engine = open_engine(url.render_as_string(hide_password=False))
    try:
        yield engine
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or type(error).__name__).strip().splitlines()[0]
        raise Unavailable(
            f"the ledger's database failed: {reason[:200]}", field="ledger"
        ) from error
    finally:
        engine.dispose()
