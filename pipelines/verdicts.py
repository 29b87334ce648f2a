"""Writes what was found of a challenger on its version, and tells it; with simple rules beside."""

from __future__ import annotations

import json
from typing import Final

from pipelines.comparison import AGAINST, FINDING, JudgeRegistry
from pipelines.events import EventSink
from pipelines.evidence import Evidence
from pipelines.judged_references import judged_references
from pipelines.judgement import Finding, Judgement
from policies.events import EventKind

WHO: Final = "gate"
MAX_TAG: Final = 4_000


def conclude(
    found: Judgement,
    evidence: Evidence,
    registry: JudgeRegistry,
    events: EventSink,
    *,
    challenger: int,
    champion: int,
) -> None:
    """Write a finding down, and tell it.

    Args:
        found: What was found.
        evidence: What on.
        registry: Where the challenger's words are kept.
        events: Told of it.
        challenger: Its version.
        champion: The version it was compared with.
    """
    beside = judged_references(evidence)
    shown = {
        name: {part: round(getattr(one, part), 5) for part in ("mean", "lower", "upper", "n")}
        for name, one in beside.items()
    }
    words = json.dumps(found.words() | {"references": shown})[:MAX_TAG]
    means = ", ".join(f"{name} {one.mean:+.4f}" for name, one in beside.items())
    reason = f"{found.reason}; on the same decisions, against the champion: {means}"
    tag_finding(registry, challenger, champion, found.finding.value, reason, evidence=words)
    events.emit(
        EventKind.VERDICT,
        who=WHO,
        why=reason,
        version=challenger,
        promote=found.finding is Finding.PROMOTE,
        judged_against=champion,
        uplift=found.uplift.mean,
        lower=found.uplift.lower,
        upper=found.uplift.upper,
        decisions=found.uplift.n,
        ess=found.uplift.ess,
        **{name: one.mean for name, one in beside.items()},
    )


def tag_finding(
    registry: JudgeRegistry, version: int, champion: int, finding: str, reason: str, **more: str
) -> None:
    """Write on a version what was found of it.

    `judged_against` stays; `compared_with` changes when the version is compared again, as control.
    """
    against = {AGAINST: str(champion), "judged_against": str(champion)}
    registry.tag(version, {FINDING: finding, "verdict": reason} | against | more)
