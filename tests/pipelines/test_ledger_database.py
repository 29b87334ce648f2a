"""What the ledger asks of its database: durable, whole, in order, and clear when it fails."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from clock import Clock
from ledgers import (
    batch,
    matured,
    open_ledger,
    priced,
    submit,
)
from sqlalchemy import create_engine, make_url, text

from pipelines.ledger import Ledger
from policies.errors import InvalidRequest, Unavailable
from policies.interaction import (
    DECISION_SCHEMA,
    JoinStatus,
    Outcome,
)


def test_commits_are_flushed_to_disk(ledger: Ledger) -> None:
    ledger.check()


def test_sqlite_reads_back_synchronous_full_and_write_ahead_log(tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", Clock())
    with ledger._database.reading() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
    ledger.close()


def test_a_database_that_does_not_flush_is_refused(ledger_url: str) -> None:
    if not ledger_url.startswith("postgresql"):
        pytest.skip("on SQLite each connection sets it")
    url = make_url(ledger_url)
    options = f"{url.query['options']} -csynchronous_commit=off"
    unsafe = url.update_query_dict({"options": options}).render_as_string(hide_password=False)
    ledger = open_ledger(unsafe, Clock())
    with pytest.raises(Unavailable, match="flush"):
        ledger.check()
    ledger.close()


def test_all_is_there_after_a_restart(ledger_url: str, clock: Clock) -> None:
    first = open_ledger(ledger_url, clock)
    first.change_prices(priced)
    first.record([batch(["a"])])
    submit(
        first,
        Outcome(decision_id="a", quality=0.5, cost_usd=0.1),
        Outcome(decision_id="b", quality=1),
    )
    seen = (first.counts(), matured(first), first.prices())
    first.close()

    second = open_ledger(ledger_url, clock)
    assert (second.counts(), matured(second), second.prices()) == seen
    again = submit(second, Outcome(decision_id="a", quality=0.5, cost_usd=0.1))
    assert again == [JoinStatus.DUPLICATE]
    second.close()


def test_a_failed_transaction_leaves_nothing(ledger: Ledger) -> None:
    """The second batch is refused after the first was written."""
    torn = batch(["b"]).rename_columns([f"x_{name}" for name in DECISION_SCHEMA.names])
    with pytest.raises(InvalidRequest):
        ledger.record([batch(["a"]), torn])
    with pytest.raises(ZeroDivisionError):
        ledger.change_prices(lambda table: priced(table) if 1 // 0 else table)
    assert ledger.counts().decisions == 0
    assert ledger.prices().version == 0


def test_more_decisions_than_a_statement_takes_parameters(ledger: Ledger) -> None:
    ids = [f"d{number}" for number in range(10_500)]
    submit(ledger, *(Outcome(decision_id=i, quality=0.5) for i in ids))
    assert ledger.record([batch(ids)]) == [len(ids)]
    submit(ledger, *(Outcome(decision_id=i, cost_usd=0.1) for i in ids))
    assert ledger.interactions(0, 20_000)["seq"].to_pylist() == list(range(1, len(ids) + 1))


def test_two_shards_number_in_the_order_of_their_commits(ledger_url: str, clock: Clock) -> None:
    """A reader that has seen a number never finds a lower one later."""
    shards = [open_ledger(ledger_url, clock, shard=number) for number in range(2)]
    reader = open_ledger(ledger_url, clock)
    reader.counts()

    def work(number: int) -> None:
        for turn in range(20):
            ids = [f"{number}-{turn}-{i}" for i in range(5)]
            shards[number].record([batch(ids)])
            submit(shards[number], *(Outcome(decision_id=i, quality=1, final=True) for i in ids))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    seen = [0]
    while seen[-1] < 200:
        seen.extend(reader.interactions(seen[-1], 1000)["seq"].to_pylist())
    for thread in threads:
        thread.join()
    assert all(after == before + 1 for before, after in pairwise(seen))
    assert reader.counts().decisions == 200
    for ledger in (*shards, reader):
        ledger.close()


def test_a_database_that_is_away_is_unavailable_and_asked_again(tmp_path: Path) -> None:
    """It may be away when we start, too."""
    folder = tmp_path / "later"
    ledger = open_ledger(f"sqlite:///{folder / 'ledger.db'}", Clock())
    with pytest.raises(Unavailable):
        ledger.counts()
    folder.mkdir()
    assert ledger.counts().decisions == 0
    ledger.close()


def test_a_damaged_database_is_refused_with_a_message(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(np.random.default_rng(0).bytes(8192))
    ledger = open_ledger(f"sqlite:///{path}", Clock())
    with pytest.raises(Unavailable, match="not a database"):
        ledger.check()
    ledger.close()


def test_another_database_is_refused() -> None:
    with pytest.raises(Unavailable):
        open_ledger("oracle://somewhere/else", Clock())


def test_an_error_names_no_value(ledger_url: str, clock: Clock) -> None:
    """What users sent does not reach the logs by way of a database error."""
    ledger = open_ledger(ledger_url, clock)
    ledger.counts()
    engine = create_engine(ledger_url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE outcomes"))
    with pytest.raises(Unavailable) as caught:
        submit(ledger, Outcome(decision_id="secret-id", event_id="secret-event", quality=0.5))
    assert "secret" not in str(caught.value)
    assert "secret" not in str(caught.value.__cause__)
    engine.dispose()
    ledger.close()
