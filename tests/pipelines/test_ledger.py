"""The ledger's rules, case by case, on both databases; test_ledger_model.py mixes the cases."""

from __future__ import annotations

import pyarrow as pa
import pytest
from clock import START_S, Clock
from ledgers import (
    ORPHAN_AFTER_S,
    WAIT_WINDOW_S,
    batch,
    decision,
    matured,
    priced,
    submit,
)

from pipelines.ledger import Ledger
from policies.arms import PriceTable
from policies.errors import UnknownArm
from policies.interaction import (
    DECISION_SCHEMA,
    INTERACTION_SCHEMA,
    JoinStatus,
    Outcome,
    decisions_to_batch,
)


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
    repeated = [name for name in DECISION_SCHEMA.names if name != "deferred"]
    assert left.select(repeated).equals(pa.Table.from_batches([came]).select(repeated))
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
        Outcome(decision_id="a", quality=0.5),
    )
    assert submit(ledger, *outcomes) == [JoinStatus.INVALID, JoinStatus.JOINED]


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
