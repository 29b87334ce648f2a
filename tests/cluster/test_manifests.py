"""What is handed to Docker, Ray Serve, Kubernetes, pip and make fits what the code expects."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from ray.serve.schema import ServeDeploySchema

from cluster.environment import FIXED
from cluster.settings import Settings

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")


def serve_config() -> ServeDeploySchema:
    """Parse the Serve configuration as Ray itself would."""
    text = (CLUSTER / "serve.yaml").read_text(encoding="utf-8")
    return ServeDeploySchema.model_validate(yaml.safe_load(text))


def constraints() -> dict[str, Version]:
    """Read the pinned versions by normalised name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {_normalised(name): Version(version) for name, version in pins}


def _normalised(name: str) -> str:
    """Write a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_serve_config_names_the_application() -> None:
    """The one import path in it exists."""
    (application,) = serve_config().applications
    module, _, attribute = application.import_path.partition(":")

    assert (application.name, application.route_prefix) == ("barp", "/")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_serve_config_sets_known_settings_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A misspelt setting is refused here, not in the cluster."""
    monkeypatch.chdir(tmp_path)
    (application,) = serve_config().applications
    settings = Settings.model_validate(application.args)
    assert settings.min_replicas <= settings.max_replicas


def test_plain_serve_config_listens_on_loopback() -> None:
    """It sets no key, so nobody else may reach it."""
    config = serve_config()
    assert (config.http_options.host, config.http_options.port) == ("127.0.0.1", 8000)


def test_image_carries_the_product_version() -> None:
    """What its first lines say to build is this release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"-t barp-router:{project['version']} " in DOCKERFILE


def test_image_phones_nobody_and_is_not_root() -> None:
    """`ray start` in a pod reads the image's environment, not cluster/environment.py."""
    assert all(f"{name}={value}" in DOCKERFILE for name, value in FIXED.items())
    users = [line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("USER ")]
    assert users == ["barp"]


def test_image_holds_state_and_encoder_where_the_manifest_says() -> None:
    """The encoder is built into it; the state folder is mounted over."""
    config = CLUSTER / "kuberay" / "base" / "config.yaml"
    told = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
    assert f"BARP_STATE_DIR={told['BARP_STATE_DIR']}" in DOCKERFILE
    assert f"BARP_ENCODER_DIR={told['BARP_ENCODER_DIR']}" in DOCKERFILE
    assert f"barp encoder build --kind minilm --out {told['BARP_ENCODER_DIR']}" in DOCKERFILE


def test_image_takes_the_cpu_unless_told_otherwise() -> None:
    """Every stage that a build argument can name exists, and the last one copies what was built."""
    stages = dict(re.findall(r"^FROM (\S+)(?: AS (\S+))?$", DOCKERFILE, flags=re.MULTILINE))
    names = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    assert "ARG ACCELERATOR=cpu" in DOCKERFILE
    assert {"cpu", "gpu", "build"} == set(names)
    assert stages["${ACCELERATOR}"] == "build"
    assert re.findall(r"^COPY --from=(\S+)", DOCKERFILE, flags=re.MULTILINE) == ["build"] * 2


def test_image_wraps_haproxy_as_barp_serve_does(tmp_path: Path) -> None:
    """The code in it runs, and what it writes opens the front door of a pod and nothing else."""
    (code,) = re.findall(r'^RUN python -c "(.*)"$', DOCKERFILE, flags=re.MULTILINE)
    target = tmp_path / "haproxy"
    assert "RAY_SERVE_HAPROXY_BINARY_PATH=/opt/barp/haproxy " in DOCKERFILE
    asked = code.replace("/opt/barp/haproxy", str(target))
    subprocess.run([sys.executable, "-c", asked], check=True, timeout=60)
    assert target.stat().st_mode & 0o777 == 0o755

    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n"
        "    timeout server 1s\nfrontend stats\n    bind *:8404\n    stats enable\n"
        "frontend http_frontend\n    bind *:8000\n"
    )
    command = [str(target), "-c", "-f", str(config)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    binds = re.findall(r"^ *bind (\S+)$", config.read_text(), flags=re.MULTILINE)
    assert binds == ["127.0.0.1:8404", "0.0.0.0:8000"]


def test_image_needs_no_more_than_pyproject_allows() -> None:
    """The GPU build of ONNX Runtime is bounded as the CPU build is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (bounds,) = [line for line in project["dependencies"] if line.startswith("onnxruntime")]
    assert f'"$BARP_ONNXRUNTIME{bounds.removeprefix("onnxruntime")}"' in DOCKERFILE


def test_constraints_pin_every_requirement_within_its_bounds() -> None:
    """What is installed is what pyproject allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for lines in optional for line in lines)]
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
    for part in ("not ray and not slow and not cluster", "ray and not slow and not cluster"):
        assert f'.venv/bin/pytest -m "{part}"' in done.stdout


def test_ci_runs_what_make_test_runs() -> None:
    """CI and a developer cannot disagree."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.rstrip().endswith("exec make test")


def test_the_systemd_unit_is_one(tmp_path: Path) -> None:
    """Only the path of the command is changed: it is not installed here."""
    unit = (CLUSTER / "barp.service").read_text()
    assert "ExecStart=/opt/barp/.venv/bin/barp serve\n" in unit
    assert "RestartPreventExitStatus=2" in unit
    checker = shutil.which("systemd-analyze")
    if checker is None:
        pytest.skip("no systemd on this machine")
    copy = tmp_path / "barp.service"
    copy.write_text(unit.replace("/opt/barp/.venv/bin/barp", "/bin/true"))
    done = subprocess.run([checker, "verify", str(copy)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
