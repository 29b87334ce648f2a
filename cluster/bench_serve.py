"""`barp bench serve`: what a request costs, beside what the machine gives, in one run.

The service over HTTP, its batch route, a bare no-op server and the same pipeline without any server
take turns, several rounds, so that a slow phase of the machine hits all of them; medians count.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeVar

import uvloop

from cluster.bench_soak import SHARE as SOAK_SHARE
from cluster.bench_soak import Soak, soak
from cluster.bench_swap import swap_under_load
from cluster.bench_traffic import (
    batch_requests,
    noop_server,
    route_requests,
    short_prompts,
    teach,
)
from cluster.client import ServiceClient
from cluster.load import OPEN_CONNECTIONS, LoadSample, closed_loop, open_loop
from cluster.pipeline_rates import PipelineRates, pipeline_rates
from cluster.process_use import cpu_seconds, memory_mb
from cluster.service_process import ServiceProcess, service_process
from policies.encoder_files import EncoderKind

NUM_PROMPTS: Final = 2_000
LESSONS: Final = 600
BATCH: Final = 64
BATCH_CLIENTS: Final = 4
WARM_UP_S: Final = 3.0
# Of the rate at saturation; the highest that keeps a bound is the frontier's point.
FRONTIER_SHARES: Final = (0.2, 0.35, 0.5, 0.65, 0.8)
P99_BOUNDS_MS: Final = (5.0, 10.0, 25.0, 50.0)
SETTLE_TIMEOUT_S: Final = 60.0
SETTLE_EVERY_S: Final = 0.5

Progress = Callable[[str, int, int], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan:
    """What to measure.

    Attributes:
        encoder: Which encoder serves.
        encoder_dir: Where it lies.
        replicas: Router replicas, the same number all the time.
        duration_s: How long each measurement takes, seconds.
        rounds: How often the contenders take turns.
        clients: Clients of the closed loop.
        rates: Fixed rates to measure latency at, requests per second.
        soak_s: How long to go on at 70 % of saturation, seconds; 0 for not at all.
    """

    encoder: EncoderKind
    encoder_dir: Path
    replicas: int = 1
    duration_s: float = 5.0
    rounds: int = 3
    clients: int = 32
    rates: tuple[int, ...] = (100, 500)
    soak_s: float = 0.0

    @property
    def steps(self) -> int:
        """How many steps a run shows."""
        return 3 + 4 * self.rounds + len(self.rates) + len(FRONTIER_SHARES) + 2 + (self.soak_s > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One turn of every contender.

    Attributes:
        http: The service, one prompt a request.
        batch: The service, BATCH prompts a request.
        noop: A server that does nothing, on uvicorn and FastAPI.
        raw: One on uvicorn alone.
        pipeline: Encoder and policy without any server.
        cpu_s: Processor time that the service's processes took for `http`, seconds.
    """

    http: LoadSample
    batch: LoadSample
    noop: LoadSample
    raw: LoadSample
    pipeline: PipelineRates
    cpu_s: float


def run_serve_benchmark(plan: ServePlan, *, progress: Progress) -> dict[str, Any]:
    """Measure one configuration; return plain JSON values.

    Raises:
        LaunchError: The service or the no-op server did not start.
    """
    settings: dict[str, object] = {
        "encoder": plan.encoder,
        "encoder_dir": plan.encoder_dir.resolve(),
        "min_replicas": plan.replicas,
        "max_replicas": plan.replicas,
        "retrain_min_interactions": LESSONS // 2,
        "gate": "estimate",
        "holdout_share": 0.3,
        # The default learner alone: which of several serves would be the judge's choice.
        "learners": "posterior",
    }
    steps = iter(range(plan.steps))

    def show(step: str) -> None:
        progress(step, next(steps), plan.steps)

    show("starting the service")
    with (
        tempfile.TemporaryDirectory(prefix="barp-bench-") as folder,
        noop_server("plain") as noop_url,
        noop_server("app") as raw_url,
        service_process(Path(folder), settings) as service,
    ):
        found = _measure(plan, service, (noop_url, raw_url), show)
    return {"encoder": plan.encoder, "replicas": plan.replicas, "start_s": service.start_s} | found


def _measure(
    plan: ServePlan, service: ServiceProcess, bare: tuple[str, str], show: Callable[[str], None]
) -> dict[str, Any]:
    """Measure a running service from a first lesson to the count of what it recorded."""
    prompts = short_prompts(NUM_PROMPTS)
    single = route_requests(service.url, prompts)
    with ServiceClient(service.url) as client:
        show("teaching it")
        taught = teach(client, prompts[:LESSONS])
        warm = _run(closed_loop(service.url, single, clients=plan.clients, seconds=WARM_UP_S))
        rounds = [_round(plan, service, bare, prompts, show) for _ in range(plan.rounds)]
        show("one client")
        settle(client)
        alone = _run(closed_loop(service.url, single, clients=1, seconds=plan.duration_s))
        fixed = {rate: _at(plan, service, client, single, rate, show) for rate in plan.rates}
        saturation = median(one.http.rps for one in rounds)
        rates = [round(share * saturation) for share in FRONTIER_SHARES]
        frontier = {rate: _at(plan, service, client, single, rate, show) for rate in rates}
        show("swapping versions under load")
        load = swap_under_load(
            service.url, client, single, saturation=saturation, seconds=plan.duration_s
        )
        swap, swap_samples = _run(load)
        soaked = _soak(plan, service, client, single, saturation, show)
        show("counting what was recorded")
        samples = [warm, alone, *(r.http for r in rounds), *fixed.values(), *frontier.values()]
        samples += [*swap_samples, *([soaked.sample] if soaked else [])]
        batches = [one.batch for one in rounds]
        decided = taught + sum(s.answered for s in samples)
        decided += BATCH * sum(s.answered for s in batches)
        recorded = wait_recorded(client, decided)
        # All outcomes but the lessons' are the soak's.
        joined = int(client.get("/v1/status")["ledger"]["joined"]) - taught
    return {
        **summary(rounds),
        "one_client": _latency(alone),
        # What one prompt takes in one process: the measure of `one_client` with a heavy encoder.
        "encode_ms": 1000 * plan.replicas / median(r.pipeline.encode for r in rounds),
        "fixed_rate": {str(rate): _latency(sample) for rate, sample in fixed.items()},
        "frontier": _frontier(frontier),
        "swap": swap,
        "failed": sum(sample.failed for sample in [*samples, *batches]),
        "decided": decided,
        "recorded": recorded,
        "uss_mb": memory_mb(service.tree()),
        **({"soak": soaked.summary() | {"joined": joined}} if soaked else {}),
    }


def _round(
    plan: ServePlan,
    service: ServiceProcess,
    bare: tuple[str, str],
    prompts: Sequence[str],
    show: Callable[[str], None],
) -> Round:
    """Let every contender have its turn."""
    single = route_requests(service.url, prompts)
    batch = batch_requests(service.url, prompts, size=BATCH)
    seconds = plan.duration_s
    show("one prompt a request")
    cpu_before = cpu_seconds(service.tree())
    http = _run(closed_loop(service.url, single, clients=plan.clients, seconds=seconds))
    cpu_s = cpu_seconds(service.tree()) - cpu_before
    show(f"{BATCH} prompts a request")
    batched = _run(closed_loop(service.url, batch, clients=BATCH_CLIENTS, seconds=seconds))
    show("a bare server")
    noop, raw = (
        _run(closed_loop(url, single, clients=plan.clients, seconds=seconds / 2)) for url in bare
    )
    show("no server")
    pipeline = pipeline_rates(
        plan.encoder_dir,
        service.state_dir / "published",
        prompts,
        processes=plan.replicas,
        seconds=seconds,
    )
    return Round(http=http, batch=batched, noop=noop, raw=raw, pipeline=pipeline, cpu_s=cpu_s)


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Take medians over the rounds, and ratios within each round first."""
    return {
        "http": {"rps": median(r.http.rps for r in rounds)}
        | {f"p{p}_ms": median(r.http.percentile_ms(p) for r in rounds) for p in (50, 95, 99)},
        "http_batch": {
            "decisions_per_s": BATCH * median(r.batch.rps for r in rounds),
            "p99_ms": median(r.batch.percentile_ms(99) for r in rounds),
        },
        "uvicorn_noop_rps": median(r.noop.rps for r in rounds),
        "raw_asgi_rps": median(r.raw.rps for r in rounds),
        "inprocess_rps": median(r.pipeline.decide for r in rounds),
        "encode_rps": median(r.pipeline.encode for r in rounds),
        "ratio_to_noop": median(r.http.rps / r.noop.rps for r in rounds),
        "ratio_to_raw_asgi": median(r.http.rps / r.raw.rps for r in rounds),
        "ratio_to_inprocess": median(r.http.rps / r.pipeline.decide for r in rounds),
        "ratio_to_encode": median(r.http.rps / r.pipeline.encode for r in rounds),
        "cpu_s_per_1000": median(1000 * r.cpu_s / max(r.http.answered, 1) for r in rounds),
    }


def _at(
    plan: ServePlan,
    service: ServiceProcess,
    client: ServiceClient,
    requests: Sequence[bytes],
    rate: int,
    show: Callable[[str], None],
) -> LoadSample:
    """Measure latency at a fixed rate."""
    show(f"{rate} requests a second")
    settle(client)
    return _run(
        open_loop(
            service.url,
            requests,
            rate_per_s=rate,
            connections=OPEN_CONNECTIONS,
            seconds=plan.duration_s,
        )
    )


def _soak(
    plan: ServePlan,
    service: ServiceProcess,
    client: ServiceClient,
    requests: Sequence[bytes],
    saturation: float,
    show: Callable[[str], None],
) -> Soak | None:
    """Go on at a share of the rate at saturation, where that is asked for."""
    if plan.soak_s <= 0:
        return None
    show(f"{plan.soak_s:.0f} s at {SOAK_SHARE:.0%} of saturation")
    load = soak(
        service.url,
        requests,
        client,
        service.tree,
        rate_per_s=SOAK_SHARE * saturation,
        connections=OPEN_CONNECTIONS,
        seconds=plan.soak_s,
    )
    return _run(load)


def _latency(sample: LoadSample) -> dict[str, Any]:
    """Sum up a run at a fixed rate."""
    return {
        "p50_ms": sample.percentile_ms(50),
        "p99_ms": sample.percentile_ms(99),
        "failed": sample.failed,
    }


def _frontier(samples: Mapping[int, LoadSample]) -> dict[str, int]:
    """Return the highest rate measured that kept each bound on p99; 0 where none did."""
    return {
        f"{bound:g}": max(
            (rate for rate, sample in samples.items() if sample.percentile_ms(99) <= bound),
            default=0,
        )
        for bound in P99_BOUNDS_MS
    }


def settle(client: ServiceClient) -> None:
    """Wait until what came before is recorded: catching up is no part of what comes next."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    before = -1
    while time.monotonic() < deadline:
        recorded = int(client.get("/v1/status")["ledger"]["decisions"])
        if recorded == before:
            return
        before = recorded
        time.sleep(SETTLE_EVERY_S)


def wait_recorded(client: ServiceClient, decided: int) -> int:
    """Wait until the ledger has as many decisions as were made, at most a minute; return its."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        recorded = int(client.get("/v1/status")["ledger"]["decisions"])
        if recorded >= decided or time.monotonic() > deadline:
            return recorded
        time.sleep(0.2)


def _run(load: Coroutine[Any, Any, T]) -> T:
    """Run load on an event loop of its own."""
    return uvloop.run(load)
