"""The requests of a replay, with every chance drawn before the first one is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

Stream = Literal["uniform", "typical"]

# The `typical` stream: most callers leave the default preference as it is.
TYPICAL_SHARE: Final = 0.7
DEFAULT_QUALITY_WEIGHT: Final = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    """One request.

    Attributes:
        number: Its place in the replay; names its feedback event.
        row: Row of the outcome table.
        w_quality: The caller's weight on quality, in [0, 1].
        delay_s: From the decision to its feedback, seconds.
        is_missing: Whether its outcome never comes back.
        is_repeated: Whether its outcome comes back twice.
    """

    number: int
    row: int
    w_quality: float
    delay_s: float
    is_missing: bool
    is_repeated: bool


def plan_requests(
    num_rows: int,
    num_requests: int,
    *,
    preferences: Stream,
    delay_s: tuple[float, float],
    missing_share: float,
    duplicate_share: float,
    seed: int,
) -> list[PlannedRequest]:
    """Draw requests over all rows in random order; the same seed gives the same ones.

    Args:
        num_rows: Rows of the outcome table; each is used once before any is used twice.
        num_requests: How many requests.
        preferences: `uniform` draws w_q on [0, 1]; `typical` leaves 70 % at the default 0.7.
        delay_s: Shortest and longest delay of an outcome, seconds.
        missing_share: Share of outcomes that never come back, in [0, 1].
        duplicate_share: Share of outcomes that come back twice, in [0, 1].
        seed: Of all draws.
    """
    generator = np.random.default_rng(seed)
    passes = -(-num_requests // num_rows)
    rows = [row for _ in range(passes) for row in generator.permutation(num_rows).tolist()]
    w_quality = generator.uniform(size=num_requests)
    if preferences == "typical":
        w_quality[generator.uniform(size=num_requests) < TYPICAL_SHARE] = DEFAULT_QUALITY_WEIGHT
    delays = generator.uniform(*delay_s, size=num_requests)
    is_missing = generator.uniform(size=num_requests) < missing_share
    is_repeated = generator.uniform(size=num_requests) < duplicate_share
    return [
        PlannedRequest(
            number=number,
            row=rows[number],
            w_quality=float(w_quality[number]),
            delay_s=float(delays[number]),
            is_missing=bool(is_missing[number]),
            is_repeated=bool(is_repeated[number]),
        )
        for number in range(num_requests)
    ]
