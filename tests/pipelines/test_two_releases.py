"""Two releases on one ledger: the older one goes on writing after the newer has been there."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from clock import Clock
from ledgers import RULES, TENANT, batch, matured, open_ledger, priced, submit
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from pipelines.ledger_rows import DECISION_COLUMNS, decision_rows
from pipelines.migration import migrate
from pipelines.schema import open_engine
from policies.interaction import JoinStatus, Outcome

# The tables of 0.1.0 as that release made them, times and vectors as in `pipelines.schema`.
BYTES = {"sqlite": "BLOB", "postgresql": "BYTEA"}
OLD_TABLES = (
    """CREATE TABLE decisions (decision_id TEXT PRIMARY KEY, decided_at BIGINT NOT NULL,
    tenant TEXT NOT NULL, session TEXT, prompt_hash TEXT NOT NULL,
    prompt_characters INTEGER NOT NULL,
    w_quality DOUBLE PRECISION NOT NULL, w_cost DOUBLE PRECISION NOT NULL, context {bytes} NOT NULL,
    encoder_id TEXT NOT NULL, arms_offered TEXT NOT NULL, pmf {bytes} NOT NULL, arm TEXT NOT NULL,
    propensity DOUBLE PRECISION NOT NULL, policy_version INTEGER NOT NULL,
    price_version INTEGER NOT NULL, closes_at BIGINT NOT NULL)""",
    "CREATE TABLE open_decisions (decision_id TEXT PRIMARY KEY, closes_at BIGINT NOT NULL)",
    """CREATE TABLE outcomes (decision_id TEXT, event_id TEXT, position INTEGER NOT NULL,
    received_at BIGINT NOT NULL, joined BOOLEAN NOT NULL, quality DOUBLE PRECISION,
    cost_usd DOUBLE PRECISION, tokens_in BIGINT, tokens_out BIGINT, latency_ms DOUBLE PRECISION,
    final BOOLEAN NOT NULL, PRIMARY KEY (decision_id, event_id))""",
)
OLD_DECISION = (
    "decision_id", "decided_at", "tenant", "session", "prompt_hash", "prompt_characters",
    "w_quality",
    "w_cost", "context", "encoder_id", "arms_offered", "pmf", "arm", "propensity", "policy_version",
    "price_version", "closes_at",
)  # fmt: skip


def decide_as_the_old_release(engine: Engine, decision_id: str) -> None:
    """Insert a decision with the columns that 0.1.0 knows."""
    (row,) = rows_of(decision_id)
    names = ", ".join(OLD_DECISION)
    marks = ", ".join(f":{name}" for name in OLD_DECISION)
    with engine.begin() as connection:
        connection.execute(text(f"INSERT INTO decisions ({names}) VALUES ({marks})"), row)
        connection.execute(
            text("INSERT INTO open_decisions (decision_id, closes_at) VALUES (:id, :closes_at)"),
            {"id": decision_id, "closes_at": row["closes_at"]},
        )


def rows_of(decision_id: str) -> list[dict[str, Any]]:
    """Lay a decision out in the old columns."""
    rows = [
        dict(zip(DECISION_COLUMNS, row, strict=True))
        for row in decision_rows(batch([decision_id]), rules=RULES)
    ]
    return [{name: row[name] for name in OLD_DECISION} for row in rows]


@pytest.fixture
def old_engine(ledger_url: str) -> Engine:
    """A database as 0.1.0 left it, with one decision in it."""
    engine = open_engine(ledger_url)
    kind = BYTES[engine.dialect.name]
    with engine.begin() as connection:
        for statement in OLD_TABLES:
            connection.execute(text(statement.format(bytes=kind)))
    decide_as_the_old_release(engine, "before")
    return engine


def outcome(decision_id: str) -> Outcome:
    """All that is to be known of a decision."""
    return Outcome(decision_id=decision_id, event_id="e", quality=0.5, cost_usd=0.01)


def test_a_ledger_of_the_old_release_is_taken_over(
    old_engine: Engine, ledger_url: str, clock: Clock
) -> None:
    ledger = open_ledger(ledger_url, clock)
    ledger.change_prices(priced)
    assert submit(ledger, outcome("before")) == [JoinStatus.JOINED]
    assert [row[1:3] for row in matured(ledger)] == [("before", 0)]
    ledger.close()


def test_the_old_release_goes_on_beside_the_new_one(
    old_engine: Engine, ledger_url: str, clock: Clock
) -> None:
    """As in a rolling upgrade: its decisions are joined under their own tenant, and exported."""
    ledger = open_ledger(ledger_url, clock)
    ledger.change_prices(priced)
    ledger.record([batch(["new"])])
    decide_as_the_old_release(old_engine, "beside")
    assert submit(ledger, outcome("beside"), tenant="somebody-else") == [JoinStatus.UNKNOWN]
    assert submit(ledger, outcome("beside"), outcome("new")) == [JoinStatus.JOINED] * 2
    assert [row[1:3] for row in matured(ledger)] == [("beside", 0), ("new", 0)]
    (exported,) = [
        row for row in ledger.interactions(0, 10).to_pylist() if row["decision_id"] == "beside"
    ]
    assert (exported["tenant"], exported["arm"], exported["canary_share"]) == (TENANT, "dear", 0.0)
    ledger.close()


def test_the_old_release_reads_what_the_new_one_wrote(
    old_engine: Engine, ledger_url: str, clock: Clock
) -> None:
    """As after going back: every column that it asks for is there, filled in."""
    ledger = open_ledger(ledger_url, clock)
    ledger.change_prices(priced)
    ledger.record([batch(["new"])])
    names = ", ".join(OLD_DECISION)
    with old_engine.connect() as connection:
        query = text(f"SELECT {names} FROM decisions WHERE decision_id = 'new'")
        (row,) = connection.execute(query).mappings().all()
        (window,) = connection.scalars(
            text("SELECT closes_at FROM open_decisions WHERE decision_id = 'new'")
        ).all()
    assert dict(row) == rows_of("new")[0]
    assert window == row["closes_at"]
    ledger.close()


def test_an_upgrade_under_load_and_the_way_back_lose_nothing(
    old_engine: Engine, ledger_url: str, clock: Clock
) -> None:
    """The old release writes on while the tables change, beside the new one, and after it."""
    decided, stop = ["before"], threading.Event()
    failures: list[Exception] = []

    def old_release() -> None:
        while not stop.is_set():
            name = f"old-{len(decided)}"
            try:
                decide_as_the_old_release(old_engine, name)
            except SQLAlchemyError as error:
                failures.append(error)
                return
            decided.append(name)

    writer = threading.Thread(target=old_release)
    writer.start()
    new = open_ledger(ledger_url, clock)
    new.change_prices(priced)
    told: list[str] = []
    for turn in range(15):
        new.record([batch([f"new-{turn}"])])
        fresh = [name for name in list(decided) if name not in told]
        reported = [*fresh, f"new-{turn}"]
        assert submit(new, *map(outcome, reported)) == [JoinStatus.JOINED] * len(reported)
        told += reported
    new.close()
    # Back: the new release is gone, the old one goes on.
    seen = len(decided)
    deadline = time.monotonic() + 60
    while len(decided) < seen + 5 and not failures and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    writer.join()
    assert failures == []

    again = open_ledger(ledger_url, clock)
    left = [name for name in decided if name not in told]
    assert len(left) >= 5
    assert submit(again, *map(outcome, left)) == [JoinStatus.JOINED] * len(left)
    everything = [row[1] for row in matured(again)]
    assert sorted(everything) == sorted([*told, *left])
    assert again.counts().interactions == len(everything)
    again.close()
    # And its tables as it made them, once nobody needs what the new one added.
    migrate(old_engine, "0001")
    decide_as_the_old_release(old_engine, "alone")
