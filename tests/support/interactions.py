"""Matured interactions of a small made-up world, for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from pipelines.answers import Answer
from policies.arms import Arm, PriceTable
from policies.errors import Unavailable
from policies.interaction import INTERACTION_SCHEMA

PRICES = PriceTable(
    version=1, arms=(Arm(name="good", usd_per_call=0.001), Arm(name="poor", usd_per_call=0.001))
)


COLUMNS = ["decision_id", "policy_version", "champion_version", "canary_version", "canary_share"]


class Interactions:
    """Interactions of a world in which one of two arms is better whatever the prompt."""

    def __init__(self) -> None:
        self.rows: pa.Table = INTERACTION_SCHEMA.empty_table()
        self.away = False
        self.silent: set[str] = set()
        self._rng = np.random.default_rng(0)

    def happen(self, number: int) -> None:
        """Let some requests be routed evenly, and their outcomes come back."""
        start = len(self.rows)
        rows = [self._row(start + index) for index in range(number)]
        new = pa.Table.from_pylist(rows, schema=INTERACTION_SCHEMA)
        self.rows = pa.concat_tables([self.rows, new])

    def interactions(self, after_seq: int, limit: int) -> pa.Table:
        """Return rows after a sequence number."""
        self._answer()
        return self.rows.slice(after_seq, limit)

    def last_seq(self) -> int:
        """Return the last sequence number."""
        self._answer()
        return len(self.rows)

    def answers(
        self, champion: int, canary: int, *, after_id: str, within_s: float, limit: int
    ) -> list[Answer]:
        """Say that all feedback came in time, but for decisions that `silent` names."""
        self._answer()
        shared = [
            row
            for row in self.rows.select(COLUMNS).to_pylist()
            if (row["champion_version"], row["canary_version"]) == (champion, canary)
        ]
        ids = [row["decision_id"] for row in shared]
        start = ids.index(after_id) + 1 if after_id in ids else 0
        return [
            Answer(
                decision_id=row["decision_id"],
                unit=row["decision_id"],
                by_canary=row["policy_version"] == canary,
                canary_share=row["canary_share"],
                judged=row["decision_id"] not in self.silent,
                reported=row["decision_id"] not in self.silent,
            )
            for row in shared[start : start + limit]
        ]

    def prices(self) -> PriceTable:
        """Return the only price table."""
        self._answer()
        return PRICES

    def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """Return the only price table."""
        return {PRICES.version: PRICES}

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("aggregator is away")

    def _row(self, index: int) -> dict[str, object]:
        arm = str(self._rng.choice(PRICES.names))
        level = 0.9 if arm == "good" else 0.1
        context = self._rng.normal(size=4).astype(np.float32)
        quality = float(np.clip(level + self._rng.normal(scale=0.05), 0, 1))
        return interaction_row(index, context=context, arm=arm, quality=quality)


def interaction_row(index: int, **known: object) -> dict[str, object]:
    """Fill up what is known of the interaction at `index`: drawn evenly by version 1."""
    now = datetime(2026, 11, 23, tzinfo=UTC)
    row: dict[str, object] = {
        "seq": index + 1,
        "revision": 0,
        "decision_id": f"d{index}",
        "decided_at": now,
        "tenant": "t",
        "prompt_hash": f"p{index}",
        "prompt_characters": 10,
        "w_quality": 0.7,
        "w_cost": 0.3,
        "encoder_id": "e",
        "arms_offered": list(PRICES.names),
        "pmf": [0.5, 0.5],
        "propensity": 0.5,
        "policy_version": 1,
        "canary_share": 0.0,
        "price_version": 1,
        "cost_usd": 0.001,
        "matured_at": now,
    }
    return row | known
