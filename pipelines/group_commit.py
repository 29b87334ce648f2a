"""One transaction for all who ask while another is under way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from policies.errors import Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Gathers items of concurrent callers and commits them together.

    A flush to disk costs the same for one item as for a thousand. Nobody waits for others to
    come: the first goes at once, and those who come meanwhile are the next group.

    Args:
        commit: Stores items in one transaction and returns one result for each; it may block.
        thread: Where `commit` runs.
        size: How much room an item takes in a group.
        max_size: Most room in a group; an item that is larger makes one alone.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        thread: Executor,
        size: Callable[[Item], int],
        max_size: int,
    ) -> None:
        self._commit, self._thread = commit, thread
        self._size, self._max_size = size, max_size
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._committing: asyncio.Task[None] | None = None
        self._closed = False

    async def add(self, item: Item) -> Result:
        """Commit one item with whatever else waits.

        Raises:
            Unavailable: Closed. Besides, whatever `commit` raises for the item.
        """
        if self._closed:
            raise Unavailable("the ledger is closing")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all(), name="group-commit")
        return await future

    async def close(self) -> None:
        """Take nothing more, and return when all that waits is committed."""
        self._closed = True
        while self._committing is not None:
            await self._committing

    async def _commit_all(self) -> None:
        while self._waiting:
            await self._commit_group(self._next_group())
        self._committing = None

    def _next_group(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        """Take as many as fit, in the order they came, at least one."""
        group = [self._waiting.popleft()]
        room = self._max_size - self._size(group[0][0])
        while self._waiting and (room := room - self._size(self._waiting[0][0])) >= 0:
            group.append(self._waiting.popleft())
        return group

    async def _commit_group(self, group: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        """Commit a group; where something in it is refused, each item alone.

        So one bad item fails by itself. While the database is away nothing is tried again.
        """
        items = [item for item, _ in group]
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._commit, items)
        [results] = await asyncio.gather(running, return_exceptions=True)
        if not isinstance(results, BaseException):
            for (_, future), result in zip(group, results, strict=True):
                if not future.done():
                    future.set_result(result)
        elif isinstance(results, Unavailable) or len(group) == 1:
            for _, future in group:
                if not future.done():
                    future.set_exception(results)
        else:
            for member in group:
                await self._commit_group([member])
