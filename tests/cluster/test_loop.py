"""The whole loop over HTTP: learn, publish, swap, roll back, restart, scale."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from encoders import small_static_encoder
from service_load import PRICES, Load
from service_process import ServiceProcess, StartService

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def service(
    start_service: StartService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    """Two replicas, quick retraining; started where foreign packages of our names lie."""
    cwd = tmp_path_factory.mktemp("foreign")
    for name in ("services", "policies", "pipelines", "cluster"):
        (cwd / name).mkdir()
        (cwd / name / "__init__.py").write_text("raise ImportError('a stranger was imported')\n")
    running = start_service(
        tmp_path_factory.mktemp("loop"),
        cwd=cwd,
        min_replicas=2,
        max_replicas=2,
        retrain_min_interactions=80,
        holdout_share=0.3,
    )
    for name, prices in PRICES.items():
        running.http.put(f"/v1/models/{name}", json=prices).raise_for_status()
    yield running
    assert running.stop() == 0


def champion_of(service: ServiceProcess) -> int:
    """Read the champion's number over HTTP."""
    champion: int = service.get("/v1/versions")["champion"]
    return champion


def test_versions_are_learned_and_swapped_in_under_load(service: ServiceProcess) -> None:
    with Load(service.url, clients=4) as load:
        service.wait_for(lambda: len(load.versions()) >= 3, timeout_s=180)
    assert load.failures == []

    moves = service.get("/v1/versions/history")["history"]
    ever_champion = {move["version"] for move in moves if move["alias"] == "champion"}
    assert load.versions() <= ever_champion
    for at, _, decision in load.answers:
        first = min(
            move_time(move) for move in moves if move["version"] == decision["policy_version"]
        )
        assert at >= first - 1.0, "a version answered before it was champion"


def wait_for_calm(service: ServiceProcess, *, retrain_min_interactions: int) -> None:
    """Wait until the trainer has looked several times and found too little to train on."""
    calm_since = time.monotonic()

    def calm() -> bool:
        nonlocal calm_since
        if service.get("/v1/status")["trainer"]["new_interactions"] >= retrain_min_interactions:
            calm_since = time.monotonic()
        return time.monotonic() - calm_since > 5.0

    service.wait_for(calm, timeout_s=120)


def move_time(move: dict[str, Any]) -> float:
    """When an alias moved, seconds since the epoch."""
    from datetime import datetime

    return datetime.fromisoformat(move["at"]).timestamp()


def test_every_decision_is_recorded_and_every_outcome_joined(service: ServiceProcess) -> None:
    with Load(service.url, clients=2) as load:
        service.wait_for(lambda: len(load.answers) >= 40)

    def settled() -> bool:
        ledger = service.get("/v1/status")["ledger"]
        return bool(ledger["joined"] == ledger["outcomes"] and ledger["pending"] == 0)

    service.wait_for(settled, timeout_s=20)
    for _, _, decision in load.answers[:10]:
        record = service.get(f"/v1/decisions/{decision['decision_id']}")
        assert record["arm"] == decision["model"]
        assert record["propensity"] == pytest.approx(decision["propensity"])


def test_rollback_moves_all_replicas_within_a_second_and_fails_no_request(
    service: ServiceProcess,
) -> None:
    with Load(service.url, clients=4, feedback=False) as load:
        service.wait_for(lambda: len(load.answers) >= 20)
        move = service.http.post("/v1/versions/rollback", json={"why": "test"}).json()
        moved_at = time.time()
        service.wait_for(lambda: len([a for a in load.answers if a[0] > moved_at + 1.0]) >= 20)
    assert load.failures == []
    assert move["version"] != move["previous"]
    assert (move["replicas_swapped"], move["replicas_waiting"]) == (2, 0)
    after = {d["policy_version"] for at, _, d in load.answers if at > moved_at + 1.0}
    assert after == {move["version"]}


def test_foreign_mlflow_client_moves_the_service(service: ServiceProcess) -> None:
    target = 1 if champion_of(service) != 1 else 2
    uri = f"sqlite:///{service.state_dir / 'mlflow.db'}"
    code = (
        "import sys; from mlflow import MlflowClient; uri, version = sys.argv[1:];"
        "MlflowClient(uri, uri).set_registered_model_alias('barp', 'champion', version)"
    )
    subprocess.run([sys.executable, "-P", "-c", code, uri, str(target)], check=True, timeout=120)
    service.wait_for(lambda: service.route()["policy_version"] == target, timeout_s=10)
    newest = service.get("/v1/versions/history")["history"][0]
    assert (newest["version"], newest["who"]) == (target, "mlflow")


def test_mlflow_loads_the_champion_as_pyfunc(service: ServiceProcess) -> None:
    learned = max(move["version"] for move in service.get("/v1/versions/history")["history"])
    service.http.post(f"/v1/versions/{learned}/promote").raise_for_status()
    # In a process of its own: MLflow leaves its URIs in the environment of whoever uses it so.
    code = (
        "import sys, json, mlflow, pandas; mlflow.set_tracking_uri(sys.argv[1]);"
        "mlflow.set_registry_uri(sys.argv[1]);"
        "model = mlflow.pyfunc.load_model('models:/barp@champion');"
        "frame = pandas.DataFrame({'prompt': ['Name a prime.'], 'quality': [0.7], 'cost': [0.3]});"
        "print(json.dumps(model.predict(frame).to_dict('records')[0]))"
    )
    uri = f"sqlite:///{service.state_dir / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, uri],
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    pmf = json.loads(done.stdout.splitlines()[-1])
    assert set(pmf) == set(PRICES)
    assert sum(pmf.values()) == pytest.approx(1.0)


def test_every_listening_socket_is_loopback_or_refuses_without_a_key(
    service: ServiceProcess,
) -> None:
    root = psutil.Process(service.process.pid)
    listening = {
        (process.name(), connection.laddr.ip, connection.laddr.port)
        for process in (root, *root.children(recursive=True))
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    loopback = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    open_to_others = [entry for entry in listening if entry[1] not in loopback]
    # Serve gives each replica a port for calls between deployments, on every address.
    assert {name[:17] for name, _, _ in open_to_others} <= {"ray::ServeReplica"}
    for _, _, port in open_to_others:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequestWithRejection")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_decisions_and_versions_account_for_themselves(service: ServiceProcess) -> None:
    """On the command line, as an operator asks: why, from what, and what happened."""
    with Load(service.url, clients=2) as load:
        service.wait_for(lambda: len(load.answers) >= 40)
    asked = [decision for _, _, decision in load.answers[:3]]
    paths = [f"/v1/decisions/{one['decision_id']}" for one in asked]
    service.wait_for(lambda: all(service.http.get(path).is_success for path in paths))

    for one in asked:
        why = barp(service, "explain", one["decision_id"])["explanation"]
        assert why["agrees"]
        assert why["propensity"] == pytest.approx(one["propensity"], abs=1e-6)
    newest = service.get("/v1/versions")["versions"][0]["version"]
    assert barp(service, "versions", "rebuild", str(newest))["identical"]
    shown = barp(service, "versions", "show", str(newest))
    assert {"rows_sha256", "parent_version", "code_version", "seed", "encoder_id"} <= set(
        shown["tags"]
    )
    kinds = {event["kind"] for event in barp(service, "events", "--limit", "1000")["events"]}
    assert {"promotion", "training", "verdict", "price_change"} <= kinds


def barp(service: ServiceProcess, *words: str) -> dict[str, Any]:
    """Run a command against the service; return the object it prints last."""
    command = [str(Path(sys.executable).with_name("barp")), *words, "--url", service.url, "--json"]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_dashboard_and_alerts_name_only_metrics_that_are_exported(service: ServiceProcess) -> None:
    folder = Path(__file__).parents[2] / "cluster" / "monitoring"
    texts = [path.read_text() for path in folder.iterdir()]
    named = {name for text in texts for name in re.findall(r"\bbarp_[a-z_]+", text)}
    assert len(named) > 30
    # A version that has learned nothing has no age.
    newest = service.get("/v1/versions")["versions"][0]["version"]
    service.http.post(f"/v1/versions/{newest}/promote").raise_for_status()

    def missing() -> set[str]:
        page = service.http.get("/metrics").text
        exported = set(re.findall(r"^(barp_[a-z_]+)", page, flags=re.MULTILINE))
        return named - exported

    # Version sums come with the first interactions that mature.
    service.wait_for(lambda: not missing(), timeout_s=30)


def test_what_is_not_spoken_here_is_refused_in_our_own_form(service: ServiceProcess) -> None:
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
    }
    for answer, status, code in (
        (service.http.get("/v1/route", headers=upgrade), 400, "no_websocket"),
        (service.http.get("/-/routes"), 404, "not_found"),
        (service.http.get("/v1/route"), 405, "method_not_allowed"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    head, full = service.http.head("/readyz"), service.http.get("/readyz")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == full.headers["content-type"]


def test_haproxy_that_dies_is_started_again(service: ServiceProcess) -> None:
    def haproxy() -> set[int]:
        tree = psutil.Process(service.process.pid).children(recursive=True)
        return {process.pid for process in tree if process.name() == "haproxy"}

    def answers() -> bool:
        try:
            return service.http.get("/healthz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    before = haproxy()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while not (haproxy() - before and answers()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/route", b'{"prompt": "x", "preference": {"speed": 1}}', "preference.speed"),
        ("/v1/route", b'{"prompt": "x", "preference": {"quality": -1}}', "preference.quality"),
        ("/v1/route", b'{"prompt": "x", "preference": {"quality": NaN}}', None),
        ("/v1/route", b'{"prompt": ""}', "prompt"),
        ("/v1/route", b'{"prompt": "' + b"x" * 1_000_000 + b'"}', "prompt"),
        ("/v1/route", b'{"prompt": ', None),
        ("/v1/feedback", b'{"decision_id": "0.forged", "quality": 1}', "decision_id"),
        ("/v1/feedback", b'{"decision_id": "0.forged", "quality": 1.7}', "quality"),
    ],
)
def test_bad_input_is_refused_by_name(
    service: ServiceProcess, path: str, body: bytes, field: str | None
) -> None:
    answer = service.http.post(path, content=body)
    assert 400 <= answer.status_code < 500
    error = answer.json()["error"]
    assert error["code"]
    if field is not None:
        assert error["field"] == field
    assert "xxxx" not in answer.text
    service.route()


def test_a_restart_keeps_champion_ledger_and_learning(
    start_service: StartService, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "retrain_min_interactions": 60,
        "holdout_share": 0.3,
        "encoder": "static",
        "encoder_dir": small_static_encoder(tmp_path / "encoder"),
    }
    first = start_service(tmp_path, **options)
    for name, prices in PRICES.items():
        first.http.put(f"/v1/models/{name}", json=prices).raise_for_status()
    with Load(first.url, clients=4) as load:
        first.wait_for(lambda: len(load.versions()) >= 2, timeout_s=120)
    decisions = len(load.answers)
    assert load.failures == []
    # No training may be due, or the second service would soon have another champion.
    first.wait_for(lambda: first.get("/v1/status")["ledger"]["joined"] == decisions)
    wait_for_calm(first, retrain_min_interactions=60)
    champion = champion_of(first)
    assert first.stop() == 0

    second = start_service(tmp_path, **options)
    assert champion_of(second) == champion
    assert second.route()["policy_version"] == champion
    ledger = second.get("/v1/status")["ledger"]
    assert ledger["decisions"] >= decisions
    assert ledger["joined"] >= decisions
    newest = second.get("/v1/versions")["versions"][0]["version"]
    with Load(second.url, clients=4) as load:
        second.wait_for(
            lambda: second.get("/v1/versions")["versions"][0]["version"] > newest, timeout_s=120
        )
    assert load.failures == []
    assert second.stop() == 0


@pytest.mark.slow
def test_a_load_step_brings_a_second_replica_and_takes_it_back(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service(tmp_path, min_replicas=1, max_replicas=2, downscale_delay_s=5)
    for name, prices in PRICES.items():
        service.http.put(f"/v1/models/{name}", json=prices).raise_for_status()

    def replicas() -> int:
        return len(service.get("/v1/status")["publisher"]["replicas"])

    with Load(service.url, clients=64, feedback=False) as load:
        service.wait_for(lambda: replicas() == 2, timeout_s=60)
    assert load.failures == []
    assert load.versions() == {champion_of(service)}
    service.wait_for(lambda: replicas() == 1, timeout_s=120)
    assert service.stop() == 0
