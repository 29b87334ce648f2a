"""Parts that tests share: one local Ray cluster a run, one exported encoder a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from cluster.environment import prepare_environment

POSTGRES_URL_VARIABLE = "BARP_TEST_POSTGRES_URL"

# Before anything imports Ray or numpy: they read the environment only once.
prepare_environment()

# The same examples on every run, and no verdict on how busy the machine is.
hypothesis.settings.register_profile("barp", deadline=None, derandomize=True)
hypothesis.settings.load_profile("barp")


@pytest.fixture(scope="session")
def ray_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local Ray cluster, namespace `barp`, shared by all tests that ask for it."""
    from cluster.launch import local_ray, working_directory

    with working_directory(tmp_path_factory.mktemp("ray")), local_ray():
        yield


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MiniLM encoder, exported once for the whole run."""
    from cluster.launch import ensure_encoder

    folder = tmp_path_factory.mktemp("encoder") / "minilm"
    ensure_encoder(folder)
    return folder


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """An s3:// URL that works, for the whole run; take a prefix of your own."""
    from object_stores import running_object_store

    with running_object_store() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server for the run, as SQLAlchemy URL: a given one, or one started here."""
    from postgres_servers import running_postgres

    given = os.environ.get(POSTGRES_URL_VARIABLE)
    if given:
        yield given
        return
    with running_postgres() as url:
        yield url


@pytest.fixture
def postgres_database(postgres_server: str) -> Iterator[str]:
    """An empty database of the test's own, as SQLAlchemy URL; dropped afterwards."""
    import uuid

    from postgres_servers import execute
    from sqlalchemy import make_url

    server = make_url(postgres_server)
    own = server.set(database=f"test_{uuid.uuid4().hex}")
    execute(server, f'CREATE DATABASE "{own.database}"')
    yield own.render_as_string(hide_password=False)
    execute(server, f'DROP DATABASE "{own.database}" WITH (FORCE)')
