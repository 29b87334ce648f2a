"""HAProxy listens where it was told to, whatever Ray's template says."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from cluster.ingress import free_ports, haproxy_environment

# The four ways that Ray 2.60 binds, ray/serve/_private/haproxy_templates.py.
CONFIGURATION = """global
    stats socket /tmp/admin.sock mode 666 level admin expose-fd listeners
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
