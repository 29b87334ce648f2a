"""Decisions on disk until the ledger has them: a replica that is killed takes none with it.

A file a thousand decisions, locked by the replica that writes it. The lock goes with the process,
so a file that can be locked was left behind; whichever replica of the node finds it hands it over.
Nothing is flushed to the device: this outlives a process, not the machine.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np

from policies.interaction import Decision
from policies.preference import Preference

SEGMENT_ROWS: Final = 1_000
SUFFIX: Final = ".spool"
DAMAGED: Final = ".damaged"
# Before each record: its length and its CRC-32.
_HEADER: Final = struct.Struct(">II")
_FORMAT: Final = 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

logger = logging.getLogger(__name__)


@dataclass
class _Segment:
    """One file of this replica: rows written, how many of them the ledger lacks, and its lock."""

    path: Path
    descriptor: int
    rows: int = 0
    left: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """What a replica left behind; locked until `done` or `release`.

    Attributes:
        decisions: In the order they were made; some may be in the ledger already.
        path: The file.
        descriptor: Holds its lock.
    """

    decisions: tuple[Decision, ...]
    path: Path
    descriptor: int

    def done(self) -> None:
        """Delete it: the ledger has all of it."""
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Leave it to whoever comes next."""
        os.close(self.descriptor)


class Spool:
    """The files of one replica. Decisions go to the ledger in the order they came here.

    A disk that is full or away is counted and logged, and decisions go on without it.

    Args:
        folder: On the node's own disk; made if it is not there, readable for its owner only.
        owner: Names this replica's files.
        failed: Told of each time that decisions could not be written.
        segment_rows: Decisions in one file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        owner: str,
        failed: Callable[[], None],
        segment_rows: int = SEGMENT_ROWS,
    ) -> None:
        self._folder, self._owner, self._failed = folder, owner, failed
        self._segment_rows, self._number = segment_rows, 0
        self._segments: deque[_Segment] = deque()
        # Decisions in no file, which count in their order all the same.
        self._writes = True

    def add(self, decisions: Sequence[Decision]) -> None:
        """Write decisions down: some 5 microseconds each, and 10 for all."""
        try:
            segment = self._current()
            _write(segment.descriptor, b"".join(map(_record, decisions)))
        except OSError as error:
            if self._writes:
                logger.warning("decisions are not spooled: %s", error)
            self._writes = False
            self._failed()
            # What was half written stays the last of its file.
            segment = _Segment(path=self._folder, descriptor=-1)
            self._segments.append(segment)
        else:
            self._writes = True
        segment.rows += len(decisions)
        segment.left += len(decisions)

    def stored(self, number: int) -> None:
        """Let go of the oldest decisions: the ledger has them."""
        while number > 0:
            segment = self._segments[0]
            taken = min(number, segment.left)
            number, segment.left = number - taken, segment.left - taken
            if segment.left:
                return
            if len(self._segments) > 1 or segment.descriptor < 0:
                _delete(self._segments.popleft())
            else:
                os.ftruncate(segment.descriptor, 0)
                segment.rows = 0
                return

    def close(self) -> None:
        """Delete what the ledger has; the rest is left to the next replica of this node."""
        for segment in self._segments:
            if segment.left == 0:
                _delete(segment)
            elif segment.descriptor >= 0:
                os.close(segment.descriptor)
        self._segments.clear()

    def left_behind(self) -> Iterator[Leftover]:
        """Yield what replicas of this node left behind, each locked; may block.

        A file that cannot be read is put aside under another name, for somebody to look at.
        """
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                decisions = tuple(_read(path))
            except BlockingIOError:
                os.close(descriptor)
            except ValueError as error:
                logger.error("%s is put aside: %s", path.name, error)
                path.rename(path.with_suffix(DAMAGED))
                os.close(descriptor)
            else:
                yield Leftover(decisions=decisions, path=path, descriptor=descriptor)

    def _current(self) -> _Segment:
        """Return the file to write to, a new one where the last one is full or broken."""
        last = self._segments[-1] if self._segments else None
        if last is not None and last.descriptor >= 0 and last.rows < self._segment_rows:
            return last
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._number += 1
        path = self._folder / f"{self._owner}-{self._number:06d}{SUFFIX}"
        # Named once it is locked: nobody may take it for one that was left behind.
        beside = path.with_name(f".{path.name}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(beside, flags, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        beside.rename(path)
        segment = _Segment(path=path, descriptor=descriptor)
        self._segments.append(segment)
        return segment


def _delete(segment: _Segment) -> None:
    """Delete a file, and let its lock go."""
    if segment.descriptor >= 0:
        segment.path.unlink(missing_ok=True)
        os.close(segment.descriptor)


def _write(descriptor: int, content: bytes) -> None:
    """Write all of it; raises OSError where there is no room."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _record(decision: Decision) -> bytes:
    """Write a decision as bytes."""
    packed: bytes = msgpack.packb(
        (
            _FORMAT,
            decision.decision_id,
            (decision.decided_at - _EPOCH) // _MICROSECOND,
            decision.tenant,
            decision.session,
            decision.prompt_hash,
            decision.prompt_characters,
            decision.preference.quality,
            decision.preference.cost,
            np.asarray(decision.context, dtype="<f4").tobytes(),
            decision.encoder_id,
            decision.arms_offered,
            np.asarray(decision.pmf, dtype="<f8").tobytes(),
            decision.arm,
            decision.propensity,
            decision.policy_version,
            decision.price_version,
            decision.champion_version,
            decision.canary_version,
            decision.canary_share,
            decision.deferred,
        )
    )
    return _HEADER.pack(len(packed), zlib.crc32(packed)) + packed


def _read(path: Path) -> Iterator[Decision]:
    """Read a file's decisions, up to where its replica was interrupted.

    Raises:
        ValueError: Another release wrote it.
    """
    content, at = path.read_bytes(), 0
    while at < len(content):
        start = at + _HEADER.size
        length, crc = _HEADER.unpack_from(content, at) if start <= len(content) else (-1, 0)
        packed = content[start : start + length]
        if length != len(packed) or zlib.crc32(packed) != crc:
            # The last record of one that was killed while it wrote: nobody was told of it.
            logger.warning("%s ends in half a record, at byte %d", path.name, at)
            return
        yield _decision(msgpack.unpackb(packed, use_list=False))
        at = start + length


def _decision(fields: Any) -> Decision:
    """Make a decision of what `_record` wrote; raises ValueError for another format."""
    if not isinstance(fields, tuple) or len(fields) != 21 or fields[0] != _FORMAT:
        raise ValueError(f"not of format {_FORMAT}")
    return Decision(
        decision_id=fields[1],
        decided_at=_EPOCH + fields[2] * _MICROSECOND,
        tenant=fields[3],
        session=fields[4],
        prompt_hash=fields[5],
        prompt_characters=fields[6],
        preference=Preference(quality=fields[7], cost=fields[8]),
        context=np.frombuffer(fields[9], dtype="<f4"),
        encoder_id=fields[10],
        arms_offered=fields[11],
        pmf=np.frombuffer(fields[12], dtype="<f8"),
        arm=fields[13],
        propensity=fields[14],
        policy_version=fields[15],
        price_version=fields[16],
        champion_version=fields[17],
        canary_version=fields[18],
        canary_share=fields[19],
        deferred=fields[20],
    )
