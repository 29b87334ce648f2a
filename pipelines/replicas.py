"""Who holds which publication since when, from what the replicas say with each poll."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from policies.publication import Publication
from policies.versions import Rollout

KEEP_ANNOUNCED: Final = 100
KEEP_SWAPS: Final = 1000
MS_PER_S: Final = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What one replica said when it last called."""

    revision: int
    swapped_at: float | None
    seen_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Announced:
    """What a revision held, and since when it was there to be had."""

    version: int
    published_at: float


class Replicas:
    """The replicas that called lately, and how fast they swap.

    Args:
        live_s: A replica that has not called for so long counts as gone, seconds.
        clock: Seconds since the epoch, UTC.
    """

    def __init__(self, *, live_s: float, clock: Callable[[], float]) -> None:
        self._live_s, self._clock = live_s, clock
        self._seen: Mapping[str, _Seen] = {}
        self._announced: dict[int, _Announced] = {}
        self._swaps_ms: deque[float] = deque(maxlen=KEEP_SWAPS)

    def announced(self, publication: Publication) -> None:
        """Note a publication, so that the way to it can be timed."""
        self._announced[publication.revision] = _Announced(
            version=publication.version, published_at=publication.published_at
        )
        while len(self._announced) > KEEP_ANNOUNCED:
            del self._announced[min(self._announced)]

    def acknowledge(self, replica_id: str, revision: int, swapped_at: float | None) -> None:
        """Note what a replica holds, and since when (seconds since the epoch, UTC)."""
        before = self._seen.get(replica_id)
        seen = _Seen(revision=revision, swapped_at=swapped_at, seen_at=self._clock())
        self._seen = {**self._live(), replica_id: seen}
        if before is not None and before.revision < revision:
            self._time_swap(before, seen)

    def holding(self) -> dict[str, int]:
        """Return the revision held, by id of each live replica."""
        return {name: seen.revision for name, seen in self._live().items()}

    def waiting(self, revision: int) -> tuple[str, ...]:
        """List the live replicas that hold an older revision."""
        return tuple(name for name, held in self.holding().items() if held < revision)

    def rollout(self, revision: int) -> Rollout:
        """Say how far a revision has come; KeyError for one long forgotten."""
        announced = self._announced[revision]
        swapped = {
            name: max(0.0, (seen.swapped_at or seen.seen_at) - announced.published_at)
            for name, seen in self._live().items()
            if seen.revision >= revision
        }
        return Rollout(
            revision=revision,
            version=announced.version,
            published_at=announced.published_at,
            swapped=swapped,
            waiting=self.waiting(revision),
        )

    def swaps_ms(self) -> tuple[float, ...]:
        """List the latest changes of version, one per replica: publication to swap, ms."""
        return tuple(self._swaps_ms)

    def _time_swap(self, before: _Seen, seen: _Seen) -> None:
        """Time a change of version; new prices and a replica's first policy are none."""
        old, new = self._announced.get(before.revision), self._announced.get(seen.revision)
        if old is None or new is None or old.version == new.version or seen.swapped_at is None:
            return
        self._swaps_ms.append(max(0.0, seen.swapped_at - new.published_at) * MS_PER_S)

    def _live(self) -> Mapping[str, _Seen]:
        """Replicas seen lately; one that polls now was seen at most one poll ago."""
        oldest = self._clock() - self._live_s
        return {name: seen for name, seen in self._seen.items() if seen.seen_at >= oldest}
