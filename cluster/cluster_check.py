"""`barp cluster check`: can these settings serve from more than one node?

On one node every default will do. On more, rows must be in a database that all reach and files
where all read and write; a folder of one node would split the service in silence.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from cluster.doctor import Check
from cluster.places import Places, places
from cluster.settings import Settings
from pipelines.conditional_objects import ConditionalObject
from pipelines.schema import is_durable, open_engine
from policies.encoder import describe_encoder
from policies.errors import RouterError
from policies.storage import is_remote, open_folder

CONNECT_TIMEOUT_S: Final = 5
PROBE_TIMEOUT_S: Final = 120.0
TOKEN_FILE: Final = "check/token"


class NoCluster(RouterError):
    """There is no Ray cluster to ask, and no number of nodes was given."""

    code = "no_cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What one node of the cluster sees.

    Attributes:
        node: Its address.
        token: What it read from shared storage; None where there was nothing.
        encoder_id: Its encoder; None where there is none.
        release: Versions of the service and of Ray on it.
        error: What went wrong there, in words.
    """

    node: str
    token: str | None = None
    encoder_id: str | None = None
    release: str = ""
    error: str | None = None


Probe = Callable[[str, str], Sequence[NodeReport]]


def check_cluster(settings: Settings, *, nodes: int, probe: Probe | None = None) -> list[Check]:
    """Look at everything that several nodes must share.

    Args:
        settings: As every node will read them.
        nodes: How many there are, or will be.
        probe: Asks each node for what it reads at a storage place and for its encoder; None
            where no cluster runs yet, which is less than proof for a shared folder.
    """
    place, several = places(settings), nodes > 1
    checks = [
        Check("nodes", str(nodes), "1 or more", nodes >= 1),
        _database("ledger", place.ledger_url, "BARP_LEDGER_URL", several, durable=True),
        _database("registry", place.registry_url, "BARP_REGISTRY_URL", several),
        _writable("artifacts", place.artifact_dir),
        _dataset(place, several, asked=probe is not None),
        _secret("signing secret", settings.signing_secret, "BARP_SIGNING_SECRET", several),
        _caller_keys(settings, place, several),
    ]
    return [*checks, *_on_every_node(place, several, probe)]


def running_nodes() -> tuple[int, Probe]:
    """Join the Ray cluster of this machine; return its number of nodes, and how to ask them.

    Raises:
        NoCluster: None runs here.
    """
    import ray

    try:
        ray.init(address="auto", namespace="barp", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise NoCluster(
            f"no Ray cluster runs on this machine ({str(error)[:200]}): say how many nodes there "
            "will be with --nodes",
            field="nodes",
            allowed="a running Ray cluster, or --nodes",
        ) from error
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray's
    return len(alive), lambda storage, encoder: _probe_nodes(alive, storage, encoder)


def _probe_nodes(
    alive: Sequence[Mapping[str, Any]], storage: str, encoder: str
) -> list[NodeReport]:
    """Have each node report; one that does not answer says so."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = [
        (
            str(node["NodeManagerAddress"]),
            ray.remote(report_of_this_node)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(str(node["NodeManagerAddress"]), storage, encoder),
        )
        for node in alive
    ]
    reports = []
    for address, reference in asked:
        try:
            reports.append(ray.get(reference, timeout=PROBE_TIMEOUT_S))
        except (RayError, TimeoutError) as error:
            reports.append(NodeReport(node=address, error=type(error).__name__))
    return reports


def report_of_this_node(node: str, storage: str, encoder: str) -> NodeReport:
    """Read the token in shared storage, and the encoder, from here."""
    from importlib.metadata import version

    release = f"barp-router {version('barp-router')}, ray {version('ray')}"
    try:
        token = open_folder(storage).read(TOKEN_FILE).decode()
    except FileNotFoundError:
        token = None
    except OSError as error:
        return NodeReport(node=node, release=release, error=f"storage: {str(error)[:200]}")
    try:
        encoder_id, _ = describe_encoder(encoder)
    except RouterError as error:
        return NodeReport(node=node, token=token, release=release, error=str(error)[:200])
    return NodeReport(node=node, token=token, encoder_id=encoder_id, release=release)


def _database(name: str, url: str, setting: str, several: bool, *, durable: bool = False) -> Check:
    """One that all nodes reach, that answers, and that keeps what it acknowledges."""
    needed = f"PostgreSQL that all nodes reach: set {setting}" if several else "reachable"
    if url.startswith(("http://", "https://")):
        return Check(name, "a server, not asked here", needed, True)
    backend = make_url(url).get_backend_name()
    shown = make_url(url).render_as_string(hide_password=True)
    if several and backend == "sqlite":
        return Check(name, f"{shown}, a file of one node", needed, False)
    if backend == "sqlite":
        return Check(name, shown, needed, True)
    try:
        if durable:
            engine = open_engine(url)
        else:
            engine = create_engine(url, connect_args={"connect_timeout": CONNECT_TIMEOUT_S})
        with engine.connect() as connection:
            kept = is_durable(connection) if durable else True
            connection.execute(text("SELECT 1"))
        engine.dispose()
    except (SQLAlchemyError, RouterError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0][:200]
        return Check(name, f"{shown}: {reason}", needed, False)
    if not kept:
        return Check(
            name,
            f"{shown} does not flush commits to disk",
            "fsync and synchronous_commit on",
            False,
        )
    return Check(name, shown, needed, True)


def _writable(name: str, place: str) -> Check:
    """A place that takes a file and gives it back."""
    try:
        folder = open_folder(place)
        folder.write("check/written", b"barp")
        ok = folder.read("check/written") == b"barp"
        folder.remove("check")
    except OSError as error:
        return Check(name, f"{place}: {str(error)[:200]}", "can be written", False)
    return Check(name, place, "can be written", ok)


def _dataset(place: Places, several: bool, *, asked: bool) -> Check:
    """Where matured interactions go; an object store must keep two writers apart."""
    found, name = place.dataset_dir, "dataset"
    if is_remote(found):
        needed = "a store that replaces an object only where it is the one that was read"
        try:
            kept_apart = _replaces_on_condition(f"{found}/check")
        except RouterError as error:
            return Check(name, f"{found}: {str(error)[:200]}", needed, False)
        said = found if kept_apart else f"{found}, a store that overwrites whatever is there"
        return Check(name, said, needed, kept_apart)
    needed = "an object store, or in the folder that all mount: set BARP_DATASET_DIR to s3://..."
    if not several:
        return Check(name, found, needed, True)
    # Then what the nodes say of storage holds for it, too.
    in_storage = not is_remote(place.publish_dir) and Path(found).is_relative_to(
        Path(place.publish_dir).parent
    )
    if not (asked and in_storage):
        return Check(name, f"{found}, a folder", needed, False)
    said = f"{found}, a folder: nothing there keeps a writer that comes back from overwriting"
    return Check(name, said, needed, True, look=True)


def _replaces_on_condition(url: str) -> bool:
    """Try whether a store obeys the conditions that keep two writers apart."""
    probe = ConditionalObject(f"{url}/{secrets.token_hex(8)}")
    try:
        first = probe.replace(b"1", etag=None)
        again = probe.replace(b"2", etag=None)
        second = first and probe.replace(b"3", etag=first)
        stale = first and probe.replace(b"4", etag=first)
        return bool(first and second) and again is None and stale is None
    finally:
        probe.remove()


def _secret(name: str, value: object | None, setting: str, several: bool) -> Check:
    """The same on every node, so from the settings and not from one node's file."""
    needed = f"the same on every node: set {setting}" if several else "set, or made in state_dir"
    return Check(
        name, "set" if value is not None else "not set", needed, value is not None or not several
    )


def _caller_keys(settings: Settings, place: Places, several: bool) -> Check:
    """Every node's door is open to other machines, so there must be a key."""
    found = settings.api_key is not None or place.keys_file.is_file()
    needed = "BARP_API_KEY or a keys_file on every node" if several else "none on loopback"
    return Check("API key", "set" if found else "not set", needed, found or not several)


def _on_every_node(place: Places, several: bool, probe: Probe | None) -> list[Check]:
    """Storage that each node reads alike, one encoder, one release; proved where nodes answer."""
    storage = place.publish_dir
    needed = "one place for all nodes: set BARP_STORAGE_URL to s3://... or a folder that all mount"
    token = secrets.token_hex(8)
    try:
        open_folder(storage).write(TOKEN_FILE, token.encode())
    except OSError as error:
        return [Check("storage", f"{storage}: {str(error)[:200]}", needed, False)]
    try:
        if probe is None:
            shared = is_remote(storage) or not several
            found = (
                storage
                if shared
                else f"{storage}, a folder; only a running cluster can prove it shared"
            )
            return [Check("storage", found, needed, shared), _encoder_here(place)]
        return _compared(storage, token, needed, probe(storage, place.encoder_dir))
    finally:
        open_folder(storage).remove(Path(TOKEN_FILE).parent.name)


def _encoder_here(place: Places) -> Check:
    """The encoder as this machine sees it."""
    needed = "an encoder: set BARP_ENCODER_DIR, or build one there"
    try:
        encoder_id, _ = describe_encoder(place.encoder_dir)
    except RouterError as error:
        return Check("encoder", f"{place.encoder_dir}: {str(error)[:200]}", needed, False)
    return Check("encoder", encoder_id, needed, True)


def _compared(storage: str, token: str, needed: str, reports: Sequence[NodeReport]) -> list[Check]:
    """Hold the nodes' reports against each other."""
    failed = [f"{r.node}: {r.error}" for r in reports if r.error is not None]
    blind = [r.node for r in reports if r.token != token and r.error is None]
    ids = {r.encoder_id for r in reports}
    releases = {r.release for r in reports}
    missing = f"{storage} is not the same on {', '.join(blind)}"
    return [
        Check(
            "storage",
            missing if blind else f"{storage}, read on {len(reports)} nodes",
            needed,
            not blind,
        ),
        Check(
            "nodes answer",
            "; ".join(failed) or "all",
            "every node reads storage and encoder",
            not failed,
        ),
        Check(
            "encoder",
            ", ".join(sorted(str(one) for one in ids)),
            "the same on every node: build it into the image, or put it in storage_url",
            len(ids) == 1 and None not in ids,
        ),
        Check("release", "; ".join(sorted(releases)), "the same on every node", len(releases) == 1),
    ]
