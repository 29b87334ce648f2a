"""Events as JSON lines in the state folder: appended, flushed to disk, rotated by size."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from policies.events import Event, EventKind

logger = logging.getLogger(__name__)

EVENTS_FILE: Final = "events.jsonl"
MAX_FILE_BYTES: Final = 10 * 1024 * 1024
KEEP_FILES: Final = 5
# What is kept in memory, for readers and for telling repeats: some 5 MB.
KEEP_EVENTS: Final = 5_000


class EventLog:
    """The list of everything that happened, numbered. One thread writes, any may read.

    Args:
        folder: Where `events.jsonl` lies; older ones are `events.1.jsonl`, `events.2.jsonl`, …
        max_file_bytes: A file that would grow beyond this is put aside first.
        keep_files: Files kept, the present one included.
        keep_events: Events that can be read back, the newest ones.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        keep_files: int = KEEP_FILES,
        keep_events: int = KEEP_EVENTS,
    ) -> None:
        """Read back what earlier processes wrote."""
        self._folder, self._max_file_bytes, self._keep_files = folder, max_file_bytes, keep_files
        self._entries: deque[dict[str, Any]] = deque(self._stored(), maxlen=keep_events)
        self._ids = {entry["event_id"] for entry in self._entries}
        self._lock = threading.Lock()
        self.last_seq: int = self._entries[-1]["seq"] if self._entries else 0

    def append(self, event: Event) -> bool:
        """Write an event down; False where it is there already. Raises OSError: it is not."""
        if event.event_id in self._ids:
            return False
        entry = {"seq": self.last_seq + 1, **event.to_json()}
        line = json.dumps(entry, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._rotate(len(line))
        with self._file(0).open("ab") as file:
            # A line that a crash cut off must not swallow this one.
            if file.tell() and not self._ends_whole():
                file.write(b"\n")
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._keep(entry)
        return True

    def read(
        self, after_seq: int = 0, *, limit: int, kinds: Sequence[EventKind] = ()
    ) -> list[dict[str, Any]]:
        """List events in order as plain JSON values: the newest `limit` of those that match.

        Args:
            after_seq: Only those with a higher number.
            limit: Most events.
            kinds: Only these; all where it is empty.
        """
        with self._lock:
            newer = [entry for entry in self._entries if entry["seq"] > after_seq]
        matching = [entry for entry in newer if not kinds or entry["kind"] in kinds]
        return matching[max(0, len(matching) - limit) :]

    def next_after(self, seq: int) -> dict[str, Any] | None:
        """Return the oldest event kept with a higher number, None where there is none."""
        with self._lock:
            return next((entry for entry in self._entries if entry["seq"] > seq), None)

    def _keep(self, entry: dict[str, Any]) -> None:
        with self._lock:
            if len(self._entries) == self._entries.maxlen:
                self._ids.discard(self._entries[0]["event_id"])
            self._entries.append(entry)
            self._ids.add(entry["event_id"])
            self.last_seq = entry["seq"]

    def _file(self, age: int) -> Path:
        """Name the file of an age, 0 for the present one."""
        return self._folder / (EVENTS_FILE if age == 0 else f"events.{age}.jsonl")

    def _rotate(self, coming_bytes: int) -> None:
        """Put the present file aside where it would grow too large, and drop the oldest."""
        present = self._file(0)
        if not present.exists() or present.stat().st_size + coming_bytes <= self._max_file_bytes:
            return
        for age in range(self._keep_files - 1, 0, -1):
            if self._file(age - 1).exists():
                self._file(age - 1).replace(self._file(age))
        present.unlink(missing_ok=True)

    def _ends_whole(self) -> bool:
        """Say whether the present file ends with a line break."""
        with self._file(0).open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _stored(self) -> Iterator[dict[str, Any]]:
        """Read what is on disk, oldest first; a line that a crash cut off is passed over."""
        for age in range(self._keep_files - 1, -1, -1):
            if not self._file(age).exists():
                continue
            for number, line in enumerate(self._file(age).read_bytes().splitlines(), start=1):
                try:
                    entry = json.loads(line)
                    yield {"seq": int(entry["seq"]), **Event.from_json(entry).to_json()}
                except (ValueError, KeyError, TypeError):
                    logger.warning("%s: line %d is no event", self._file(age).name, number)
