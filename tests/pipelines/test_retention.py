"""What leaves the ledger, what stays, and that nobody can tell but by the file's size."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from clock import START_S, Clock
from crashes import Broken, dying_at_statement
from event_lists import EventList
from ledgers import (
    ORPHAN_AFTER_S,
    TENANT,
    WAIT_WINDOW_S,
    batch,
    dated_id,
    open_ledger,
    priced,
    submit,
)
from sqlalchemy import create_engine, text

from pipelines.aggregator import Aggregator
from pipelines.archive import Archive
from pipelines.dataset import DamagedDataset, InteractionDataset, export
from pipelines.dataset_parts import MERGE_PARTS
from pipelines.keeper import Keeper
from pipelines.ledger import Ledger
from pipelines.migration import VERSION_TABLE
from pipelines.tenants import Rulebook, TenantRules
from policies.interaction import JoinStatus, Outcome, canonical_rows

RETENTION_S = 100.0
OLD_S = WAIT_WINDOW_S + RETENTION_S


@pytest.fixture
def dataset(tmp_path: Path) -> InteractionDataset:
    """An empty dataset."""
    return InteractionDataset(tmp_path / "interactions")


@pytest.fixture(params=["disk", "s3"])
def either_dataset(request: pytest.FixtureRequest, tmp_path: Path) -> InteractionDataset:
    """An empty dataset, on a disk and in an object store."""
    if request.param == "disk":
        return InteractionDataset(tmp_path / "interactions")
    store = request.getfixturevalue("object_store")
    return InteractionDataset(f"{store}/{tmp_path.name}/interactions")


def forget(ledger: Ledger, dataset: InteractionDataset) -> int:
    """Let go of what is old enough, in one transaction."""
    return ledger.forget(retention_s=RETENTION_S, exported_seq=dataset.last_seq())


def matured(ledger: Ledger, ids: Sequence[str], *, at: float = START_S) -> None:
    """Record decisions and bring each a quality and a cost."""
    ledger.record([batch(ids, at=at)])
    ledger.submit(
        [
            (TENANT, Outcome(decision_id=i, quality=n % 5 / 4, cost_usd=0.001 * n))
            for n, i in enumerate(ids)
        ]
    )


def test_a_decision_leaves_once_it_is_old_closed_and_exported(
    ledger: Ledger, clock: Clock, dataset: InteractionDataset
) -> None:
    name = dated_id("a")
    matured(ledger, [name])
    clock.now = START_S + OLD_S
    assert forget(ledger, dataset) == 0, "not exported"
    export(ledger.interactions, dataset)
    clock.now -= 0.001
    assert forget(ledger, dataset) == 0, "not old enough"
    clock.now += 0.001
    before = ledger.counts()
    assert forget(ledger, dataset) == 1
    assert ledger.decision(name) is None
    assert ledger.counts() == before


def test_an_open_decision_stays_however_old(
    ledger: Ledger, clock: Clock, dataset: InteractionDataset
) -> None:
    ledger.record([batch(["silent"])])
    clock.now = START_S + 10 * OLD_S
    assert forget(ledger, dataset) == 0
    ledger.mature_expired()
    assert forget(ledger, dataset) == 1


def test_feedback_for_a_decision_that_left_is_expired_and_it_does_not_come_back(
    ledger: Ledger, clock: Clock, dataset: InteractionDataset
) -> None:
    name = dated_id("a")
    matured(ledger, [name])
    export(ledger.interactions, dataset)
    clock.now = START_S + OLD_S
    forget(ledger, dataset)
    before = ledger.counts()
    assert submit(ledger, Outcome(decision_id=name, quality=0.0, cost_usd=0.0)) == [
        JoinStatus.EXPIRED
    ]
    assert ledger.record([batch([name])]) == [0]
    after = ledger.counts()
    assert (after.decisions, after.outcomes, after.interactions) == (
        before.decisions,
        before.outcomes,
        before.interactions,
    )
    assert after.expired == before.expired + 1


def test_a_longer_window_brings_no_decision_back(
    ledger_url: str, clock: Clock, dataset: InteractionDataset
) -> None:
    """What may have left is told by what has left, not by the rules of now."""
    name = dated_id("a")
    first = open_ledger(ledger_url, clock)
    matured(first, [name])
    export(first.interactions, dataset)
    clock.now = START_S + OLD_S
    assert forget(first, dataset) == 1
    first.close()
    rules = Rulebook(default=TenantRules(wait_window_s=10 * OLD_S))
    second = Ledger(ledger_url, rules=rules, orphan_after_s=ORPHAN_AFTER_S, clock=clock)
    assert submit(second, Outcome(decision_id=name, quality=0.0)) == [JoinStatus.EXPIRED]
    assert second.record([batch([name])]) == [0]
    assert second.counts().interactions == 1
    second.close()


def test_orphans_leave_and_still_count(
    ledger: Ledger, clock: Clock, dataset: InteractionDataset
) -> None:
    submit(
        ledger, Outcome(decision_id="never", quality=1), Outcome(decision_id="never", cost_usd=1)
    )
    clock.now = START_S + OLD_S + ORPHAN_AFTER_S
    before = ledger.counts()
    assert before.orphaned == 2
    forget(ledger, dataset)
    assert ledger.counts() == before
    with ledger._database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM outcomes")).scalar_one() == 0


def test_what_left_is_read_from_the_dataset_as_before(
    ledger: Ledger, clock: Clock, either_dataset: InteractionDataset
) -> None:
    """Rows, lineage digest, sums, decision and context; late windows leave holes behind."""
    ledger.change_prices(priced)
    dataset = either_dataset
    old, new = [dated_id(f"o{n}") for n in range(7)], [f"n{n}" for n in range(5)]
    late = START_S + WAIT_WINDOW_S
    matured(ledger, old[:4])
    matured(ledger, new[:2], at=late)
    matured(ledger, old[4:])
    matured(ledger, new[2:], at=late)
    export(ledger.interactions, dataset, max_part_rows=3)
    archive = Archive(ledger, dataset)
    rows = archive.interactions(0, 100)
    shown, context = archive.decision(old[2]), archive.context(old[2])
    earned = archive.earned(1, 11, 0.004)
    clock.now = START_S + OLD_S
    assert forget(ledger, dataset) == len(old)

    assert len(ledger.interactions(0, 100)) == len(new)
    assert archive.interactions(0, 100).equals(rows)
    assert _sha256(archive.interactions(0, 100)) == _sha256(rows)
    for after_seq in range(13):
        for limit in (1, 2, 5, 12):
            assert archive.interactions(after_seq, limit).equals(rows.slice(after_seq, limit))
    assert archive.decision(new[0]) == ledger.decision(new[0])
    again = archive.decision(old[2])
    assert shown is not None and again is not None
    lost = {"outcomes", "closes_at", "deferred"}
    assert again.keys() == shown.keys()
    assert {k: v for k, v in again.items() if k not in lost} == {
        k: v for k, v in shown.items() if k not in lost
    }
    assert all(again[name] is None for name in lost)
    context_again = archive.context(old[2])
    assert context is not None and context_again is not None
    assert context_again.tobytes() == context.tobytes()
    assert archive.decision("nobody") is None and archive.context("nobody") is None
    [sums], [sums_again] = earned, archive.earned(1, 11, 0.004)
    assert sums_again.interactions == sums.interactions == 10
    for name in ("quality", "cost_usd", "gain", "loss"):
        assert getattr(sums_again, name) == pytest.approx(getattr(sums, name), rel=1e-12)


def test_a_dataset_that_lacks_what_left_is_refused(
    ledger: Ledger, clock: Clock, dataset: InteractionDataset, tmp_path: Path
) -> None:
    matured(ledger, ["a", "b"])
    export(ledger.interactions, dataset)
    clock.now = START_S + OLD_S
    forget(ledger, dataset)
    for part in dataset.parts():
        (tmp_path / "interactions" / part.name).unlink()
    with pytest.raises(DamagedDataset, match="restore the dataset"):
        Archive(ledger, InteractionDataset(tmp_path / "interactions")).check()


def test_a_transaction_that_dies_takes_nothing(
    ledger: Ledger, clock: Clock, dataset: InteractionDataset
) -> None:
    matured(ledger, ["a", "b"])
    export(ledger.interactions, dataset)
    clock.now = START_S + OLD_S
    before, step = ledger.interactions(0, 10), 0
    while True:
        try:
            with dying_at_statement(ledger._database.engine, step):
                gone = forget(ledger, dataset)
            break
        except Broken:
            assert ledger.interactions(0, 10).equals(before)
            assert ledger.forgotten_seq() == 0
            step += 1
    assert (gone, ledger.forgotten_seq()) == (2, 2)
    assert step >= 8, "each statement was the last one once"


def test_a_sqlite_file_stays_bounded(tmp_path: Path) -> None:
    """Ten rounds of decisions need no more pages than two; most of what is free is given back."""
    clock = Clock()
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", clock)
    dataset = InteractionDataset(tmp_path / "interactions")
    sizes = []
    for turn in range(10):
        matured(ledger, [f"{turn}-{n}" for n in range(450)], at=clock.now)
        export(ledger.interactions, dataset)
        clock.now += OLD_S
        sizes.append(_pages(ledger))
        assert forget(ledger, dataset) == 450
    assert max(sizes) <= 1.2 * sizes[0]
    freed = [ledger.shrink(), ledger.shrink()]
    assert freed[0] > sizes[0] / 2 and freed[1] == 0, "all surplus pages at once"
    left = _pages(ledger)
    assert left < sizes[0] / 2
    # On the disk, too, while the ledger is open: the log has been written back.
    assert (tmp_path / "ledger.db").stat().st_size == left * PAGE_BYTES
    assert ledger.counts().decisions == 4500
    ledger.close()


PAGE_BYTES = 4096


def _pages(ledger: Ledger) -> int:
    with ledger._database.reading() as connection:
        return int(connection.execute(text("PRAGMA page_count")).scalar_one())


def test_a_ledger_of_an_older_release_gets_what_retention_needs(
    ledger_url: str, clock: Clock, dataset: InteractionDataset
) -> None:
    first = open_ledger(ledger_url, clock)
    matured(first, ["old"])
    first.close()
    engine = create_engine(ledger_url)
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
        connection.execute(text("DROP INDEX ix_decisions_decided_at"))
        for table, column in (
            ("sequence", "forgotten_seq"),
            ("sequence", "forgotten_at"),
            ("tallies", "dropped"),
        ):
            connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
    engine.dispose()
    second = open_ledger(ledger_url, clock)
    export(second.interactions, dataset)
    clock.now = START_S + OLD_S
    assert forget(second, dataset) == 1
    assert second.counts().decisions == 1
    second.close()


def test_keeper_and_aggregator_keep_the_ledger_small(
    ledger_url: str, clock: Clock, tmp_path: Path
) -> None:
    async def main() -> None:
        dataset = InteractionDataset(tmp_path / "interactions")
        aggregator = Aggregator(
            open_ledger(ledger_url, clock), announce=lambda table: None, events=EventList()
        )
        loop = asyncio.get_running_loop()

        def forget(retention_s: float, exported_seq: int) -> int:
            """Ask the aggregator from a thread, as the actor does."""
            asked = aggregator.forget(retention_s, exported_seq)
            return asyncio.run_coroutine_threadsafe(asked, loop).result()

        keeper = Keeper(
            open_ledger(ledger_url, clock),
            dataset,
            forget=forget,
            export_every_s=3600,
            retention_s=RETENTION_S,
        )
        try:
            ids = [dated_id(f"{n}") for n in range(MERGE_PARTS)]
            for name in ids:
                await aggregator.record(batch([name]))
                await aggregator.submit(TENANT, [Outcome(decision_id=name, quality=1, cost_usd=0)])
                await keeper.export()
            rows = await keeper.interactions(0, 100)
            counts = await keeper.counts()
            assert len(dataset.parts()) == MERGE_PARTS
            clock.now = START_S + OLD_S
            assert await keeper.compact() == MERGE_PARTS
            assert len(dataset.parts()) == 1
            assert (await keeper.interactions(0, 100)).equals(rows)
            assert await keeper.counts() == counts
            shown = await keeper.decision(ids[0])
            assert shown is not None and shown["interaction"]["quality"] == 1
            assert await keeper.context(ids[0]) is not None
            assert [one.interactions for one in await keeper.earned(0, 100, 1.0)] == [MERGE_PARTS]
        finally:
            await aggregator.stop()
            await keeper.stop()

    asyncio.run(main())


def _sha256(rows: pa.Table) -> str:
    return hashlib.sha256(canonical_rows(rows)).hexdigest()
