"""Start and stop the service on this machine: Ray, then its parts, see `cluster.parts`.

On a cluster that somebody else started (KubeRay, `serve deploy`) nothing of this is used:
`cluster.application.build` starts the actors there.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from cluster.client import SERVICE_FILE
from cluster.encoder_build import LaunchError as LaunchError
from cluster.encoder_build import ensure_encoder as ensure_encoder
from cluster.ingress import LOOPBACK, available_ingress
from cluster.instance import instance
from cluster.local_ray import local_ray as local_ray
from cluster.local_ray import runs
from cluster.places import places, resolved
from cluster.settings import Settings
from policies.artifact import write_atomically
from services.keys import read_keys

WATCH_EVERY_S: Final = 0.5
LOOPBACK_HOSTS: Final = frozenset({LOOPBACK, "localhost", "::1"})

Progress = Callable[[str], None]


class ClusterDied(LaunchError):
    """Ray has ended under the service; only another start helps."""

    code = "cluster_died"
    exit_status = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningService:
    """A service that answers.

    Attributes:
        url: Base URL, for example http://127.0.0.1:8000.
        settings: What it was started with, paths absolute and the port as taken.
        started_s: From the first step to ready, seconds.
        ray: Ray's own processes, which nothing on this machine starts again.
    """

    url: str
    settings: Settings
    started_s: float
    ray: tuple[psutil.Process, ...]

    def watch(self, stop: threading.Event) -> None:
        """Return once `stop` is set; raises ClusterDied when Ray has ended before."""
        while not stop.wait(WATCH_EVERY_S):
            dead = [process.pid for process in self.ray if not runs(process)]
            if dead:
                raise ClusterDied(f"Ray has ended: {len(dead)} of its processes are gone")


@contextmanager
def local_service(
    settings: Settings, *, progress: Progress, ray_is_up: Callable[[], None] = lambda: None
) -> Iterator[RunningService]:
    """Run the whole service on this machine for as long as the block lasts.

    Args:
        settings: What to start; relative paths are taken from the present directory.
        progress: Told each step in a few words.
        ray_is_up: Called once Ray is, which has put its own handlers of signals by then.

    Raises:
        LaunchError: The port is taken, the address needs a key, or the state folder is in use.
    """
    began = time.monotonic()
    settings = resolved(settings)
    refuse_open_address(settings)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with (
        state_lock(settings.state_dir),
        working_directory(settings.state_dir),
        instance(settings.state_dir) as folder,
    ):
        # What a killed run left on the port has ended by now.
        settings = settings.model_copy(update={"port": usable_port(settings.host, settings.port)})
        url = f"http://{_url_host(settings.host)}:{settings.port}"
        progress("encoder: built once, then read from the state folder")
        ensure_encoder(
            places(settings).encoder_dir, kind=settings.encoder, build_in=settings.state_dir
        )
        progress("Ray: starting a local cluster")
        ingress = available_ingress(settings.ingress)
        with local_ray(
            host=settings.host, port=settings.port, ingress=ingress, folder=folder
        ) as core:
            ray_is_up()
            # Here and not above: Ray's own processes start in the meantime.
            from cluster.parts import start_parts, stop_parts

            start_parts(settings, ingress, url, progress=progress)
            _announce(settings, url)
            try:
                yield RunningService(
                    url=url, settings=settings, started_s=time.monotonic() - began, ray=core
                )
            finally:
                _forget(settings)
                if all(map(runs, core)):
                    progress("stopping: replicas drain, then the ledger closes")
                    stop_parts()


def refuse_open_address(settings: Settings) -> None:
    """Refuse to let others reach the service without a key.

    Raises:
        LaunchError: The address is not loopback, and there is no key.
        DamagedKeys: The key file cannot be read.
    """
    keys_file = places(settings).keys_file
    keys = read_keys(keys_file) if keys_file.exists() else ()
    if settings.host not in LOOPBACK_HOSTS and settings.api_key is None and not keys:
        raise LaunchError(
            f"host={settings.host} is reachable from other machines: make a key with "
            "`barp keys create` or set BARP_API_KEY, or listen on 127.0.0.1",
            field="host",
            value=settings.host,
            allowed="127.0.0.1, localhost, ::1, or any address with a key",
        )


def usable_port(host: str, port: int) -> int:
    """Return the port if it is free, or a free one for 0; raises LaunchError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the proxy itself binds: without this a port in TIME_WAIT would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchError(
                f"port={port} on {host} cannot be used: {error.strerror}",
                field="port",
                value=port,
                allowed="a free port, or 0 to take one",
            ) from error
        return int(probe.getsockname()[1])


@contextmanager
def state_lock(state_dir: Path) -> Iterator[None]:
    """Hold the state folder: two services on one SQLite ledger would undo each other."""
    with (state_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(
                f"state_dir={state_dir} is in use by another barp",
                field="state_dir",
                value=str(state_dir),
                allowed="a folder of its own for each service",
            ) from error
        yield


@contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    """Work in `folder`: Ray puts the driver's directory first on its workers' import path.

    Started from a directory that happens to hold a `services/` of its own, workers would import
    that one instead of ours.
    """
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _url_host(host: str) -> str:
    """Write an address as a URL has it; 0.0.0.0 is where to listen, not where to call."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _announce(settings: Settings, url: str) -> None:
    """Leave the address where `barp status` and its sisters look for it."""
    content = json.dumps({"url": url, "pid": os.getpid()}).encode()
    write_atomically(settings.state_dir / SERVICE_FILE, content)


def _forget(settings: Settings) -> None:
    """Take the address back."""
    (settings.state_dir / SERVICE_FILE).unlink(missing_ok=True)
