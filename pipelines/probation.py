"""Which version a new champion is held against, and what becomes of its probation in words."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.comparison import ON_PROBATION
from pipelines.guardrail import Guard
from policies.fixed import FIXED
from policies.versions import QUARANTINED, AliasMove, VersionInfo


def control_of(
    champion: int, known: Mapping[int, VersionInfo], move: AliasMove | None, guard: Guard
) -> int | None:
    """Name the predecessor that a newly promoted champion is to be held against, or None.

    Args:
        champion: The version that serves.
        known: Every version, by number.
        move: The newest move of the champion.
        guard: What a champion on probation is held to.
    """
    if move is None or move.version != champion or move.previous is None:
        return None
    words = known[champion].tags.get(ON_PROBATION)
    is_over = words in (passed(move.previous), impossible(move.previous))
    # A rule that somebody set is no version of a learner that could have turned out worse.
    is_rule = known[champion].kind == FIXED
    before = known.get(move.previous)
    if is_over or is_rule or guard.decisions == 0 or move.kind == "rollback":
        return None
    return None if before is None or quarantined(before) else move.previous


def passed(control: int) -> str:
    """Word what a champion carries that was not worse than its predecessor."""
    return f"passed beside {control}"


def impossible(control: int) -> str:
    """Word what a champion carries whose predecessor cannot be put beside it."""
    return f"impossible beside {control}"


def quarantined(version: VersionInfo) -> bool:
    """Say whether a version may not serve by itself."""
    return version.tags.get(QUARANTINED) == "true"
