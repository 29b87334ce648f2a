"""The Serve deployments: plain classes, put together here and nowhere else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from policies.encoder import load_encoder
from policies.learners import load_policy
from policies.tracing import tracing_from_environment
from services.actors import Ports
from services.api import Api
from services.champion import ChampionSource
from services.decision_ids import DecisionIds
from services.door import Door
from services.encoders import Encoder, RemoteEncoder, ThreadedEncoder
from services.feedback import Feedback
from services.metrics import MetricsPusher, ReplicaMetrics
from services.operations import Operations
from services.recorder import Recorder
from services.router import Router, RouterArgs
from services.scaling import IN_FLIGHT, at_most_double
from services.shards import named_ports
from services.shortcut import mount
from services.spool import Spool
from services.tracing import RequestTracing

# How often load is reported: at Serve's default of 10 s no replica is added within 10 s.
METRICS_INTERVAL_S: Final = 0.5
# Of the grace that Serve gives a replica, what is left for the buffer after requests in flight.
DRAIN_S: Final = 15.0
GRACE_S: Final = 20.0
HEALTH_PERIOD_S: Final = 5.0
HEALTH_TIMEOUT_S: Final = 30.0
ENCODE_BATCH: Final = 16
ENCODE_WAIT_S: Final = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """How many replicas a deployment has, and when that changes.

    Attributes:
        min_replicas: Replicas at rest.
        max_replicas: Replicas at most.
        target_ongoing_requests: Requests in flight per replica that scaling aims at.
        upscale_delay_s: Load must last this long, s.
        downscale_delay_s: Calm must last this long, s.
        look_back_s: Window the load is averaged over, s.
        num_cpus: CPUs one replica reserves. Serve's default of 1 leaves nothing to scale to on a
            small machine.
        num_gpus: GPUs one replica reserves.
        max_replicas_per_node: Replicas on one node at most; None leaves it to Serve, which
            spreads them where it can.
        max_ongoing_requests: Requests one replica takes at once; further ones wait for another.
    """

    min_replicas: int = 1
    max_replicas: int = 4
    target_ongoing_requests: float = 4.0
    upscale_delay_s: float = 2.0
    downscale_delay_s: float = 30.0
    look_back_s: float = 4.0
    num_cpus: float = 0.2
    num_gpus: float = 0.0
    max_replicas_per_node: int | None = None
    max_ongoing_requests: int = 64

    def options(self) -> dict[str, Any]:
        """Return the options of a Serve deployment.

        Threads need no option: Ray sets OMP_NUM_THREADS to 1 for a replica of less than one CPU.
        """
        return {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=self.min_replicas,
                max_replicas=self.max_replicas,
                target_ongoing_requests=self.target_ongoing_requests,
                upscale_delay_s=self.upscale_delay_s,
                downscale_delay_s=self.downscale_delay_s,
                look_back_period_s=self.look_back_s,
                metrics_interval_s=min(METRICS_INTERVAL_S, self.look_back_s / 4),
                policy=AutoscalingPolicy(policy_function=at_most_double),  # type: ignore[no-untyped-call]  # Ray's
            ),
            "ray_actor_options": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus},
            "max_replicas_per_node": self.max_replicas_per_node,
            # A line for each request costs more than the decision; we count them instead.
            "logging_config": {"log_level": "WARNING", "enable_access_log": False},
            "max_ongoing_requests": self.max_ongoing_requests,
            "health_check_period_s": HEALTH_PERIOD_S,
            "health_check_timeout_s": HEALTH_TIMEOUT_S,
            "graceful_shutdown_timeout_s": GRACE_S,
            "graceful_shutdown_wait_loop_s": 0.2,
        }


class EncoderDeployment:
    """The encoder by itself, for one that is heavy or wants a GPU; batches what comes together."""

    def __init__(self, place: str | Path) -> None:
        self._encoder = load_encoder(place)
        self._threaded = ThreadedEncoder(self._encoder)

    async def describe(self) -> tuple[str, int]:
        """Return encoder id and length of a context."""
        return self._encoder.encoder_id, self._encoder.dim

    @serve.batch(max_batch_size=ENCODE_BATCH, batch_wait_timeout_s=ENCODE_WAIT_S)
    async def encode(self, calls: Sequence[list[str]]) -> list[NDArray[np.float32]]:
        """Encode the prompts of several calls at once; one array a call, (prompts, dim)."""
        contexts = await self._threaded.encode([text for texts in calls for text in texts])
        ends = np.cumsum([len(texts) for texts in calls])
        return np.split(contexts, ends[:-1])


class RouterDeployment:
    """One router replica: everything a request needs, in one process."""

    async def __init__(  # type: ignore[misc]  # Serve awaits a constructor that is a coroutine
        self, args: RouterArgs, encoder: DeploymentHandle[Any] | None = None
    ) -> None:
        """Build the parts; ready once a champion is there.

        Args:
            args: What this replica is set to.
            encoder: The encoder's deployment; None encodes in this replica.
        """
        replica_id = serve.get_replica_context().replica_id.unique_id
        ports, metrics = named_ports(args.aggregator_shards), ReplicaMetrics()
        prompts = await _encoder(args, encoder)
        self._champion = ChampionSource(
            ports.publisher,
            folder=args.publish_dir,
            encoder_id=prompts.encoder_id,
            context_dim=prompts.dim,
            replica_id=replica_id,
            load=load_policy,
            clock=time.time,
            metrics=metrics,
            tell=ports.metrics.take_event,
        )
        self._recorder = Recorder(
            ports.aggregator,
            flush_interval_s=args.record_flush_ms / 1000,
            capacity=args.record_buffer,
            when_full=args.record_when_full,
            metrics=metrics,
            spool=_spool(args, replica_id, metrics),
        )
        door = Door(
            secret=args.secret,
            api_key_sha256=args.api_key_sha256,
            keys_file=args.keys_file,
            clock=time.monotonic,
        )
        self._pusher = MetricsPusher(
            ports.metrics, source=replica_id, samples=metrics.samples, told=door.share_among
        )
        spans = tracing_from_environment()
        self._tracing = None if spans is None else RequestTracing(spans)
        self._api = _api(
            args,
            ports,
            prompts,
            self._champion,
            self._recorder,
            door,
            metrics,
            replica_id,
            self._tracing,
        )
        self._shortcut = mount(self._api, self._api.hot_paths)
        await self._champion.start(timeout_s=args.start_timeout_s)
        self._recorder.start()
        self._pusher.start()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Hand the HTTP side to Serve, which asks once `__init__` is done."""
        return self._api

    async def record_autoscaling_stats(self) -> dict[str, int]:
        """Tell Serve, which asks several times a second, of the requests it does not see."""
        return {IN_FLIGHT: self._shortcut.in_flight}

    async def check_health(self) -> None:
        """Raise when a background task has ended: Serve then replaces this replica."""
        for part in (self._champion, self._recorder):
            if not part.alive:
                raise RuntimeError(f"{type(part).__name__} has stopped")

    async def __del__(self) -> None:
        """Hand over what is buffered; Serve awaits this once no request is in flight any more."""
        await self._champion.stop()
        await self._recorder.drain(timeout_s=DRAIN_S)
        await self._pusher.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop)


def _spool(args: RouterArgs, replica_id: str, metrics: ReplicaMetrics) -> Spool | None:
    """Return where decisions are kept until they are recorded."""
    if args.spool_dir is None:
        return None
    return Spool(args.spool_dir, owner=replica_id, failed=metrics.spool_failures.inc)


async def _encoder(args: RouterArgs, remote: DeploymentHandle[Any] | None) -> Encoder:
    """Return the encoder where it was placed."""
    if remote is None:
        return ThreadedEncoder(await asyncio.to_thread(load_encoder, args.encoder_dir))
    encoder_id, dim = await remote.describe.remote()
    return RemoteEncoder(remote.encode.remote, encoder_id=encoder_id, dim=dim)


def _api(
    args: RouterArgs,
    ports: Ports,
    encoder: Encoder,
    champion: ChampionSource,
    recorder: Recorder,
    door: Door,
    metrics: ReplicaMetrics,
    replica_id: str,
    tracing: RequestTracing | None,
) -> Api:
    """Put the request path together."""
    ids = DecisionIds(args.secret, retired=args.retired_secrets)
    # Unseeded on purpose: replicas must not draw the same models in step.
    rng = np.random.default_rng()
    router = Router(encoder, champion, ids, recorder, args, clock=time.time, rng=rng)
    feedback = Feedback(ports.aggregator, ids, max_items=args.max_feedback, metrics=metrics)
    operations = Operations(
        ports,
        champion,
        ids,
        replica_id=replica_id,
        encoder_id=encoder.encoder_id,
        load=load_policy,
    )
    return Api(router, feedback, operations, args, door=door, metrics=metrics, tracing=tracing)


def router_deployment(
    args: RouterArgs,
    *,
    autoscaling: Autoscaling,
    encoder_autoscaling: Autoscaling | None = None,
) -> serve.Application:
    """Compose the application.

    Args:
        args: What each router replica is set to.
        autoscaling: How the router scales.
        encoder_autoscaling: How the encoder scales as a deployment of its own; None keeps it
            inside each router replica.
    """
    # As an ASGI application: Serve then makes no objects of requests and replies.
    ingress = serve.ingress()(RouterDeployment)
    router = serve.deployment(name="Router", **autoscaling.options())(ingress)
    if encoder_autoscaling is None:
        return router.bind(args)
    encoder = serve.deployment(name="Encoder", **encoder_autoscaling.options())(EncoderDeployment)
    return router.bind(args, encoder.bind(args.encoder_dir))
