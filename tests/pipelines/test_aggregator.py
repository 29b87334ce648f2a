"""Aggregator and keeper without Ray: grouping, export, prices, and what happens when parts fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from clock import Clock
from event_lists import EventList
from ledgers import ARM, RULES, TENANT, WAIT_WINDOW_S, batch, decision, open_ledger

from pipelines.aggregator import Aggregator, AggregatorActor
from pipelines.dataset import DamagedDataset, InteractionDataset
from pipelines.keeper import Keeper, KeeperActor
from policies.arms import PriceTable
from policies.errors import InvalidRequest, Unavailable, UnknownArm
from policies.events import EventKind
from policies.interaction import JoinStatus, Outcome, decisions_to_batch
from policies.reports import reports_to_batch, unpack_statuses

NEVER_S = 3600.0


@asynccontextmanager
async def running(
    url: str,
    folder: Path,
    *,
    clock: Clock | None = None,
    announce: Callable[[PriceTable], object] = lambda table: None,
    events: EventList | None = None,
    every_s: float = NEVER_S,
) -> AsyncIterator[tuple[Aggregator, Keeper]]:
    """Run both; their loops turn once at the start, then every `every_s` seconds."""
    clock = clock or Clock()
    aggregator = Aggregator(
        open_ledger(url, clock),
        announce=announce,
        events=events if events is not None else EventList(),
        close_every_s=every_s,
    )
    keeper = Keeper(
        open_ledger(url, clock),
        InteractionDataset(folder),
        forget=lambda retention_s, exported_seq: 0,
        export_every_s=every_s,
    )
    aggregator.start()
    keeper.start()
    try:
        yield aggregator, keeper
    finally:
        await aggregator.stop()
        await keeper.stop()


def test_concurrent_callers_each_get_their_own_answers(ledger_url: str, tmp_path: Path) -> None:
    ids = [f"d{number}" for number in range(30)]

    async def main() -> None:
        async with running(ledger_url, tmp_path / "interactions") as (aggregator, keeper):
            batches = [batch(ids[start : start + 5]) for start in range(0, 30, 5)]
            assert await asyncio.gather(*map(aggregator.record, [*batches, batches[0]])) == [
                *([5] * 6),
                0,
            ]
            outcomes = [
                [
                    Outcome(decision_id=i, quality=0.5, final=True),
                    Outcome(decision_id=f"x{i}", quality=1),
                ]
                for i in ids
            ]
            statuses = await asyncio.gather(
                *(aggregator.submit(TENANT, pair) for pair in outcomes),
                aggregator.submit(TENANT, []),
            )
            assert statuses == [[JoinStatus.JOINED, JoinStatus.PENDING]] * 30 + [[]]
            counts = await keeper.counts()
            assert (counts.joined, counts.pending, counts.interactions) == (30, 30, 30)
            rows = await keeper.interactions(10, 5)
            assert rows["seq"].to_pylist() == [11, 12, 13, 14, 15]

    asyncio.run(main())


def test_what_matured_is_exported_at_the_stop(ledger_url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with running(ledger_url, tmp_path / "interactions") as (aggregator, keeper):
            await keeper.ready()
            await aggregator.record(batch(["a"]))
            await aggregator.submit(TENANT, [Outcome(decision_id="a", quality=0.5, final=True)])

    asyncio.run(main())
    exported = InteractionDataset(tmp_path / "interactions").read()
    assert exported["decision_id"].to_pylist() == ["a"]


def test_the_loops_close_windows_and_export(tmp_path: Path) -> None:
    clock = Clock()
    dataset = InteractionDataset(tmp_path / "interactions")

    async def main() -> None:
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
        async with running(url, tmp_path / "interactions", clock=clock, every_s=0.01) as (
            aggregator,
            _keeper,
        ):
            await aggregator.record(batch(["a"]))
            await aggregator.submit(TENANT, [Outcome(decision_id="a", quality=0.5)])
            clock.now += WAIT_WINDOW_S
            async with asyncio.timeout(60):
                while not dataset.parts():
                    await asyncio.sleep(0.01)

    asyncio.run(main())
    assert dataset.read()["quality"].to_pylist() == [0.5]


def test_a_loop_survives_a_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The database's folder is not there yet; once it is, all goes on by itself."""
    folder = tmp_path / "later"

    async def main() -> None:
        url = f"sqlite:///{folder / 'ledger.db'}"
        async with running(url, tmp_path / "interactions", every_s=0.01) as (aggregator, keeper):
            with pytest.raises(Unavailable):
                await keeper.ready()
            async with asyncio.timeout(60):
                while "failed, again in" not in caplog.text:
                    await asyncio.sleep(0.01)
            folder.mkdir()
            await keeper.ready()
            await aggregator.record(batch(["a"]))

    asyncio.run(main())


def test_another_ledgers_dataset_is_refused(tmp_path: Path) -> None:
    """A ledger that begins anew would export nothing until it has caught up."""

    async def main() -> None:
        async with running(f"sqlite:///{tmp_path / 'old.db'}", tmp_path / "data") as (old, _):
            await old.record(batch(["a"]))
            await old.submit(TENANT, [Outcome(decision_id="a", quality=0.5, final=True)])
        new = Keeper(
            open_ledger(f"sqlite:///{tmp_path / 'new.db'}", Clock()),
            InteractionDataset(tmp_path / "data"),
            forget=lambda retention_s, exported_seq: 0,
            export_every_s=NEVER_S,
        )
        with pytest.raises(DamagedDataset, match="move the dataset away"):
            await new.ready()
        with pytest.raises(DamagedDataset):
            await new.stop()

    asyncio.run(main())


def test_prices_change_by_version_and_are_announced(ledger_url: str, tmp_path: Path) -> None:
    announced, events = list[PriceTable](), EventList()

    async def main() -> None:
        data = tmp_path / "data"
        async with running(ledger_url, data, announce=announced.append, events=events) as (
            aggregator,
            keeper,
        ):
            first = await aggregator.put_arm(ARM)
            second = await aggregator.patch_arm("dear", {"usd_per_call": 0.5})
            third = await aggregator.delete_arm("dear")
            assert [table.version for table in (first, second, third)] == [1, 2, 3]
            assert second.arm("dear").usd_per_call == 0.5
            assert third.arms == ()
            assert announced == [first, second, third]
            assert await keeper.prices() == third
            assert await keeper.price_history([1, 2]) == {1: first, 2: second}
            with pytest.raises(UnknownArm):
                await aggregator.patch_arm("dear", {"usd_per_call": 0.5})

    asyncio.run(main())
    assert [event.kind for event in events] == [EventKind.PRICE_CHANGE] * 3
    assert [event.details["price_version"] for event in events] == [1, 2, 3]


def test_prices_are_kept_while_the_publisher_is_away(tmp_path: Path) -> None:
    def away(table: PriceTable) -> None:
        raise Unavailable("publisher is not running")

    async def main() -> None:
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
        async with running(url, tmp_path / "data", announce=away) as (aggregator, keeper):
            assert await aggregator.put_arm(ARM) == await keeper.prices()

    asyncio.run(main())


def test_a_call_the_database_refuses_fails_alone(ledger_url: str, tmp_path: Path) -> None:
    """PostgreSQL holds no NUL in a text; SQLite does."""
    bad = decisions_to_batch([decision("bad", session="a\x00b")])

    async def main() -> list[int | BaseException]:
        async with running(ledger_url, tmp_path / "data") as (aggregator, _keeper):
            batches = [batch(["a"]), bad, batch(["b"])]
            return await asyncio.gather(*map(aggregator.record, batches), return_exceptions=True)

    one, other, last = asyncio.run(main())
    assert (one, last) == (1, 1)
    assert isinstance(other, InvalidRequest) if "postgresql" in ledger_url else other == 1


@pytest.mark.ray
def test_the_actors_keep_what_they_acknowledged_when_they_are_killed(
    ray_local: None, tmp_path: Path
) -> None:
    """Killed without a word, restarted by Ray: the same ledger, the same answers."""
    ledger = {
        "ledger_url": f"sqlite:///{tmp_path / 'ledger.db'}",
        "rules": RULES,
        "orphan_after_s": 60.0,
    }
    immortal: Any = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    aggregator: Any = (
        ray.remote(AggregatorActor)
        .options(**immortal)
        .remote(**ledger, publisher="no-publisher-of-that-name")
    )
    keeper: Any = (
        ray.remote(KeeperActor)
        .options(**immortal)
        .remote(**ledger, dataset_dir=str(tmp_path / "interactions"), export_every_s=0.05)
    )
    # At once, on a database that neither finds: one of them makes it.
    ray.get([aggregator.ready.remote(), keeper.ready.remote()], timeout=120)
    assert ray.get(aggregator.put_arm.remote(ARM)).version == 1
    outcome = Outcome(decision_id="a", quality=0.5, cost_usd=0.1)
    assert ray.get(aggregator.submit.remote(TENANT, [outcome])) == [JoinStatus.PENDING]

    ray.kill(aggregator, no_restart=False)
    ray.kill(keeper, no_restart=False)

    assert ray.get(aggregator.record.remote(batch(["a"])), timeout=120) == 1
    assert ray.get(aggregator.submit.remote(TENANT, [outcome])) == [JoinStatus.DUPLICATE]
    in_columns = reports_to_batch([(TENANT, outcome)])
    packed = ray.get(aggregator.submit_batch.remote(in_columns))
    assert unpack_statuses(packed) == [JoinStatus.DUPLICATE]
    rows: pa.Table = ray.get(keeper.interactions.remote(0, 10))
    assert rows["decision_id"].to_pylist() == ["a"]
    assert ray.get(keeper.counts.remote()).joined == 1
    told = ray.get(keeper.decision.remote("a"))
    assert told["interaction"]["quality"] == 0.5
    for actor in (aggregator, keeper):
        ray.get(actor.stop.remote(), timeout=60)
        ray.kill(actor)
    assert len(InteractionDataset(tmp_path / "interactions").read()) == 1
