"""The parts of a service on a Ray cluster that runs: started side by side, stopped in order.

Imported once Ray is up: what this pulls in takes two seconds of CPU, in which Ray's own processes
start as well.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import httpx
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.api import RunTarget

from cluster.actors import LEARNING, await_actors, begin_actors, stop_actors
from cluster.application import APP_NAME, compose
from cluster.encoder_build import LaunchError
from cluster.ingress import LOOPBACK
from cluster.places import places
from cluster.settings import Ingress, Settings
from cluster.signing import signing_secret
from policies.errors import ArtifactError, RouterError
from policies.publication import read_pointer
from services.keys import service_key

READY_TIMEOUT_S: Final = 120.0
# How long what learns waits for what serves, where there is a champion to serve.
HEAD_START_S: Final = 20.0
INGRESS_NAMES: Final = {"haproxy": "HAProxy", "python": "Serve's own proxy"}

logger = logging.getLogger(__name__)


class StartFailed(LaunchError):
    """The service did not get ready; another try may do better."""

    code = "start_failed"
    exit_status = 4


def start_parts(
    settings: Settings, ingress: Ingress, url: str, *, progress: Callable[[str], None]
) -> None:
    """Start actors and replicas; return when all are ready.

    Replicas and actors come up together. Where a champion was published by an earlier run, what
    serves it goes first, and callers are answered before registry and trainer are there.

    Args:
        settings: Paths absolute, the port one that is free.
        ingress: Who takes the requests.
        url: Where the service will answer.
        progress: Told each step in a few words.

    Raises:
        StartFailed: Serve or the replicas do not get ready.
        RouterError: What an actor says it cannot start for.
    """
    api_key = service_key(signing_secret(settings))
    head_start = _has_champion(settings)
    progress("actors: ledger, registry, publisher, trainer")
    first = begin_actors(settings, but=LEARNING if head_start else ())
    progress(f"Serve: router replicas behind {INGRESS_NAMES[ingress]}")
    _deploy(settings, ingress)
    _await(first)
    if head_start:
        try:
            wait_ready(url, api_key=api_key, timeout_s=HEAD_START_S)
            progress("answering with the champion published last")
        except StartFailed as error:
            logger.info("no head start: %s", error)
        _await(begin_actors(settings))
    wait_ready(url, api_key=api_key)


def stop_parts() -> None:
    """Let the replicas hand over and end, then the actors; the rest of Serve ends with Ray."""
    serve.delete(APP_NAME)
    stop_actors()


def wait_ready(url: str, *, api_key: str, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Ask /readyz until it says yes; raises StartFailed after `timeout_s` seconds."""
    headers = {"authorization": f"Bearer {api_key}"}
    deadline = time.monotonic() + timeout_s
    last = "no answer"
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{url}/readyz", headers=headers, timeout=5.0)
        except httpx.TransportError as error:
            last = repr(error)
        else:
            if answer.status_code == httpx.codes.OK:
                return
            last = answer.text[:300]
        time.sleep(0.1)
    raise StartFailed(f"not ready after {timeout_s:.0f} s: {last}")


def _await(actors: list[Any]) -> None:
    """Wait until actors are ready; raises StartFailed where one does not get so."""
    try:
        await_actors(actors)
    except RouterError:
        raise
    except RayError as error:
        *_, last = str(error).strip().splitlines() or [type(error).__name__]
        raise StartFailed(f"an actor did not start: {last}") from error


def _has_champion(settings: Settings) -> bool:
    """Say whether replicas find a champion without the registry."""
    try:
        return read_pointer(places(settings).publish_dir) is not None
    except ArtifactError:
        # The registry makes it again.
        return False


def _deploy(settings: Settings, ingress: Ingress) -> None:
    """Start Serve and the application; returns before its replicas run."""
    # Behind HAProxy nobody but HAProxy needs to reach what Serve itself opens.
    host = LOOPBACK if ingress == "haproxy" else settings.host
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    options: dict[str, Any] = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": settings.port},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
    }
    try:
        try:
            serve.start(**options)
        except RayActorError as error:
            # A proxy that was too slow for Serve's health check, on a busy machine. Serve replaces
            # it, and asked again no longer waits for it: `wait_ready` does.
            logger.warning("a proxy was replaced while Serve started: %s", str(error)[:200])
            serve.start(**options)
        target = RunTarget(compose(settings), name=APP_NAME, route_prefix="/")
        serve.run_many(
            [target],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
    except (RayError, RuntimeError) as error:
        *_, last = str(error).strip().splitlines() or [type(error).__name__]
        raise StartFailed(f"Ray Serve did not start: {last}") from error
