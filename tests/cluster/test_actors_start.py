"""A start while parts of it die: it goes on with who comes after them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from cluster.actors import await_actors

pytestmark = pytest.mark.ray


class Dies:
    """Dies when it is asked for the first time; a file remembers that."""

    def __init__(self, asked: Path) -> None:
        self._asked = asked

    async def ready(self) -> None:
        """Die, or return."""
        if not self._asked.exists():
            self._asked.touch()
            os._exit(1)


class Refuses:
    """Cannot be made."""

    def __init__(self) -> None:
        raise ValueError("no such thing")

    async def ready(self) -> None:
        """Return, if it ever came to that."""


def started(kind: type, *args: Any) -> Any:
    """Start an actor that Ray restarts for ever, as the service's own are."""
    ray.cloudpickle.register_pickle_by_value(  # type: ignore[no-untyped-call]  # no types here
        sys.modules[kind.__module__]
    )
    remote: Any = ray.remote(kind)
    return remote.options(num_cpus=0, max_restarts=-1).remote(*args)


def test_an_actor_that_is_killed_while_it_starts_is_asked_again(
    ray_local: None, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    actor = started(Dies, asked)
    await_actors([actor])
    assert asked.exists()
    ray.kill(actor)


def test_an_actor_that_cannot_be_made_is_not_waited_for(ray_local: None) -> None:
    with pytest.raises(RayActorError, match="no such thing"):
        await_actors([started(Refuses)])
