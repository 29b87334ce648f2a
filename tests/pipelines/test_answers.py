"""Which decisions got feedback in time: read from a real ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clock import START_S, Clock
from ledgers import TENANT, decision, open_ledger

from policies.interaction import Decision, Outcome, decisions_to_batch, first_id_at


def shared(made: Decision, *, canary: int = 5) -> Decision:
    """Let a version have been beside the champion when a decision was made."""
    return replace(made, champion_version=4, canary_version=canary, canary_share=0.2)


def test_feedback_counts_by_the_same_time_after_each_decision(tmp_path: Path) -> None:
    """One is heard of at once, one without a quality, one too late, one never, one is too young."""
    clock = Clock()
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", clock)
    made = [shared(decision(f"d{number}", session="s")) for number in range(4)]
    made[1] = replace(made[1], policy_version=5, session=None)
    others = [decision("e0"), shared(decision("e1"), canary=6)]
    young = shared(decision("d9", at=START_S + 100))
    ledger.record([decisions_to_batch([*made, *others, young])])
    ledger.submit([(TENANT, Outcome(decision_id="d0", quality=0.5))])
    ledger.submit([(TENANT, Outcome(decision_id="d1", cost_usd=0.1))])
    clock.now += 31
    ledger.submit([(TENANT, Outcome(decision_id="d2", quality=0.5))])
    clock.now = START_S + 120

    first = ledger.answers(4, 5, after_id=first_id_at(0), within_s=30, limit=3)
    rest = ledger.answers(4, 5, after_id=first[-1].decision_id, within_s=30, limit=3)

    came = [(one.decision_id, one.reported, one.judged) for one in [*first, *rest]]
    expected = [("d0", True, True), ("d1", True, False), ("d2", False, False)]
    assert came == [*expected, ("d3", False, False)]
    assert [one.by_canary for one in first] == [False, True, False]
    assert [one.unit for one in first] == [f"{TENANT}/s", "d1", f"{TENANT}/s"]
    assert first[0].canary_share == 0.2
    ledger.close()
