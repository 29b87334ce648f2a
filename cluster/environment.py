"""The process environment that Ray, MLflow and the numeric libraries read when imported."""

from __future__ import annotations

import os
import secrets
from typing import Final

FIXED: Final = {
    # The product phones nobody.
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
    # Two threads in one replica were up to ten times slower than one on shared cores.
    "OMP_NUM_THREADS": "1",
    # Ray runs its workers at niceness 15, so that any other process on the machine, callers
    # included, goes first. Users wait for these workers.
    "RAY_worker_niceness": "0",
    "OPENBLAS_NUM_THREADS": "1",
    # HAProxy before the replicas, and no hop between threads inside them: ten times the requests
    # of Serve's own proxy. The last one, or every handle call fails without an event loop.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    # Asked by each replica for what stands before Serve in its HTTP server.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "services.shortcut.middlewares",
    # We count requests ourselves; HAProxy's own count is a datagram for each of them.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # How long a replica that is to go still answers: HAProxy drops it within half a second.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    # Ray keeps this much of each process's log, and so many files of it before.
    "RAY_ROTATION_MAX_BYTES": "5000000",
    "RAY_ROTATION_BACKUP_COUNT": "2",
    # HAProxy that has died is noticed after three of these; Serve's default of 10 s makes it 38 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # Ray's default lets a silent caller keep a connection for an hour, seconds.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "75",
    # A replica that is silent for longer than any request may take, seconds.
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "75",
    "TOKENIZERS_PARALLELISM": "false",
}

LOOPBACK_ONLY: Final = {
    # Despite its name this one also decides on Linux whether a local cluster takes the machine's
    # network address (Ray 2.60, ray_constants.ENABLE_RAY_CLUSTER). Off, all of Ray's ports,
    # metrics included, listen on 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}


def prepare_environment(*, private: bool = True) -> None:
    """Set what a private cluster on this machine needs; call before `import ray`.

    Ray reads its authentication mode once, when it is imported. The token is this run's own:
    without one Ray would write a lasting token into the user's home.

    Args:
        private: Whether this process starts a cluster of its own; one that joins a cluster takes
            that one's addresses and token.
    """
    os.environ.update(FIXED | (LOOPBACK_ONLY if private else {}))
    if private:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
