"""Time that moves when a test says so."""

from __future__ import annotations

START_S = 1_800_000_000.0


class Clock:
    """Seconds since the epoch, moved by hand."""

    def __init__(self, now: float = START_S) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now
