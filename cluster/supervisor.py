"""`barp serve --supervise`: starts the service, and again whenever it ends or stops answering."""

from __future__ import annotations

import ctypes
import json
import logging
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

import httpx
import psutil

from cluster.client import SERVICE_FILE

# The exit status of a setting or a state folder that must be put right by somebody first.
REFUSED: Final = 2
PR_SET_PDEATHSIG: Final = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a supervisor waits, seconds.

    Attributes:
        poll_s: Between two looks at the service's process.
        probe_every_s: Between two questions whether it answers.
        silent_s: Without an answer until it is started anew. Serve replaces replicas and proxy by
            itself; only what takes longer than this is restarted whole.
        backoff_first_s: Before the first new start; doubled while the service does not get ready,
            or not for long.
        backoff_max_s: Before any new start at most.
        stable_s: Ready for so long, it begins at the first pause again.
        start_s: Until a service must be ready.
        stop_s: Until a service that was told to end must have ended.
    """

    poll_s: float = 0.2
    probe_every_s: float = 2.0
    silent_s: float = 90.0
    backoff_first_s: float = 0.5
    backoff_max_s: float = 30.0
    stable_s: float = 60.0
    start_s: float = 300.0
    stop_s: float = 90.0


class Supervisor:
    """Keeps one service running.

    Args:
        command: What starts the service.
        state_dir: Its state folder, where it says that it is ready.
        stop: Set by whoever wants the service to end.
        say: Told each start and end in a few words.
        patience: How long it waits.
        bound: Whether the service is told to end when the supervising thread ends, however.
    """

    def __init__(
        self,
        command: Sequence[str],
        state_dir: Path,
        *,
        stop: Event,
        say: Callable[[str], None],
        patience: Patience = Patience(),
        bound: bool = True,
    ) -> None:
        self._command, self._state_dir = list(command), state_dir
        self._stop, self._say = stop, say
        self._patience, self._bound = patience, bound
        self._port: str | None = None
        self.restarts = 0

    def run(self) -> int:
        """Start the service until told to stop; return its last exit status.

        Gives up only where the service refuses its settings before it was ever ready.
        """
        backoff_s, was_ready = self._patience.backoff_first_s, False
        while True:
            child = self._start()
            ready_for_s = self._watch(child)
            status = self._end(child)
            if self._stop.is_set():
                return status
            was_ready = was_ready or ready_for_s is not None
            if status == REFUSED and not was_ready:
                self._say("the service refuses to start; it is not tried again")
                return status
            backoff_s = (
                self._patience.backoff_first_s
                if (ready_for_s or 0.0) >= self._patience.stable_s
                else backoff_s
            )
            self._say(f"the service has ended with status {status}, again in {backoff_s:g} s")
            if self._stop.wait(backoff_s):
                return status
            backoff_s = min(2 * backoff_s, self._patience.backoff_max_s)
            self.restarts += 1

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the service, on the port that it took first."""
        port = [] if self._port is None else ["--port", self._port]
        # If this process is killed, the service stops as it does when it is told to.
        before_exec = _end_with_parent if self._bound else None
        return subprocess.Popen([*self._command, *port], preexec_fn=before_exec)

    def _watch(self, child: subprocess.Popen[bytes]) -> float | None:
        """Return when the service has ended, hangs, or shall stop: for how long it was ready."""
        ready_at: float | None = None
        answered_at = probed_at = time.monotonic()
        while child.poll() is None and not self._stop.wait(self._patience.poll_s):
            now = time.monotonic()
            if ready_at is None:
                url = self._announced(child.pid)
                if url is not None:
                    ready_at = answered_at = now
                    self._port = url.rsplit(":", 1)[1]
                elif now - answered_at > self._patience.start_s:
                    self._say(f"the service was not ready within {self._patience.start_s:.0f} s")
                    break
            elif now - probed_at >= self._patience.probe_every_s:
                probed_at = now
                answered_at = now if _answers(url or "") else answered_at
                if now - answered_at > self._patience.silent_s:
                    self._say(f"the service has not answered for {self._patience.silent_s:.0f} s")
                    break
        return None if ready_at is None else time.monotonic() - ready_at

    def _announced(self, pid: int) -> str | None:
        """Return where the service with this process id answers; None before it is ready."""
        try:
            found = json.loads((self._state_dir / SERVICE_FILE).read_bytes())
            return str(found["url"]) if found["pid"] == pid else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _end(self, child: subprocess.Popen[bytes]) -> int:
        """Let the service end in order, or at once where it does not; return its exit status."""
        if child.poll() is None:
            family = psutil.Process(child.pid).children(recursive=True)
            child.send_signal(signal.SIGTERM)
            try:
                return child.wait(timeout=self._patience.stop_s)
            except subprocess.TimeoutExpired:
                logger.error("the service does not end in %.0f s: killed", self._patience.stop_s)
                child.kill()
                for process in family:
                    if process.is_running():
                        process.kill()
        return child.wait()


def _answers(url: str) -> bool:
    """Say whether the service answers at all."""
    try:
        return httpx.get(f"{url}/healthz", timeout=5.0).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when the supervisor ends, whatever the cause; elsewhere do nothing."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
