"""Kills parts of a service under load, one after the other, and sees how each comes back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
import psutil

from cluster.chaos_audit import Audit, audit, read_kept
from cluster.chaos_load import Told, call_until
from cluster.client import ServiceClient
from cluster.places import places
from cluster.service_process import ServiceProcess, service_process
from cluster.settings import Settings
from policies.errors import RouterError

REPLICAS: Final = 2
# Out of a hundred kills; the rest of a division goes to the first ones.
SHARES: Final = {
    "replica": 40,
    "aggregator": 15,
    "proxy": 15,
    "trainer": 10,
    "publisher": 10,
    "controller": 7,
    "cluster": 3,
}
REPLICA: Final = "ray::ServeReplica:barp:Router"
AGGREGATOR: Final = "ray::AggregatorActor"
# How a part's processes are called.
TITLES: Final = {
    "replica": (REPLICA,),
    "aggregator": (AGGREGATOR, "ray::KeeperActor"),
    "proxy": ("/haproxy -db ", "ray::HAProxyManager"),
    "trainer": ("ray::TrainerActor",),
    "publisher": ("ray::PublisherActor",),
    "controller": ("ray::ServeController",),
}
# `barp status` says how these are.
REPORTED: Final = {"aggregator": "ledger", "trainer": "trainer", "publisher": "publisher"}
RECOVERY_TIMEOUT_S: Final = 60.0
PROBE_EVERY_S: Final = 0.1
PROBE_TIMEOUT_S: Final = 5.0
# Between two kills at least this, seconds.
CALM_S: Final = 2.0
SETTLE_TIMEOUT_S: Final = 60.0
# Longer than a supervisor takes to notice a start that hangs, and to start once more.
DOWN_TIMEOUT_S: Final = 300.0
MODELS: Final = {"small": 0.001, "large": 0.01}

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosPlan:
    """What is done to a service.

    Attributes:
        minutes: How long at least, minutes.
        kills: How many parts are killed.
        seed: Of the schedule and the outcomes.
        rate_per_s: Requests a second while all is well.
        settings: Settings of the service, by name.
    """

    minutes: float
    kills: int
    seed: int
    rate_per_s: float
    settings: dict[str, object]


def schedule(kills: int, seed: int) -> list[str]:
    """Draw which part dies when: each as often as its share says, in an order of chance.

    >>> sorted(set(schedule(100, seed=0))) == sorted(SHARES)
    True
    """
    counts = {part: kills * share // 100 for part, share in SHARES.items()}
    for part in list(SHARES)[::-1]:
        # With few kills the rare parts come first: each is seen as soon as there are enough.
        if sum(counts.values()) < kills and counts[part] == 0:
            counts[part] = 1
    while (missing := kills - sum(counts.values())) > 0:
        for part in list(SHARES)[:missing]:
            counts[part] += 1
    order = [part for part, count in counts.items() for _ in range(count)]
    random.Random(seed).shuffle(order)
    return order


def run_chaos(plan: ChaosPlan, state_dir: Path, *, progress: Progress) -> dict[str, Any]:
    """Start a supervised service, kill parts of it under load, stop it, and audit what it kept.

    Args:
        plan: What is done.
        state_dir: A folder for the service's state; must be new.
        progress: Told each kill in a few words.

    Raises:
        LaunchError: The service did not start, or did not stop in order.
    """
    settings: dict[str, object] = {"min_replicas": REPLICAS, "max_replicas": REPLICAS}
    settings |= {"encoder": "static"} | plan.settings
    place = places(Settings.model_validate({"state_dir": state_dir} | settings))
    told = Told()
    with service_process(state_dir, settings, supervise=True) as service:
        with ServiceClient(service.url) as client:
            for name, usd in MODELS.items():
                client.put_model(name, {"usd_per_call": usd})
        recovery_s, killed = asyncio.run(_under_load(service, plan, told, progress))
        progress("settling: what waits for its decision joins, or is orphaned")
        ready = _settled(service)
    progress("audit")
    found = audit(told, read_kept(place.ledger_url, place.dataset_dir))
    return _report(plan, told, found, killed, recovery_s, ready_at_end=ready)


async def _under_load(
    service: ServiceProcess, plan: ChaosPlan, told: Told, progress: Progress
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Kill as scheduled while callers call; return times of recovery, and kills, by part."""
    stop = asyncio.Event()
    load = asyncio.create_task(
        call_until(service.url, rate_per_s=plan.rate_per_s, stop=stop, told=told, seed=plan.seed)
    )
    rng, began = random.Random(plan.seed), time.monotonic()
    recovery_s: dict[str, list[float]] = defaultdict(list)
    killed: dict[str, int] = dict.fromkeys(SHARES, 0)
    order = schedule(plan.kills, plan.seed)
    # HAProxies that are about to go may stand beside the new one.
    whole = {REPLICA: REPLICAS, AGGREGATOR: int(str(plan.settings.get("aggregator_shards", 1)))}
    every_s = 60.0 * plan.minutes / max(1, plan.kills)
    for number, part in enumerate(order):
        due = began + number * every_s
        await asyncio.sleep(max(CALM_S, due - time.monotonic()))
        spent_s = await _kill(service, part, whole, rng)
        if spent_s is None:
            progress(f"{number + 1} of {len(order)}: no {part} there, the service is down")
            break
        killed[part] += 1
        recovery_s[part].append(spent_s)
        progress(f"{number + 1} of {len(order)}: {part}, back after {spent_s:.1f} s")
    await asyncio.sleep(max(CALM_S, began + 60.0 * plan.minutes - time.monotonic()))
    stop.set()
    await load
    return recovery_s, killed


async def _kill(
    service: ServiceProcess, part: str, whole: Mapping[str, int], rng: random.Random
) -> float | None:
    """Kill one process of a part; return after how many seconds it was back, at most 60.

    None where there was none to kill for so long that nothing will start one.
    """
    victim = await _shoot(service, part, rng)
    if victim is None:
        return None
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=service.url, timeout=PROBE_TIMEOUT_S) as http:
        while (spent_s := time.monotonic() - began) < RECOVERY_TIMEOUT_S:
            if await _is_back(service, part, victim, whole, http):
                return spent_s
            await asyncio.sleep(PROBE_EVERY_S)
    return RECOVERY_TIMEOUT_S


async def _shoot(service: ServiceProcess, part: str, rng: random.Random) -> int | None:
    """Kill a process of a part, and return which; wait for one where there is none so far."""
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while True:
        found = await asyncio.to_thread(_processes, service, part)
        alive = sorted(pid for pids in found.values() for pid in pids)
        if alive:
            victim = rng.choice(alive)
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                return victim
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(PROBE_EVERY_S)


async def _is_back(
    service: ServiceProcess,
    part: str,
    victim: int,
    whole: Mapping[str, int],
    http: httpx.AsyncClient,
) -> bool:
    """Say whether a part has all its processes again, and the service answers and is whole."""
    now = await asyncio.to_thread(_processes, service, part)
    if part == "cluster":
        # Nobody else answers: replicas of the one that was killed are no descendants of ours.
        now |= await asyncio.to_thread(_processes, service, "replica")
        whole = {}
    if any(victim in pids or len(pids) < whole.get(title, 1) for title, pids in now.items()):
        return False
    try:
        if (await http.get("/readyz")).status_code != httpx.codes.OK:
            return False
        if part not in REPORTED:
            return True
        status = (await http.get("/v1/status")).json()
    except (httpx.TransportError, ValueError):
        return False
    return "away" not in status.get(REPORTED[part], {"away": ""})


def _processes(service: ServiceProcess, part: str) -> dict[str, set[int]]:
    """List the process ids of a part by title; of the cluster that is `barp serve`."""
    titles = TITLES.get(part, (part,))
    try:
        if part == "cluster":
            return {part: {p.pid for p in service.process.children() if p.is_running()}}
        tree = service.process.children(recursive=True)
    except psutil.Error:
        return {title: set() for title in titles}
    return {title: {p.pid for p in tree if _is_called(p, title)} for title in titles}


def _is_called(process: psutil.Process, title: str) -> bool:
    """Say whether a process lives and is called so."""
    try:
        words = " ".join(process.cmdline()) + " "
        return title in words and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _settled(service: ServiceProcess) -> bool:
    """Wait until nothing waits for its decision any more; say whether the service is ready."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    with ServiceClient(service.url) as client:
        while time.monotonic() < deadline:
            with suppress(RouterError):
                if client.get("/v1/status")["ledger"].get("pending") == 0:
                    break
            time.sleep(0.5)
    try:
        answer = httpx.get(f"{service.url}/readyz", timeout=PROBE_TIMEOUT_S)
    except httpx.TransportError:
        return False
    return answer.status_code == httpx.codes.OK


def _report(
    plan: ChaosPlan,
    told: Told,
    found: Audit,
    killed: dict[str, int],
    recovery_s: dict[str, list[float]],
    *,
    ready_at_end: bool,
) -> dict[str, Any]:
    """Put the figures together."""
    flush_s = float(str(plan.settings.get("record_flush_ms", 50.0))) / 1000
    return {
        "kills": killed,
        "requests": told.requests,
        "repeated": told.repeated,
        "failed_after_retry": told.failed,
        "refusals": told.refusals,
        "decisions": len(told.decided),
        "acknowledged": found.acknowledged,
        "lost": found.lost,
        "doubled": found.doubled,
        "orphaned": found.orphaned,
        # Half of the requests decide; each kill may take what was decided since the last flush.
        "orphan_bound": round(sum(killed.values()) * flush_s * plan.rate_per_s / 2),
        "decisions_lost": found.decisions_lost,
        "recovery_s": {
            part: {"median": round(median(times), 2), "max": round(max(times), 2)}
            for part, times in recovery_s.items()
        },
        "ready_at_end": ready_at_end,
    }
