"""What is handed to Docker, Ray Serve, Kubernetes, pip and make fits what the code expects."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from ray.serve.schema import ServeDeploySchema

from cluster.environment import FIXED
from cluster.settings import Settings

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay" / "rayservice.yaml"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")


def kuberay_documents() -> dict[str, Any]:
    """Read the manifest's documents by kind."""
    documents = yaml.safe_load_all(KUBERAY.read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


def ray_cluster() -> dict[str, Any]:
    """Read the cluster that the RayService asks for."""
    config: dict[str, Any] = kuberay_documents()["RayService"]["spec"]["rayClusterConfig"]
    return config


def containers() -> list[dict[str, Any]]:
    """Read the container of the head and of each worker group."""
    groups = [ray_cluster()["headGroupSpec"], *ray_cluster()["workerGroupSpecs"]]
    return [c for group in groups for c in group["template"]["spec"]["containers"]]


def serve_config(name: str) -> ServeDeploySchema:
    """Parse one of the two Serve configurations as Ray itself would."""
    if name == "serve.yaml":
        text = (CLUSTER / name).read_text(encoding="utf-8")
    else:
        text = kuberay_documents()["RayService"]["spec"]["serveConfigV2"]
    return ServeDeploySchema.model_validate(yaml.safe_load(text))


both_configs = pytest.mark.parametrize("name", ["serve.yaml", "rayservice.yaml"])


def constraints() -> dict[str, Version]:
    """Read the pinned versions by normalised name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {_normalised(name): Version(version) for name, version in pins}


def _normalised(name: str) -> str:
    """Write a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@both_configs
def test_serve_config_names_the_application(name: str) -> None:
    """The one import path in it exists."""
    (application,) = serve_config(name).applications
    module, _, attribute = application.import_path.partition(":")

    assert (application.name, application.route_prefix) == ("barp", "/")
    assert callable(getattr(importlib.import_module(module), attribute))


@both_configs
def test_serve_config_sets_known_settings_only(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A misspelt setting is refused here, not in the cluster."""
    monkeypatch.chdir(tmp_path)
    (application,) = serve_config(name).applications
    settings = Settings.model_validate(application.args)
    assert settings.min_replicas <= settings.max_replicas


def test_plain_serve_config_listens_on_loopback() -> None:
    """It sets no key, so nobody else may reach it."""
    config = serve_config("serve.yaml")
    assert (config.http_options.host, config.http_options.port) == ("127.0.0.1", 8000)


def test_kuberay_secrets_are_references() -> None:
    """Every setting that is a secret, or holds one, on every node; no value in the file."""
    secret = {"BARP_API_KEY", "BARP_SIGNING_SECRET", "BARP_LEDGER_URL", "BARP_REGISTRY_URL"}
    for container in containers():
        by_name = {variable["name"]: variable for variable in container["env"]}
        assert by_name.keys() >= secret
        for name in secret:
            assert by_name[name].keys() == {"name", "valueFrom"}
            assert by_name[name]["valueFrom"]["secretKeyRef"]["name"] == "barp"


def test_kuberay_variables_are_settings() -> None:
    """Each BARP_ variable is read by a field of that name."""
    names = {variable["name"] for container in containers() for variable in container["env"]}
    assert {name.removeprefix("BARP_").lower() for name in names} <= Settings.model_fields.keys()


def test_kuberay_worker_group_scales() -> None:
    """Its workers, at most, hold the most replicas; at least, the fewest."""
    (group,) = ray_cluster()["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    (application,) = serve_config("rayservice.yaml").applications
    settings = Settings.model_validate(application.args)
    cpus = float(container["resources"]["limits"]["cpu"])

    assert ray_cluster()["enableInTreeAutoscaling"] is True
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert settings.max_replicas * settings.replica_cpus <= group["maxReplicas"] * cpus
    assert settings.min_replicas * settings.replica_cpus <= group["minReplicas"] * cpus


def test_kuberay_state_is_shared_and_mounted_where_settings_look() -> None:
    """Every node sees the publisher's pointer."""
    claim = kuberay_documents()["PersistentVolumeClaim"]
    (application,) = serve_config("rayservice.yaml").applications

    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for container in containers():
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert paths == [application.args["state_dir"]]


def test_kuberay_names_no_namespace_and_runs_without_privileges() -> None:
    """Whoever applies it says where; nothing in it needs root."""
    assert all("namespace" not in d["metadata"] for d in kuberay_documents().values())
    groups = [ray_cluster()["headGroupSpec"], *ray_cluster()["workerGroupSpecs"]]
    assert all(g["template"]["spec"]["securityContext"]["runAsNonRoot"] for g in groups)
    assert all(not c["securityContext"]["allowPrivilegeEscalation"] for c in containers())
    assert all(c["resources"].keys() == {"requests", "limits"} for c in containers())


def test_kuberay_runs_the_pinned_ray_with_a_token() -> None:
    """The operator must start the Ray that the image holds, and guard its ports."""
    assert Version(ray_cluster()["rayVersion"]) == constraints()["ray"]
    assert ray_cluster()["authOptions"] == {"mode": "token"}


def test_image_carries_the_product_version() -> None:
    """Manifest and pyproject name the same one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    images = {container["image"] for container in containers()}
    assert images == {f"barp-router:{project['version']}"}
    assert f"-t {images.pop()}" in DOCKERFILE


def test_image_phones_nobody_and_is_not_root() -> None:
    """`ray start` in a pod reads the image's environment, not cluster/environment.py."""
    assert all(f"{name}={value}" in DOCKERFILE for name, value in FIXED.items())
    users = [line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("USER ")]
    assert users == ["barp"]


def test_image_holds_state_and_encoder_where_the_manifest_says() -> None:
    """The encoder is built into it; the state folder is mounted over."""
    (application,) = serve_config("rayservice.yaml").applications
    assert f"BARP_STATE_DIR={application.args['state_dir']}" in DOCKERFILE
    assert f"BARP_ENCODER_DIR={application.args['encoder_dir']}" in DOCKERFILE
    assert f"barp encoder build --kind minilm --out {application.args['encoder_dir']}" in DOCKERFILE


def test_constraints_pin_every_requirement_within_its_bounds() -> None:
    """What is installed is what pyproject allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins = constraints()
    for requirement in map(Requirement, lines):
        assert requirement.specifier.contains(pins[_normalised(requirement.name)])


def test_constraints_name_no_machine() -> None:
    """Exact versions only, sorted: no path, no index, no local build."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    assert lines == sorted(lines, key=str.upper)
    assert "torch==2.13.0" in lines


def test_make_works_from_another_directory(tmp_path: Path) -> None:
    """It goes to its own folder first, where foreign packages cannot shadow ours."""
    (tmp_path / "services").mkdir()
    command = ["make", "--dry-run", "-f", str(ROOT / "Makefile"), "test"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    assert f'-C "{ROOT.resolve()}" test' in done.stdout
    assert '.venv/bin/pytest -m "not slow"' in done.stdout


def test_ci_runs_what_make_test_runs() -> None:
    """CI and a developer cannot disagree."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.rstrip().endswith("exec make test")
