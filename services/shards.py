"""Several aggregators and the keeper as one: a decision and its outcomes go to one of them by id.

Which one is a matter of speed alone: whoever writes, the ledger keeps those apart that touch the
same decision. So where one has gone another takes its place until it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Final, TypeVar, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from policies.arms import Arm, PriceTable
from policies.interaction import JoinStatus, LedgerCounts, Outcome
from policies.sharding import shard_of
from services.actors import (
    POLL_TIMEOUT_S,
    TRAINING_TIMEOUT_S,
    Gone,
    KeeperPort,
    MetricsPort,
    NamedActor,
    Ports,
    PublisherPort,
    RegistryPort,
    ShardPort,
    TrainerPort,
)

KEEPER: Final = "keeper"

Rows = NDArray[np.int64]
T = TypeVar("T")


def aggregator_names(shards: int) -> tuple[str, ...]:
    """Name the actors of so many aggregators.

    >>> aggregator_names(2)
    ('aggregator-0', 'aggregator-1')
    """
    return tuple(f"aggregator-{number}" for number in range(shards))


class AggregatorShards:
    """Hands on to the aggregators and the keeper; an `AggregatorPort`.

    Args:
        shards: The aggregators in the order of their numbers.
        keeper: Who reads.
    """

    def __init__(self, shards: Sequence[ShardPort], keeper: KeeperPort) -> None:
        self._shards, self._keeper = shards, keeper

    async def ready(self) -> None:
        """Return when every aggregator's ledger is there; raises Unavailable."""
        await _all(shard.ready() for shard in self._shards)

    async def record(self, batch: pa.RecordBatch) -> int:
        """Store decisions, schema DECISION_SCHEMA; return how many were new.

        Raises:
            Unavailable: Of some; whatever was stored is known the next time.
        """
        parts = self._split(batch.column("decision_id").to_pylist())
        return sum(
            await _all(
                self._ask(shard, "record", _taken(batch, rows)) for shard, rows in parts.items()
            )
        )

    async def submit(self, tenant: str, outcomes: Sequence[Outcome]) -> list[JoinStatus]:
        """Store outcomes durably; one status each, in order.

        Raises:
            Unavailable: Of some; whatever was stored is a duplicate the next time.
        """
        parts = self._split([outcome.decision_id for outcome in outcomes])
        answers = await _all(
            self._ask(shard, "submit", tenant, [outcomes[row] for row in rows])
            for shard, rows in parts.items()
        )
        statuses = [JoinStatus.PENDING] * len(outcomes)
        for rows, answer in zip(parts.values(), answers, strict=True):
            for row, status in zip(rows, answer, strict=True):
                statuses[row] = status
        return statuses

    async def submit_batch(self, reports: pa.RecordBatch) -> bytes:
        """Store outcomes, schema REPORT_SCHEMA, durably; one byte each, `unpack_statuses`.

        Raises:
            Unavailable: Of some; whatever was stored is a duplicate the next time.
        """
        parts = self._split(reports.column("decision_id").to_pylist())
        answers = await _all(
            self._ask(shard, "submit_batch", _taken(reports, rows)) for shard, rows in parts.items()
        )
        packed = np.zeros(len(reports), dtype=np.uint8)
        for rows, answer in zip(parts.values(), answers, strict=True):
            packed[rows] = np.frombuffer(answer, dtype=np.uint8)
        return packed.tobytes()

    async def put_arm(self, arm: Arm) -> PriceTable:
        """Add or replace an arm; return the new table."""
        return cast(PriceTable, await self._ask(0, "put_arm", arm))

    async def patch_arm(self, name: str, changes: dict[str, float | int]) -> PriceTable:
        """Change some prices of an arm; return the new table."""
        return cast(PriceTable, await self._ask(0, "patch_arm", name, changes))

    async def delete_arm(self, name: str) -> PriceTable:
        """Take an arm out; return the new table."""
        return cast(PriceTable, await self._ask(0, "delete_arm", name))

    async def decision(self, decision_id: str) -> dict[str, Any] | None:
        """Return a decision's columns and what came back; None where it is not recorded."""
        return await self._keeper.decision(decision_id)

    async def context(self, decision_id: str) -> NDArray[np.float32] | None:
        """Return a decision's context, shape (context_dim,); None where it is not kept."""
        return await self._keeper.context(decision_id)

    async def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """Return price tables by version; one that never was is left out."""
        return await self._keeper.price_history(versions)

    async def counts(self) -> LedgerCounts:
        """Return the ledger's counts, all shards together.

        Raises:
            Unavailable: The keeper is away, or one of the aggregators.
        """
        counts, _ = await asyncio.gather(self._keeper.counts(), self.ready())
        return counts

    async def prices(self) -> PriceTable:
        """Return the price table of now."""
        return await self._keeper.prices()

    def _split(self, decision_ids: Sequence[str]) -> dict[int, Rows]:
        """Number the rows of each shard, in their order."""
        number = len(self._shards)
        if number == 1:
            return {0: np.arange(len(decision_ids))}
        shards = np.array([shard_of(name, number) for name in decision_ids], dtype=np.int64)
        return {int(shard): np.flatnonzero(shards == shard) for shard in np.unique(shards)}

    async def _ask(self, shard: int, method: str, *args: Any) -> Any:
        """Call an aggregator, and where it has gone the next one.

        Raises:
            Gone: There is none left.
        """
        number = len(self._shards)
        for turn in range(number - 1):
            try:
                return await getattr(self._shards[(shard + turn) % number], method)(*args)
            except Gone:
                continue
        return await getattr(self._shards[shard - 1], method)(*args)


def named_ports(shards: int) -> Ports:
    """Return the ports of the running cluster's actors; none is looked up before it is called.

    Args:
        shards: How many aggregators there are.
    """
    aggregators = [cast(ShardPort, NamedActor(name)) for name in aggregator_names(shards)]
    return Ports(
        aggregator=AggregatorShards(aggregators, cast(KeeperPort, NamedActor(KEEPER))),
        registry=cast(RegistryPort, NamedActor("registry")),
        publisher=cast(PublisherPort, NamedActor("publisher", timeout_s=POLL_TIMEOUT_S)),
        trainer=cast(TrainerPort, NamedActor("trainer", timeout_s=TRAINING_TIMEOUT_S)),
        metrics=cast(MetricsPort, NamedActor("metrics")),
    )


def _taken(batch: pa.RecordBatch, rows: Rows) -> pa.RecordBatch:
    """Pick rows of a batch; all of them are the batch itself."""
    return batch if len(rows) == len(batch) else batch.take(pa.array(rows))


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Await calls side by side to their end, each; then raise what one of them raised."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return cast("list[T]", answers)
