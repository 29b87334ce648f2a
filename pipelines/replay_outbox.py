"""Outcomes on their way back: each leaves when it is due and is tried until acknowledged."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from pipelines.replay_client import ReplayClient, refusal
from policies.errors import Unavailable
from policies.interaction import JoinStatus

# How often outcomes that have become due are looked for, s.
TICK_S: Final = 0.01
SETTLE_TICK_S: Final = 0.2
REFUSED: Final = "refused"
LOST: Final = "lost"


@dataclass(frozen=True, slots=True, order=True)
class _Due:
    """One outcome that waits; ordered by time, then by arrival."""

    due_s: float
    number: int
    body: dict[str, Any] = field(compare=False)
    is_repeated: bool = field(compare=False)


class Outbox:
    """Holds outcomes until they are due, and sends them.

    Attributes:
        sent: Outcomes sent, each counted once however often it was tried.
        repeated: Outcomes sent a second time on purpose.
        statuses: First answers by join status; `refused` and `lost` for those that got none.
        errors: Why outcomes were refused or lost.
    """

    def __init__(
        self,
        client: ReplayClient,
        *,
        batch: int,
        retry_s: float,
        concurrency: int,
        clock: Callable[[], float],
    ) -> None:
        """Take what to send with.

        Args:
            client: The way to the service.
            batch: Most outcomes in one call; 1 sends each by itself, not as a list.
            retry_s: How long one call is tried again, seconds.
            concurrency: Most calls at once.
            clock: Seconds from any fixed point on.
        """
        self._client, self._batch, self._retry_s, self._clock = client, batch, retry_s, clock
        self._calls = asyncio.Semaphore(concurrency)
        self._waiting: list[_Due] = []
        self._arrived = 0
        self._is_open = True
        self.sent = self.repeated = 0
        self.statuses: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def put(self, body: dict[str, Any], *, delay_s: float, is_repeated: bool) -> None:
        """Take an outcome in.

        Args:
            body: The feedback as the API takes it, event id included.
            delay_s: How long from now until it leaves, seconds.
            is_repeated: Whether it is to be sent twice.
        """
        self._arrived += 1
        due_s = self._clock() + delay_s
        heapq.heappush(self._waiting, _Due(due_s, self._arrived, body, is_repeated))

    def close(self) -> None:
        """Say that no more will be put in, so that `run` can end."""
        self._is_open = False

    async def run(self) -> None:
        """Send outcomes as they become due, until the box is closed and empty."""
        async with asyncio.TaskGroup() as calls:
            while self._is_open or self._waiting:
                due = self._take_due()
                for start in range(0, len(due), self._batch):
                    calls.create_task(self._send(due[start : start + self._batch]))
                await asyncio.sleep(TICK_S)

    async def settle(self, *, timeout_s: float) -> int:
        """Wait for the outcomes that overtook their decision; return how many are joined by now.

        An outcome whose first acknowledgement was lost is stored, and answered as a duplicate:
        it counts here as well. Other traffic may be pending too, so the count is a lower bound.
        """
        late = self.statuses[JoinStatus.PENDING] + self.statuses[JoinStatus.DUPLICATE]
        deadline = self._clock() + timeout_s
        while late:
            try:
                pending = await self._client.pending()
            except Unavailable:
                pending = late
            if pending == 0 or self._clock() > deadline:
                return max(0, late - pending)
            await asyncio.sleep(SETTLE_TICK_S)
        return 0

    def _take_due(self) -> list[_Due]:
        """Take out what has become due."""
        due = []
        while self._waiting and self._waiting[0].due_s <= self._clock():
            due.append(heapq.heappop(self._waiting))
        return due

    async def _send(self, outcomes: Sequence[_Due]) -> None:
        """Send some outcomes, then those again that are to come twice."""
        async with self._calls:
            self.sent += len(outcomes)
            self.statuses.update(await self._post([outcome.body for outcome in outcomes]))
            twice = [outcome.body for outcome in outcomes if outcome.is_repeated]
            if twice:
                self.repeated += len(twice)
                await self._post(twice)

    async def _post(self, bodies: list[dict[str, Any]]) -> list[str]:
        """Send outcomes until they are acknowledged; return what became of each."""
        body: Any = bodies[0] if self._batch == 1 else bodies
        try:
            answer = await self._client.call("POST", "/v1/feedback", body, retry_s=self._retry_s)
        except httpx.TransportError as error:
            self.errors[f"feedback {type(error).__name__}"] += len(bodies)
            return [LOST] * len(bodies)
        if answer.is_error:
            self.errors[f"feedback {refusal(answer)}"] += len(bodies)
            return [REFUSED] * len(bodies)
        results = [answer.json()] if self._batch == 1 else answer.json()["results"]
        return [str(result["status"]) for result in results]
