"""Learners by name for a benchmark, some of their settings changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from policies.errors import InvalidRequest
from policies.learners import LEARNERS
from policies.learning import Learner


def learner_named(name: str, changes: Sequence[str] = ()) -> Learner:
    """Make a learner by name.

    Args:
        name: Its kind.
        changes: `learner.setting=value`; those that name another learner are left alone.

    Raises:
        InvalidRequest: There is no such learner or setting, or the value does not fit.
    """
    if name not in LEARNERS:
        allowed = ", ".join(LEARNERS)
        raise InvalidRequest(
            f"learners={name} must be some of {allowed}",
            field="learners",
            value=name,
            allowed=allowed,
        )
    learner: Any = LEARNERS[name]()
    parted = (_parted(change) for change in changes)
    mine = {setting: value for kind, setting, value in parted if kind == name}
    read = {setting: _read(learner.settings, name, setting, mine[setting]) for setting in mine}
    changed: Learner = replace(learner, settings=replace(learner.settings, **read))
    return changed


def _parted(change: str) -> tuple[str, str, str]:
    """Part `learner.setting=value`."""
    left, given, value = change.partition("=")
    kind, dot, setting = left.partition(".")
    if not (given and dot and kind in LEARNERS):
        allowed = f"learner.setting=value, learner one of {', '.join(LEARNERS)}"
        raise InvalidRequest(
            f"set={change} must be {allowed}", field="set", value=change, allowed=allowed
        )
    return kind, setting, value


def _read(settings: Any, kind: str, setting: str, value: str) -> Any:
    """Read one setting's value as what the setting is."""
    known = {field.name for field in fields(settings)}
    if setting not in known:
        allowed = ", ".join(sorted(known))
        raise InvalidRequest(
            f"set={kind}.{setting} must be one of {allowed}",
            field="set",
            value=setting,
            allowed=allowed,
        )
    try:
        return TypeAdapter(get_type_hints(type(settings))[setting]).validate_python(value)
    except ValidationError as error:
        allowed = error.errors()[0]["msg"]
        raise InvalidRequest(
            f"set={kind}.{setting}={value} does not fit: {allowed}",
            field="set",
            value=value,
            allowed=allowed,
        ) from error
