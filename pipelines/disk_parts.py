"""Parts in a folder of a disk: the names are the manifest.

A part counts from the moment it has its name, so that there is no second file which could disagree
with the folder.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from pipelines.dataset_parts import (
    Part,
    in_sequence,
    named_parts,
    part_name,
    read_through,
    unreadable,
    write_tables,
)
from policies.errors import RouterError


class DiskParts:
    """Parts in a folder; see `PartStore`.

    Args:
        folder: Created with the first part.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def parts(self) -> list[Part]:
        """See `PartStore`."""
        return self._listed()[0]

    def still(self, parts: list[Part]) -> bool:
        """See `PartStore`; a folder is not listed in one moment, and parts may go meanwhile."""
        return self.parts()[: len(parts)] == parts

    def open(self, part: Part, *, whole: bool) -> AbstractContextManager[BinaryIO]:
        """See `PartStore`."""
        return (self._folder / part.name).open("rb")

    def add(self, first: int, last: int, tables: Iterator[pa.Table]) -> None:
        """See `PartStore`."""
        if not self._folder.exists():
            self._folder.mkdir(parents=True)
            _flush_folder(self._folder.parent)
        self._write(part_name(first, last), tables)

    def replace(self, run: Sequence[Part], tables: Iterator[pa.Table]) -> None:
        """See `PartStore`; the new part counts from its rename on, and the old ones no more."""
        first, last = run[0].first, run[-1].last
        name = part_name(first, last)
        self._write(name, tables)
        read_through(self, Part(name=name, first=first, last=last))
        self._remove(run)

    def sweep(self) -> None:
        """See `PartStore`."""
        self._remove(self._listed()[1])
        for path in self._folder.glob(".part-*.tmp"):
            path.unlink(missing_ok=True)

    def trouble(self, part: Part, error: Exception) -> RouterError:
        """See `PartStore`."""
        return unreadable(part, error)

    def _listed(self) -> tuple[list[Part], list[Part]]:
        """List what counts, and what was merged into it."""
        return in_sequence(named_parts(path.name for path in self._folder.glob("part-*")))

    def _write(self, name: str, tables: Iterator[pa.Table]) -> None:
        """Write a file beside, flush it, and give it its name."""
        beside = self._folder / f".{name}.{os.getpid()}.tmp"
        with beside.open("wb") as file:
            write_tables(file, tables)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._folder / name)
        _flush_folder(self._folder)

    def _remove(self, parts: Sequence[Part]) -> None:
        """Delete files, as far as they are still there."""
        for part in parts:
            (self._folder / part.name).unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the file system knows how."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
