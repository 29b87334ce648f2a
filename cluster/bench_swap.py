"""A swap of versions under load, as `barp bench serve` measures it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from cluster.client import ServiceClient
from cluster.load import OPEN_CONNECTIONS, LoadSample, open_loop

# Requests a second, and of the rate at saturation at most: with a heavy encoder that is lower.
RATE: Final = 500
SHARE: Final = 0.5


async def swap_under_load(
    url: str,
    client: ServiceClient,
    requests: Sequence[bytes],
    *,
    saturation: float,
    seconds: float,
) -> tuple[dict[str, Any], list[LoadSample]]:
    """Promote another version under load; compare latency with the same load before.

    Args:
        url: Where the service is; with two versions to move between.
        client: Another way to it, for operating.
        requests: What to send, over and over.
        saturation: Requests a second that it answers at most.
        seconds: How long the load lasts, before and during the move each.
    """
    rate = min(RATE, SHARE * saturation)

    def load() -> Coroutine[Any, Any, LoadSample]:
        return open_loop(
            url,
            requests,
            rate_per_s=rate,
            connections=OPEN_CONNECTIONS,
            seconds=seconds,
        )

    before = await load()
    during = asyncio.create_task(load())
    await asyncio.sleep(seconds / 2)
    move = await asyncio.to_thread(client.post, "/v1/versions/rollback", {"why": "benchmark"})
    after = await during
    swap_ms = (await asyncio.to_thread(client.get, "/v1/status"))["publisher"]["swap_ms"]
    found = {
        "rate": rate,
        "p99_before_ms": before.percentile_ms(99),
        "p99_during_ms": after.percentile_ms(99),
        "swap_ms_max": max(swap_ms, default=None),
        "replicas_swapped": move["replicas_swapped"],
        "failed": before.failed + after.failed,
    }
    return found, [before, after]
