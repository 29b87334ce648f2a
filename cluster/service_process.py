"""A service as a process of its own, started and stopped as a person does it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from cluster.client import SERVICE_FILE
from cluster.launch import LaunchError

START_TIMEOUT_S: Final = 300.0
STOP_TIMEOUT_S: Final = 90.0
POLL_S: Final = 0.05
# `-P` keeps the present directory off the import path.
BARP: Final = (sys.executable, "-P", "-c", "from cluster.entry import main; main()")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceProcess:
    """A service that answers.

    Attributes:
        url: Base URL.
        state_dir: Its state folder.
        process: `barp serve`; the service's other processes descend from it.
        start_s: From the start of the process to ready, seconds.
    """

    url: str
    state_dir: Path
    process: psutil.Process
    start_s: float

    def tree(self) -> list[psutil.Process]:
        """List all of its processes that live now."""
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def service_process(
    state_dir: Path, settings: dict[str, object], *, supervise: bool = False
) -> Iterator[ServiceProcess]:
    """Run `barp serve` for as long as the block lasts.

    Args:
        state_dir: Where it keeps its state; also its log, `serve.log`.
        settings: Settings by name.
        supervise: Whether it is started again when it dies.

    Raises:
        LaunchError: It did not get ready, or ended otherwise than with status 0.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    flags = {"state_dir": state_dir.resolve(), "port": 0} | settings
    extra = ["--supervise"] if supervise else []
    words = [word for k, v in flags.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    began = time.monotonic()
    with (state_dir / "serve.log").open("ab") as log:
        popen = subprocess.Popen([*BARP, "serve", *words, *extra], stdout=log, stderr=log)
    try:
        url = _wait_ready(state_dir, popen)
        yield ServiceProcess(
            url=url,
            state_dir=state_dir,
            process=psutil.Process(popen.pid),
            start_s=time.monotonic() - began,
        )
    finally:
        if popen.poll() is None:
            popen.send_signal(signal.SIGINT)
        status = stopped(popen)
    if status != 0:
        raise LaunchError(f"the service ended with status {status}: {_last_words(state_dir)}")


def stopped(popen: subprocess.Popen[bytes], *, timeout_s: float = STOP_TIMEOUT_S) -> int:
    """Wait for its end and return its status; one that does not end is killed with all it began."""
    try:
        return popen.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        service = psutil.Process(popen.pid)
        for process in (*service.children(recursive=True), service):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return popen.wait()


def _wait_ready(state_dir: Path, popen: subprocess.Popen[bytes]) -> str:
    """Wait until the service says where it listens, which it does once it is ready."""
    file = state_dir / SERVICE_FILE
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and popen.poll() is None:
        if file.is_file():
            found = json.loads(file.read_bytes())
            if found["pid"] in _family(popen.pid):
                return str(found["url"])
        time.sleep(POLL_S)
    raise LaunchError(f"the service did not get ready: {_last_words(state_dir)}")


def _family(pid: int) -> set[int]:
    """List a process and its children."""
    try:
        return {pid, *(child.pid for child in psutil.Process(pid).children())}
    except psutil.NoSuchProcess:
        return set()


def _last_words(state_dir: Path) -> str:
    """Return the end of its log in one line."""
    text = (state_dir / "serve.log").read_text(errors="replace")
    return " ".join(text[-500:].split())
