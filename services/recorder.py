"""Decisions on their way to the ledger: a bounded buffer that a reply never waits for."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final, Literal

from policies.errors import InvalidRequest, RouterError
from policies.interaction import Decision, decisions_to_batch
from services.actors import AggregatorPort
from services.metrics import ReplicaMetrics
from services.spool import Leftover, Spool

# Rows handed over at once: laying 256 contexts out in columns holds the event loop for 1 to 2 ms.
BATCH_ROWS: Final = 256
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
# How often a replica looks for what others of its node have left behind.
LOOK_EVERY_S: Final = 5.0

logger = logging.getLogger(__name__)


class Recorder:
    """Hands decisions over in the order they were made, again and again until they are stored.

    A replica that is stopped hands over all it has, see `drain`. What one that is killed had not
    handed over is in its spool, and another replica of the node does so; without a spool it is
    what was decided within the flush interval and one hand-over, and lost.
    """

    def __init__(
        self,
        aggregator: AggregatorPort,
        *,
        flush_interval_s: float,
        capacity: int,
        when_full: Literal["drop", "wait"],
        metrics: ReplicaMetrics,
        spool: Spool | None = None,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        """Set it up; nothing runs before `start`.

        Args:
            aggregator: Who stores the decisions.
            flush_interval_s: Longest a decision waits here while all is well, s.
            capacity: Decisions held at most.
            when_full: Whether `add` waits for room, or drops and counts.
            metrics: Where recorded, dropped, buffered and failures are counted.
            spool: Keeps decisions on disk until they are stored; None keeps them in memory alone.
            look_every_s: How often to look for what others have left behind, s.
        """
        self._spool, self._look_every_s = spool, look_every_s
        self._looking: asyncio.Task[None] | None = None
        self._aggregator, self._metrics = aggregator, metrics
        self._flush_interval_s, self._capacity = flush_interval_s, capacity
        self._waits = when_full == "wait"
        self._buffer: deque[Decision] = deque()
        self._room, self._hurry = asyncio.Event(), asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to hand over; call within the event loop."""
        self._task = asyncio.create_task(self._run(), name="record-decisions")
        if self._spool is not None:
            self._looking = asyncio.create_task(self._look(self._spool), name="take-over")

    @property
    def buffered(self) -> int:
        """How many decisions wait."""
        return len(self._buffer)

    @property
    def alive(self) -> bool:
        """Whether decisions are being handed over."""
        return self._task is not None and not self._task.done()

    async def add(self, decisions: Sequence[Decision]) -> None:
        """Take decisions in; returns at once as long as there is room."""
        if self._spool is not None and len(self._buffer) + len(decisions) <= self._capacity:
            self._spool.add(decisions)
            self._buffer.extend(decisions)
            decisions = ()
        for decision in decisions:
            while self._waits and len(self._buffer) >= self._capacity:
                self._room.clear()
                self._hurry.set()
                await self._room.wait()
            if len(self._buffer) >= self._capacity:
                self._metrics.dropped.inc()
            else:
                if self._spool is not None:
                    self._spool.add([decision])
                self._buffer.append(decision)
        self._metrics.buffered.set(len(self._buffer))

    async def drain(self, *, timeout_s: float) -> int:
        """Hand everything over and end; return how many decisions could not be."""
        self._closing = True
        self._hurry.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout_s)
            self._task.cancel()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        if self._spool is not None:
            self._spool.close()
        if self._buffer:
            kept = "are left to the next replica" if self._spool is not None else "are lost"
            logger.error("the ledger is away: %d decisions %s", len(self._buffer), kept)
        return len(self._buffer)

    async def _run(self) -> None:
        while self._buffer or not self._closing:
            await self._pause(self._flush_interval_s)
            while self._buffer:
                await self._hand_over()

    async def _hand_over(self) -> None:
        """Send the oldest decisions, however often it takes; only then let go of them."""
        batch = list(islice(self._buffer, BATCH_ROWS))
        await self._store(batch)
        for _ in batch:
            self._buffer.popleft()
        if self._spool is not None:
            self._spool.stored(len(batch))
        self._metrics.buffered.set(len(self._buffer))
        self._room.set()

    async def _look(self, spool: Spool) -> None:
        """Hand over what others have left behind; a failure is logged, the next look does it."""
        while True:
            try:
                found = spool.left_behind()
                while (leftover := await asyncio.to_thread(next, found, None)) is not None:
                    await self._take_over(leftover)
            except Exception:
                logger.exception("taking over, again in %s s", self._look_every_s)
            await asyncio.sleep(self._look_every_s)

    async def _take_over(self, leftover: Leftover) -> None:
        """Store what a replica left behind; what the ledger has already it does not store again."""
        rows, finished = leftover.decisions, False
        try:
            for start in range(0, len(rows), BATCH_ROWS):
                await self._store(rows[start : start + BATCH_ROWS])
            finished = True
        finally:
            (leftover.done if finished else leftover.release)()
        if rows:
            self._metrics.taken_over.inc(len(rows))
            logger.warning("%d decisions of a replica that was killed are recorded", len(rows))

    async def _store(self, batch: Sequence[Decision]) -> None:
        """Try until the ledger has them; one it refuses for good must not block the others."""
        rows = decisions_to_batch(batch)
        backoff_s = BACKOFF_FIRST_S
        while True:
            try:
                await self._aggregator.record(rows)
                self._metrics.stored(rows)
                return
            except InvalidRequest as error:
                await self._store_each(batch, error)
                return
            except RouterError as error:
                self._metrics.flush_failures.inc()
                logger.warning("%d decisions wait for the ledger: %s", len(self._buffer), error)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _store_each(self, refused: Sequence[Decision], error: InvalidRequest) -> None:
        """Store the good ones of a refused batch; drop and count the bad one."""
        if len(refused) == 1:
            self._metrics.dropped.inc()
            logger.error("the ledger refuses a decision for good: %s", error)
            return
        for decision in refused:
            await self._store([decision])

    async def _pause(self, seconds: float) -> None:
        """Wait a while, or until somebody is in a hurry."""
        try:
            await asyncio.wait_for(self._hurry.wait(), seconds)
        except TimeoutError:
            return
        self._hurry.clear()
