"""The caller's trade-off between quality and cost, checked once at the door."""

from __future__ import annotations

import math
from dataclasses import dataclass

from policies.errors import InvalidPreference


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """A caller's trade-off: a point on the simplex of quality and cost.

    >>> Preference(quality=0.9, cost=0.9)
    Traceback (most recent call last):
    ...
    policies.errors.InvalidPreference: quality=0.9 and cost=0.9 must be >= 0 and sum to 1
    """

    quality: float
    cost: float

    def __post_init__(self) -> None:
        """Refuse a point off the simplex, NaN included."""
        on_simplex = math.isclose(self.quality + self.cost, 1.0)
        if not (on_simplex and self.quality >= 0 and self.cost >= 0):
            raise InvalidPreference(quality=self.quality, cost=self.cost)

    @classmethod
    def normalised(cls, *, quality: float = 0.0, cost: float = 0.0) -> Preference:
        """Scale two weights to sum to one; a weight that is not given is 0.

        Raises:
            InvalidPreference: A weight is negative or not finite, or both are 0.

        >>> Preference.normalised(quality=3, cost=1)
        Preference(quality=0.75, cost=0.25)
        """
        usable = math.isfinite(quality) and math.isfinite(cost) and quality >= 0 and cost >= 0
        largest = max(quality, cost)
        if not usable or largest == 0:
            raise InvalidPreference(quality=quality, cost=cost)
        # Divide by the larger one first: the plain sum of two huge weights overflows.
        scaled_quality, scaled_cost = quality / largest, cost / largest
        w_quality = scaled_quality / (scaled_quality + scaled_cost)
        return cls(quality=w_quality, cost=1.0 - w_quality)


def preference_grid(num_points: int = 11) -> tuple[Preference, ...]:
    """List evenly spaced trade-offs from all cost to all quality.

    >>> [point.quality for point in preference_grid(3)]
    [0.0, 0.5, 1.0]
    """
    last = num_points - 1
    return tuple(Preference(quality=i / last, cost=1.0 - i / last) for i in range(num_points))
