"""Several writers on one ledger at once: nothing lost, nothing twice, no number passed by."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from clock import START_S, Clock
from ledgers import ARM, WAIT_WINDOW_S, batch, matured, open_ledger, priced, submit
from sqlalchemy import event

from pipelines.ledger import Ledger
from policies.arms import Arm, PriceTable
from policies.interaction import JoinStatus, Outcome
from policies.sharding import slot_of

WRITERS = 3
SOON_S = 0.3
PATIENCE_S = 60.0


@pytest.fixture
def shards(ledger_url: str, clock: Clock) -> Iterator[list[Ledger]]:
    """Three aggregators' ledgers on one database; nobody has used it yet."""
    opened = [open_ledger(ledger_url, clock, shard=number) for number in range(WRITERS)]
    yield opened
    for ledger in opened:
        ledger.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """A thread for each."""
    with ThreadPoolExecutor(WRITERS + 1) as pool:
        yield pool


@contextmanager
def held_at_commit(ledger: Ledger) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Hold a ledger's transactions just before they commit.

    Yields what is set when one is there, and what lets it go on.
    """
    there, go_on = threading.Event(), threading.Event()

    def hold(_connection: Any) -> None:
        there.set()
        assert go_on.wait(PATIENCE_S)

    engine = ledger._database.engine
    event.listen(engine, "commit", hold)
    try:
        yield there, go_on
    finally:
        go_on.set()
        event.remove(engine, "commit", hold)


def whole(decision_id: str, event_id: str = "e", quality: float = 1.0) -> Outcome:
    """Report all there is to know."""
    return Outcome(decision_id=decision_id, event_id=event_id, quality=quality, cost_usd=0.01)


def all_at_once(pool: ThreadPoolExecutor, *work: Callable[[], Any]) -> list[Any]:
    """Run each in a thread of its own, from one moment on."""
    barrier = threading.Barrier(len(work))

    def started(one: Callable[[], Any]) -> Any:
        barrier.wait(PATIENCE_S)
        return one()

    return [future.result(PATIENCE_S) for future in [pool.submit(started, one) for one in work]]


def still_waits(future: Future[Any]) -> bool:
    """Say whether somebody is held up, and not merely slow to begin."""
    try:
        future.result(SOON_S)
    except TimeoutError:
        return True
    return False


def test_all_begin_at_once_on_an_empty_database(
    shards: list[Ledger], threads: ThreadPoolExecutor
) -> None:
    all_at_once(threads, *(ledger.check for ledger in shards))
    assert shards[0].counts().decisions == 0


def test_no_reader_passes_a_number_that_commits_late(
    shards: list[Ledger], threads: ThreadPoolExecutor, ledger_url: str, clock: Clock
) -> None:
    """A slow transaction has its numbers and is not committed; another one must not overtake it."""
    slow, fast, _ = shards
    reader = open_ledger(ledger_url, clock)
    slow.record([batch(["a"])])
    fast.record([batch(["b"])])
    assert slot_of("a") != slot_of("b")
    with held_at_commit(slow) as (there, go_on):
        late = threads.submit(submit, slow, whole("a"))
        assert there.wait(PATIENCE_S)
        early = threads.submit(submit, fast, whole("b"))
        assert still_waits(early)
        # One that begins only now waits for nobody, either.
        assert matured(reader) == [] and reader.last_seq() == 0
        go_on.set()
        assert late.result(PATIENCE_S) == early.result(PATIENCE_S) == [JoinStatus.JOINED]
    assert [row[:2] for row in matured(reader)] == [(1, "a"), (2, "b")]
    reader.close()


def test_shards_do_not_wait_for_each_other_before_the_numbers(
    shards: list[Ledger], threads: ThreadPoolExecutor, ledger_url: str
) -> None:
    """On PostgreSQL; on SQLite one process writes at a time."""
    slow, fast, _ = shards
    fast.check()
    with held_at_commit(slow) as (there, go_on):
        late = threads.submit(slow.record, [batch(["a"])])
        assert there.wait(PATIENCE_S)
        early = threads.submit(fast.record, [batch(["b"])])
        assert still_waits(early) == ("sqlite" in ledger_url)
        go_on.set()
        assert late.result(PATIENCE_S) == early.result(PATIENCE_S) == [1]


def test_one_report_at_all_of_them_counts_once(
    shards: list[Ledger], threads: ThreadPoolExecutor
) -> None:
    """As while one map replaces another, and callers repeat what was not answered."""
    ids = [f"d{number}" for number in range(40)]
    shards[0].record([batch(ids)])
    statuses = all_at_once(
        threads,
        *(
            lambda ledger=ledger: [submit(ledger, whole(name))[0] for name in ids]
            for ledger in shards
        ),
    )
    for each in zip(*statuses, strict=True):
        assert sorted(each) == [JoinStatus.DUPLICATE] * (WRITERS - 1) + [JoinStatus.JOINED]
    assert sorted(row[1] for row in matured(shards[0])) == sorted(ids)


def test_a_decision_and_its_early_outcome_meet_wherever_they_come_in(
    shards: list[Ledger], threads: ThreadPoolExecutor
) -> None:
    """Recorded by one map, reported by another, at the same moment: joined, and once."""
    ids = [f"d{number}" for number in range(40)]
    all_at_once(
        threads,
        lambda: [shards[0].record([batch([name])]) for name in ids],
        lambda: [submit(shards[1], whole(name)) for name in ids],
        lambda: [shards[2].record([batch([name])]) for name in ids],
    )
    counts = shards[0].counts()
    assert (counts.decisions, counts.joined, counts.pending) == (40, 40, 0)
    assert [row[0] for row in sorted(matured(shards[0]))] == list(range(1, 41))
    assert sorted(row[1] for row in matured(shards[0])) == sorted(ids)


def test_corrections_from_several_writers_are_revisions_in_a_row(
    shards: list[Ledger], threads: ThreadPoolExecutor
) -> None:
    shards[0].record([batch(["a"])])

    def correct(number: int) -> None:
        for turn in range(10):
            submit(shards[number], whole("a", f"{number}-{turn}", (10 * number + turn) / 100))

    all_at_once(threads, *(lambda number=number: correct(number) for number in range(WRITERS)))
    rows = matured(shards[0])
    assert [row[2] for row in rows] == list(range(len(rows)))
    assert all(after[0] == before[0] + 1 for before, after in pairwise(rows))
    shown = shards[0].decision("a")
    assert shown is not None and len(shown["outcomes"]) == 10 * WRITERS
    assert shown["interaction"]["revision"] == rows[-1][2]


def test_windows_close_once_whoever_closes_them(
    shards: list[Ledger], threads: ThreadPoolExecutor, clock: Clock
) -> None:
    ids = [f"d{number}" for number in range(50)]
    shards[0].record([batch(ids)])
    submit(shards[0], *(Outcome(decision_id=name, quality=0.5) for name in ids))
    clock.now = START_S + WAIT_WINDOW_S
    closed = all_at_once(threads, *(ledger.mature_expired for ledger in shards))
    while some := shards[1].mature_expired():
        closed.append(some)
    assert sum(closed) == 50
    assert sorted(row[1] for row in matured(shards[0])) == sorted(ids)


def test_a_window_whose_decision_is_being_written_is_left_for_later(
    shards: list[Ledger], threads: ThreadPoolExecutor, clock: Clock, ledger_url: str
) -> None:
    """Who closes windows never waits for feedback; on SQLite writers wait for each other anyway."""
    if "sqlite" in ledger_url:
        pytest.skip("one writer at a time")
    busy, closer, _ = shards
    busy.record([batch(["a", "b"])])
    closer.check()
    clock.now = START_S + WAIT_WINDOW_S
    with held_at_commit(busy) as (there, go_on):
        late = threads.submit(submit, busy, whole("a"))
        assert there.wait(PATIENCE_S)
        assert closer.mature_expired() == 1
        go_on.set()
        assert late.result(PATIENCE_S) == [JoinStatus.EXPIRED]
    assert closer.mature_expired() == 1


def test_price_changes_follow_one_another(
    shards: list[Ledger], threads: ThreadPoolExecutor
) -> None:
    def change(number: int) -> None:
        for turn in range(5):
            arm = Arm(name=f"{number}-{turn}", usd_per_call=0.1)

            def added(table: PriceTable, arm: Arm = arm) -> PriceTable:
                return table.with_arm(arm, version=table.version + 1)

            shards[number].change_prices(added)

    shards[0].change_prices(priced)
    all_at_once(threads, *(lambda number=number: change(number) for number in range(WRITERS)))
    table = shards[0].prices()
    assert table.version == 1 + 5 * WRITERS
    assert set(table.names) == {ARM.name} | {f"{n}-{t}" for n in range(WRITERS) for t in range(5)}


def test_what_is_forgotten_while_it_comes_again_stays_forgotten(
    shards: list[Ledger], threads: ThreadPoolExecutor, clock: Clock
) -> None:
    """Retention beside decisions that are handed over twice: none of them returns."""
    ids = [f"d{number}" for number in range(60)]
    shards[0].record([batch(ids)])
    clock.now = START_S + WAIT_WINDOW_S
    while shards[0].mature_expired():
        pass

    def forget() -> None:
        while shards[0].forget(retention_s=0.0, exported_seq=0, limit=7):
            pass

    all_at_once(
        threads,
        forget,
        *(
            lambda ledger=ledger: [ledger.record([batch([name])]) for name in ids]
            for ledger in shards[1:]
        ),
    )
    assert shards[0].counts().decisions == 60
    assert all(shards[0].decision(name) is None for name in ids)
