"""The ledger, case by case, on both databases; test_ledger_model.py mixes the cases."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from clock import START_S, Clock
from ledgers import ORPHAN_AFTER_S, TENANT, WAIT_WINDOW_S, batch, decision, open_ledger, priced
from sqlalchemy import create_engine, make_url, text

from pipelines.ledger import Ledger
from policies.arms import PriceTable
from policies.errors import InvalidRequest, Unavailable, UnknownArm
from policies.interaction import (
    DECISION_SCHEMA,
    INTERACTION_SCHEMA,
    JoinStatus,
    Outcome,
    decisions_to_batch,
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(ledger_url: str, clock: Clock) -> Iterator[Ledger]:
    opened = open_ledger(ledger_url, clock)
    yield opened
    opened.close()


def submit(ledger: Ledger, *outcomes: Outcome, tenant: str = TENANT) -> list[JoinStatus]:
    """Report outcomes in one transaction."""
    return ledger.submit([(tenant, outcome) for outcome in outcomes])


def matured(ledger: Ledger) -> list[tuple[int, str, int, float | None, float | None]]:
    """List all interactions: seq, decision, revision, quality, cost."""
    names = ("seq", "decision_id", "revision", "quality", "cost_usd")
    rows = ledger.interactions(0, 1000).select(names).to_pylist()
    return [tuple(row[name] for name in names) for row in rows]


def test_commits_are_flushed_to_disk(ledger: Ledger) -> None:
    ledger.check()


def test_sqlite_reads_back_synchronous_full_and_write_ahead_log(tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", Clock())
    with ledger._reading() as connection:
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


def test_a_decision_is_recorded_once(ledger: Ledger) -> None:
    assert ledger.record([batch(["a", "b"])]) == [2]
    assert ledger.record([batch(["b", "c", "c"]), batch(["a"])]) == [1, 0]
    assert ledger.counts().decisions == 3


def test_an_interaction_leaves_as_its_decision_came(ledger: Ledger) -> None:
    """Every column survives exactly, whatever lies between Arrow and SQL."""
    came = decisions_to_batch([decision("a"), decision("b", session="s", tenant="other")])
    ledger.record([came.slice(1), came.slice(0, 1)])
    submit(ledger, Outcome(decision_id="a", quality=0.1, cost_usd=0.2, latency_ms=12.5))
    submit(ledger, Outcome(decision_id="b", quality=1, cost_usd=0), tenant="other")

    left = ledger.interactions(0, 10)
    assert left.schema.equals(INTERACTION_SCHEMA)
    assert left.select(DECISION_SCHEMA.names).equals(pa.Table.from_batches([came]))
    assert left["seq"].to_pylist() == [1, 2]
    assert left["latency_ms"].to_pylist() == [12.5, None]


def test_feedback_before_its_decision_waits_and_is_joined_once(ledger: Ledger) -> None:
    early = Outcome(decision_id="a", quality=0.5, cost_usd=0.01)
    assert submit(ledger, early) == [JoinStatus.PENDING]
    assert ledger.counts().pending == 1
    assert ledger.record([batch(["a"])]) == [1]
    assert ledger.record([batch(["a"])]) == [0]
    assert submit(ledger, early) == [JoinStatus.DUPLICATE]
    assert matured(ledger) == [(1, "a", 0, 0.5, 0.01)]
    assert (ledger.counts().pending, ledger.counts().joined) == (0, 1)


def test_an_outcome_without_decision_is_orphaned_and_still_joined(
    ledger: Ledger, clock: Clock
) -> None:
    submit(ledger, Outcome(decision_id="a", quality=0.5, final=True))
    clock.now += ORPHAN_AFTER_S
    assert (ledger.counts().pending, ledger.counts().orphaned) == (0, 1)
    ledger.record([batch(["a"])])
    assert (ledger.counts().orphaned, ledger.counts().joined) == (0, 1)
    assert matured(ledger) == [(1, "a", 0, 0.5, None)]


def test_parts_are_merged_and_mature_when_both_are_known(ledger: Ledger) -> None:
    ledger.record([batch(["a"])])
    assert submit(ledger, Outcome(decision_id="a", quality=0.5)) == [JoinStatus.JOINED]
    assert matured(ledger) == []
    assert submit(ledger, Outcome(decision_id="a", cost_usd=0.01)) == [JoinStatus.JOINED]
    assert matured(ledger) == [(1, "a", 0, 0.5, 0.01)]


def test_tokens_are_priced_with_the_table_of_the_decision(ledger: Ledger) -> None:
    """Prices of 5 and 25 USD per million tokens, whatever the arm costs by now."""
    ledger.change_prices(priced)
    ledger.change_prices(lambda table: PriceTable(version=2, arms=()))
    ledger.record([batch(["a"])])
    submit(ledger, Outcome(decision_id="a", quality=1, tokens_in=1000))
    assert matured(ledger) == []
    submit(ledger, Outcome(decision_id="a", tokens_out=100))
    [(*_, cost_usd)] = matured(ledger)
    assert cost_usd == pytest.approx((1000 * 5 + 100 * 25) / 1e6)


def test_a_reported_cost_goes_before_a_priced_one(ledger: Ledger) -> None:
    ledger.change_prices(priced)
    ledger.record([batch(["a"])])
    submit(ledger, Outcome(decision_id="a", quality=1, cost_usd=0.5, tokens_in=9, tokens_out=9))
    assert matured(ledger) == [(1, "a", 0, 1.0, 0.5)]


def test_tokens_of_an_unknown_price_table_leave_the_cost_open(ledger: Ledger) -> None:
    ledger.record([batch(["a"])])
    submit(ledger, Outcome(decision_id="a", quality=1, tokens_in=9, tokens_out=9, final=True))
    assert matured(ledger) == [(1, "a", 0, 1.0, None)]


def test_a_correction_is_a_new_row_with_a_higher_revision(ledger: Ledger) -> None:
    ledger.record([batch(["a"])])
    statuses = submit(
        ledger,
        Outcome(decision_id="a", quality=0.5, cost_usd=0.01),
        Outcome(decision_id="a", quality=0.9),
        Outcome(decision_id="a", quality=0.9, event_id="same values"),
    )
    assert statuses == [JoinStatus.JOINED, JoinStatus.SUPERSEDED, JoinStatus.JOINED]
    assert matured(ledger) == [(1, "a", 0, 0.5, 0.01), (2, "a", 1, 0.9, 0.01)]


def test_an_event_is_known_by_its_id_or_by_its_values(ledger: Ledger) -> None:
    ledger.record([batch(["a", "b"])])
    first = Outcome(decision_id="a", quality=0.5)
    named = Outcome(decision_id="a", event_id="e", quality=0.5)
    statuses = submit(
        ledger,
        first,
        first,
        named,
        named,
        Outcome(decision_id="a", event_id="e", quality=0.6),
        Outcome(decision_id="b", event_id="e", quality=0.6),
    )
    assert [status.value for status in statuses] == [
        "joined",
        "duplicate",
        "joined",
        "duplicate",
        "invalid",
        "joined",
    ]
    assert ledger.counts().duplicates == 2


@pytest.mark.parametrize("event_id", ["", "a\x00b", "\ud800", "x" * 201])
def test_an_event_id_no_database_takes_is_invalid_alone(ledger: Ledger, event_id: str) -> None:
    ledger.record([batch(["a"])])
    outcomes = (
        Outcome(decision_id="a", event_id=event_id, quality=0.5),
        Outcome(decision_id="a", tokens_in=2**60),
        Outcome(decision_id="a", quality=0.5),
    )
    invalid = JoinStatus.INVALID
    assert submit(ledger, *outcomes) == [invalid, invalid, JoinStatus.JOINED]


def test_another_tenants_decision_is_unknown(ledger: Ledger) -> None:
    ledger.record([batch(["a"])])
    outcome = Outcome(decision_id="a", quality=0.5, final=True)
    assert submit(ledger, outcome, tenant="other") == [JoinStatus.UNKNOWN]
    assert matured(ledger) == []


def test_after_the_wait_window_feedback_is_expired(ledger: Ledger, clock: Clock) -> None:
    ledger.record([batch(["a"])])
    kept = Outcome(decision_id="a", quality=0.5, cost_usd=0.1)
    submit(ledger, kept)
    clock.now += WAIT_WINDOW_S
    late = Outcome(decision_id="a", quality=0.9)
    assert submit(ledger, late, kept) == [JoinStatus.EXPIRED, JoinStatus.DUPLICATE]
    assert (ledger.counts().outcomes, ledger.counts().expired) == (1, 1)


def test_a_window_that_closes_matures_what_is_known(ledger: Ledger, clock: Clock) -> None:
    """Quality alone is learned from; nothing, or a latency alone, is not."""
    ledger.record([batch(["a", "b", "c"])])
    submit(ledger, Outcome(decision_id="a", quality=0.5), Outcome(decision_id="b", latency_ms=3))
    clock.now += WAIT_WINDOW_S - 1
    assert ledger.mature_expired() == 0
    clock.now += 1
    assert ledger.mature_expired(limit=2) == 2
    assert ledger.mature_expired(limit=2) == 1
    assert ledger.mature_expired() == 0
    assert matured(ledger) == [(1, "a", 0, 0.5, None)]


def test_a_decision_recorded_after_its_window_still_gets_what_was_acknowledged(
    ledger: Ledger, clock: Clock
) -> None:
    submit(ledger, Outcome(decision_id="a", quality=0.5))
    clock.now += 2 * WAIT_WINDOW_S
    ledger.record([batch(["a"], at=START_S)])
    ledger.mature_expired()
    assert matured(ledger) == [(1, "a", 0, 0.5, None)]


def test_interactions_are_read_in_pages(ledger: Ledger) -> None:
    ids = [f"d{number}" for number in range(5)]
    ledger.record([batch(ids)])
    submit(ledger, *(Outcome(decision_id=i, quality=0.5, final=True) for i in ids))
    assert ledger.interactions(1, 2)["decision_id"].to_pylist() == ["d1", "d2"]
    assert ledger.interactions(5, 2).equals(INTERACTION_SCHEMA.empty_table())
    assert ledger.last_seq() == 5


def test_a_decision_tells_all_that_is_known_of_it(ledger: Ledger) -> None:
    ledger.record([batch(["a", "b"])])
    submit(ledger, Outcome(decision_id="a", quality=0.5), Outcome(decision_id="a", cost_usd=0.1))
    told = ledger.decision("a")
    assert told is not None
    assert "context" not in told
    assert told["decided_at"] == "2027-01-15T08:00:00.000000+00:00"
    assert told["arms_offered"] == ["cheap", "dear"]
    assert told["pmf"] == [1 / 3, 2 / 3]
    assert [report["quality"] for report in told["outcomes"]] == [0.5, None]
    assert told["interaction"]["revision"] == 0
    assert told["interaction"]["cost_usd"] == 0.1

    untold = ledger.decision("b")
    assert untold is not None
    assert (untold["outcomes"], untold["interaction"]) == ([], None)
    assert ledger.decision("never") is None


def test_prices_have_versions_and_a_change_of_nothing_makes_none(ledger: Ledger) -> None:
    assert ledger.prices() == PriceTable(version=0, arms=())
    first = ledger.change_prices(priced)
    assert ledger.change_prices(priced) == first == ledger.prices()
    second = ledger.change_prices(lambda table: table.without("dear", version=2))
    assert ledger.price_history([1, 2, 3]) == {1: first, 2: second}
    with pytest.raises(UnknownArm):
        ledger.change_prices(lambda table: table.without("dear", version=3))


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
