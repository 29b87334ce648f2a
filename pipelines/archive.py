"""Ledger and dataset as one: what has left the ledger is read from the dataset.

Up to the number that the ledger has forgotten, the dataset is complete, for nothing leaves the
ledger that was not exported; above it, the ledger is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.dataset import DamagedDataset, InteractionDataset
from pipelines.earnings import Earned, merge_earned, sum_earned
from pipelines.ledger import Ledger
from pipelines.ledger_rows import archived_json
from policies.interaction import contexts

# Rows of the dataset that are summed at once: 40 MB.
EARNED_ROWS: Final = 20_000

T = TypeVar("T")


class Archive:
    """Reads what was decided and what came of it, wherever it is kept. Any thread may call.

    Args:
        ledger: Keeps what is recent.
        dataset: Keeps what has matured, for good.
    """

    def __init__(self, ledger: Ledger, dataset: InteractionDataset) -> None:
        self._ledger, self._dataset = ledger, dataset

    def check(self) -> None:
        """Raise DamagedDataset where the dataset is another ledger's, ahead or behind.

        Ahead, new interactions would be taken for exported ones; behind, some would be nowhere.
        """
        exported, given = self._dataset.last_seq(), self._ledger.last_seq()
        gone = self._ledger.forgotten_seq()
        if exported > given:
            raise DamagedDataset(
                f"the dataset goes to {exported}, the ledger only to {given}: restore the ledger "
                "that it belongs to, or move the dataset away to export all of this one",
                field="interactions",
                value=exported,
                allowed=f"at most {given}",
            )
        if exported < gone:
            raise DamagedDataset(
                f"the dataset goes to {exported}, but {gone} interactions have left the ledger "
                "for it: restore the dataset",
                field="interactions",
                value=exported,
                allowed=f"at least {gone}",
            )

    def interactions(self, after_seq: int, limit: int) -> pa.Table:
        """Read matured interactions in sequence order, schema INTERACTION_SCHEMA.

        Args:
            after_seq: Only those with a higher sequence number.
            limit: Most rows to return.
        """
        if self._ledger.forgotten_seq() >= after_seq + limit:
            return self._dataset.read(after_seq, after_seq + limit)
        start, rows = self._recent(after_seq, lambda seq: self._ledger.interactions(seq, limit))
        if start == after_seq:
            return rows
        kept = self._dataset.read(after_seq, min(start, after_seq + limit))
        return pa.concat_tables([kept, rows]).slice(0, limit)

    def decision(self, decision_id: str) -> dict[str, Any] | None:
        """Return all that is known of a decision as plain JSON values; None where nothing is.

        See `Ledger.decision`. Of one that has left the ledger, `outcomes`, `closes_at` and
        `deferred` are None: the dataset keeps what came of the outcomes.
        """
        found = self._ledger.decision(decision_id)
        if found is not None:
            return found
        rows = self._archived(decision_id)
        return archived_json(rows) if len(rows) else None

    def context(self, decision_id: str) -> NDArray[np.float32] | None:
        """Return a decision's context, shape (context_dim,); None where it is not kept."""
        found = self._ledger.context(decision_id)
        if found is not None:
            return found
        rows = self._archived(decision_id)
        return contexts(rows)[0] if len(rows) else None

    def earned(self, after_seq: int, up_to_seq: int, cost_ceiling_usd: float) -> list[Earned]:
        """Sum what interactions brought by version; see `select_earned`."""
        start, found = self._recent(
            after_seq, lambda seq: self._ledger.earned(seq, up_to_seq, cost_ceiling_usd)
        )
        last = min(start, up_to_seq)
        for first in range(after_seq, last, EARNED_ROWS):
            rows = self._dataset.read(first, min(first + EARNED_ROWS, last))
            found = merge_earned(found, sum_earned(rows, cost_ceiling_usd=cost_ceiling_usd))
        return found

    def _archived(self, decision_id: str) -> pa.Table:
        """Read the row of a decision that has left; nothing is looked up while none has."""
        if self._ledger.forgotten_seq() == 0:
            return pa.table({})
        return self._dataset.find(decision_id)

    def _recent(self, after_seq: int, read: Callable[[int], T]) -> tuple[int, T]:
        """Read of the ledger what follows all that has left; return from where, and what.

        Where more has left while it was read, it is read again.
        """
        start = max(after_seq, self._ledger.forgotten_seq())
        while True:
            found = read(start)
            now_gone = max(after_seq, self._ledger.forgotten_seq())
            if now_gone == start:
                return start, found
            start = now_gone
