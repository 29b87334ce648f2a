"""Keeps every policy version, its lineage and its aliases in MLflow; the only writer there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipelines.encoder_versions import ENCODER_MODEL_NAME, encoder_version
from pipelines.history import MS_PER_S, Record, RecordState, iso
from policies.artifact import FILES, PolicyArtifact, digest
from policies.errors import ArtifactError, Unavailable, UnknownVersion
from policies.versions import QUARANTINED, VersionInfo

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MODEL_NAME: Final = "barp"
HISTORY_NAME: Final = "barp-history"
LOADER_MODULE: Final = "policies.pyfunc"
REQUIREMENTS: Final = ("barp-router", "numpy", "pandas", "pyarrow", "safetensors")
POLICY_FOLDER: Final = "policy"
MAX_LISTED: Final = 1000


@contextmanager
def _mlflow_errors() -> Iterator[None]:
    """Say Unavailable for whatever keeps MLflow's store from answering."""
    # Before the first import: MLflow reports usage to its makers unless told not to.
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise Unavailable(f"registry is away: {str(error)[:300]}", field="registry") from error


@contextmanager
def _unknown(version: int) -> Iterator[None]:
    """Say UnknownVersion where MLflow has no such version."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UnknownVersion(
            f"version={version} is not known", field="version", value=version
        ) from error


class Registry:
    """Versions, aliases and records in MLflow. Not for several threads at once.

    Args:
        uri: MLflow tracking and registry URI.
        artifact_dir: Where the versions' files go; a folder or any URI that MLflow writes to.
        clock: Seconds since the epoch, UTC.

    Raises:
        Unavailable: MLflow's store is locked or away; by every method alike.
    """

    @_mlflow_errors()
    def __init__(self, uri: str, artifact_dir: str, *, clock: Callable[[], float]) -> None:
        """Open the store; the first time makes its tables, 2 s on SQLite."""
        self._uri, self._artifact_dir, self._clock = uri, artifact_dir, clock
        self._client = _connect(uri)
        self._experiment = _experiment(self._client, MODEL_NAME, artifact_dir)
        self._records = _experiment(self._client, HISTORY_NAME, artifact_dir)
        if not self._client.search_registered_models(f"name = '{MODEL_NAME}'"):
            self._client.create_registered_model(MODEL_NAME)

    @_mlflow_errors()
    def register(
        self, artifact: PolicyArtifact, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> int:
        """Store a policy as the next version, with its lineage as parameters and tags.

        Args:
            artifact: The policy; its `training` is the lineage.
            metrics: Numbers by name, shown on MLflow's page of the version.
            tags: Words by name, beside the lineage.

        Returns:
            The version's number.
        """
        from mlflow.entities import LoggedModelOutput, Metric, Param

        client, now_ms = self._client, self._now_ms()
        params = _lineage(artifact)
        run = client.create_run(self._experiment, start_time=now_ms, run_name=artifact.kind)
        run_id = run.info.run_id
        model = client.create_logged_model(
            self._experiment, artifact.kind, source_run_id=run_id, params=params
        )
        self._upload(artifact, model.model_id)
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        client.log_batch(
            run_id,
            [Metric(k, v, now_ms, 0, model_id=model.model_id) for k, v in metrics.items()],
            [Param(key, value) for key, value in params.items()],
        )
        client.set_terminated(run_id, end_time=self._now_ms())
        # The location, not models:/<id>: MLflow would look that id up at its global URI.
        version = client.create_model_version(
            MODEL_NAME,
            model.artifact_location,
            run_id,
            tags=params | dict(tags),
            model_id=model.model_id,
        )
        return int(version.version)

    @_mlflow_errors()
    def register_encoder(self, folder: Path) -> int:
        """Store an encoder's folder as a version of `barp-encoder`, once; return its number."""
        experiment = _experiment(self._client, ENCODER_MODEL_NAME, self._artifact_dir)
        return encoder_version(self._client, experiment, folder)

    @_mlflow_errors()
    def versions(self, limit: int = MAX_LISTED) -> list[VersionInfo]:
        """List versions, newest first, at most `limit`."""
        found = self._client.search_model_versions(
            f"name = '{MODEL_NAME}'", max_results=limit, order_by=["version_number DESC"]
        )
        runs = self._client.search_runs(
            [self._experiment], max_results=limit, order_by=["attributes.start_time DESC"]
        )
        metrics = {run.info.run_id: dict(run.data.metrics) for run in runs}
        aliases = self._client.get_registered_model(MODEL_NAME).aliases
        return [
            VersionInfo(
                version=int(one.version),
                kind=one.tags.get("kind", ""),
                created_at=iso(one.creation_timestamp),
                aliases=tuple(sorted(a for a, v in aliases.items() if int(v) == int(one.version))),
                metrics=metrics.get(one.run_id, {}),
                tags=dict(one.tags),
            )
            for one in found
        ]

    @_mlflow_errors()
    def artifact(self, version: int) -> PolicyArtifact:
        """Read a version's policy; raises UnknownVersion or ArtifactError."""
        return PolicyArtifact.from_files(self.files(version))

    @_mlflow_errors()
    def files(self, version: int) -> dict[str, bytes]:
        """Read a version's files; raises UnknownVersion, or ArtifactError where one is gone."""
        from mlflow.artifacts import download_artifacts

        uri = f"{self._location(version)}/data/{POLICY_FOLDER}"
        try:
            # From an object store it is a copy, for nobody but us.
            with tempfile.TemporaryDirectory(prefix="barp-") as copy:
                found = download_artifacts(
                    uri, dst_path=copy, tracking_uri=self._uri, registry_uri=self._uri
                )
                return {name: (Path(found) / name).read_bytes() for name in FILES}
        except OSError as error:
            raise ArtifactError(f"version={version}: {error}", field="version") from error

    @_mlflow_errors()
    def point(self, alias: str, version: int) -> None:
        """Point an alias at a version; raises UnknownVersion."""
        with _unknown(version):
            self._client.set_registered_model_alias(MODEL_NAME, alias, str(version))

    @_mlflow_errors()
    def unpoint(self, alias: str) -> None:
        """Remove an alias; do nothing where there is none."""
        if self._client.get_registered_model(MODEL_NAME).aliases.get(alias) is not None:
            self._client.delete_registered_model_alias(MODEL_NAME, alias)

    @_mlflow_errors()
    def quarantined(self) -> frozenset[int]:
        """Return the versions that may not serve."""
        found = self._client.search_model_versions(
            f"name = '{MODEL_NAME}' and tags.{QUARANTINED} = 'true'", max_results=MAX_LISTED
        )
        return frozenset(int(one.version) for one in found)

    @_mlflow_errors()
    def tag(self, version: int, words: Mapping[str, str]) -> None:
        """Set words on a version by name; raises UnknownVersion."""
        with _unknown(version):
            for name, word in words.items():
                self._client.set_model_version_tag(MODEL_NAME, str(version), name, word)

    @_mlflow_errors()
    def pointed_at(self, alias: str) -> int | None:
        """Return the version an alias points at, None where there is no such alias."""
        from mlflow.exceptions import MlflowException

        try:
            version = self._client.get_model_version_by_alias(MODEL_NAME, alias)
        except MlflowException as error:
            if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                return None
            raise
        return int(version.version)

    @_mlflow_errors()
    def add_record(self, words: Mapping[str, str], *, title: str, at_ms: int) -> Record:
        """Write an entry of the history, one MLflow run, its state INTENDED."""
        run = self._client.create_run(
            self._records, start_time=at_ms, tags=dict(words), run_name=title
        )
        return _as_record(run)

    @_mlflow_errors()
    def close_record(
        self, record_id: str, words: Mapping[str, str], *, state: RecordState, at_ms: int
    ) -> None:
        """Add words to an entry, then set its state."""
        from mlflow.entities import RunTag

        if words:
            tags = [RunTag(key, value) for key, value in words.items()]
            self._client.log_batch(record_id, tags=tags)
        self._client.set_terminated(record_id, status=state.value, end_time=at_ms)

    @_mlflow_errors()
    def records(self, state: RecordState | None, *, limit: int, titled: str = "") -> list[Record]:
        """See `pipelines.history.RecordStore`."""
        wanted = [] if state is None else [f"attributes.status = '{state.value}'"]
        wanted += [f"attributes.run_name LIKE '{titled}%'"] if titled else []
        runs = self._client.search_runs(
            [self._records],
            filter_string=" and ".join(wanted),
            max_results=limit,
            order_by=["attributes.start_time DESC"],
        )
        return [_as_record(run) for run in runs]

    def _location(self, version: int) -> str:
        """Return where a version's files are; raises UnknownVersion."""
        with _unknown(version):
            return self._client.get_model_version_download_uri(MODEL_NAME, str(version))

    def _upload(self, artifact: PolicyArtifact, model_id: str) -> None:
        """Lay the policy out as MLflow's pyfunc, by loader module: no pickle in it."""
        from mlflow import pyfunc
        from mlflow.models import Model

        with tempfile.TemporaryDirectory(prefix="barp-") as folder:
            policy, model = Path(folder) / POLICY_FOLDER, Path(folder) / "model"
            artifact.save(policy)
            pyfunc.save_model(
                str(model),
                loader_module=LOADER_MODULE,
                data_path=str(policy),
                pip_requirements=list(REQUIREMENTS),
                mlflow_model=Model(model_uuid=model_id, model_id=model_id),
            )
            self._client.log_model_artifacts(model_id, str(model))

    def _now_ms(self) -> int:
        return int(self._clock() * MS_PER_S)


def _connect(uri: str) -> MlflowClient:
    """Open MLflow's store. The registry by name too: left out, it is looked for elsewhere."""
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def _experiment(client: MlflowClient, name: str, artifact_dir: str) -> str:
    """Return the id of an experiment, made where there is none."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, artifact_location=f"{artifact_dir}/{name}"))


def _lineage(artifact: PolicyArtifact) -> dict[str, str]:
    """Write down what a version is and what it came from, as words by name."""
    words: dict[str, Any] = {
        "kind": artifact.kind,
        "encoder_id": artifact.encoder_id,
        "price_version": artifact.price_version,
        "cost_ceiling_usd": artifact.cost_ceiling_usd,
        "exploration_total": artifact.exploration_total,
        "seed": artifact.seed,
        "arms": len(artifact.arms),
        "weights_sha256": digest(artifact),
        **artifact.training,
    }
    # A price table is in the artifact and in the ledger; as a parameter it could be too long.
    known = {k: v for k, v in words.items() if v is not None and not isinstance(v, dict)}
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in known.items()}


def _as_record(run: Run) -> Record:
    """Read a run as an entry of the history."""
    return Record(record_id=run.info.run_id, at_ms=run.info.start_time, words=dict(run.data.tags))
