"""Several aggregators as one: what is split comes back in order, and one away spoils nothing."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from actor_fakes import FakeAggregator
from hypothesis import given
from hypothesis import strategies as st
from ledgers import batch

from policies.arms import Arm, PriceTable
from policies.errors import Unavailable
from policies.interaction import JoinStatus, Outcome
from policies.reports import reports_to_batch, unpack_statuses
from policies.sharding import shard_of
from services.actors import Gone
from services.shards import AggregatorShards

STATUSES = st.sampled_from([JoinStatus.JOINED, JoinStatus.DUPLICATE, JoinStatus.UNKNOWN])
# At two shards the first two go to the second one, "e" to the first.
A, B, C = "a", "b", "e"


class Shard(FakeAggregator):
    """One that can have gone, too: nobody is there to fail."""

    gone = False

    def _here(self) -> None:
        if self.gone:
            raise Gone("aggregator-1 does not answer", field="aggregator-1")
        super()._here()

    async def put_arm(self, arm: Arm) -> PriceTable:
        """Change the prices, where somebody is there."""
        self._here()
        return await super().put_arm(arm)


def made(number: int) -> tuple[AggregatorShards, list[Shard]]:
    """Put so many aggregators together."""
    shards = [Shard() for _ in range(number)]
    return AggregatorShards(shards, FakeAggregator()), shards


def outcome(decision_id: str) -> Outcome:
    """Report something of a decision."""
    return Outcome(decision_id=decision_id, quality=1.0)


@given(
    number=st.integers(1, 5),
    statuses=st.dictionaries(st.text(min_size=1), STATUSES, max_size=20),
    columns=st.booleans(),
)
def test_every_report_goes_to_its_shard_and_answers_keep_their_order(
    number: int, statuses: dict[str, JoinStatus], columns: bool
) -> None:
    ledger, shards = made(number)
    for shard in shards:
        shard.answers = statuses
    reports = [outcome(name) for name in statuses] * 2
    if columns:
        packed = asyncio.run(ledger.submit_batch(reports_to_batch([("t", r) for r in reports])))
        assert unpack_statuses(packed) == list(statuses.values()) * 2
    else:
        assert asyncio.run(ledger.submit("t", reports)) == list(statuses.values()) * 2
    for index, shard in enumerate(shards):
        expected = [r.decision_id for r in reports if shard_of(r.decision_id, number) == index]
        assert [one.decision_id for _, one in shard.submitted] == expected


def test_decisions_go_to_the_shards_of_their_outcomes() -> None:
    ledger, shards = made(2)
    ids = [f"d{number}" for number in range(100)]
    assert asyncio.run(ledger.record(batch(ids))) == 100
    for index, shard in enumerate(shards):
        [stored] = shard.batches
        assert stored["decision_id"].to_pylist() == [i for i in ids if shard_of(i, 2) == index]


def test_where_one_has_gone_the_next_one_takes_its_place() -> None:
    ledger, (first, second) = made(2)
    second.gone = True
    assert asyncio.run(ledger.submit("t", [outcome(A), outcome(B)])) == [JoinStatus.JOINED] * 2
    assert [one.decision_id for _, one in first.submitted] == [A, B]
    first.gone, second.gone = True, False
    asyncio.run(ledger.put_arm(Arm(name="new", usd_per_call=1)))
    assert second.table.arm("new").usd_per_call == 1
    second.gone = True
    with pytest.raises(Gone):
        asyncio.run(ledger.submit("t", [outcome(A)]))


def test_where_one_fails_nothing_is_acknowledged_though_the_others_stored_theirs() -> None:
    """Its ledger is away: another one's is, too, and would only be asked in vain."""
    ledger, (first, second) = made(2)
    second.away = True
    assert [shard_of(name, 2) for name in (A, B, C)] == [1, 1, 0]
    reports = [outcome(name) for name in (A, B, C)]
    with pytest.raises(Unavailable):
        asyncio.run(ledger.submit("t", reports))
    assert [one.decision_id for _, one in first.submitted] == [C]


def test_counts_say_when_an_aggregator_is_away() -> None:
    ledger, shards = made(2)
    assert asyncio.run(ledger.counts()).decisions == 0
    shards[1].gone = True
    with pytest.raises(Gone):
        asyncio.run(ledger.counts())


def test_what_is_read_is_read_from_the_keeper() -> None:
    keeper = FakeAggregator()
    keeper.records["d"] = {"arm": "dear"}
    ledger = AggregatorShards([Shard()], cast(Any, keeper))
    assert asyncio.run(ledger.decision("d")) == {"arm": "dear"}
    assert asyncio.run(ledger.prices()) == keeper.table
    assert asyncio.run(ledger.price_history([1])) == {
        version: table for version, table in keeper.tables.items() if version == 1
    }
    assert asyncio.run(ledger.context("d")) is None
