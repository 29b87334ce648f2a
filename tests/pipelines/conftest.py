"""Databases for the ledger, SQLite files and schemas on PostgreSQL; registries on disk."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from clock import Clock
from ledgers import open_ledger
from postgres_servers import execute
from registries import open_registry
from sqlalchemy import make_url

from pipelines.ledger import Ledger


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
    execute(server, f"CREATE SCHEMA {schema}")
    url = server.update_query_dict({"options": f"-csearch_path={schema}"})
    yield url.render_as_string(hide_password=False)
    execute(server, f"DROP SCHEMA {schema} CASCADE")


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
