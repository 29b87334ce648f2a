"""Group commit: callers share transactions, and only the refused ones fail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.group_commit import GroupCommit
from policies.errors import InvalidRequest, Unavailable


class SlowStore:
    """Takes its first item only when told to, and notes which items came together."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go_on = threading.Event()

    def commit(self, items: Sequence[int]) -> list[int]:
        """Store items, double them; an odd one past 100 is refused with its whole group."""
        self.go_on.wait(timeout=60)
        self.groups.append(list(items))
        if any(item > 100 and item % 2 for item in items):
            raise InvalidRequest("odd")
        return [2 * item for item in items]


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def commit_all(
    items: Sequence[int], thread: ThreadPoolExecutor, *, max_size: int = 100
) -> tuple[SlowStore, list[int | BaseException]]:
    """Add items all at once; return the store and what each caller got."""
    store = SlowStore()
    group: GroupCommit[int, int] = GroupCommit(
        store.commit, thread=thread, size=lambda item: 1, max_size=max_size
    )

    async def main() -> list[int | BaseException]:
        callers = [asyncio.create_task(group.add(item)) for item in items]
        await asyncio.sleep(0)
        store.go_on.set()
        results = await asyncio.gather(*callers, return_exceptions=True)
        await group.close()
        with pytest.raises(Unavailable):
            await group.add(1)
        return results

    return store, asyncio.run(main())


def test_callers_that_come_together_share_a_transaction(thread: ThreadPoolExecutor) -> None:
    store, results = commit_all(range(50), thread)
    assert results == [2 * item for item in range(50)]
    assert store.groups == [list(range(50))]


def test_a_group_has_a_largest_size(thread: ThreadPoolExecutor) -> None:
    store, _ = commit_all(range(7), thread, max_size=3)
    assert store.groups == [[0, 1, 2], [3, 4, 5], [6]]


@given(st.lists(st.integers(0, 200), max_size=8), st.integers(1, 4))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_only_refused_callers_fail(items: list[int], max_size: int) -> None:
    with ThreadPoolExecutor(1) as executor:
        _, results = commit_all(items, executor, max_size=max_size)
    for item, result in zip(items, results, strict=True):
        if item > 100 and item % 2:
            assert isinstance(result, InvalidRequest)
        else:
            assert result == 2 * item
