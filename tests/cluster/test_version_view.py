"""What an operator reads of a version: where it stands and why, and what that rests on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.version_view import history_rows, show_version, standing

VERDICT = "worse: the upper end is below 0, uplift -0.0310 in [-0.0502, -0.0118] on 883 decisions"


def a_version(*aliases: str, **tags: str) -> dict[str, Any]:
    """Make an answer of `GET /v1/versions/4`."""
    return {
        "version": 4,
        "kind": "posterior",
        "created_at": "2026-01-02T03:04:05+00:00",
        "aliases": list(aliases),
        "metrics": {"rows": 431.0},
        "tags": {"kind": "posterior", "parent_version": "3", **tags},
    }


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (a_version(quarantined="true", quarantine_reason="reward fell"), "quarantine; nothing"),
        (a_version("champion", quarantined="true"), "serves, though in quarantine"),
        (a_version(finding="reject", judged_against="3", verdict=VERDICT), "rejected against"),
        (
            a_version("champion", finding="promote", judged_against="3", compared_with="9"),
            "serves; promoted against version 3",
        ),
        (a_version("canary", compared_with="3", compared_as="canary"), "on trial beside version 3"),
        (a_version("canary", compared_with="5", compared_as="probation"), "as control of its"),
        (a_version("challenger", verdict="estimate: better"), "has not begun; `barp status`"),
        (a_version(verdict="estimate: better"), "never tried on live traffic; estimate: better"),
        # A trial that goes on after an older finding: what runs now is said.
        (a_version("canary", finding="inconclusive", compared_with="5"), "on trial beside"),
    ],
)
def test_one_sentence_says_where_a_version_stands(version: dict[str, Any], words: str) -> None:
    assert words in standing(version)


def test_a_finding_is_shown_with_its_evidence_and_its_moves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    one = {"mean": -0.031, "lower": -0.0502, "upper": -0.0118, "units": 600, "n": 883, "ess": 210.0}
    rule = {"mean": 0.01, "lower": -0.02, "upper": 0.04, "n": 883}
    evidence = json.dumps({"uplift": {"asked": one, "cost": one}, "references": {"knn": rule}})
    version = a_version(finding="reject", judged_against="3", verdict=VERDICT, evidence=evidence)
    trial = {"alias": "canary", "version": 4, "who": "gate", "previous": None}
    history = {
        "history": [],
        "trials": [
            trial | {"at": "2026-01-02T03:05", "kind": "canary_started", "why": "beside version 3"},
            trial | {"at": "2026-01-02T03:06", "kind": "canary_ended", "why": VERDICT},
            trial | {"at": "2026-01-02T03:07", "kind": "canary_started", "version": 9, "why": "no"},
        ],
        "events": {"away": "metrics"},
    }
    show_version(version, history)
    shown = capsys.readouterr().err
    assert f"rejected against version 3: {VERDICT}" in " ".join(shown.split())
    for word in ("challenger, asked", "challenger, cost", "knn", "-0.0502", "883", "210"):
        assert word in shown
    assert shown.count("canary: started") == 1
    assert "canary: ended" in shown
    assert "parent_version" in shown
    # What the sentence and the tables have said is not said again.
    assert '"uplift"' not in shown


def test_the_history_is_one_list_with_the_newest_first() -> None:
    move = {"alias": "champion", "version": 4, "previous": 3, "who": "gate", "why": "better"}
    answer = {
        "history": [move | {"at": "2026-01-02T03:05", "kind": "promotion"}],
        "trials": [],
        "events": [
            {"at": "2026-01-02T03:06", "kind": "guardrail_breach", "version": 4}
            | {"who": "guardrail", "why": "reward fell"},
        ],
    }
    first, second = history_rows(answer)
    assert first[1:] == ("guardrail_breach", "", "4", "guardrail", "reward fell")
    assert second[1:] == ("champion: promotion", "3", "4", "gate", "better")
