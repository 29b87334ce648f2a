"""The files of the dataset: their names, what is read of them, and how several become one.

A part's name says which sequence numbers are in it, so the names are the manifest: a part within
the range of another one is what that was merged from, and no longer counts.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pd
import pyarrow.parquet as pq

from policies.errors import RouterError
from policies.interaction import INTERACTION_SCHEMA, of_this_release

_NAME: Final = re.compile(r"part-(\d{19})-(\d{19})\.parquet")

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
        path: Where it is.
        first: The lowest sequence number in it.
        last: The highest; every number between the two is in it.
    """

    path: Path
    first: int
    last: int

    @classmethod
    def within(cls, folder: Path, first: int, last: int) -> Part:
        """Name the part of a folder that holds these sequence numbers."""
        path = folder / f"part-{first:019d}-{last:019d}.parquet"
        return cls(path=path, first=first, last=last)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.last - self.first + 1


def remove_halves(folder: Path) -> None:
    """Delete parts that a process which died did not finish; nobody may be writing one."""
    for path in folder.glob(".part-*.tmp"):
        path.unlink(missing_ok=True)


def list_parts(folder: Path) -> tuple[list[Part], list[Part]]:
    """List the parts of a folder in sequence order, and those that were merged into one of them.

    Raises:
        DamagedDataset: One is missing between two others, or two overlap.
    """
    matches = [(path, _NAME.fullmatch(path.name)) for path in folder.glob("part-*")]
    found = [Part(path=path, first=int(m[1]), last=int(m[2])) for path, m in matches if m]
    parts: list[Part] = []
    merged: list[Part] = []
    for part in sorted(found, key=lambda part: (part.first, -part.last)):
        if parts and part.last <= parts[-1].last:
            merged.append(part)
            continue
        if parts and part.first != parts[-1].last + 1:
            raise DamagedDataset(
                f"{part.path.name} does not follow {parts[-1].path.name}",
                field="interactions",
                value=part.path.name,
                allowed=f"a part that starts at {parts[-1].last + 1}",
            )
        parts.append(part)
    return parts, merged


def read_part(part: Part, *, after_seq: int = 0, up_to: int | None = None) -> pa.Table:
    """Read rows of one part, schema INTERACTION_SCHEMA.

    Args:
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
        *_read_groups(part, after_seq=after_seq, up_to=last),
    ]
    rows = pa.concat_tables(tables)
    seq = rows.column("seq")
    return rows.filter(pc.and_(pc.greater(seq, after_seq), pc.less_equal(seq, last)))


def find_in_part(part: Part, decision_id: str) -> pa.Table:
    """Read the rows of one decision; ids grow with time, so most groups of rows are passed over.

    Raises:
        DamagedDataset: It cannot be read.
        FileNotFoundError: It is gone.
    """
    try:
        rows = pd.dataset(part.path, format="parquet", partitioning=None).to_table(
            filter=pc.field("decision_id") == decision_id
        )
        return of_this_release(rows)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _unreadable(part, error) from error


def write_part(part: Part, tables: Iterator[pa.Table]) -> None:
    """Write a part; it appears whole or not at all, and then stays, whatever power does.

    Args:
        part: Which; its folder exists.
        tables: Its rows in order, at least one table.
    """
    beside = part.path.with_name(f".{part.path.name}.{os.getpid()}.tmp")
    with beside.open("wb") as file:
        _write_groups(file, _in_groups(tables))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(part.path)
    flush_folder(part.path.parent)


def merge_parts(parts: Sequence[Part]) -> Part:
    """Make one part of several that follow one another.

    The new one counts from the moment it has its name. It is read back before the old ones go.

    Raises:
        DamagedDataset: One of them cannot be read; they all stay as they are.
    """
    merged = Part.within(parts[0].path.parent, parts[0].first, parts[-1].last)
    write_part(merged, (read_part(part) for part in parts))
    for _ in _read_groups(merged, after_seq=0, up_to=merged.last):
        pass
    remove_parts(parts)
    return merged


def remove_parts(parts: Sequence[Part]) -> None:
    """Delete files, as far as they are still there."""
    for part in parts:
        part.path.unlink(missing_ok=True)


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


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the file system knows how."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _read_groups(part: Part, *, after_seq: int, up_to: int) -> Iterator[pa.Table]:
    """Read the groups of rows that overlap a range, and see that they are what the name says."""
    try:
        with part.path.open("rb") as file:
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
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _unreadable(part, error) from error


def _check(part: Part, is_as_named: object) -> None:
    """Raise DamagedDataset where a part does not hold what its name says."""
    if not is_as_named:
        raise DamagedDataset(
            f"{part.path.name} holds other interactions than its name says",
            field="interactions",
            value=part.path.name,
        )


def _unreadable(part: Part, error: Exception) -> DamagedDataset:
    """Say that a part cannot be read."""
    return DamagedDataset(f"{part.path.name} cannot be read: {error}"[:300], field="interactions")


def _write_groups(file: BinaryIO, tables: Iterator[pa.Table]) -> None:
    """Write tables, at least one and all of one schema, as a Parquet file."""
    first = next(tables)
    with pq.ParquetWriter(
        file, first.schema, compression="zstd", write_page_checksum=True
    ) as writer:
        for table in chain([first], tables):
            writer.write_table(table, row_group_size=GROUP_ROWS)


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
