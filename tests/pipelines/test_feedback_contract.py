"""The feedback contract: windows, defaults and signals; corrections, activation, expiry."""

from __future__ import annotations

import pytest
from clock import START_S, Clock
from ledgers import TENANT, WAIT_WINDOW_S, batch, dated_id, matured, open_ledger, priced, submit
from sqlalchemy import create_engine, text

from pipelines.ledger import Ledger
from pipelines.migration import VERSION_TABLE
from policies.arms import Arm, PriceTable
from policies.errors import InvalidOutcome
from policies.interaction import MAX_COST_USD, MAX_LATENCY_MS, MAX_TOKENS, JoinStatus, Outcome


def test_each_tenant_has_its_own_wait_window(ledger: Ledger, clock: Clock) -> None:
    ledger.record([batch(["a"]), batch(["b"], tenant="zero")])
    clock.now += WAIT_WINDOW_S / 2
    assert submit(ledger, Outcome(decision_id="a", quality=1)) == [JoinStatus.JOINED]
    late = submit(ledger, Outcome(decision_id="b", quality=1), tenant="zero")
    assert late == [JoinStatus.EXPIRED]


@pytest.mark.parametrize(("tenant", "quality"), [(TENANT, 0.5), ("mean", 0.75), ("earliest", 1.0)])
def test_several_signals_make_one_quality(ledger: Ledger, tenant: str, quality: float) -> None:
    """Of costs it is always the latest: one call has only one."""
    ledger.record([batch(["a"], tenant=tenant)])
    submit(
        ledger,
        Outcome(decision_id="a", quality=1, event_id="1"),
        Outcome(decision_id="a", quality=0.75, event_id="2"),
        Outcome(decision_id="a", quality=0.5, event_id="3"),
        Outcome(decision_id="a", cost_usd=0.2),
        Outcome(decision_id="a", cost_usd=0.1),
        tenant=tenant,
    )
    assert matured(ledger)[-1][3:] == (quality, 0.1)


@pytest.mark.parametrize("tenant", [TENANT, "mean", "earliest"])
def test_a_correction_replaces_what_was_reported_before(ledger: Ledger, tenant: str) -> None:
    """Also when the interaction has been learned from; only what it names; later signals count."""
    ledger.record([batch(["a"], tenant=tenant)])
    statuses = submit(
        ledger,
        Outcome(decision_id="a", quality=1, cost_usd=0.1),
        Outcome(decision_id="a", quality=0.2, correction=True),
        tenant=tenant,
    )
    assert statuses == [JoinStatus.JOINED, JoinStatus.SUPERSEDED]
    assert matured(ledger) == [(1, "a", 0, 1.0, 0.1), (2, "a", 1, 0.2, 0.1)]
    submit(ledger, Outcome(decision_id="a", quality=0.4), tenant=tenant)
    expected = {TENANT: 0.4, "mean": pytest.approx(0.3), "earliest": 0.2}
    assert matured(ledger)[-1][3] == expected[tenant]


def test_a_default_stands_in_when_the_window_closes(ledger: Ledger, clock: Clock) -> None:
    """For a quality that nobody reported, whether a cost came or not; never for a reported one."""
    ledger.record([batch(["a", "b", "c"], tenant="zero"), batch(["d"])])
    submit(ledger, Outcome(decision_id="b", cost_usd=0.1), tenant="zero")
    submit(ledger, Outcome(decision_id="c", quality=0.5), tenant="zero")
    clock.now += WAIT_WINDOW_S
    ledger.mature_expired()
    told = {row[1]: row[3:] for row in matured(ledger)}
    assert told == {"a": (0.0, None), "b": (0.0, 0.1), "c": (0.5, None)}


def test_a_final_report_without_quality_takes_the_default_until_one_comes(ledger: Ledger) -> None:
    ledger.record([batch(["a"], tenant="zero")])
    submit(ledger, Outcome(decision_id="a", cost_usd=0.1, final=True), tenant="zero")
    assert matured(ledger) == [(1, "a", 0, 0.0, 0.1)]
    submit(ledger, Outcome(decision_id="a", quality=0.9), tenant="zero")
    assert matured(ledger)[-1] == (2, "a", 1, 0.9, 0.1)


def test_a_deferred_decision_matures_once_it_is_activated(ledger: Ledger) -> None:
    ledger.record([batch(["a"], deferred=True)])
    submit(ledger, Outcome(decision_id="a", quality=0.5, cost_usd=0.1, final=True))
    assert matured(ledger) == []
    assert submit(ledger, Outcome(decision_id="a", activate=True)) == [JoinStatus.JOINED]
    assert matured(ledger) == [(1, "a", 0, 0.5, 0.1)]


def test_activation_may_come_before_the_decision(ledger: Ledger) -> None:
    outcome = Outcome(decision_id="a", activate=True, quality=0.5, cost_usd=0.1)
    assert submit(ledger, outcome) == [JoinStatus.PENDING]
    ledger.record([batch(["a"], deferred=True)])
    assert matured(ledger) == [(1, "a", 0, 0.5, 0.1)]


def test_a_decision_never_activated_is_never_learned_from(ledger: Ledger, clock: Clock) -> None:
    """Not by a default either, and an activation after the window is too late."""
    ledger.record([batch(["a"], deferred=True), batch(["b"], deferred=True, tenant="zero")])
    submit(ledger, Outcome(decision_id="a", quality=0.5, cost_usd=0.1))
    clock.now += WAIT_WINDOW_S
    assert ledger.mature_expired() == 2
    late = Outcome(decision_id="a", activate=True)
    assert submit(ledger, late) == [JoinStatus.EXPIRED]
    assert matured(ledger) == []


def test_an_id_tells_that_its_window_is_over_though_nobody_recorded_it(
    ledger: Ledger, clock: Clock
) -> None:
    decision_id = dated_id("never recorded")
    clock.now += WAIT_WINDOW_S - 1
    assert submit(ledger, Outcome(decision_id=decision_id, quality=1)) == [JoinStatus.PENDING]
    clock.now += 1
    assert submit(ledger, Outcome(decision_id=decision_id, quality=0)) == [JoinStatus.EXPIRED]
    soon = dated_id("x", at=START_S + WAIT_WINDOW_S / 2)
    expired = submit(ledger, Outcome(decision_id=soon, quality=1), tenant="zero")
    assert expired == [JoinStatus.EXPIRED]


@pytest.mark.parametrize(
    ("field", "most"),
    [("cost_usd", MAX_COST_USD), ("latency_ms", MAX_LATENCY_MS), ("tokens_in", MAX_TOKENS)],
)
def test_what_no_call_costs_or_lasts_is_refused(field: str, most: float) -> None:
    values = {field: most}
    assert getattr(Outcome(decision_id="a", **values), field) == most  # type: ignore[arg-type]  # one value, by name
    for beyond in (most + 1, 1e300):
        with pytest.raises(InvalidOutcome) as caught:
            Outcome(decision_id="a", **{field: beyond})  # type: ignore[arg-type]  # likewise
        assert caught.value.field == field


def test_tokens_priced_beyond_what_a_call_costs_leave_the_cost_open(ledger: Ledger) -> None:
    def ruinous(table: PriceTable) -> PriceTable:
        return table.with_arm(Arm(name="dear", usd_per_call=1e300), version=table.version + 1)

    ledger.change_prices(ruinous)
    ledger.record([batch(["a"])])
    submit(ledger, Outcome(decision_id="a", quality=1, tokens_in=1, tokens_out=1, final=True))
    assert matured(ledger) == [(1, "a", 0, 1.0, None)]


def test_a_database_of_an_earlier_release_gets_the_columns_it_lacks(
    ledger_url: str, clock: Clock
) -> None:
    ledger = open_ledger(ledger_url, clock)
    ledger.record([batch(["a"])])
    submit(ledger, Outcome(decision_id="a", quality=0.5))
    ledger.close()
    engine = create_engine(ledger_url)
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
        for table, column in (
            ("decisions", "deferred"),
            ("outcomes", "correction"),
            ("outcomes", "activate"),
            ("open_decisions", "tenant"),
            ("open_decisions", "arm"),
            ("open_decisions", "price_version"),
            ("open_decisions", "deferred"),
        ):
            connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
    engine.dispose()
    ledger = open_ledger(ledger_url, clock)
    ledger.change_prices(priced)
    ledger.record([batch(["b"])])
    priced_by_tokens = Outcome(decision_id="a", tokens_in=1_000_000, tokens_out=0)
    submit(ledger, priced_by_tokens, Outcome(decision_id="b", activate=True))
    assert matured(ledger) == [(1, "a", 0, 0.5, 5.0)]
    ledger.close()
