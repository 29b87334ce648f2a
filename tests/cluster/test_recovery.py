"""What was acknowledged survives every death of the whole, and somebody starts it again."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
from service_process import ServiceProcess, StartService

from cluster.instance import LOGS
from services.keys import service_key

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SECRET_PROMPT = "the-prompt-that-nobody-may-read"
SECRET_KEY = "barp_the-key-that-nobody-may-read"


def named(service: ServiceProcess, *names: str) -> list[psutil.Process]:
    """Processes of the service by name or command line."""
    tree = psutil.Process(service.process.pid).children(recursive=True)
    found = []
    for process in tree:
        try:
            words = f"{process.name()} {' '.join(process.cmdline())}"
        except psutil.NoSuchProcess:
            continue
        if any(name in words for name in names):
            found.append(process)
    return found


def driver(service: ServiceProcess) -> int:
    """The process that answers now, as it says itself."""
    try:
        return int(json.loads((service.state_dir / "service.json").read_bytes())["pid"])
    except (OSError, ValueError):
        return 0


def wait(promise: Callable[[], bool], *, timeout_s: float = 180.0) -> None:
    """Poll until a promise holds."""
    deadline = time.monotonic() + timeout_s
    while not promise():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(service: ServiceProcess) -> bool:
    """Whether the front door answers."""
    try:
        return service.http.get("/healthz", timeout=2.0).status_code == 200
    except httpx.TransportError:
        return False


def another_answers(service: ServiceProcess, before: int) -> bool:
    """Whether a driver that is not the one before has become ready."""
    return driver(service) not in (0, before)


def report(service: ServiceProcess, event_id: str) -> str:
    """Decide, report and return the decision id; both are acknowledged."""
    body = {"prompt": SECRET_PROMPT, "session": "s"}
    decided = service.http.post("/v1/route", json=body).raise_for_status().json()
    outcome = {"decision_id": decided["decision_id"], "quality": 0.5, "event_id": event_id}
    service.http.post("/v1/feedback", json=outcome).raise_for_status()
    return str(decided["decision_id"])


def test_a_killed_service_comes_back_on_its_port_with_all_it_acknowledged(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service(tmp_path, supervise=True, api_key=SECRET_KEY, encoder="minilm")
    service.http.headers["authorization"] = f"Bearer {SECRET_KEY}"
    service.http.put("/v1/models/m", json={"usd_per_call": 0.1}).raise_for_status()
    decision_id = report(service, "before")
    wait(lambda: service.get("/v1/status")["ledger"]["decisions"] == 1, timeout_s=30)

    # Ray's heart first: `barp serve` notices by itself. Then `barp serve` as a whole.
    for part in ("raylet", "driver"):
        before = driver(service)
        [victim] = (
            [p.pid for p in named(service, "raylet/raylet")] if part == "raylet" else [before]
        )
        os.kill(victim, signal.SIGKILL)
        wait(partial(another_answers, service, before))
        wait(lambda: answers(service), timeout_s=30)
        assert service.get(f"/v1/decisions/{decision_id}")["decision_id"] == decision_id
        outcome = {"decision_id": decision_id, "quality": 0.5, "event_id": "before"}
        told = service.http.post("/v1/feedback", json=outcome).raise_for_status().json()
        assert told["status"] == "duplicate"
        report(service, f"after {before}")

    tree = psutil.Process(service.process.pid).children(recursive=True)
    assert service.stop() == 0
    _, alive = psutil.wait_procs(tree, timeout=15)
    assert [process for process in alive if process.status() != "zombie"] == []

    logged = [file for file in (tmp_path / LOGS).rglob("*") if file.is_file()]
    assert any(file.name == "serve.log" for file in logged)
    assert any("raylet" in file.name for file in logged)
    own = service_key((tmp_path / "secret.key").read_bytes())
    for file in [*logged, tmp_path / "serve.log"]:
        text = file.read_text(errors="replace")
        for secret in (SECRET_PROMPT, SECRET_KEY, own):
            assert secret not in text, file
