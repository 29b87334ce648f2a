"""The soak of `barp bench serve`: minutes of steady load, outcomes reported, memory watched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import psutil

from cluster.client import ServiceClient
from cluster.load import LoadSample, open_loop
from cluster.process_use import unique_mb

SHARE: Final = 0.7  # of the rate at saturation
REPORT_EVERY_S: Final = 1.0
LOOK_EVERY_S: Final = 5.0
# Of the soak: caches fill, the first versions are trained.
WARM_UP_SHARE: Final = 0.25
# How much unique memory may grow between the end of the warm-up and the end.
MAY_GROW_SHARE: Final = 0.05
MAY_GROW_MB: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """What steady load came to.

    Attributes:
        sample: The load itself.
        reported: Outcomes that the service acknowledged.
        memory_mb: Unique memory of each process at each look, MB, by kind and process id.
    """

    sample: LoadSample
    reported: int
    memory_mb: Mapping[str, Sequence[float]]

    def summary(self) -> dict[str, Any]:
        """Return plain JSON values; `flat` is whether no process grew beyond what it may."""
        memory = {name: growth(values) for name, values in self.memory_mb.items()}
        return {
            "seconds": self.sample.seconds,
            "rate": self.sample.sent / self.sample.seconds,
            "p50_ms": self.sample.percentile_ms(50),
            "p99_ms": self.sample.percentile_ms(99),
            "failed": self.sample.failed,
            "reported": self.reported,
            "memory_mb": memory,
            "flat": all(one["grown"] <= one["may_grow"] for one in memory.values()),
        }


def growth(values: Sequence[float]) -> dict[str, float]:
    """Sum up one process's memory: what the straight line through it rises after the warm-up.

    Args:
        values: Unique memory at even distances in time, MB, at least one.

    >>> growth([10.0, 50.0, 50.0, 51.0, 52.0])
    {'start': 50.0, 'grown': 2.1, 'may_grow': 20.0}
    """
    warm = np.array(values[int(np.ceil(WARM_UP_SHARE * (len(values) - 1))) :])
    times = np.arange(len(warm))
    slope = float(np.polyfit(times, warm, 1)[0]) if len(warm) > 1 else 0.0
    return {
        "start": float(warm[0]),
        "grown": round(slope * (len(warm) - 1), 1),
        "may_grow": max(MAY_GROW_SHARE * float(warm[0]), MAY_GROW_MB),
    }


@dataclass
class _Reporter:
    """Reports an outcome for every answer, in lists."""

    client: ServiceClient
    answers: list[bytes] = field(default_factory=list)
    reported: int = 0

    def report(self) -> None:
        """Report what has been answered since the last time; raises where the service refuses."""
        answers, self.answers = self.answers, []
        ids = [json.loads(answer)["decision_id"] for answer in answers]
        outcomes = [{"decision_id": i, "quality": 1.0, "cost_usd": 1e-4} for i in ids]
        for at in range(0, len(outcomes), 1_000):
            part = outcomes[at : at + 1_000]
            results = self.client.post("/v1/feedback", part)["results"]
            self.reported += sum(one["status"] in ("joined", "pending") for one in results)


async def soak(
    url: str,
    requests: Sequence[bytes],
    client: ServiceClient,
    tree: Callable[[], Sequence[psutil.Process]],
    *,
    rate_per_s: float,
    connections: int,
    seconds: float,
) -> Soak:
    """Send at a fixed rate for a long time, report on everything, and look at memory.

    Args:
        url: Where the service is.
        requests: What to send, over and over.
        client: Another way to the same service, for reports.
        tree: Lists the service's processes.
        rate_per_s: Requests a second.
        connections: Most requests under way at once.
        seconds: How long.
    """
    reporter = _Reporter(client)
    memory: dict[str, list[float]] = {}
    load = asyncio.create_task(
        open_loop(
            url,
            requests,
            rate_per_s=rate_per_s,
            connections=connections,
            seconds=seconds,
            seen=lambda body: reporter.answers.append(body),
        )
    )
    looks = 0.0
    while not load.done():
        await asyncio.wait({load}, timeout=REPORT_EVERY_S)
        await asyncio.to_thread(reporter.report)
        looks += REPORT_EVERY_S
        if looks >= LOOK_EVERY_S:
            looks = 0.0
            for name, used in (await asyncio.to_thread(unique_mb, tree())).items():
                memory.setdefault(name, []).append(used)
    sample = await load
    await asyncio.to_thread(reporter.report)
    # A process that came late or went early says nothing of growth.
    whole = max(map(len, memory.values()), default=0)
    lasting = {name: values for name, values in memory.items() if len(values) == whole}
    return Soak(sample=sample, reported=reporter.reported, memory_mb=lasting)
