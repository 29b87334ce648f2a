"""The parts of the dataset: their names, what is read of them, and how several become one.

A part's name says which sequence numbers are in it. Where parts are kept, and what makes one
count, is `pipelines.disk_parts` and `pipelines.object_parts`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import BinaryIO, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from policies.errors import RouterError
from policies.interaction import INTERACTION_SCHEMA, of_this_release

_NAME: Final = re.compile(r"part-(\d{19})-(\d{19})(-[0-9a-f]+)?\.parquet")

# Some 10 MB with contexts of 384 numbers: what a page of rows has to read at least.
GROUP_ROWS: Final = 5_000

# So many neighbours become one part, none of them more than half of it: each row is then written
# again a logarithmic number of times, and a logarithmic number of small parts remains.
MERGE_PARTS: Final = 8
# A second or two in which nothing else is read.
MAX_MERGED_ROWS: Final = 40_000


class DamagedDataset(RouterError):
    """Parts that are missing, overlap, cannot be read, or do not belong to this ledger."""

    code = "damaged_dataset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of the dataset.

    Attributes:
        name: What it is called, in the folder of the dataset.
        first: The lowest sequence number in it.
        last: The highest; every number between the two is in it.
        sha256: Digest of the file, hexadecimal; None where none was written down.
    """

    name: str
    first: int
    last: int
    sha256: str | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.last - self.first + 1


class PartStore(Protocol):
    """Where parts are kept; one writer, any number of readers.

    A store that does not answer is Unavailable, or OSError where it is a disk.
    """

    def parts(self) -> list[Part]:
        """List what counts, in sequence order; raises DamagedDataset where that has a hole."""

    def still(self, parts: list[Part]) -> bool:
        """Tell whether a list read a moment ago was true, and not read amid a change."""

    def open(self, part: Part, *, whole: bool) -> AbstractContextManager[BinaryIO]:
        """Open a part; one that is going to be read whole is held against its digest.

        Raises:
            FileNotFoundError: It is gone.
            DamagedDataset: It is not what was written.
        """

    def add(self, first: int, last: int, tables: Iterator[pa.Table]) -> None:
        """Add a part; it counts whole or not at all, and then stays, whatever power does."""

    def replace(self, run: Sequence[Part], tables: Iterator[pa.Table]) -> None:
        """Let one part count instead of several that follow one another.

        It is read back before the old ones go.
        """

    def sweep(self) -> None:
        """Remove what does not count and never will; nobody may be adding just now."""

    def trouble(self, part: Part, error: Exception) -> RouterError:
        """Say what it means that a part cannot be read: damage, or a store that is away."""


def part_name(first: int, last: int, suffix: str = "") -> str:
    """Name the part that holds these sequence numbers.

    >>> part_name(1, 20, "-0c1d")
    'part-0000000000000000001-0000000000000000020-0c1d.parquet'
    """
    return f"part-{first:019d}-{last:019d}{suffix}.parquet"


def named_parts(names: Iterable[str]) -> list[Part]:
    """Find the parts among the names of files."""
    matches = [(name, _NAME.fullmatch(name)) for name in names]
    return [Part(name=name, first=int(m[1]), last=int(m[2])) for name, m in matches if m]


def in_sequence(found: Iterable[Part]) -> tuple[list[Part], list[Part]]:
    """Put parts in sequence order, and aside those that were merged into one of them.

    A part within the range of another one is what that was merged from.

    Raises:
        DamagedDataset: One is missing between two others, or two overlap.
    """
    parts: list[Part] = []
    merged: list[Part] = []
    for part in sorted(found, key=lambda part: (part.first, -part.last)):
        if parts and part.last <= parts[-1].last:
            merged.append(part)
            continue
        if parts and part.first != parts[-1].last + 1:
            raise DamagedDataset(
                f"{part.name} does not follow {parts[-1].name}",
                field="interactions",
                value=part.name,
                allowed=f"a part that starts at {parts[-1].last + 1}",
            )
        parts.append(part)
    return parts, merged


def read_part(
    store: PartStore, part: Part, *, after_seq: int = 0, up_to: int | None = None
) -> pa.Table:
    """Read rows of one part, schema INTERACTION_SCHEMA.

    Args:
        store: Where it is.
        part: Which.
        after_seq: Only rows with a higher sequence number.
        up_to: Only rows with this number or a lower one; None reads to the end.

    Raises:
        DamagedDataset: It cannot be read, or holds other rows than its name says.
        FileNotFoundError: It is gone.
    """
    last = part.last if up_to is None else up_to
    tables = [
        INTERACTION_SCHEMA.empty_table(),
        *_read_groups(store, part, after_seq=after_seq, up_to=last),
    ]
    rows = pa.concat_tables(tables)
    seq = rows.column("seq")
    return rows.filter(pc.and_(pc.greater(seq, after_seq), pc.less_equal(seq, last)))


def find_in_part(store: PartStore, part: Part, decision_id: str) -> pa.Table:
    """Read the rows of one decision; ids grow with time, so most groups of rows are passed over.

    Raises:
        DamagedDataset: It cannot be read.
        FileNotFoundError: It is gone.
    """
    with _readable(store, part), store.open(part, whole=False) as file:
        rows = pq.read_table(
            file,
            filters=[("decision_id", "=", decision_id)],
            page_checksum_verification=True,
        )
        return of_this_release(rows)


def write_tables(file: BinaryIO, tables: Iterator[pa.Table]) -> None:
    """Write tables, at least one and all of one schema, as a Parquet file."""
    groups = _in_groups(tables)
    first = next(groups)
    with pq.ParquetWriter(
        file, first.schema, compression="zstd", write_page_checksum=True
    ) as writer:
        for table in chain([first], groups):
            writer.write_table(table, row_group_size=GROUP_ROWS)


def merge_parts(store: PartStore, run: Sequence[Part]) -> None:
    """Make one part of several that follow one another.

    Raises:
        DamagedDataset: One of them cannot be read; they all stay as they are.
    """
    store.replace(run, (read_part(store, part) for part in run))


def read_through(store: PartStore, part: Part) -> None:
    """Read a part from end to end, to see that it is there; raises DamagedDataset."""
    for _ in _read_groups(store, part, after_seq=0, up_to=part.last):
        pass


def mergeable(
    parts: Sequence[Part], *, merge_parts: int = MERGE_PARTS, max_rows: int = MAX_MERGED_ROWS
) -> Sequence[Part]:
    """Pick neighbours that should become one part, the latest ones first; none where none should.

    Args:
        parts: All, in sequence order.
        merge_parts: How many become one.
        max_rows: Most rows in that one.
    """
    for start in range(len(parts) - merge_parts, -1, -1):
        run = parts[start : start + merge_parts]
        total = sum(map(len, run))
        if total <= max_rows and 2 * max(map(len, run)) <= total:
            return run
    return ()


def _read_groups(store: PartStore, part: Part, *, after_seq: int, up_to: int) -> Iterator[pa.Table]:
    """Read the groups of rows that overlap a range, and see that they are what the name says."""
    whole = after_seq < part.first and up_to >= part.last
    with _readable(store, part), store.open(part, whole=whole) as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        ends = part.first - 1 + np.cumsum([0, *sizes])
        _check(part, ends[-1] == part.last)
        for number, (before, last) in enumerate(pairwise(ends)):
            if last <= after_seq or before >= up_to:
                continue
            rows = of_this_release(parquet.read_row_group(number))
            _check(part, np.array_equal(rows["seq"], np.arange(before + 1, last + 1)))
            yield rows


@contextmanager
def _readable(store: PartStore, part: Part) -> Iterator[None]:
    """Let the store say what it means that a part cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise store.trouble(part, error) from error


def _check(part: Part, is_as_named: object) -> None:
    """Raise DamagedDataset where a part does not hold what its name says."""
    if not is_as_named:
        raise DamagedDataset(
            f"{part.name} holds other interactions than its name says",
            field="interactions",
            value=part.name,
        )


def unreadable(part: Part, reason: object) -> DamagedDataset:
    """Say that a part cannot be read."""
    return DamagedDataset(f"{part.name} cannot be read: {reason}"[:300], field="interactions")


def _in_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Put small tables together until each is a group of rows."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= GROUP_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
