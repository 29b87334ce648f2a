"""Where everything of a service lives: every location written out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.settings import Settings
from policies.storage import LOCAL, is_remote


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where everything lives, with no default left open and every path absolute.

    Attributes:
        state_dir: The folder of this service.
        ledger_url: SQLAlchemy URL of the ledger.
        dataset_dir: The Parquet dataset of interactions; like the next three places an absolute
            path, or a URL in an object store.
        registry_url: MLflow tracking and registry URI.
        artifact_dir: Where MLflow keeps the versions' files.
        publish_dir: Where the publisher leaves the champion and its pointer.
        encoder_dir: The exported encoder.
        secret_file: The key that signs decision ids.
        keys_file: Digests of the API keys.
        events_dir: Folder of the event log.
        spool_dir: Folder of each node for decisions that are not recorded yet.
    """

    state_dir: Path
    ledger_url: str
    dataset_dir: str
    registry_url: str
    artifact_dir: str
    publish_dir: str
    encoder_dir: str
    secret_file: Path
    keys_file: Path
    events_dir: Path
    spool_dir: Path


def places(settings: Settings) -> Places:
    """Resolve every location against the present directory and the state folder."""
    state_dir = settings.state_dir.expanduser().resolve()
    storage = _absolute(settings.storage_url or str(state_dir))
    return Places(
        state_dir=state_dir,
        ledger_url=settings.ledger_url or f"sqlite:///{state_dir / 'ledger.db'}",
        dataset_dir=_absolute(settings.dataset_dir or f"{storage}/interactions"),
        registry_url=settings.registry_url or f"sqlite:///{state_dir / 'mlflow.db'}",
        artifact_dir=_absolute(settings.artifact_dir or f"{storage}/artifacts"),
        publish_dir=f"{storage}/published",
        encoder_dir=_absolute(settings.encoder_dir or f"{storage}/encoder"),
        secret_file=state_dir / "secret.key",
        keys_file=(settings.keys_file or state_dir / "keys.json").expanduser().resolve(),
        events_dir=state_dir / "events",
        spool_dir=(settings.spool_dir or state_dir / "spool").expanduser().resolve(),
    )


def resolved(settings: Settings) -> Settings:
    """Return the settings with every location written out, for processes that start elsewhere."""
    place = places(settings)
    return settings.model_copy(
        update={
            "state_dir": place.state_dir,
            "storage_url": settings.storage_url and _absolute(settings.storage_url),
            "ledger_url": place.ledger_url,
            "registry_url": place.registry_url,
            "dataset_dir": place.dataset_dir,
            "artifact_dir": place.artifact_dir,
            "encoder_dir": place.encoder_dir,
            "keys_file": place.keys_file,
            "spool_dir": place.spool_dir,
            "tenants_file": settings.tenants_file and settings.tenants_file.expanduser().resolve(),
        }
    )


def _absolute(place: str) -> str:
    """Write a folder as an absolute path; leave an object store's URL as it is."""
    if is_remote(place):
        return place.rstrip("/")
    return str(Path(place.removeprefix(LOCAL)).expanduser().resolve())
