"""The matured interactions as an append-only folder of Parquet files, for training and notebooks.

    import pyarrow.dataset
    pyarrow.dataset.dataset("interactions").to_table()

It is on a disk or in an object store (`pipelines.disk_parts`, `pipelines.object_parts`). Each part
is named for the sequence numbers in it, so what counts says how far the export has come: there is
no cursor beside it that could disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import pyarrow as pa

from pipelines.dataset_parts import (
    MERGE_PARTS,
    DamagedDataset,
    Part,
    PartStore,
    find_in_part,
    merge_parts,
    mergeable,
    read_part,
)
from pipelines.disk_parts import DiskParts
from pipelines.object_parts import ObjectParts
from policies.interaction import INTERACTION_SCHEMA
from policies.storage import LOCAL, is_remote

__all__ = ["DamagedDataset", "InteractionDataset", "Part", "export"]

# Some 40 MB with contexts of 384 numbers: what an export holds in memory at once.
MAX_PART_ROWS: Final = 20_000
# Another process may read while parts are merged; it looks again where one has gone.
READ_ATTEMPTS: Final = 5

T = TypeVar("T")


class InteractionDataset:
    """A folder of parts with one writer and any number of readers.

    Args:
        place: Path, file:// or s3:// URL; created with the first part.
    """

    def __init__(self, place: Path | str) -> None:
        self._store: PartStore = (
            ObjectParts(str(place))
            if is_remote(place)
            else DiskParts(Path(str(place).removeprefix(LOCAL)))
        )
        self._last_seq: int | None = None

    def parts(self) -> list[Part]:
        """List the parts in sequence order.

        Raises:
            DamagedDataset: One is missing between two others, or two overlap.
        """
        return self._store.parts()

    def last_seq(self) -> int:
        """Return the highest sequence number exported, 0 where there is none."""
        if self._last_seq is None:
            parts = self.parts()
            self._last_seq = parts[-1].last if parts else 0
        return self._last_seq

    def append(self, rows: pa.Table) -> None:
        """Add one part; it appears whole or not at all.

        Args:
            rows: Schema INTERACTION_SCHEMA, at least one row, in sequence order from the number
                after `last_seq`, none left out.

        Raises:
            DamagedDataset: The rows do not follow what is there.
        """
        first, last = rows.column("seq")[0].as_py(), rows.column("seq")[-1].as_py()
        if first != self.last_seq() + 1 or last - first + 1 != len(rows):
            raise DamagedDataset(
                f"{len(rows)} interactions from {first} to {last} do not follow {self.last_seq()}",
                field="seq",
                value=first,
                allowed=str(self.last_seq() + 1),
            )
        # Where it fails nobody knows how far the dataset goes: it is asked again.
        self._last_seq = None
        self._store.add(first, last, iter([rows]))
        self._last_seq = last

    def read(self, after_seq: int = 0, up_to: int | None = None) -> pa.Table:
        """Read interactions in sequence order, schema INTERACTION_SCHEMA.

        Args:
            after_seq: Only those with a higher sequence number.
            up_to: Only those with this number or a lower one; None reads to the end.

        Raises:
            DamagedDataset: A part is missing or cannot be read.
        """
        return self._with_parts(lambda parts: _read(self._store, parts, after_seq, up_to))

    def find(self, decision_id: str) -> pa.Table:
        """Read the latest interaction of a decision, schema INTERACTION_SCHEMA; a row or none.

        Raises:
            DamagedDataset: A part is missing or cannot be read.
        """
        return self._with_parts(lambda parts: _find(self._store, parts, decision_id))

    def merge(self, *, parts_to_merge: int = MERGE_PARTS) -> int:
        """Make one part of several small ones, where there are any; return how many they were.

        Not while something is appended: what the two leave half-written is removed here.

        A crash at any moment leaves every row readable, once: what was merged counts no more as
        soon as the merged part is there, and goes now or with the next call.

        Raises:
            DamagedDataset: A part is missing or cannot be read.
        """
        self._store.sweep()
        run = mergeable(self.parts(), merge_parts=parts_to_merge)
        if run:
            merge_parts(self._store, run)
        return len(run)

    def _with_parts(self, read: Callable[[list[Part]], T]) -> T:
        """Read from the parts there are; again where some were merged in the meantime."""
        for _ in range(READ_ATTEMPTS):
            parts = self.parts()
            try:
                found = read(parts)
            except FileNotFoundError:
                continue
            if self._store.still(parts):
                return found
        raise DamagedDataset(
            "its parts change all the time, or one of them is missing", field="interactions"
        )


def export(
    read: Callable[[int, int], pa.Table],
    dataset: InteractionDataset,
    *,
    max_part_rows: int = MAX_PART_ROWS,
) -> int:
    """Copy what has matured since the last export; each interaction leaves exactly once.

    A crash at any moment leaves whole parts only, and the next export goes on after them.

    Args:
        read: Reads interactions after a sequence number, at most so many.
        dataset: Where they go.
        max_part_rows: Most rows in one part.

    Returns:
        How many interactions were copied.
    """
    copied = 0
    while True:
        rows = read(dataset.last_seq(), max_part_rows)
        if len(rows) == 0:
            return copied
        dataset.append(rows)
        copied += len(rows)


def _read(store: PartStore, parts: list[Part], after_seq: int, up_to: int | None) -> pa.Table:
    """Read a range of sequence numbers from those parts that it overlaps."""
    last = parts[-1].last if up_to is None and parts else up_to or 0
    wanted = [part for part in parts if part.last > after_seq and part.first <= last]
    tables = [read_part(store, part, after_seq=after_seq, up_to=last) for part in wanted]
    return pa.concat_tables([INTERACTION_SCHEMA.empty_table(), *tables])


def _find(store: PartStore, parts: list[Part], decision_id: str) -> pa.Table:
    """Read a decision's latest interaction: from the back, for that is where it is."""
    for part in reversed(parts):
        rows = find_in_part(store, part, decision_id)
        if len(rows):
            return rows.sort_by("seq").slice(len(rows) - 1)
    return INTERACTION_SCHEMA.empty_table()
