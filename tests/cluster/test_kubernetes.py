"""The Kubernetes manifests say what their schemas allow, and what the service needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kustomize import KUBERAY, OVERLAYS, built, written
from packaging.version import Version
from ray.serve.schema import ServeDeploySchema

from cluster.settings import Settings

SCHEMAS = Path(__file__).parents[1] / "schemas"
# The oldest that is still maintained, and the newest.
KUBERNETES = ("1.34", "1.37")
SECRETS = {"BARP_API_KEY", "BARP_SIGNING_SECRET", "BARP_LEDGER_URL", "BARP_REGISTRY_URL"}
CUSTOM = {"RayService": "kuberay.yaml", "PodMonitor": "podmonitor.yaml"}

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
# Put together here, as the file says that a user would.
GPU = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [{base}]
components: [{monitoring}, {gpu}]
"""


def validate(document: dict[str, Any], version: str) -> None:
    """Refuse what Kubernetes, or the operator whose kind it is, would not take."""
    kind = document["kind"]
    if kind not in CUSTOM:
        kubernetes_validate.validate(document, version, strict=True)
        return
    schema = yaml.safe_load((SCHEMAS / CUSTOM[kind]).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(document)
    if kind == "RayService":
        for template in templates(document):
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
            kubernetes_validate.validate(pod, version, strict=True)


def templates(service: dict[str, Any]) -> list[dict[str, Any]]:
    """List the pod templates of head and workers."""
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def containers(service: dict[str, Any]) -> list[dict[str, Any]]:
    """List the containers of all its pods."""
    return [c for template in templates(service) for c in template["spec"]["containers"]]


def ray_service(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Find the one RayService."""
    (found,) = [document for document in documents if document["kind"] == "RayService"]
    return found


def arguments(service: dict[str, Any]) -> dict[str, Any]:
    """Parse the Serve configuration as Ray does; return the application's arguments."""
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    return dict(application.args)


@pytest.fixture
def gpu(tmp_path: Path) -> list[dict[str, Any]]:
    """Base with both components."""
    # Kustomize takes relative paths only.
    steps = "../" * (len(tmp_path.parts) - 1)
    parts = {
        name: f"{steps}{KUBERAY / name}".replace("//", "/")
        for name in ("base", "monitoring", "gpu")
    }
    (tmp_path / "kustomization.yaml").write_text(GPU.format(**parts))
    return built(tmp_path)


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_document_as_written_fits_its_schema(version: str) -> None:
    parts = ("Kustomization", "Component")
    checked = [
        (name, document)
        for name, document in written()
        if isinstance(document, dict) and document["kind"] not in parts
    ]
    assert len(checked) >= 12
    for _, document in checked:
        validate(document, version)


@each_overlay
def test_every_overlay_fits_its_schemas(overlay: str) -> None:
    for document in built(KUBERAY / overlay):
        validate(document, KUBERNETES[-1])


def test_the_encoder_on_gpus_fits_its_schemas(gpu: list[dict[str, Any]]) -> None:
    for document in gpu:
        validate(document, KUBERNETES[-1])
    settings = Settings.model_validate(arguments(ray_service(gpu)))
    limits = containers(ray_service(gpu))[-1]["resources"]["limits"]
    assert settings.encoder_placement == "deployment"
    assert settings.encoder_gpus == float(limits["nvidia.com/gpu"])


def test_a_misspelt_field_is_found() -> None:
    """Or the schemas above would prove nothing."""
    (service,) = [d for name, d in written() if name == "base/rayservice.yaml"]
    service["spec"]["rayClusterConfig"]["gcsFaultToleranceOption"] = {}
    with pytest.raises(jsonschema.ValidationError, match="gcsFaultToleranceOption"):
        validate(service, KUBERNETES[-1])
    (service,) = [d for name, d in written() if name == "base/rayservice.yaml"]
    templates(service)[1]["spec"]["teminationGracePeriodSeconds"] = 5
    with pytest.raises(jsonschema.ValidationError, match="teminationGracePeriodSeconds"):
        validate(service, KUBERNETES[-1])


@each_overlay
def test_secrets_are_references_on_every_node(overlay: str) -> None:
    """Whatever is a secret, or holds one; no value in a file."""
    for container in containers(ray_service(built(KUBERAY / overlay))):
        by_name = {variable["name"]: variable for variable in container["env"]}
        assert by_name.keys() >= SECRETS
        for name in SECRETS:
            assert by_name[name].keys() == {"name", "valueFrom"}
            assert by_name[name]["valueFrom"]["secretKeyRef"]["name"] == "barp"
    assert not [d for d in built(KUBERAY / overlay) if d["kind"] == "Secret"]


@each_overlay
def test_variables_are_settings(
    overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pod is told by environment and arguments is what the settings know."""
    monkeypatch.chdir(tmp_path)
    documents = built(KUBERAY / overlay)
    (config,) = [
        d for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"] == "barp"
    ]
    names = {v["name"] for c in containers(ray_service(documents)) for v in c["env"]}
    ours = {name for name in names | config["data"].keys() if name.startswith("BARP_")}
    assert {name.removeprefix("BARP_").lower() for name in ours} <= Settings.model_fields.keys()

    told = {name: value for name, value in config["data"].items() if name.startswith("BARP_")}
    settings = Settings.model_validate(
        {name.removeprefix("BARP_").lower(): value for name, value in told.items()}
        | arguments(ray_service(documents))
    )
    assert settings.storage_url is not None
    mounts = [m["mountPath"] for m in containers(ray_service(documents))[0]["volumeMounts"]]
    assert str(settings.state_dir) in mounts
    if settings.storage_url.startswith("/"):
        for container in containers(ray_service(documents)):
            assert settings.storage_url in [m["mountPath"] for m in container["volumeMounts"]]


@each_overlay
def test_the_workers_hold_the_replicas(overlay: str) -> None:
    """At most the most, at least the fewest, and never all of them on one node."""
    service = ray_service(built(KUBERAY / overlay))
    cluster, settings = service["spec"]["rayClusterConfig"], Settings(**arguments(service))
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    per_node = settings.max_replicas_per_node
    assert per_node is not None
    assert cluster["enableInTreeAutoscaling"] is True
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert per_node * settings.replica_cpus <= float(container["resources"]["limits"]["cpu"])
    assert settings.max_replicas <= group["maxReplicas"] * per_node
    assert 2 <= settings.min_replicas <= group["minReplicas"] * per_node
    assert group["minReplicas"] >= 2


@each_overlay
def test_nothing_runs_with_privileges_or_names_a_namespace(overlay: str) -> None:
    """Whoever applies it says where; nothing in it needs root."""
    documents = built(KUBERAY / overlay)
    assert all("namespace" not in document["metadata"] for document in documents)
    pods = templates(ray_service(documents)) + [
        d["spec"]["template"] for d in documents if d["kind"] in ("StatefulSet", "Deployment")
    ]
    for pod in pods:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"].keys() == {"requests", "limits"}


@each_overlay
def test_the_network_policy_opens_one_port_to_callers(overlay: str) -> None:
    documents = built(KUBERAY / overlay)
    (policy,) = [d for d in documents if d["kind"] == "NetworkPolicy"]
    labels = policy["spec"]["podSelector"]["matchLabels"]
    for template in templates(ray_service(documents)):
        assert labels.items() <= template["metadata"]["labels"].items()
    to_callers = [
        rule["ports"]
        for rule in policy["spec"]["ingress"]
        if any("barp-client" in s["podSelector"].get("matchLabels", {}) for s in rule["from"])
    ]
    assert to_callers == [[{"port": 8000, "protocol": "TCP"}]]


def test_metrics_are_read_where_they_are() -> None:
    """The service's from one pod only, for each answers for all; Ray's from every one."""
    documents = built(KUBERAY / "production")
    monitors = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "PodMonitor"}
    pods = templates(ray_service(documents))
    for name, matched in (("barp", 1), ("barp-ray", len(pods))):
        wanted = monitors[name]["selector"]["matchLabels"].items()
        found = [pod for pod in pods if wanted <= pod["metadata"]["labels"].items()]
        assert len(found) == matched
        (endpoint,) = monitors[name]["podMetricsEndpoints"]
        for pod in found:
            ports = {port["name"] for c in pod["spec"]["containers"] for port in c["ports"]}
            assert endpoint["port"] in ports


def test_grafana_finds_the_dashboard() -> None:
    """By the label that its sidecar looks for, and as the file is."""
    documents = built(KUBERAY / "production")
    (found,) = [d for d in documents if d["metadata"]["name"] == "barp-dashboard"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    ((name, content),) = found["data"].items()
    assert content == (KUBERAY.parent / "monitoring" / name).read_text(encoding="utf-8")


@each_overlay
def test_the_cluster_survives_its_head_and_guards_its_ports(overlay: str) -> None:
    cluster = ray_service(built(KUBERAY / overlay))["spec"]["rayClusterConfig"]
    redis = cluster["gcsFaultToleranceOptions"]
    assert redis["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] == "barp"
    assert cluster["authOptions"] == {"mode": "token"}


@each_overlay
def test_every_pod_runs_the_image_of_this_release(overlay: str) -> None:
    from importlib.metadata import version

    import ray

    service = ray_service(built(KUBERAY / overlay))
    images = {container["image"] for container in containers(service)}
    assert images == {f"barp-router:{version('barp-router')}"}
    assert Version(service["spec"]["rayClusterConfig"]["rayVersion"]) == Version(ray.__version__)
