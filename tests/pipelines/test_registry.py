"""The registry on a real MLflow: versions, lineage, aliases, and no pickle."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from clock import Clock
from encoders import small_static_encoder
from mlflow import MlflowClient
from registries import RegistrySetup, open_registry, small_artifact

from pipelines.encoder_versions import ENCODER_MODEL_NAME
from pipelines.registry import MODEL_NAME, Registry
from policies.encoder import describe_encoder
from policies.errors import ArtifactError, Unavailable, UnknownVersion
from policies.versions import CHALLENGER, CHAMPION

PICKLE_OPCODES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@pytest.fixture
def setup(registry_dir: Path) -> RegistrySetup:
    """Three versions, nothing promoted."""
    return RegistrySetup(registry_dir)


def test_a_version_comes_back_as_it_was_registered(registry_dir: Path) -> None:
    registry = open_registry(registry_dir, Clock())
    artifact = small_artifact(0.5, parent_version=7, rows=12, rows_sha256="ab")

    version = registry.register(artifact, {"uplift": 0.25}, {"verdict": "better"})

    assert registry.artifact(version).to_files() == artifact.to_files()
    (info,) = registry.versions()
    assert (info.version, info.kind, info.metrics) == (1, "posterior", {"uplift": 0.25})
    lineage = {name: info.tags[name] for name in ("parent_version", "rows", "rows_sha256")}
    assert lineage == {"parent_version": "7", "rows": "12", "rows_sha256": "ab"}
    assert info.tags["verdict"] == "better"


def test_versions_may_lie_in_an_object_store(registry_dir: Path, object_store: str) -> None:
    artifact = small_artifact(0.5)
    uri = f"sqlite:///{registry_dir / 'mlflow.db'}"
    registry = Registry(uri, f"{object_store}/{registry_dir.name}", clock=Clock())

    version = registry.register(artifact, {}, {})
    assert registry.artifact(version).to_files() == artifact.to_files()
    found = MlflowClient(uri, uri).get_model_version_download_uri(MODEL_NAME, str(version))
    assert found.startswith(f"{object_store}/{registry_dir.name}/")


def test_mlflows_own_pages_show_metrics_and_lineage(setup: RegistrySetup) -> None:
    version = setup.registry.register(small_artifact(4.0, rows=12), {"uplift": 0.25}, {})
    client = setup.foreign()

    found = client.get_model_version(MODEL_NAME, str(version))
    assert found.run_id is not None
    run = client.get_run(found.run_id)
    assert run.outputs is not None
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)

    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"uplift": 0.25}
    assert run.data.params["rows"] == "12"
    assert model.params["rows"] == "12"
    assert [metric.value for metric in model.metrics or []] == [0.25]
    assert model.status == "READY"


def test_there_is_no_pickle_in_a_models_folder(setup: RegistrySetup) -> None:
    files = [path for path in (setup.folder / "artifacts").rglob("*") if path.is_file()]

    assert {"MLmodel", "policy.safetensors", "policy.json"} <= {path.name for path in files}
    for path in files:
        assert path.suffix not in (".pkl", ".pickle", ".pt", ".joblib")
        assert not path.read_bytes().startswith(PICKLE_OPCODES)


def test_the_tracking_uri_stays_out_of_the_environment(setup: RegistrySetup) -> None:
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert setup.registry.pointed_at(CHAMPION) is None


@pytest.mark.parametrize("step", ["promote", "rollback", "artifact", "challenge"])
def test_an_unknown_version_is_named_as_such(setup: RegistrySetup, step: str) -> None:
    steps: dict[str, Callable[[], object]] = {
        "promote": lambda: setup.promotion.promote(99, who="ann", why=""),
        "rollback": lambda: setup.promotion.rollback(to=99, who="ann", why=""),
        "artifact": lambda: setup.registry.artifact(99),
        "challenge": lambda: setup.registry.point(CHALLENGER, 99),
    }

    with pytest.raises(UnknownVersion, match="99"):
        steps[step]()


def test_versions_show_their_aliases_newest_first(setup: RegistrySetup) -> None:
    setup.promotion.promote(1, who="ann", why="")
    setup.registry.point(CHALLENGER, 3)

    aliases = {info.version: info.aliases for info in setup.registry.versions()}

    assert aliases == {3: (CHALLENGER,), 2: (), 1: (CHAMPION,)}
    assert list(aliases) == [3, 2, 1]


def test_mlflow_loads_a_version_and_predicts_the_pmf(registry_dir: Path) -> None:
    """In a process of its own, as a user of MLflow would, with nothing but the URI."""
    from policies.arms import Arm
    from policies.learning import LearnerSpec
    from policies.posterior_learner import PosteriorLearner

    registry = open_registry(registry_dir, Clock())
    spec = LearnerSpec(
        arms=(Arm(name="a"), Arm(name="b")), encoder_id="e", context_dim=4, cost_ceiling_usd=0.01
    )
    registry.register(PosteriorLearner().initial(spec), {}, {})
    registry.point(CHAMPION, 1)
    uri = f"sqlite:///{registry_dir / 'mlflow.db'}"
    code = """
import sys, mlflow, pandas, numpy
mlflow.set_tracking_uri(sys.argv[1]); mlflow.set_registry_uri(sys.argv[1])
frame = pandas.DataFrame({"context": [numpy.zeros(4)] * 2, "quality": [0.7, 0.1]})
frame["cost"] = 1.0 - frame["quality"]
pmf = mlflow.pyfunc.load_model("models:/barp@champion").predict(frame)
assert numpy.allclose(numpy.asarray(pmf, dtype=float).sum(axis=1), 1.0), pmf
"""

    done = subprocess.run(
        [sys.executable, "-c", code, uri],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_an_encoder_is_one_version_however_often_it_is_registered(
    setup: RegistrySetup, tmp_path: Path
) -> None:
    first, second = (small_static_encoder(tmp_path / f"e{seed}", seed=seed) for seed in (0, 1))
    numbers = [setup.registry.register_encoder(folder) for folder in (first, second, first)]
    assert numbers == [1, 2, 1]

    found = setup.foreign().get_model_version(ENCODER_MODEL_NAME, "1")
    assert (found.tags["encoder_id"], found.tags["kind"]) == (describe_encoder(first)[0], "static")
    stored = Path(str(found.source).removeprefix("file://"))
    assert describe_encoder(stored) == describe_encoder(first)
    # The policies' own versions are untouched.
    assert len(setup.registry.versions()) == 3


def test_a_folder_without_an_encoder_is_not_registered(
    setup: RegistrySetup, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError):
        setup.registry.register_encoder(tmp_path)


@pytest.mark.slow
def test_a_registry_that_somebody_locks_is_away_until_they_let_go(setup: RegistrySetup) -> None:
    """MLflow waits 20 s for a lock; what it was asked then is refused, and nothing is lost."""
    before = [info.version for info in setup.registry.versions()]
    database = sqlite3.connect(setup.folder / "mlflow.db", isolation_level=None)
    with contextlib.closing(database):
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Unavailable, match="database is locked"):
            setup.registry.register(small_artifact(9.0), {}, {})
        database.execute("ROLLBACK")
    assert [info.version for info in setup.registry.versions()] == before
    assert setup.registry.register(small_artifact(9.0), {}, {}) == max(before) + 1
