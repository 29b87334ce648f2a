"""`barp ledger`: says how far the tables are, moves them, and makes no ledger by asking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.ledgers import check_revision
from cluster.options import load_settings
from pipelines.migration import bring_up
from pipelines.schema import open_engine
from policies.errors import InvalidRequest, NotFound, Unavailable


def run(state_dir: Path, *words: str) -> dict[str, Any]:
    """Run `barp ledger` and return its JSON; an error of ours is raised as itself."""
    done = CliRunner().invoke(app, ["ledger", *words, "--state-dir", str(state_dir), "--json"])
    if done.exception is not None:
        raise done.exception
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A state folder with an empty ledger."""
    engine = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    bring_up(engine)
    engine.dispose()
    return tmp_path


def test_a_ledger_goes_down_and_up(state_dir: Path) -> None:
    newest = run(state_dir, "revision")["newest"]
    down = run(state_dir, "migrate", "--to", "0001")
    assert (down["current"], down["pending"][-1]) == ("0001", newest)
    assert run(state_dir, "revision") == down
    found = check_revision(load_settings(state_dir=state_dir))
    assert found.ok and newest in found.found
    assert run(state_dir, "migrate") == {
        "current": newest,
        "newest": newest,
        "pending": [],
        "is_known": True,
    }


def test_mistakes_are_refused_by_name(state_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no revision 7"):
        run(state_dir, "migrate", "--to", "7")
    with pytest.raises(Unavailable, match="database failed"):
        run(state_dir, "revision", "--ledger-url", "postgresql+psycopg://x@localhost:1/x")


def test_asking_makes_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no ledger"):
        run(tmp_path, "revision")
    assert check_revision(load_settings(state_dir=tmp_path)).found == "none yet"
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_names_a_ledger_that_cannot_be_read(state_dir: Path) -> None:
    (state_dir / "ledger.db").write_bytes(b"no database" * 1000)
    found = check_revision(load_settings(state_dir=state_dir))
    assert not found.ok
    assert "not a database" in found.found
