"""A service that ends is started again, on its port; one that refuses its settings is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.supervisor import Patience, Supervisor

# Says that it is ready, answers /healthz, and ends as it is told to by a file.
SERVICE = textwrap.dedent(
    """
    import http.server, json, os, pathlib, signal, sys
    folder = pathlib.Path(sys.argv[1])
    (folder / "starts").open("a").write(f"{os.getpid()}\\n")
    if (folder / "refuse").exists():
        sys.exit(2)
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(503 if (folder / "hang").exists() else 200)
            self.end_headers()
        def log_message(self, *_):
            pass
    port = int(sys.argv[sys.argv.index("--port") + 1]) if "--port" in sys.argv else 0
    server = http.server.HTTPServer(("127.0.0.1", port), Answer)
    url = f"http://127.0.0.1:{server.server_port}"
    (folder / "service.json").write_text(json.dumps({"url": url, "pid": os.getpid()}))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.serve_forever()
    """
)


class Supervised:
    """A supervisor in a thread, and what its service has written."""

    def __init__(self, folder: Path, *, silent_s: float = 90.0) -> None:
        self.folder, self.stop, self.said = folder, threading.Event(), list[str]()
        self.supervisor = Supervisor(
            [sys.executable, "-c", SERVICE, str(folder)],
            folder,
            stop=self.stop,
            say=self.said.append,
            patience=Patience(
                poll_s=0.02, probe_every_s=0.05, silent_s=silent_s, backoff_first_s=0.05
            ),
            bound=False,
        )
        self.status: int | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.status = self.supervisor.run()

    def starts(self) -> list[int]:
        """Process ids of the services so far."""
        file = self.folder / "starts"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def service(self) -> dict[str, Any]:
        """What the service says of itself; nothing before it is ready."""
        file = self.folder / "service.json"
        try:
            found: dict[str, Any] = json.loads(file.read_bytes())
        except (OSError, ValueError):
            return {}
        return found

    def wait(self, promise: Callable[[], bool]) -> None:
        """Poll until a promise holds."""
        deadline = time.monotonic() + 30
        while not promise():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def ready(self, starts: int) -> None:
        """Wait until the n-th service is ready and the supervisor has seen it."""
        self.wait(lambda: len(self.starts()) >= starts)
        self.wait(lambda: self.service().get("pid") == self.starts()[-1])


@pytest.fixture
def supervised(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Supervised]:
    """A supervisor that waits briefly; a test may say how long it bears silence."""
    one = Supervised(tmp_path, silent_s=getattr(request, "param", 90.0))
    yield one
    one.stop.set()
    if one.thread.is_alive():
        one.thread.join(30)


def test_a_killed_service_is_started_again_on_its_port(supervised: Supervised) -> None:
    supervised.thread.start()
    supervised.ready(1)
    url = supervised.service()["url"]
    time.sleep(0.2)
    for turn in (2, 3):
        os.kill(supervised.starts()[-1], signal.SIGKILL)
        supervised.ready(turn)
        assert supervised.service()["url"] == url
        supervised.wait(lambda: httpx.get(url).status_code == 200)
        time.sleep(0.2)
    assert supervised.supervisor.restarts == 2


def test_it_stops_when_told_and_gives_the_services_status(supervised: Supervised) -> None:
    supervised.thread.start()
    supervised.ready(1)
    supervised.stop.set()
    supervised.thread.join(30)
    assert supervised.status == 0
    assert not psutil.pid_exists(supervised.starts()[0])


def test_settings_that_are_refused_are_not_tried_again(supervised: Supervised) -> None:
    (supervised.folder / "refuse").touch()
    supervised.thread.start()
    supervised.thread.join(30)
    assert (supervised.status, len(supervised.starts())) == (2, 1)


def test_a_refusal_after_it_was_ready_is_tried_again(supervised: Supervised) -> None:
    supervised.thread.start()
    supervised.ready(1)
    time.sleep(0.2)
    (supervised.folder / "refuse").touch()
    os.kill(supervised.starts()[-1], signal.SIGKILL)
    supervised.wait(lambda: len(supervised.starts()) >= 3)
    (supervised.folder / "refuse").unlink()
    supervised.wait(lambda: supervised.service().get("pid") == supervised.starts()[-1])


@pytest.mark.parametrize("supervised", [0.5], indirect=True)
def test_a_service_that_hangs_is_started_again(supervised: Supervised) -> None:
    supervised.thread.start()
    supervised.ready(1)
    (supervised.folder / "hang").touch()
    supervised.wait(lambda: len(supervised.starts()) >= 2)
    (supervised.folder / "hang").unlink()
    assert any("has not answered" in line for line in supervised.said)


def test_the_service_stops_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import pathlib, sys, threading
        from cluster.supervisor import Supervisor
        folder, service = pathlib.Path(sys.argv[1]), sys.argv[2]
        command = [sys.executable, "-c", service, str(folder)]
        Supervisor(command, folder, stop=threading.Event(), say=print).run()
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), SERVICE])
    deadline = time.monotonic() + 60
    while not (tmp_path / "service.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = psutil.Process(int((tmp_path / "starts").read_text()))
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert alive == []
