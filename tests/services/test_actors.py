"""Named actors: found late, found again, and their errors as ours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest
import ray
from replica_actors import Echo, named

from policies.errors import Conflict, Unavailable
from services.actors import NAMESPACE, NamedActor

pytestmark = pytest.mark.ray


def start() -> Any:
    """Start an echo under its name."""
    actor = named(Echo, "echo")
    ray.get(actor.say.remote("ready"))
    return actor


@pytest.fixture
def echo(ray_local: None) -> Iterator[Any]:
    """An echo actor, gone after the test."""
    actor = start()
    yield actor
    ray.kill(actor)
    wait_until_gone()


def wait_until_gone() -> None:
    """Wait until the name is free again."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            ray.get_actor("echo", namespace=NAMESPACE)
        except ValueError:
            return
        time.sleep(0.05)


def run(call: Awaitable[Any]) -> Any:
    """Await one call in an event loop of its own."""

    async def awaited() -> Any:
        return await call

    return asyncio.run(awaited())


def test_errors_of_ours_come_through_as_they_were_raised(echo: Any) -> None:
    with pytest.raises(Conflict) as caught:
        run(NamedActor("echo").refuse())
    assert type(caught.value) is Conflict
    assert (caught.value.field, caught.value.allowed) == ("event_id", "another")


def test_everything_else_is_unavailable(echo: Any) -> None:
    with pytest.raises(Unavailable, match="failed with KeyError"):
        run(NamedActor("echo").fail())
    with pytest.raises(Unavailable, match="does not answer"):
        run(NamedActor("echo", timeout_s=0.05).sleep())
    with pytest.raises(Unavailable, match="nobody does not answer"):
        run(NamedActor("nobody").say("x"))


def test_an_actor_started_anew_is_found_again(ray_local: None) -> None:
    async def steps() -> list[str]:
        actor = NamedActor("echo")
        first = await asyncio.to_thread(start)
        words = [await actor.say("one")]
        ray.kill(first)
        await asyncio.to_thread(wait_until_gone)
        second = await asyncio.to_thread(start)
        words.append(await actor.say("two"))
        ray.kill(second)
        await asyncio.to_thread(wait_until_gone)
        return words

    assert asyncio.run(steps()) == ["one", "two"]
