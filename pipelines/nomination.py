"""After a training: who asks to serve next, who is promoted at once, and what speaks against it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from pipelines.bootstrap import WHO
from pipelines.comparison import AGAINST, FINDING
from pipelines.training import TrainingPlan, TrainingResult
from pipelines.training_ports import RegistryPort
from policies.errors import Conflict
from policies.versions import CHALLENGER, QUARANTINED, AliasMove

logger = logging.getLogger(__name__)


def nominate(
    results: Sequence[TrainingResult],
    registry: RegistryPort,
    plan: TrainingPlan,
    *,
    champion: int | None,
    held: str | None,
) -> list[TrainingResult]:
    """Name the best one challenger; promote it where estimates do and the gate lets it through.

    Args:
        results: What a training made.
        registry: Where versions are kept.
        plan: Whether estimates promote.
        champion: The version that they were judged against.
        held: Why nothing may be promoted, None where nothing speaks against it.
    """
    judged = [result for result in results if result.verdict.uplift is not None]
    if not judged:
        return list(results)
    best = max(judged, key=_uplift)
    if plan.on_evidence and plan.apprentice is None:
        _name_challenger(best, registry, champion)
        return list(results)
    registry.challenge(best.version)
    if plan.apprentice is not None or not best.verdict.promote or held is not None:
        return list(results)
    why = best.verdict.reason
    try:
        registry.promote(best.version, who=WHO, why=why, instead_of=champion)
    except Conflict as error:
        # Somebody moved the champion while we trained: the verdict is about another one.
        logger.info("not promoted: %s", error)
        return list(results)
    return [replace(one, promoted=one is best) for one in results]


def held(last: AliasMove | None, plan: TrainingPlan, *, now: float) -> str | None:
    """Say why nothing may be promoted: somebody went back lately, and their word stands.

    Args:
        last: The newest move of the champion.
        plan: For how long such a word stands.
        now: Seconds since the epoch, UTC.
    """
    if last is None or last.who == WHO or last.version >= (last.previous or 0):
        return None
    until = datetime.fromisoformat(last.at).timestamp() + plan.rollback_hold_s
    if now >= until:
        return None
    ends = datetime.fromtimestamp(until, tz=UTC).isoformat(timespec="seconds")
    return f"{last.who} went back to version {last.version}; held until {ends}"


def _name_challenger(best: TrainingResult, registry: RegistryPort, champion: int | None) -> None:
    """Name who is tried next, unless one is named that was not judged yet."""
    for one in registry.versions():
        waits = CHALLENGER in one.aliases and one.version != champion
        judged = FINDING in one.tags and one.tags.get(AGAINST) == str(champion)
        if waits and not judged and one.tags.get(QUARANTINED) != "true":
            return
    registry.challenge(best.version)


def _uplift(result: TrainingResult) -> float:
    """Order results by what the gate estimated."""
    uplift = result.verdict.uplift
    return float("-inf") if uplift is None else uplift.mean
