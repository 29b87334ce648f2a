"""A whole service in a process of its own, started and stopped as a user does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from service_process import ServiceProcess, StartService

START_TIMEOUT_S = 180.0


@pytest.fixture(scope="session")
def start_service(encoder_dir: Path) -> Iterator[StartService]:
    """A function that starts a service with the settings given; all are stopped at the end."""
    started: list[ServiceProcess] = []

    def start(
        state_dir: Path, *, cwd: Path | None = None, supervise: bool = False, **settings: object
    ) -> ServiceProcess:
        state_dir.mkdir(parents=True, exist_ok=True)
        # Tests play hundreds of requests, too few for trials: what needs those says so.
        flags = {"port": 0, "encoder_dir": encoder_dir, "state_dir": state_dir, "gate": "estimate"}
        flags |= settings
        words = [w for k, v in flags.items() for w in (f"--{k.replace('_', '-')}", str(v))]
        words += ["--supervise"] if supervise else []
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
        log = (state_dir / "serve.log").open("ab")
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("barp")), "serve", *words],
            cwd=cwd or state_dir,
            env=environment,
            stdout=log,
            stderr=log,
        )
        url = _wait_for_url(state_dir, process)
        service = ServiceProcess(
            state_dir=state_dir,
            process=process,
            url=url,
            http=httpx.Client(base_url=url, timeout=30.0),
        )
        started.append(service)
        return service

    yield start
    for service in started:
        if service.process.poll() is None:
            service.stop()


def _wait_for_url(state_dir: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait until the service says where it listens, which it does once it is ready."""
    file = state_dir / "service.json"
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if file.is_file():
            url: str = json.loads(file.read_bytes())["url"]
            return url
        time.sleep(0.1)
    raise AssertionError((state_dir / "serve.log").read_text()[-3000:])
