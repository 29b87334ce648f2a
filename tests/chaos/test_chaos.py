"""Whatever dies, nothing acknowledged is lost or learned twice; and the auditor would notice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cluster.chaos import SHARES, ChaosPlan, run_chaos, schedule
from cluster.chaos_audit import Kept, audit
from cluster.chaos_load import Told


def test_a_schedule_is_drawn_once_for_a_seed_and_keeps_the_shares() -> None:
    assert Counter(schedule(100, seed=3)) == SHARES
    assert schedule(100, seed=3) == schedule(100, seed=3) != schedule(100, seed=4)
    for kills in range(1, 60):
        assert len(schedule(kills, seed=0)) == kills
    assert set(schedule(20, seed=0)) == set(SHARES)


def kept(decisions: str = "abc", outcomes: str = "abc", learned: str = "abc") -> Kept:
    return Kept(
        decisions=frozenset(decisions),
        outcomes=frozenset((name, name.upper()) for name in outcomes),
        learned=Counter(learned),
    )


def test_the_auditor_notices_each_thing_that_can_be_wrong() -> None:
    told = Told(decided=list("abc"), acknowledged={name: name.upper() for name in "abc"})
    whole = audit(told, kept())
    assert (whole.acknowledged, whole.lost, whole.doubled) == (3, 0, 0)
    assert (whole.orphaned, whole.decisions_lost) == (0, 0)
    # An outcome that is nowhere; one that nothing learns from; one learned from twice.
    assert audit(told, kept(outcomes="ab", learned="ab")).lost == 1
    assert audit(told, kept(learned="ab")).lost == 1
    assert audit(told, kept(learned="abcc")).doubled == 1
    # A decision that died with its replica: its outcome is there, and waits in vain.
    orphan = audit(told, kept(decisions="ab", learned="ab"))
    assert (orphan.orphaned, orphan.decisions_lost, orphan.lost) == (1, 1, 0)
    # ... and one whose outcome is gone, too, though it was acknowledged.
    assert audit(told, kept(decisions="ab", outcomes="ab", learned="ab")).lost == 1
    # What has left the ledger for the dataset is not lost.
    assert audit(told, kept(outcomes="", learned="abc")).lost == 0
    # Another event than the one acknowledged is not it.
    other = Kept(decisions=frozenset("a"), outcomes=frozenset({("a", "other")}), learned=Counter())
    assert audit(Told(decided=["a"], acknowledged={"a": "A"}), other).lost == 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2], ids=["sqlite", "two shards on postgresql"])
def test_seven_parts_die_under_load_and_nothing_is_lost(
    tmp_path: Path, shards: int, request: pytest.FixtureRequest
) -> None:
    settings: dict[str, object] = {"aggregator_shards": shards}
    if shards > 1:
        settings["ledger_url"] = request.getfixturevalue("postgres_database")
    plan = ChaosPlan(minutes=1.0, kills=7, seed=1, rate_per_s=100.0, settings=settings)
    report = run_chaos(plan, tmp_path / "state", progress=lambda _: None)
    assert report["lost"] == report["doubled"] == 0
    assert report["failed_after_retry"] == 0, report
    assert report["orphaned"] <= report["orphan_bound"]
    assert report["acknowledged"] > 0
    assert report["ready_at_end"]
