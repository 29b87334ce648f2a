"""The matured interactions as an append-only folder of Parquet files, for training and notebooks.

    import pyarrow.dataset
    pyarrow.dataset.dataset("interactions").to_table()

Each part is named for the sequence numbers in it, so the folder itself says how far the export
has come: there is no cursor beside it that could disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from policies.artifact import write_atomically
from policies.errors import RouterError
from policies.interaction import INTERACTION_SCHEMA, of_this_release

# Some 40 MB with contexts of 384 numbers: what an export holds in memory at once.
MAX_PART_ROWS: Final = 20_000
_PART: Final = re.compile(r"part-(\d{19})-(\d{19})\.parquet")


class DamagedDataset(RouterError):
    """Parts that are missing, overlap, cannot be read, or do not belong to this ledger."""

    code = "damaged_dataset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of the dataset.

    Attributes:
        path: Where it is.
        first: The lowest sequence number in it.
        last: The highest; every number between the two is in it.
    """

    path: Path
    first: int
    last: int


class InteractionDataset:
    """A folder of parts with one writer and any number of readers.

    Args:
        folder: Created with the first part.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last_seq: int | None = None

    def parts(self) -> list[Part]:
        """List the parts in sequence order.

        Raises:
            DamagedDataset: One is missing between two others, or two overlap.
        """
        matches = [(path, _PART.fullmatch(path.name)) for path in self._folder.glob("part-*")]
        parts = sorted(
            (Part(path=path, first=int(m[1]), last=int(m[2])) for path, m in matches if m),
            key=lambda part: part.first,
        )
        for before, after in pairwise(parts):
            if after.first != before.last + 1:
                raise DamagedDataset(
                    f"{after.path.name} does not follow {before.path.name}",
                    field="interactions",
                    value=after.path.name,
                    allowed=f"a part that starts at {before.last + 1}",
                )
        return parts

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
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd", write_page_checksum=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"part-{first:019d}-{last:019d}.parquet"
        write_atomically(path, sink.getvalue().to_pybytes())
        self._last_seq = last

    def read(self, after_seq: int = 0, up_to: int | None = None) -> pa.Table:
        """Read interactions in sequence order, schema INTERACTION_SCHEMA.

        Args:
            after_seq: Only those with a higher sequence number.
            up_to: Only those with this number or a lower one; None reads to the end.

        Raises:
            DamagedDataset: A part is missing or cannot be read.
        """
        parts = self.parts()
        last = parts[-1].last if up_to is None and parts else up_to or 0
        wanted = [part for part in parts if part.last > after_seq and part.first <= last]
        tables = [_read_part(part) for part in wanted]
        rows = pa.concat_tables([INTERACTION_SCHEMA.empty_table(), *tables])
        seq = rows.column("seq")
        return rows.filter(pc.and_(pc.greater(seq, after_seq), pc.less_equal(seq, last)))


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


def _read_part(part: Part) -> pa.Table:
    """Read one part and see that it holds what its name says; raises DamagedDataset."""
    try:
        rows = pq.read_table(part.path, partitioning=None, page_checksum_verification=True)
        rows = of_this_release(rows)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DamagedDataset(
            f"{part.path.name} cannot be read: {error}"[:300], field="interactions"
        ) from error
    if not np.array_equal(rows["seq"], np.arange(part.first, part.last + 1)):
        raise DamagedDataset(
            f"{part.path.name} holds other interactions than its name says",
            field="interactions",
            value=part.path.name,
        )
    return rows
