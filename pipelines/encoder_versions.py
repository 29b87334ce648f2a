"""Encoders as versions of their own in the registry; each set of bytes is one version."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from policies.encoder_files import checked_manifest

ENCODER_MODEL_NAME: Final = "barp-encoder"
ENCODER_FOLDER: Final = "encoder"


def encoder_version(client: Any, experiment: str, folder: Path) -> int:
    """Register an encoder's folder, or find the version that holds the same bytes.

    Args:
        client: MLflow's client, handed in by the one file that imports MLflow.
        experiment: Id of the experiment whose artifacts the files go to.
        folder: What `build_encoder` wrote.

    Returns:
        The version's number.

    Raises:
        ArtifactError: The folder holds no sound encoder.
    """
    manifest = checked_manifest(folder)
    if not client.search_registered_models(f"name = '{ENCODER_MODEL_NAME}'"):
        client.create_registered_model(ENCODER_MODEL_NAME)
    for version in client.search_model_versions(f"name = '{ENCODER_MODEL_NAME}'"):
        if version.tags.get("encoder_id") == manifest.encoder_id:
            return int(version.version)
    run = client.create_run(experiment, run_name=manifest.encoder_id)
    client.log_artifacts(run.info.run_id, str(folder), ENCODER_FOLDER)
    client.set_terminated(run.info.run_id)
    version = client.create_model_version(
        ENCODER_MODEL_NAME,
        f"{run.info.artifact_uri}/{ENCODER_FOLDER}",
        run.info.run_id,
        tags={
            "encoder_id": manifest.encoder_id,
            "kind": manifest.kind,
            "context_dim": str(manifest.dim),
        },
    )
    return int(version.version)
