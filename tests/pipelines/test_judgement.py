"""The gate's decision on evidence, in small worlds whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from experiences import prices_of, some_arms
from made_evidence import GRID, evidence
from numpy.typing import NDArray

from pipelines.evidence import Evidence, EvidenceLog
from pipelines.judgement import Finding, Mode, Standards, Uplift, decide, next_look, screen
from policies.arms import Arm
from policies.policy import Assessment, assess_one_by_one
from policies.preference import Preference

ARMS = some_arms(0.001, 0.002, 0.003)
PRICES = prices_of(ARMS)


def holds(uplift: Uplift, truth: float) -> bool:
    """Say whether the truth lies between the ends."""
    return uplift.lower <= truth <= uplift.upper


@pytest.mark.parametrize("mode", list(Mode))
def test_a_better_challenger_is_promoted_and_a_worse_one_rejected(mode: Mode) -> None:
    standards = Standards(mode=mode)
    better, worse = (decide(evidence(gain=g, n=4_000), standards) for g in (0.05, -0.05))
    assert better.finding is Finding.PROMOTE
    assert worse.finding is Finding.REJECT
    assert holds(better.uplift, 0.05)
    assert holds(worse.uplift, -0.05)


def test_an_equal_challenger_passes_as_not_inferior_and_never_as_superior() -> None:
    equal = evidence(gain=0.0, n=15_000)
    assert decide(equal, Standards(mode=Mode.NONINFERIOR)).finding is Finding.PROMOTE
    assert decide(equal, Standards(mode=Mode.SUPERIOR)).finding is Finding.UNDECIDED
    given_up = decide(equal, Standards(mode=Mode.SUPERIOR, max_decisions=15_000))
    assert given_up.finding is Finding.INCONCLUSIVE
    assert "inconclusive" in given_up.reason


def test_too_few_units_decide_nothing() -> None:
    found = decide(evidence(gain=0.3, n=199), Standards())
    assert found.finding is Finding.UNDECIDED
    sessions = replace(evidence(gain=0.3, n=2_000), units=np.arange(2_000) // 20)
    assert decide(sessions, Standards()).finding is Finding.UNDECIDED
    assert decide(sessions, Standards()).uplift.units == 100


def test_what_is_surely_worse_is_not_promoted_though_it_lies_within_the_margin() -> None:
    found = decide(evidence(gain=-0.02, n=8_000), Standards(margin=0.1))
    assert found.uplift.lower > -0.1
    assert found.finding is Finding.REJECT


def dearer_for_better(n: int, *, gain: float) -> Evidence:
    """The canary's arm costs four times as much, and is so much better that it is worth it."""
    found = evidence(gain=0.0, n=n)
    on_other = found.log.arm == 1
    noise = np.random.default_rng(1).normal(scale=[[0.1], [0.02]], size=(2, n))
    quality = np.where(on_other, 0.8 + 4 * gain, 0.5) + noise[0]
    cost = np.where(on_other, 0.4, 0.1) + noise[1]
    outcomes = np.stack([quality, -cost], axis=1)
    log = replace(found.log, outcomes=outcomes)
    return replace(found, log=log, w_quality=np.full(n, 0.5))


def test_a_version_that_is_dearer_by_half_must_be_surely_better() -> None:
    """As good as the champion is not enough: the guardrail would send it back for its cost."""
    asked = Standards(margin=0.05, max_decisions=3_000, region_ess=1e9)
    early = decide(dearer_for_better(1_500, gain=0.0), asked)
    assert early.finding is Finding.UNDECIDED
    assert "cost rose" in early.reason
    late = decide(dearer_for_better(3_000, gain=0.0), asked)
    assert late.finding is Finding.INCONCLUSIVE
    assert "not surely better" in late.reason
    allowed = decide(dearer_for_better(1_500, gain=0.0), replace(asked, cost_rise=10.0))
    assert allowed.finding is Finding.PROMOTE
    assert decide(dearer_for_better(1_500, gain=0.05), asked).finding is Finding.PROMOTE


def test_a_region_of_preferences_that_loses_holds_a_promotion_back() -> None:
    harming = evidence(gain=0.06, n=6_000, of_quality=0.12)
    found = decide(harming, Standards())
    assert found.uplift.lower > -0.01
    assert found.regions["quality"].mean < -0.03
    assert found.finding is Finding.UNDECIDED
    assert "quality" in found.reason
    assert decide(harming, Standards(max_decisions=6_000)).finding is Finding.INCONCLUSIVE
    assert decide(harming, Standards(region_ess=1e9)).finding is Finding.PROMOTE


def test_the_screen_rejects_only_what_is_surely_worse() -> None:
    assert screen(evidence(gain=-0.2, n=800), Standards()).finding is Finding.REJECT
    for gain in (-0.02, 0.0, 0.2):
        assert screen(evidence(gain=gain, n=300), Standards()).finding is Finding.UNDECIDED


def test_the_effective_sample_size_is_that_of_the_policy_the_log_knows_least() -> None:
    found = decide(evidence(gain=0.0, n=5_000), Standards(max_decisions=5_000))
    assert found.regions
    for one in (found.uplift, *found.regions.values()):
        # The challenger's arm has a tenth of the log and half of the challenger's probability.
        assert 0.2 * 5_000 < one.ess < 0.5 * 5_000
    words = found.words()
    assert words["uplift"]["asked"]["ess"] == pytest.approx(found.uplift.ess, abs=1e-4)


def test_looks_come_at_a_growing_distance() -> None:
    looks = [200]
    while looks[-1] < 20_000:
        looks.append(next_look(looks[-1]))
    assert len(looks) < 60
    assert all(after > before for before, after in pairwise(looks))


class Leaning:
    """Prefers one arm, whatever the prompt; the more so, the more quality counts."""

    kind, encoder_id, context_dim = "leaning", "e", 3

    def __init__(self, arm: str) -> None:
        self._arm = arm

    def pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Twice as likely, or three times."""
        weights = np.array([1.0 + preference.quality + (arm.name == self._arm) for arm in offered])
        return np.asarray(weights / weights.sum())

    greedy_pmf = pmf

    def assess(
        self,
        contexts: NDArray[np.float32],
        preferences: Sequence[Preference],
        offered: Sequence[Arm],
    ) -> Assessment:
        """Ask one by one."""
        return assess_one_by_one(self.pmf, contexts, preferences, offered)

    def expect(self, context: NDArray[np.float32], offered: Sequence[Arm]) -> None:
        """Nothing is modelled."""


def row(
    number: int, *, offered: Sequence[str] = ("a", "b", "c"), **changes: object
) -> dict[str, Any]:
    """Return one interaction as a dict of columns."""
    return {
        "decision_id": f"d{number}",
        "tenant": "t",
        "session": None,
        "prompt_hash": f"p{number}",
        "w_quality": number % 5 / 4,
        "context": np.full(3, number % 7, dtype=np.float32),
        "arms_offered": list(offered),
        "arm": offered[number % len(offered)],
        "propensity": 1 / len(offered),
        "price_version": 1,
        "quality": 0.5,
        "cost_usd": 0.001,
    } | changes


def table(*rows: dict[str, Any]) -> pa.Table:
    """Lay rows out with the types of the schema."""
    from policies.interaction import INTERACTION_SCHEMA

    schema = pa.schema([INTERACTION_SCHEMA.field(name) for name in rows[0]])
    return pa.Table.from_pylist(list(rows), schema=schema)


def laid_out(*tables: pa.Table) -> Evidence:
    """Add tables one after the other."""
    log = EvidenceLog(Leaning("a"), Leaning("b"), cost_ceiling_usd=0.01, grid=GRID)
    for rows in tables:
        log.add(rows, PRICES)
    return log.evidence()


def test_evidence_is_what_both_policies_would_have_done_with_each_decision() -> None:
    found = laid_out(table(*(row(number) for number in range(30))))
    for number in range(30):
        asked = Preference(quality=number % 5 / 4, cost=1 - number % 5 / 4)
        context = np.full(3, number % 7, dtype=np.float32)
        np.testing.assert_allclose(found.champion[number], Leaning("a").pmf(context, asked, ARMS))
        np.testing.assert_allclose(
            found.challenger_on_grid[4, number], Leaning("b").pmf(context, GRID[4], ARMS)
        )
    assert found.log.outcomes[0].tolist() == [0.5, -0.1]


def test_rows_in_parts_are_the_same_evidence_though_a_new_arm_comes_with_the_second() -> None:
    first = [row(number, offered=("a", "c")) for number in range(20)]
    second = [row(number) for number in range(20, 40)]
    parts, whole = laid_out(table(*first), table(*second)), laid_out(table(*first, *second))
    assert len(parts) == 40
    order = [0, 2, 1]  # a, c, then b: in order of appearance, and as the whole met them
    for name in ("champion", "challenger"):
        mine, other = getattr(parts, name), getattr(whole, name)
        np.testing.assert_allclose(np.sort(mine, axis=1), np.sort(other, axis=1))
        np.testing.assert_allclose(mine.sum(axis=1), 1.0)
    assert mine.shape[1] == len(order)
    assert parts.log.folds.tolist() == whole.log.folds.tolist()


def test_a_correction_replaces_the_outcome_and_incomplete_rows_are_left_out() -> None:
    log = EvidenceLog(Leaning("a"), Leaning("b"), cost_ceiling_usd=0.01, grid=GRID)
    log.add(table(row(0), row(1, quality=None), row(2, price_version=9), row(3)), PRICES)
    log.add(table(row(0, quality=0.9)), PRICES)
    assert len(log) == 2
    assert log.evidence().log.outcomes.tolist() == [[0.9, -0.1], [0.5, -0.1]]


def test_a_session_is_one_unit_and_tenants_do_not_share_one() -> None:
    found = laid_out(
        table(
            row(0, session="s"),
            row(1, session="s"),
            row(2, session="s", tenant="u"),
            row(3),
            row(4),
        )
    )
    assert found.units.tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("number", [0, 1])
def test_fewer_than_two_decisions_are_no_evidence(number: int) -> None:
    log = EvidenceLog(Leaning("a"), Leaning("b"), cost_ceiling_usd=0.01)
    log.add(table(row(0), row(1, quality=None)).slice(0, number), PRICES)
    with pytest.raises(ValueError, match="two decisions"):
        log.evidence()
