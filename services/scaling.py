"""How many replicas the load asks for: Serve's own measure, but no more than twice those that run.

Starting a replica costs some 3 s of processor time. On a small machine four that start at once hold
one another up, and the load they were called for goes on unserved; one after another, the first is
there in a third of the time and helps the next.
"""

from __future__ import annotations

import math
from typing import Any, Final, cast

from ray.serve.config import AutoscalingConfig, AutoscalingContext

# What a replica says of itself: requests in hand that Serve does not see, see services.shortcut.
IN_FLIGHT: Final = "barp_in_flight"


def at_most_double(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Return how many replicas are wanted, and no state of our own.

    Serve applies bounds and delays to what is returned. Replicas that are still starting do not
    count as running, so that the next doubling waits for them.
    """
    config = cast("AutoscalingConfig", context.config)  # None for an application's policy only
    requests = context.total_num_requests + _unseen_by_serve(context)
    wanted = math.ceil(requests / config.get_target_ongoing_requests())
    return min(wanted, max(1, 2 * context.current_num_replicas)), {}


def _unseen_by_serve(context: AutoscalingContext) -> float:
    """Add up what the replicas say; none of an encoder's does, nor one that has just started."""
    said = context.aggregated_metrics or {}
    return float(sum(said.get(IN_FLIGHT, {}).values()))
