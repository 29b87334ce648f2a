"""Every knob of the service, read once from flags, environment and file, then passed down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pipelines.tenants import Signals
from policies.encoder_files import EncoderKind
from policies.sharding import MAX_SHARDS

Ingress = Literal["haproxy", "python"]
LEARNERS: Final = ("posterior", "barp-dr", "barp")
LABEL: Final = re.compile(r"[A-Za-z0-9][\w./-]*=[A-Za-z0-9][\w.-]*")
PLACE: Final = re.compile(r"file:///.*|s3://[\w.-]+(/[\w./=-]*)?")


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
        description="Address to listen on. Anything but loopback needs a key.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    api_key: SecretStr | None = Field(
        default=None,
        description="Key that callers send as `Authorization: Bearer KEY`, good for everything; "
        "none on loopback. `barp keys` makes narrower ones.",
    )
    keys_file: Path | None = Field(
        default=None,
        description="File that `barp keys` writes and replicas read; default keys.json in "
        "state_dir.",
    )

    ingress: Ingress = Field(
        default="haproxy",
        description="Who takes the requests: HAProxy (Linux), or Serve's own proxy, some ten times "
        "slower.",
    )
    signing_secret: SecretStr | None = Field(
        default=None,
        description="Signs decision ids; default is made in state_dir. Set it where nodes share "
        "no disk.",
    )
    retired_signing_secrets: SecretStr | None = Field(
        default=None,
        description="Signing secrets of before, separated by commas: decision ids that they signed "
        "are still accepted.",
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
        description="Probability explored with on every request, shared over the arms offered.",
    )
    max_prompt_characters: int = Field(
        default=200_000, gt=0, description="Longest prompt accepted, characters."
    )
    max_in_flight: int = Field(
        default=1024,
        gt=0,
        description="Requests a replica has in hand at most; further ones are refused with 503.",
    )
    max_batch: int = Field(default=256, gt=0, description="Most requests in one batch call.")

    encoder: EncoderKind = Field(
        default="minilm",
        description="Encoder of a new state folder: MiniLM itself, or `static`, a table of token "
        "vectors distilled from it, some hundred times faster.",
    )
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
    upscale_delay_s: float = Field(default=0.5, ge=0, description="Load must last this long, s.")
    downscale_delay_s: float = Field(default=30.0, ge=0, description="Calm must last this long, s.")
    look_back_s: float = Field(
        default=4.0, gt=0, description="Window the load is averaged over, s."
    )
    replica_cpus: float = Field(default=0.2, ge=0, description="CPUs a router replica reserves.")
    max_replicas_per_node: int | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Router replicas on one node at most; Serve spreads them where it can anyway.",
    )
    encoder_gpus: float = Field(
        default=0.0,
        ge=0,
        description="GPUs an encoder replica reserves, where the encoder is a deployment.",
    )
    control_nodes: str | None = Field(
        default=None,
        description="Label `name=value` of the nodes that ledger, registry, publisher and trainer "
        "prefer; others take them where none of these is up.",
    )

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

    spool_dir: Path | None = Field(
        default=None,
        description="Folder on each node's own disk for decisions that are not recorded yet; "
        "default is `spool` in state_dir.",
    )

    ledger_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL of the ledger; default is SQLite in state_dir. "
        "PostgreSQL: postgresql+psycopg://user@host/db.",
    )
    aggregator_shards: int = Field(
        default=1,
        ge=1,
        le=MAX_SHARDS,
        description="Aggregators that take decisions and feedback side by side, each those of its "
        "own decision ids; more than one needs PostgreSQL.",
    )
    wait_window_s: float = Field(
        default=86_400.0, gt=0, description="How long an outcome may take after its decision, s."
    )
    default_outcome: str = Field(
        default="drop",
        description="Quality of a decision for which none was reported in time, 0 to 1; `drop` "
        "makes nothing up.",
    )
    quality_signals: Signals = Field(
        default="latest",
        description="Which of several qualities reported for one decision counts: the latest, "
        "their mean, or the earliest.",
    )
    tenants_file: Path | None = Field(
        default=None,
        description="TOML file of tenants whose wait_window_s, default_outcome or "
        "quality_signals differ.",
    )
    orphan_after_s: float = Field(
        default=60.0, gt=0, description="An outcome without its decision is orphaned after this, s."
    )
    export_every_s: float = Field(
        default=1.0, gt=0, description="How often matured interactions leave as Arrow, s."
    )
    ledger_retention_s: float = Field(
        default=30 * 24 * 3600.0,
        ge=0,
        description="How long a decision stays in the ledger after the longest wait window, s; "
        "then only in the dataset.",
    )

    retrain_min_interactions: int = Field(
        default=500, gt=0, description="New interactions that start a training."
    )
    retrain_max_age_s: float = Field(
        default=600.0, gt=0, description="Train on fewer when this much time has passed, s."
    )
    retrain_tolerance: float = Field(
        default=0.005,
        ge=0,
        le=1,
        description="With gate = estimate: reward by which a retrained version may seem worse on "
        "held-out decisions than a champion of its own learner and still replace it.",
    )
    apprentice: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Name of the one model that decides everything, while the learners learn from "
        "it and `barp status` shows what they would have gained; none by default.",
    )
    gate: Literal["evidence", "estimate"] = Field(
        default="evidence",
        description="What promotes: trials on live traffic at a stated error rate, with a "
        "guardrail afterwards; or, for little traffic, an estimate on held-out decisions alone.",
    )
    canary_share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of sessions that a version beside the champion decides for.",
    )
    shadow_decisions: int = Field(
        default=200,
        ge=0,
        description="Matured decisions a challenger is scored on before it gets that share.",
    )
    gate_margin: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Reward by which a retrained version may surely not be worse. Half of the "
        "smallest loss that counts for you.",
    )
    gate_max_decisions: int = Field(
        default=20_000,
        gt=0,
        description="Decisions after which a trial ends and the champion stays.",
    )
    probation_decisions: int = Field(
        default=2_000,
        ge=0,
        description="Decisions that a new champion shares with its predecessor, so that it can "
        "be taken back where it is surely worse; 0 for no guardrail.",
    )
    guardrail_loss: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="Reward by which a new champion may be worse than its predecessor.",
    )
    guardrail_answer_s: float = Field(
        default=30.0,
        gt=0,
        description="How long after a decision its feedback is there, if it comes at all: the "
        "guardrail compares how often that is so, s.",
    )
    rollback_hold_s: float = Field(
        default=600.0,
        ge=0,
        description="After somebody went back to an older version nothing is promoted by itself "
        "for this long, s.",
    )
    retrain_poll_s: float = Field(
        default=0.5, gt=0, description="How often the trainer looks for new interactions, s."
    )
    learners: str = Field(
        default="posterior,barp-dr",
        description="Who learns, of posterior, barp-dr and barp, separated by commas, each once. "
        "The first one's untrained version is the first champion.",
    )
    num_learners: int = Field(
        default=0, ge=0, description="Remote RLlib learners; 0 trains inside the trainer."
    )
    trainer_cpus: float = Field(default=0.0, ge=0, description="CPUs the trainer reserves.")
    learner_cpus: float = Field(default=0.0, ge=0, description="CPUs a remote learner reserves.")
    max_tenant_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the rows of one training that one tenant may give at most, where "
        "others have given some; 1 for no bound.",
    )
    holdout_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share of prompts, by salted hash, never trained on but used to judge.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of initial policies and stored draws.")

    event_webhook_url: SecretStr | None = Field(
        default=None,
        description="Where events are POSTed as JSON, one each, in order; none by default.",
    )
    event_webhook_secret: SecretStr | None = Field(
        default=None,
        description="Signs them: `x-barp-signature` is HMAC-SHA-256 over `x-barp-timestamp`, a "
        "dot, and the body.",
    )

    registry_url: str | None = Field(
        default=None, description="MLflow tracking and registry URI; default SQLite in state_dir."
    )
    storage_url: str | None = Field(
        default=None,
        description="Folder or s3:// URL that every node reads and writes: the champion as "
        "published, the versions' artifacts, the dataset, the encoder. Default is state_dir.",
    )
    dataset_dir: str | None = Field(
        default=None,
        description="Folder or s3:// URL of the Parquet dataset that matured interactions go to; "
        "default `interactions` in storage_url.",
    )
    artifact_dir: str | None = Field(
        default=None,
        description="Folder or s3:// URL where MLflow keeps artifacts; default `artifacts` in "
        "storage_url.",
    )
    encoder_dir: str | None = Field(
        default=None,
        description="Folder or s3:// URL of the exported encoder; default `encoder` in "
        "storage_url.",
    )
    alias_watch_s: float = Field(
        default=1.0, gt=0, description="How often the champion alias is read back, s."
    )

    @field_validator("default_outcome", mode="before")
    @classmethod
    def _drop_or_a_quality(cls, value: object) -> str:
        """Take `drop`, or a number from 0 to 1 as text or as one; raises ValueError."""
        text = str(value)
        try:
            allowed = text == "drop" or 0 <= float(text) <= 1
        except ValueError:
            allowed = False
        if not allowed:
            raise ValueError("must be `drop` or a quality from 0 to 1")
        return text

    @field_validator("aggregator_shards")
    @classmethod
    def _side_by_side_on_postgresql(cls, value: int, info: ValidationInfo) -> int:
        """Refuse shards on SQLite, where one process writes at a time; raises ValueError."""
        url = info.data.get("ledger_url")
        if value > 1 and not (url or "").startswith("postgresql"):
            raise ValueError(
                "must be 1 on SQLite, where writers only wait for each other; for more set "
                "ledger_url to postgresql+psycopg://..."
            )
        return value

    @field_validator("storage_url", "dataset_dir", "artifact_dir", "encoder_dir")
    @classmethod
    def _folder_or_object_store(cls, value: str | None) -> str | None:
        """Refuse a URL that nothing here can read; raises ValueError."""
        if value and "://" in value and not PLACE.fullmatch(value):
            raise ValueError("must be a path, file:///path or s3://bucket/prefix")
        return value

    @field_validator("control_nodes")
    @classmethod
    def _one_label(cls, value: str | None) -> str | None:
        """Refuse what is no label of a Ray node; raises ValueError."""
        if value is not None and not LABEL.fullmatch(value):
            raise ValueError("must be one label, name=value, as given to `ray start --labels`")
        return value

    @field_validator("learners")
    @classmethod
    def _known_and_each_once(cls, value: str) -> str:
        """Refuse a learner that is not there, or one twice; raises ValueError."""
        kinds = value.split(",")
        if not set(kinds) <= set(LEARNERS) or len(set(kinds)) < len(kinds):
            raise ValueError(f"must be some of {', '.join(LEARNERS)}, each once")
        return value

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
