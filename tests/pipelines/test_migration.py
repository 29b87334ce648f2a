"""The ledger's tables from revision to revision: up, down, at once, and beside other releases."""

from __future__ import annotations

import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from clock import Clock
from ledgers import batch, matured, open_ledger, priced, submit
from sqlalchemy import Engine, inspect, text

from pipelines.migration import VERSION_TABLE, bring_up, ledger_revision, migrate
from pipelines.schema import metadata, open_engine
from policies.errors import Conflict, InvalidRequest
from policies.interaction import JoinStatus, Outcome

ROOT = Path(__file__).parents[2]
FIRST = "0001"


@pytest.fixture
def engine(ledger_url: str) -> Iterator[Engine]:
    opened = open_engine(ledger_url)
    yield opened
    opened.dispose()


def outcome(decision_id: str) -> Outcome:
    """All that is to be known of a decision."""
    return Outcome(decision_id=decision_id, event_id="e", quality=0.5, cost_usd=0.01)


def test_the_revisions_make_the_tables_that_the_code_asks_for(engine: Engine) -> None:
    """Whoever changes `pipelines.schema` without a revision hears of it here."""
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_down_to_each_revision_and_up_again_loses_no_decision(
    engine: Engine, ledger_url: str, clock: Clock
) -> None:
    bring_up(engine)
    newest = ledger_revision(engine).newest
    ledger = open_ledger(ledger_url, clock)
    ledger.change_prices(priced)
    ledger.record([batch(["a", "b"])])
    assert submit(ledger, outcome("a")) == [JoinStatus.JOINED]
    before = (ledger.counts(), matured(ledger))
    ledger.close()
    steps = [f"{number:04d}" for number in range(int(FIRST), int(newest))]
    for to in [*reversed(steps), *steps[1:]]:
        assert migrate(engine, to).current == to
    assert migrate(engine).pending == ()

    again = open_ledger(ledger_url, clock)
    assert (again.counts(), matured(again)) == before
    assert submit(again, outcome("b")) == [JoinStatus.JOINED]
    again.close()


def test_the_first_revision_has_none_of_what_came_later(engine: Engine) -> None:
    migrate(engine, FIRST)
    columns = {column["name"] for column in inspect(engine).get_columns("decisions")}
    assert {"canary_share", "deferred"} & columns == set()
    assert ledger_revision(engine).pending != ()


def test_a_ledger_of_a_time_before_revisions_is_taken_over(
    engine: Engine, ledger_url: str, clock: Clock
) -> None:
    """With some of the columns that came later, and none of the rest."""
    added = ("champion_version", "canary_version", "canary_share")
    first = open_ledger(ledger_url, clock)
    first.record([batch(["old"])])
    first.close()
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
        for name in added:
            connection.execute(text(f"ALTER TABLE decisions DROP COLUMN {name}"))

    second = open_ledger(ledger_url, clock)
    second.record([batch(["new"])])
    for name in ("old", "new"):
        submit(second, Outcome(decision_id=name, quality=0.5, cost_usd=0.1))
    rows = second.interactions(0, 10).select(added).to_pylist()
    assert rows == [dict(zip(added, (None, None, 0.0), strict=True))] * 2
    second.close()
    assert ledger_revision(engine).pending == ()


def test_several_that_start_at_once_migrate_once(ledger_url: str, clock: Clock) -> None:
    """As shards do, and replicas of an aggregator that is being replaced."""
    failures: list[BaseException] = []
    gate = threading.Barrier(4)

    def start(shard: int) -> None:
        ledger = open_ledger(ledger_url, clock, shard=shard)
        gate.wait()
        try:
            ledger.record([batch([f"d{shard}"])])
        except BaseException as error:  # noqa: BLE001  # told by the test's own thread
            failures.append(error)
        ledger.close()

    threads = [threading.Thread(target=start, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    reader = open_ledger(ledger_url, clock)
    assert reader.counts().decisions == 4
    reader.close()


def test_what_a_newer_release_did_is_left_alone(
    engine: Engine, ledger_url: str, clock: Clock
) -> None:
    """An older one beside it, or after going back, reads and writes on."""
    bring_up(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE decisions ADD COLUMN mood TEXT DEFAULT 'good'"))
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    ledger = open_ledger(ledger_url, clock)
    assert ledger.record([batch(["a"])]) == [1]
    ledger.close()
    found = ledger_revision(engine)
    assert (found.current, found.is_known, found.pending) == ("9999", False, ())
    with pytest.raises(Conflict, match="newer release"):
        migrate(engine)


def test_decisions_that_have_left_forbid_the_way_back(engine: Engine) -> None:
    """The first release would take feedback on them for feedback on decisions still to come."""
    bring_up(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO sequence (id, last_seq, forgotten_at) VALUES (1,1,1)"))
    with pytest.raises(Conflict, match="have left"):
        migrate(engine, FIRST)
    assert ledger_revision(engine).pending == ()


@pytest.mark.parametrize("to", ["base", "0000", "12345", "head; DROP TABLE decisions"])
def test_a_revision_that_is_none_is_refused(engine: Engine, to: str) -> None:
    with pytest.raises(InvalidRequest, match="no revision") as refused:
        migrate(engine, to)
    assert FIRST in (refused.value.allowed or "")


def test_mlflow_may_have_its_tables_in_the_same_database(engine: Engine) -> None:
    """Its revisions are Alembic's, too."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('mlflow')"))
    bring_up(engine)
    assert ledger_revision(engine).pending == ()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "mlflow"


def test_the_wheel_has_the_revisions(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        (source / name).symlink_to(ROOT / name)
    for package in ("policies", "pipelines", "services", "cluster"):
        (source / package).symlink_to(ROOT / package)
    build = (
        "import os, sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    scripts = (ROOT / "pipelines" / "migrations").rglob("*.py")
    assert {path.relative_to(ROOT).as_posix() for path in scripts} <= packed
