"""Every knob of the service, read once from flags, environment and file, then passed down."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)


class Settings(BaseSettings):
    """All settings, frozen. Order of precedence: flags, `BARP_*` environment, barp.toml, default.

    Each field's description is the documentation: `barp settings` prints it.
    """

    model_config = SettingsConfigDict(
        env_prefix="BARP_", toml_file="barp.toml", frozen=True, extra="forbid"
    )

    state_dir: Path = Field(
        default=Path(".barp"), description="Folder for ledger, registry, artifacts and logs."
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on. Anything but loopback needs api_key.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    api_key: SecretStr | None = Field(
        default=None,
        description="Key that callers send as `Authorization: Bearer KEY`; none on loopback.",
    )

    default_quality_weight: float = Field(
        default=0.7, ge=0, le=1, description="Weight on quality where a request names none."
    )
    cost_ceiling_usd: float = Field(
        default=0.01, gt=0, description="USD from which one call counts as fully expensive (tau)."
    )
    exploration_total: float = Field(
        default=0.02,
        ge=0,
        lt=1,
        description="Probability shared evenly over the arms offered, on every request.",
    )
    max_prompt_characters: int = Field(
        default=200_000, gt=0, description="Longest prompt accepted, characters."
    )
    max_batch: int = Field(default=256, gt=0, description="Most requests in one batch call.")

    encoder_placement: Literal["replica", "deployment"] = Field(
        default="replica",
        description="Where prompts are encoded: inside each router replica, or in a deployment "
        "of its own that scales by itself.",
    )
    min_replicas: int = Field(default=1, gt=0, description="Router replicas at rest.")
    max_replicas: int = Field(default=4, gt=0, description="Router replicas at most.")
    target_ongoing_requests: float = Field(
        default=4.0, gt=0, description="Requests in flight per replica that autoscaling aims at."
    )
    upscale_delay_s: float = Field(default=2.0, ge=0, description="Load must last this long, s.")
    downscale_delay_s: float = Field(default=30.0, ge=0, description="Calm must last this long, s.")
    look_back_s: float = Field(
        default=4.0, gt=0, description="Window the load is averaged over, s."
    )
    replica_cpus: float = Field(default=0.2, ge=0, description="CPUs a router replica reserves.")

    record_buffer: int = Field(
        default=20_000, gt=0, description="Decisions a replica holds while the ledger is away."
    )
    record_flush_ms: float = Field(
        default=50.0, gt=0, description="Longest a decision waits in the replica, milliseconds."
    )
    record_when_full: Literal["drop", "wait"] = Field(
        default="wait",
        description="With a full buffer: answer and drop the record (counted), or make it wait.",
    )

    ledger_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL of the ledger; default is SQLite in state_dir. "
        "PostgreSQL: postgresql+psycopg://user@host/db.",
    )
    wait_window_s: float = Field(
        default=86_400.0, gt=0, description="How long an outcome may take after its decision, s."
    )
    orphan_after_s: float = Field(
        default=60.0, gt=0, description="An outcome without its decision is orphaned after this, s."
    )
    export_every_s: float = Field(
        default=1.0, gt=0, description="How often matured interactions leave as Arrow, s."
    )

    retrain_min_interactions: int = Field(
        default=500, gt=0, description="New interactions that start a training."
    )
    retrain_max_age_s: float = Field(
        default=600.0, gt=0, description="Train on fewer when this much time has passed, s."
    )
    retrain_poll_s: float = Field(
        default=0.5, gt=0, description="How often the trainer looks for new interactions, s."
    )
    num_learners: int = Field(
        default=0, ge=0, description="Remote RLlib learners; 0 trains inside the trainer."
    )
    holdout_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share of prompts, by salted hash, never trained on but used to judge.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of initial policies and stored draws.")

    registry_url: str | None = Field(
        default=None, description="MLflow tracking and registry URI; default SQLite in state_dir."
    )
    artifact_dir: Path | None = Field(
        default=None, description="Where MLflow keeps artifacts; default a folder in state_dir."
    )
    alias_watch_s: float = Field(
        default=1.0, gt=0, description="How often the champion alias is read back, s."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags first, then environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
