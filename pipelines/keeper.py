"""Keeps what has matured: copies it into the dataset, and answers whoever reads ledger or dataset.

There is one, in a process of its own: what it reads and writes by the ten thousand rows must not
hold up an aggregator. It changes nothing in the ledger; when old decisions may leave, it says so
to an aggregator.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.answers import Answer
from pipelines.archive import Archive
from pipelines.dataset import InteractionDataset, export
from pipelines.earnings import Earned
from pipelines.ledger import Ledger
from pipelines.remote import call
from pipelines.tenants import Rulebook
from pipelines.turns import in_thread, repeat
from policies.arms import PriceTable
from policies.interaction import LedgerCounts

COMPACT_EVERY_S: Final = 30.0
# SQLite lets go of the interpreter at every row: the event loop gets it back in this time.
SWITCH_INTERVAL_S: Final = 0.0005
# The thousands of tuples of a read are no cycles: looking for some costs a third.
GC_THRESHOLDS: Final = (100_000, 20, 20)

T = TypeVar("T")
# Lets decisions leave the ledger: retention (seconds), and the number up to which interactions
# are exported; returns how many have left, may block.
Forget = Callable[[float, int], int]


class Keeper:
    """Exports what matures, reads for trainer and replicas, keeps the ledger bounded.

    Args:
        ledger: Belongs to the keeper from now on; `stop` closes it.
        dataset: Where matured interactions go; nobody else may write there.
        forget: Lets old decisions leave the ledger.
        export_every_s: How often matured interactions leave, seconds.
        retention_s: How long a decision stays in the ledger after the longest wait window; None
            keeps it for good.
        compact_every_s: How often old decisions leave and small parts are merged, seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        dataset: InteractionDataset,
        *,
        forget: Forget,
        export_every_s: float,
        retention_s: float | None = None,
        compact_every_s: float = COMPACT_EVERY_S,
    ) -> None:
        self._ledger, self._dataset, self._forget = ledger, dataset, forget
        self._archive = Archive(ledger, dataset)
        self._retention_s = retention_s
        self._export_every_s, self._compact_every_s = export_every_s, compact_every_s
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="ledger-reader")
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to export and to compact; call within the event loop."""
        loops = ((self._export_every_s, self.export), (self._compact_every_s, self.compact))
        self._loops = [asyncio.create_task(repeat(work, every_s=s)) for s, work in loops]

    async def stop(self) -> None:
        """Export what has matured, and close the ledger."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        try:
            await self.export()
        finally:
            self._reader.shutdown()
            self._ledger.close()

    async def ready(self) -> None:
        """Return when the ledger is there, durable, and the dataset's own; raises Unavailable.

        Raises:
            DamagedDataset: The dataset is damaged, or another ledger's.
        """
        await self._read(self._ledger.check)
        await self._read(self._archive.check)

    async def decision(self, decision_id: str) -> dict[str, Any] | None:
        """Return all that is known of a decision as plain JSON values; see `Archive.decision`."""
        return await self._read(partial(self._archive.decision, decision_id))

    async def context(self, decision_id: str) -> NDArray[np.float32] | None:
        """Return a decision's context; see `Archive.context`."""
        return await self._read(partial(self._archive.context, decision_id))

    async def interactions(self, after_seq: int, limit: int) -> pa.Table:
        """Read matured interactions in sequence order, schema INTERACTION_SCHEMA."""
        return await self._read(partial(self._archive.interactions, after_seq, limit))

    async def earned(self, after_seq: int, up_to_seq: int, ceiling_usd: float) -> list[Earned]:
        """Sum what interactions brought by version; see `Archive.earned`."""
        return await self._read(partial(self._archive.earned, after_seq, up_to_seq, ceiling_usd))

    async def answers(
        self, champion: int, canary: int, after_id: str, within_s: float, limit: int
    ) -> list[Answer]:
        """Read which decisions of two versions got feedback in time; see `Ledger.answers`."""
        read = partial(self._ledger.answers, champion, canary)
        return await self._read(partial(read, after_id=after_id, within_s=within_s, limit=limit))

    async def counts(self) -> LedgerCounts:
        """Count what the ledger has seen."""
        return await self._read(self._ledger.counts)

    async def prices(self) -> PriceTable:
        """Return the price table of now; an empty one, version 0, before the first."""
        return await self._read(self._ledger.prices)

    async def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """Return price tables by version; a version that never was is left out."""
        return await self._read(partial(self._ledger.price_history, versions))

    async def export(self) -> int:
        """Copy what has matured into the dataset; return how many interactions that was."""
        await self._read(self._archive.check)
        return await self._read(partial(export, self._ledger.interactions, self._dataset))

    async def compact(self) -> int:
        """Merge small parts of the dataset, and let old decisions leave the ledger.

        Reads get in between the merges.

        Returns:
            How many decisions have left.
        """
        while await self._read(self._dataset.merge):
            pass
        if self._retention_s is None:
            return 0
        await self._read(self._archive.check)
        exported_seq = await self._read(self._dataset.last_seq)
        gone = 0
        while some := await asyncio.to_thread(self._forget, self._retention_s, exported_seq):
            gone += some
        return gone

    async def _read(self, query: Callable[[], T]) -> T:
        return await in_thread(self._reader, query)


class KeeperActor:
    """The keeper as a named Ray actor, which lets the first aggregator forget."""

    def __init__(
        self,
        ledger_url: str,
        dataset_dir: str,
        *,
        rules: Rulebook,
        orphan_after_s: float,
        export_every_s: float,
        retention_s: float | None = None,
        aggregator: str = "aggregator-0",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start at once; a database that is away is asked again with every call."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.set_threshold(*GC_THRESHOLDS)
        self._keeper = Keeper(
            Ledger(ledger_url, rules=rules, orphan_after_s=orphan_after_s, clock=clock),
            InteractionDataset(dataset_dir),
            forget=partial(call, aggregator, "forget"),
            export_every_s=export_every_s,
            retention_s=retention_s,
        )
        self._keeper.start()

    async def ready(self) -> None:
        """See `Keeper.ready`."""
        await self._keeper.ready()

    async def decision(self, decision_id: str) -> dict[str, Any] | None:
        """See `Keeper.decision`."""
        return await self._keeper.decision(decision_id)

    async def context(self, decision_id: str) -> NDArray[np.float32] | None:
        """See `Keeper.context`."""
        return await self._keeper.context(decision_id)

    async def interactions(self, after_seq: int, limit: int) -> pa.Table:
        """See `Keeper.interactions`."""
        return await self._keeper.interactions(after_seq, limit)

    async def earned(self, after_seq: int, up_to_seq: int, ceiling_usd: float) -> list[Earned]:
        """See `Keeper.earned`."""
        return await self._keeper.earned(after_seq, up_to_seq, ceiling_usd)

    async def answers(
        self, champion: int, canary: int, after_id: str, within_s: float, limit: int
    ) -> list[Answer]:
        """See `Keeper.answers`."""
        return await self._keeper.answers(champion, canary, after_id, within_s, limit)

    async def counts(self) -> LedgerCounts:
        """See `Keeper.counts`."""
        return await self._keeper.counts()

    async def prices(self) -> PriceTable:
        """See `Keeper.prices`."""
        return await self._keeper.prices()

    async def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """See `Keeper.price_history`."""
        return await self._keeper.price_history(versions)

    async def stop(self) -> None:
        """See `Keeper.stop`; nothing may be called after it."""
        await self._keeper.stop()
