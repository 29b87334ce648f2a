"""Which of several aggregators takes a decision: its id says so, whoever asks."""

from __future__ import annotations

import zlib
from typing import Final

# What two writers may never do at once is told by slot. Not by shard: their number changes.
SLOTS: Final = 64
MAX_SHARDS: Final = 16


def slot_of(decision_id: str) -> int:
    """Return the slot of a decision, 0 to SLOTS - 1; the same on every machine, for good.

    >>> slot_of("a"), slot_of("b")
    (3, 57)
    """
    return zlib.crc32(decision_id.encode(errors="surrogatepass")) % SLOTS


def shard_of(decision_id: str, shards: int) -> int:
    """Return which of `shards` aggregators, counted from 0, takes a decision.

    >>> [shard_of("b", shards) for shards in (1, 2, 5)]
    [0, 1, 2]
    """
    return slot_of(decision_id) % shards
