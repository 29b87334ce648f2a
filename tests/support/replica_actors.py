"""Named actors for replica tests."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import ray

from policies.errors import Conflict
from policies.publication import Publication
from services.actors import NAMESPACE


class Echo:
    """Answers, refuses, breaks, or takes its time."""

    async def say(self, word: str) -> str:
        """Return the word."""
        return word

    async def refuse(self) -> None:
        """Raise an error of our own."""
        raise Conflict("no", field="event_id", value="e", allowed="another")

    async def fail(self) -> None:
        """Raise a bug."""
        raise KeyError("a bug")

    async def sleep(self) -> None:
        """Take too long."""
        await asyncio.sleep(60)


class OnePublication:
    """A publisher that hands out one publication, then nothing new."""

    def __init__(self, publication: Publication) -> None:
        self._publication, self._held = publication, 0

    async def next(self, replica_id: str, have: int, swapped_at: float | None) -> list[Any]:
        """Hold a long poll as the real one does."""
        self._held = max(self._held, have)
        if have < self._publication.revision:
            return [ray.put(self._publication)]
        await asyncio.sleep(30)
        return []

    async def held(self) -> int:
        """Return the highest revision acknowledged."""
        return self._held


def named(kind: type, name: str, *args: Any) -> Any:
    """Start an actor under a name that replicas look for."""
    # Ray's workers have the project on their path, but not the tests.
    ray.cloudpickle.register_pickle_by_value(  # type: ignore[no-untyped-call]  # no types here
        sys.modules[kind.__module__]
    )
    remote: Any = ray.remote(kind)
    return remote.options(name=name, namespace=NAMESPACE, num_cpus=0).remote(*args)
