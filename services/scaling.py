"""How many replicas the load asks for: Serve's own measure, but no more than twice those that run.

Starting a replica costs some 3 s of processor time. On a small machine four that start at once hold
one another up, and the load they were called for goes on unserved; one after another, the first is
there in a third of the time and helps the next.
"""

from __future__ import annotations

import math
from typing import Any, cast

from ray.serve.config import AutoscalingConfig, AutoscalingContext


def at_most_double(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Return how many replicas are wanted, and no state of our own.

    Serve applies bounds and delays to what is returned. Replicas that are still starting do not
    count as running, so that the next doubling waits for them.
    """
    config = cast("AutoscalingConfig", context.config)  # None for an application's policy only
    wanted = math.ceil(context.total_num_requests / config.get_target_ongoing_requests())
    return min(wanted, max(1, 2 * context.current_num_replicas)), {}
