"""A private Ray cluster on this machine, for as long as a block lasts."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import ray

from cluster.encoder_build import LaunchError
from cluster.ingress import LOOPBACK, prepare_ingress
from cluster.instance import PREFIX, end_processes
from cluster.settings import Ingress

NAMESPACE: Final = "barp"
RAY_PROCESSES: Final = frozenset({"gcs_server", "raylet"})


@contextmanager
def local_ray(
    *,
    host: str = LOOPBACK,
    port: int = 0,
    ingress: Ingress = "python",
    folder: Path | None = None,
) -> Iterator[tuple[psutil.Process, ...]]:
    """Run a private Ray cluster on this machine: own token, own temporary folder.

    Yields Ray's own processes; without them the cluster is dead.

    Args:
        host: Address that HAProxy will listen on, where it is used.
        port: Its TCP port.
        ingress: Who will take the requests in front of the replicas.
        folder: Where Ray keeps sockets and logs; None for one that is removed at the end.

    Raises:
        LaunchError: The environment was not prepared, so its ports would be open to others.
    """
    if "RAY_AUTH_TOKEN" not in os.environ:
        raise LaunchError("call cluster.environment.prepare_environment() before importing Ray")
    # A short path of this user's own: Unix sockets allow 107 bytes, and /tmp/ray may be another's.
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as own:
        temp_dir = own if folder is None else str(folder)
        prepare_ingress(ingress, Path(temp_dir), host=host, port=port)
        with quiet_driver():
            ray.init(
                address="local",
                namespace=NAMESPACE,
                include_dashboard=False,
                log_to_driver=False,
                # The workers' logs have what we say from INFO on, with the actor's name.
                logging_config=ray.LoggingConfig(encoding="TEXT", log_level="INFO"),
                _temp_dir=temp_dir,
            )
        core = tuple(p for p in psutil.Process().children() if p.name() in RAY_PROCESSES)
        try:
            yield core
        finally:
            if all(map(runs, core)):
                ray.shutdown()
            else:
                # Without its control service Ray would wait for an answer that never comes.
                end_processes(Path(temp_dir))


@contextmanager
def quiet_driver() -> Iterator[None]:
    """Leave this process's logging as it was: Ray sets it up like a worker's."""
    loggers = [logging.getLogger(name) for name in ("", "ray")]
    before = [(one, one.level, one.handlers[:], one.propagate) for one in loggers]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for one, level, handlers, propagate in before:
            one.setLevel(max(level, logging.ERROR) if one.name == "ray" else level)
            one.handlers[:], one.propagate = handlers, propagate


def runs(process: psutil.Process) -> bool:
    """Say whether a process does anything any more."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
