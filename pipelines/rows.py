"""Reads matured interactions: those a learner has not seen, and those kept to judge it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from policies.arms import PriceTable
from policies.interaction import INTERACTION_SCHEMA, is_holdout

PAGE_ROWS: Final = 2_000
# 1.6 KB a row: one training holds at most some 80 MB, the window of held-out rows 32 MB.
MAX_TRAINING_ROWS: Final = 50_000
HELDOUT_ROWS: Final = 20_000
# How far back held-out rows are looked for after a restart, in interactions.
HELDOUT_LOOK_BACK: Final = 200_000


class InteractionSource(Protocol):
    """Where interactions and prices are read. Every method raises Unavailable."""

    def interactions(self, after_seq: int, limit: int) -> pa.Table:
        """Read interactions in sequence order, schema INTERACTION_SCHEMA."""

    def last_seq(self) -> int:
        """Return the sequence number given last, 0 where there is none."""

    def prices(self) -> PriceTable:
        """Return the price table of now."""

    def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """Return price tables by version."""


def read_rows(
    source: InteractionSource,
    *,
    after_seq: int,
    up_to_seq: int,
    max_rows: int = MAX_TRAINING_ROWS,
) -> pa.Table:
    """Read the oldest `max_rows` interactions within a range of sequence numbers, page by page."""
    pages = [INTERACTION_SCHEMA.empty_table()]
    num_rows = 0
    while num_rows < max_rows:
        limit = min(PAGE_ROWS, max_rows - num_rows)
        page = source.interactions(after_seq, limit)
        page = page.filter(pc.less_equal(page.column("seq"), up_to_seq))
        if not len(page):
            break
        pages.append(page)
        num_rows += len(page)
        after_seq = last_seq(page)
    return pa.concat_tables(pages)


def last_seq(rows: pa.Table) -> int:
    """Return the highest sequence number in the rows, at least one."""
    return int(pc.max(rows.column("seq")).as_py())


def heldout_mask(rows: pa.Table, *, share: float) -> pa.BooleanArray:
    """Mark the rows that are judged on, never trained on, shape (rows,)."""
    return pa.array([is_holdout(name, share) for name in rows.column("prompt_hash").to_pylist()])


def split_rows(rows: pa.Table, *, share: float) -> tuple[pa.Table, pa.Table]:
    """Split rows into those to train on and those to judge on; by prompt, so both for ever.

    Of a decision that was corrected within the rows only the latest revision stays.
    """
    if not len(rows):
        return rows, rows
    rows = latest_revisions(rows)
    mask = heldout_mask(rows, share=share)
    return rows.filter(pc.invert(mask)), rows.filter(mask)


def bounded_by_tenant(rows: pa.Table, *, max_share: float) -> pa.Table:
    """Leave rows out until no tenant gives more than its share; with one tenant none is left out.

    What stays is chosen by a digest of the decision id, so the same rows give the same result.
    Where there are too few tenants for `max_share`, each gives equally many.

    Args:
        rows: Schema INTERACTION_SCHEMA.
        max_share: Largest share of what is returned that one tenant may give, 0 to 1.
    """
    tenants = rows.column("tenant").to_pylist()
    counts = Counter(tenants)
    if max_share >= 1.0 or len(counts) <= 1:
        return rows
    most = _most_each(sorted(counts.values()), share=max(max_share, 1 / len(counts)))
    names = rows.column("decision_id").to_pylist()
    draws = [hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest() for name in names]
    kept: list[int] = []
    by_tenant: dict[str, list[int]] = defaultdict(list)
    for index, tenant in enumerate(tenants):
        by_tenant[tenant].append(index)
    for indices in by_tenant.values():
        kept += sorted(indices, key=lambda index: (draws[index], index))[:most]
    return rows.take(pa.array(sorted(kept), type=pa.int64()))


def _most_each(counts: Sequence[int], *, share: float) -> int:
    """Find the largest cap on all counts under which none exceeds its share of the sum."""

    def fits(cap: int) -> bool:
        return cap <= share * sum(min(count, cap) for count in counts) * (1 + 1e-12)

    low, high = counts[0], counts[-1]
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def latest_revisions(rows: pa.Table) -> pa.Table:
    """Keep one row a decision, the one corrected last, in sequence order."""
    ids = rows.column("decision_id").to_pylist()
    last = {decision_id: index for index, decision_id in enumerate(ids)}
    return rows.take(pa.array(np.sort(np.fromiter(last.values(), dtype=np.int64))))


class HeldOut:
    """The newest held-out interactions, one row a decision; read again after a restart.

    Args:
        share: Share of prompts that is held out.
        max_rows: How many rows are kept.
    """

    def __init__(self, *, share: float, max_rows: int = HELDOUT_ROWS) -> None:
        self._share, self._max_rows = share, max_rows
        self._read_to: int | None = None
        self.rows: pa.Table = INTERACTION_SCHEMA.empty_table()

    def refresh(self, source: InteractionSource) -> None:
        """Take up the held-out ones among the interactions that are new since the last call."""
        if self._read_to is None:
            self._read_to = max(0, source.last_seq() - HELDOUT_LOOK_BACK)
        while True:
            page = source.interactions(self._read_to, PAGE_ROWS)
            if not len(page):
                return
            _, heldout = split_rows(page, share=self._share)
            rows = latest_revisions(pa.concat_tables([self.rows, heldout]))
            self.rows = rows.slice(max(0, len(rows) - self._max_rows))
            self._read_to = last_seq(page)
