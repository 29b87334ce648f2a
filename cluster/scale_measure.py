"""Measures what the scaling model is fitted to: processor time by kind of process, and latency.

Processor time says what a request costs whatever else the machine does; latency is only as good as
the machine is calm.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from cluster.bench_serve import LESSONS, NUM_PROMPTS, wait_recorded
from cluster.bench_traffic import route_requests, short_prompts, teach
from cluster.client import ServiceClient
from cluster.load import LoadSample, open_loop
from cluster.service_process import service_process
from policies.encoder_files import EncoderKind

CONNECTIONS: Final = 64
# By how the command line of a process begins, in this order; the rest is `ray`.
KINDS: Final = {
    "proxy": ("haproxy",),
    "replica": ("ray::ServeReplica:barp:Router",),
    "aggregator": ("ray::AggregatorActor",),
    "keeper": ("ray::KeeperActor",),
    "trainer": ("ray::TrainerActor",),
}
OTHER: Final = "ray"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One fixed rate, held for a while.

    Attributes:
        replicas: Router replicas.
        rate: Requests asked for, per second.
        answered: Requests answered, per second.
        cpu_ms: Processor time a request by kind of process, milliseconds.
        p50_ms: Median latency, milliseconds.
        p99_ms: 99th percentile, milliseconds.
    """

    replicas: int
    rate: int
    answered: float
    cpu_ms: Mapping[str, float]
    p50_ms: float
    p99_ms: float


def measure_points(
    *,
    encoder: EncoderKind,
    encoder_dir: Path,
    replicas: Sequence[int],
    rates: Sequence[int],
    duration_s: float,
    progress: Progress,
) -> list[Point]:
    """Hold each rate on a service with each number of replicas.

    Raises:
        LaunchError: A service did not start.
    """
    points: list[Point] = []
    steps = len(replicas) * len(rates)
    for count in replicas:
        settings: dict[str, object] = {
            "encoder": encoder,
            "encoder_dir": encoder_dir.resolve(),
            "min_replicas": count,
            "max_replicas": count,
            # For the version that decides; nothing is reported afterwards, so nothing is trained.
            "retrain_min_interactions": LESSONS // 2,
            "holdout_share": 0.3,
            # Too few lessons for a trial.
            "gate": "estimate",
            "learners": "posterior",
        }
        with (
            tempfile.TemporaryDirectory(prefix="barp-scale-") as folder,
            service_process(Path(folder), settings) as service,
        ):
            prompts = short_prompts(NUM_PROMPTS)
            with ServiceClient(service.url) as client:
                decided = teach(client, prompts[:LESSONS])
                requests = route_requests(service.url, prompts)
                # The first is to warm up.
                for number, rate in enumerate((rates[0], *rates)):
                    progress(f"{count} replicas, {rate} requests/s", len(points), steps)
                    before = cpu_by_kind(service.tree())
                    sample = _held(service.url, requests, rate, duration_s)
                    # What the ledger does for a request counts, also where it does it later.
                    decided += sample.answered
                    wait_recorded(client, decided)
                    spent = since(before, cpu_by_kind(service.tree()))
                    if number:
                        points.append(_point(count, rate, sample, spent))
    return points


def _held(url: str, requests: Sequence[bytes], rate: int, seconds: float) -> LoadSample:
    """Hold one rate."""
    return asyncio.run(
        open_loop(url, requests, rate_per_s=rate, connections=CONNECTIONS, seconds=seconds)
    )


def _point(replicas: int, rate: int, sample: LoadSample, spent: Mapping[str, float]) -> Point:
    """Write one measurement down by the request."""
    return Point(
        replicas=replicas,
        rate=rate,
        answered=sample.rps,
        cpu_ms={kind: 1000 * seconds / sample.answered for kind, seconds in spent.items()},
        p50_ms=sample.percentile_ms(50),
        p99_ms=sample.percentile_ms(99),
    )


def since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Subtract one reading from a later one."""
    return {kind: after[kind] - before[kind] for kind in after}


def cpu_by_kind(processes: Sequence[psutil.Process]) -> dict[str, float]:
    """Sum processor time, seconds, by kind of process."""
    found = dict.fromkeys((*KINDS, OTHER), 0.0)
    for process in processes:
        try:
            times, words = process.cpu_times(), " ".join(process.cmdline())
        except psutil.Error:
            continue
        found[kind_of(words, process_name=_name(process))] += times.user + times.system
    return found


def kind_of(command: str, *, process_name: str) -> str:
    """Tell which kind a process is of.

    >>> kind_of("ray::ServeReplica:barp:Router", process_name="ray::ServeRepli")
    'replica'
    """
    for kind, beginnings in KINDS.items():
        if any(word in (command[: len(word)], process_name) for word in beginnings):
            return kind
    return OTHER


def _name(process: psutil.Process) -> str:
    """Read a process's name; empty where it has ended."""
    try:
        return str(process.name())
    except psutil.Error:
        return ""
