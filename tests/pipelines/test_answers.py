"""Which decisions got feedback in time: read from a real ledger."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from clock import START_S, Clock
from interactions import Interactions
from ledgers import TENANT, dated_id, decision, open_ledger

from pipelines.comparison import id_before
from policies.interaction import Decision, Outcome, decisions_to_batch, first_id_at
from policies.versions import AliasMove


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


def test_a_comparison_begins_at_the_later_of_move_and_matured_decision() -> None:
    """Ids of decisions that are older sort before, those that may count sort after."""
    source = Interactions()
    source.happen(2)
    position = source.rows.schema.get_field_index("decision_id")
    ids = [dated_id("old", at=START_S - 9_000), dated_id("late", at=START_S - 50)]
    source.rows = source.rows.set_column(position, "decision_id", pa.array(ids))
    at = datetime.fromtimestamp(START_S - 1_000, UTC).isoformat()
    move = AliasMove(alias="champion", version=2, previous=1, who="ann", why="", at=at)

    by_move = id_before(source, move, 1)
    assert dated_id("x", at=START_S - 1_100) < by_move < dated_id("x", at=START_S - 999)
    by_row = id_before(source, move, 2)
    assert by_move < by_row < dated_id("x", at=START_S - 49)
    assert id_before(source, None, 0) < ids[0]
