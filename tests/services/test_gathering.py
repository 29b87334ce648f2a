"""Gathered work: who asks in the same moment is served together, each with their own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.gathering import Gathering


class Doubler:
    """Doubles numbers, refuses negative ones; remembers the groups it was given."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def work(self, numbers: Sequence[int]) -> list[int | Exception]:
        """Double each, once it may."""
        self.groups.append(list(numbers))
        await self.may_go_on.wait()
        return [2 * n if n >= 0 else ValueError(f"{n} is negative") for n in numbers]


def test_those_who_ask_in_the_same_moment_are_one_group_and_get_their_own_answers() -> None:
    async def run() -> None:
        doubler = Doubler()
        gathering = Gathering(doubler.work, max_size=10)
        assert await asyncio.gather(*(gathering.add(n) for n in range(4))) == [0, 2, 4, 6]
        assert await gathering.add(9) == 18
        assert doubler.groups == [[0, 1, 2, 3], [9]]

    asyncio.run(run())


def test_those_who_come_meanwhile_are_the_next_group_of_bounded_size() -> None:
    async def run() -> None:
        doubler = Doubler()
        gathering = Gathering(doubler.work, max_size=2)
        doubler.may_go_on.clear()
        first = asyncio.create_task(gathering.add(1))
        await asyncio.sleep(0.01)
        rest = [asyncio.create_task(gathering.add(n)) for n in (2, 3, 4)]
        await asyncio.sleep(0.01)
        assert doubler.groups == [[1]]
        doubler.may_go_on.set()
        assert await asyncio.gather(first, *rest) == [2, 4, 6, 8]
        assert doubler.groups == [[1], [2, 3], [4]]

    asyncio.run(run())


def test_an_error_is_its_callers_own() -> None:
    async def run() -> None:
        gathering = Gathering(Doubler().work, max_size=10)
        good, bad = await asyncio.gather(
            gathering.add(1), gathering.add(-1), return_exceptions=True
        )
        assert good == 2
        assert isinstance(bad, ValueError)

    asyncio.run(run())


def test_work_that_fails_fails_for_all_and_the_next_group_is_served() -> None:
    async def run() -> None:
        doubler, away = Doubler(), True

        async def work(numbers: Sequence[int]) -> list[int | Exception]:
            if away:
                raise ConnectionError("away")
            return await doubler.work(numbers)

        gathering = Gathering(work, max_size=10)
        failed = await asyncio.gather(*(gathering.add(n) for n in (1, 2)), return_exceptions=True)
        assert [type(error) for error in failed] == [ConnectionError, ConnectionError]
        away = False
        assert await gathering.add(3) == 6

    asyncio.run(run())


def test_a_caller_who_hangs_up_costs_the_others_nothing() -> None:
    async def run() -> None:
        doubler = Doubler()
        gathering = Gathering(doubler.work, max_size=10)
        doubler.may_go_on.clear()
        gone, stays = (asyncio.create_task(gathering.add(n)) for n in (1, 2))
        await asyncio.sleep(0.01)
        gone.cancel()
        doubler.may_go_on.set()
        assert await stays == 4
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(run())
