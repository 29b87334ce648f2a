"""A whole service in a process of its own, as tests talk to it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx


@dataclass
class ServiceProcess:
    """`barp serve` as a subprocess, and an HTTP client for it."""

    state_dir: Path
    process: subprocess.Popen[bytes]
    url: str
    http: httpx.Client

    def stop(self) -> int:
        """Interrupt it as a user would; return its exit status."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=90)

    def get(self, path: str) -> Any:
        """GET a path and return the JSON; fails on any refusal."""
        return self.http.get(path).raise_for_status().json()

    def route(self, prompt: str = "Name a prime.", quality: float = 0.7) -> dict[str, Any]:
        """Ask for one decision."""
        body = {"prompt": prompt, "preference": {"quality": quality, "cost": 1 - quality}}
        answer: dict[str, Any] = self.http.post("/v1/route", json=body).raise_for_status().json()
        return answer

    def wait_for(self, promise: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
        """Poll until a promise holds; fails after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not promise():
            assert time.monotonic() < deadline, (
                f"not within {timeout_s} s: {self.get('/v1/status')}"
            )
            time.sleep(0.1)


StartService = Callable[..., ServiceProcess]
