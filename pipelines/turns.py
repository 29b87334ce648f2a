"""Work for threads that may block, and work that comes round, beside an event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


async def in_thread(thread: Executor, work: Callable[[], T]) -> T:
    """Run what blocks in a thread."""
    return await asyncio.get_running_loop().run_in_executor(thread, work)


async def repeat(work: Callable[[], Awaitable[object]], *, every_s: float) -> None:
    """Do something again and again; a failure is logged, the next turn may do better."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("%s failed, again in %s s", getattr(work, "__name__", work), every_s)
        await asyncio.sleep(every_s)
