"""A stream: who decides sees only what has come back by then, and regret is exact."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from outcome_tables import a_table

from pipelines.outcomes import arms_with_prices
from pipelines.quality_plan import QualityPlan, delays, draw_stream
from pipelines.quality_stream import TrainingPart, play
from policies.interaction import INTERACTION_SCHEMA
from policies.preference import Preference

NUM = 300


class Watcher:
    """Decides evenly, and notes what it is taught and when."""

    def __init__(self) -> None:
        self.decided, self.batches = 0, list[tuple[int, pa.Table]]()

    def pmf(self, context: NDArray[np.float32], preference: Preference) -> NDArray[np.float64]:
        """Return an even pmf."""
        self.decided += 1
        return np.array([0.5, 0.5])

    def greedy_pmf(
        self, context: NDArray[np.float32], preference: Preference
    ) -> NDArray[np.float64]:
        """Return the same."""
        return self.pmf(context, preference)

    def learn(self, rows: pa.Table) -> None:
        """Note the rows and how many requests were decided before."""
        self.batches.append((self.decided, rows))


def _part(plan: QualityPlan) -> TrainingPart:
    table = a_table(NUM)
    return TrainingPart(
        table=table,
        contexts=np.zeros((NUM, 2), dtype=np.float32),
        encoder_id="e",
        arms=arms_with_prices(table),
        cost_ceiling_usd=0.003,
        delays=delays(plan, table),
    )


def _watched(**changes: float) -> tuple[Watcher, TrainingPart, NDArray[np.float64]]:
    plan = QualityPlan(learners=("posterior",), **changes)  # type: ignore[arg-type]  # numbers
    watcher, part = Watcher(), _part(plan)
    return watcher, part, play(watcher, part, draw_stream(plan, NUM, seed=0))


def test_feedback_is_as_late_as_the_delay_and_none_is_lost() -> None:
    watcher, _, _ = _watched(delay=64)
    numbers = []
    for decided, rows in watcher.batches:
        assert rows.schema == INTERACTION_SCHEMA
        mine = [int(name) for name in rows["decision_id"].to_pylist()]
        numbers += mine
        if decided < NUM:
            # A request's feedback is in once 64 later ones have been decided.
            assert max(mine) + 64 < decided
    assert sorted(numbers) == list(range(NUM))


def test_sequence_numbers_only_grow() -> None:
    watcher, _, _ = _watched(delay=10)
    taught = pa.concat_tables([rows for _, rows in watcher.batches])
    assert taught["seq"].to_pylist() == list(range(1, NUM + 1))


def test_what_comes_back_is_what_was_chosen() -> None:
    watcher, part, _ = _watched(delay=0)
    for _, rows in watcher.batches:
        for row in rows.to_pylist():
            sample = int(row["prompt_hash"].removeprefix("s"))
            arm = part.table.arms.index(row["arm"])
            assert row["quality"] == part.table.scores[sample, arm]
            assert row["cost_usd"] == part.table.costs[sample, arm]
            assert row["propensity"] == 0.5


def test_regret_is_exact() -> None:
    """Two arms, even chances: half the difference between them."""
    plan = QualityPlan(learners=("posterior",))
    watcher, part = Watcher(), _part(plan)
    draws = draw_stream(plan, NUM, seed=0)
    regret = play(watcher, part, draws)
    quality, w = part.table.scores[draws.rows], draws.w_quality
    cheap, dear = w * quality[:, 0] - (1 - w) / 3, w * quality[:, 1] - (1 - w)
    np.testing.assert_allclose(regret, np.abs(cheap - dear) / 2, atol=1e-12)


def test_lost_outcomes_arrive_empty_when_their_time_is_up() -> None:
    watcher, part, _ = _watched(missing=0.3, delay=20)
    taught = pa.concat_tables([rows for _, rows in watcher.batches])
    assert len(taught) == NUM
    lost = taught["quality"].null_count
    assert lost == taught["cost_usd"].null_count
    assert lost / NUM == pytest.approx(0.3, abs=0.1)
    for decided, rows in watcher.batches:
        empty = rows.filter(pa.compute.is_null(rows["quality"]))
        for name in empty["decision_id"].to_pylist() if decided < NUM else ():
            assert int(name) + part.delays.max() < decided
