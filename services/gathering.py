"""One piece of work for all who ask in the same moment."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Gathering(Generic[Item, Result]):
    """Works together on what callers ask for while nobody could have been served yet.

    Nobody waits for others to come: whoever the event loop has let in by the time that work can
    begin is in it, and those who come while it is under way are the next group. So a caller alone
    is served at once, and a crowd for little more than one of them.

    Args:
        work: Takes items; gives one result or one error for each, in order. What it raises is
            every caller's error.
        max_size: Most items in one group.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        max_size: int,
    ) -> None:
        self._work, self._max_size = work, max_size
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._working: asyncio.Task[None] | None = None

    async def add(self, item: Item) -> Result:
        """Have an item worked on; raises what the work has for it."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._working is None:
            # It starts in the loop's next turn, when all who came in this one have asked.
            self._working = asyncio.create_task(self._run(), name="gathered-work")
        return await future

    async def _run(self) -> None:
        while self._waiting:
            size = min(self._max_size, len(self._waiting))
            await self._work_on([self._waiting.popleft() for _ in range(size)])
        self._working = None

    async def _work_on(self, group: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        results: Sequence[Result | Exception]
        try:
            results = await self._work([item for item, _ in group])
        except Exception as error:  # noqa: BLE001 - raised again, in every caller
            results = [error] * len(group)
        for (_, future), result in zip(group, results, strict=True):
            if future.done():  # its caller has hung up
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
