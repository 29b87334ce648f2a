"""Versions and decisions as an operator asks for them: why it serves, why it was drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from rich.table import Table

from cluster.console import console
from policies.versions import CANARY, CHALLENGER, CHAMPION, QUARANTINED

# Tags that the lines and tables above the lineage tell of.
TOLD: Final = frozenset(
    {
        "kind",
        "verdict",
        "finding",
        "evidence",
        "compared_with",
        "compared_as",
        "compared_from_seq",
        "judged_against",
        "probation",
        QUARANTINED,
        "quarantine_reason",
    }
)

Row = tuple[str, str, str, str, str, str]


def show_version(answer: Mapping[str, Any], history: Mapping[str, Any]) -> None:
    """Print a version, as `GET /v1/versions/N` gave it, with its moves from the history."""
    number, tags = str(answer["version"]), answer["tags"]
    console.print(f"version {number} ({answer['kind']}), made {answer['created_at']}")
    console.print(standing(answer), markup=False)
    if "probation" in tags:
        console.print(f"probation: {tags['probation']}", markup=False)
    _show_evidence(tags.get("evidence", ""))
    mine = [row for row in history_rows(history) if number in (row[2], row[3])]
    if mine:
        console.print(history_table(mine))
    table = Table("made from", "value")
    for name, value in sorted(answer["metrics"].items()):
        table.add_row(name, f"{value:g}")
    for name, value in sorted(tags.items()):
        if name not in TOLD:
            table.add_row(name, value)
    console.print(table)


def standing(version: Mapping[str, Any]) -> str:
    """Say in one sentence what a version is now, and why.

    >>> standing({"aliases": [], "tags": {"finding": "reject", "judged_against": "3",
    ...     "verdict": "worse: the upper end is below 0"}})
    'rejected against version 3: worse: the upper end is below 0'
    >>> standing({"aliases": ["challenger"], "tags": {}})
    'asks to serve: its trial has not begun; `barp status` says what it waits for'
    """
    aliases, tags = version["aliases"], version["tags"]
    verdict, against = tags.get("verdict"), tags.get("compared_with")
    if tags.get(QUARANTINED) == "true":
        why = tags.get("quarantine_reason", "no reason is given")
        now = "serves, though in quarantine" if CHAMPION in aliases else "in quarantine"
        return f"{now}; nothing promotes it by itself: {why}"
    if CANARY in aliases and tags.get("compared_as") == "probation":
        return f"decides a share beside version {against}, as control of its probation"
    if CANARY in aliases:
        return f"on trial beside version {against}"
    words = {"promote": "promoted", "reject": "rejected", "inconclusive": "not told apart"}
    if "finding" in tags:
        found = words.get(tags["finding"], tags["finding"])
        found = f"{found} against version {tags.get('judged_against')}: {verdict}"
        return f"serves; {found}" if CHAMPION in aliases else found
    told = "" if verdict is None else f"; {verdict}"
    if CHAMPION in aliases:
        return f"serves{told}"
    if CHALLENGER in aliases:
        wait = "its trial has not begun; `barp status` says what it waits for"
        return f"asks to serve: {wait}{told}"
    return f"was never tried on live traffic{told}"


def why_drawn(why: Mapping[str, Any]) -> str:
    """Say in one sentence why a model was drawn, as `explanation` of a decision tells it.

    >>> why_drawn({"models": [
    ...     {"model": "a", "chosen": False, "probability": 0.9, "expected_reward": 0.61},
    ...     {"model": "b", "chosen": True, "probability": 0.1, "expected_reward": 0.58}]})
    'drawn with probability 10.0%, to learn more: a was expected to bring 0.0300 more'
    """
    models = why["models"]
    mine = next(model for model in models if model["chosen"])
    if mine["expected_reward"] is None:
        return f"drawn with probability {mine['probability']:.1%}; this learner expects no outcomes"
    best = max(models, key=lambda model: float(model["expected_reward"]))
    if mine["expected_reward"] == best["expected_reward"]:
        return "expected to bring the most reward of the models offered, at this trade-off"
    more = best["expected_reward"] - mine["expected_reward"]
    drawn = f"drawn with probability {mine['probability']:.1%}, to learn more"
    return f"{drawn}: {best['model']} was expected to bring {more:.4f} more"


def history_rows(answer: Mapping[str, Any]) -> list[Row]:
    """Lay out `GET /v1/versions/history`, newest first: at, what, from, to, who, why."""
    rows: list[Row] = []
    for move in answer["history"]:
        came_from = "" if move["previous"] is None else str(move["previous"])
        what, version = f"{move['alias']}: {move['kind']}", str(move["version"])
        rows.append((move["at"], what, came_from, version, move["who"], move["why"]))
    for trial in answer["trials"]:
        # A canary's end has no version to go to.
        ended = trial["kind"] == "canary_ended"
        came_from, version = (trial["version"], "") if ended else ("", trial["version"])
        what = "canary: ended" if ended else "canary: started"
        rows.append((trial["at"], what, str(came_from), str(version), trial["who"], trial["why"]))
    # Where the event log is away there is a word on that instead of a list.
    told = answer["events"] if isinstance(answer.get("events"), list) else []
    for event in told:
        version = "" if event["version"] is None else str(event["version"])
        rows.append((event["at"], event["kind"], "", version, event["who"], event["why"]))
    return sorted(rows, reverse=True)


def history_table(rows: list[Row]) -> Table:
    """Make a table of the history."""
    table = Table("at", "what", "from", "to", "who", "why")
    for row in rows:
        table.add_row(*row)
    return table


def _show_evidence(text: str) -> None:
    """Print what a finding rests on, by the preferences it is about."""
    try:
        found = json.loads(text)
    except ValueError:
        return
    table = Table("reward against the champion", "mean", "lower", "upper", "decisions", "effective")
    told = {f"challenger, {name}": one for name, one in found["uplift"].items()}
    told |= found.get("references", {})
    for name, one in told.items():
        ess = f"{one['ess']:.0f}" if "ess" in one else ""
        ends = (f"{one[part]:+.4f}" for part in ("mean", "lower", "upper"))
        table.add_row(name, *ends, str(one["n"]), ess)
    console.print(table)
