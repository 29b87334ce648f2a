"""Makes a process die between two steps: of its files, or of a transaction."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event

from pipelines.conditional_objects import ConditionalObject
from pipelines.object_parts import ObjectParts


class Broken(BaseException):
    """The process dies here; nobody who catches errors catches it."""


@contextmanager
def dying_at_file_step(step: int) -> Iterator[list[str]]:
    """Die instead of doing step `step` of those that change a folder; yield the steps done.

    A step is a flush to disk, a rename, or the removal of a name.
    """
    done: list[str] = []

    def counted(name: str, real: Any) -> Any:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            if len(done) == step:
                raise Broken
            done.append(name)
            return real(*args, **kwargs)

        return stepped

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "replace", "unlink"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        yield done


@contextmanager
def dying_at_store_step(step: int, *, done: bool) -> Iterator[None]:
    """Die at step `step` of those that change an object store, before it or after it was done.

    A step is the put of a part, of a manifest, or the removal of an object.
    """
    taken = 0

    def counted(real: Any) -> Any:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            nonlocal taken
            dies, taken = taken == step, taken + 1
            if dies and not done:
                raise Broken
            answer = real(*args, **kwargs)
            if dies:
                raise Broken
            return answer

        return stepped

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (ObjectParts, "_put"),
            (ObjectParts, "_remove_one"),
            (ConditionalObject, "replace"),
        ):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        yield


@contextmanager
def dying_at_statement(engine: Engine, step: int) -> Iterator[list[str]]:
    """Die instead of sending statement `step` to the database; yield those that were sent."""
    sent: list[str] = []

    def stepped(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if len(sent) == step:
            raise Broken
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", stepped)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", stepped)
