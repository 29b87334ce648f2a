"""Small versions and a registry on disk, for the tests of what is built on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from clock import START_S, Clock
from event_lists import EventList
from mlflow import MlflowClient

from pipelines.promotion import Promotion
from pipelines.registry import MODEL_NAME, Registry
from policies.artifact import PolicyArtifact
from policies.errors import Unavailable
from policies.publication import Canary
from policies.versions import CHALLENGER, CHAMPION, PREVIOUS, AliasMove, Rollout, VersionInfo


@dataclass
class FakePublisher:
    """Remembers what it is told; two replicas swap at once."""

    published: list[int] = field(default_factory=list)
    away: bool = False
    canary: Canary | None = None

    def publish(
        self, version: int, files: Mapping[str, bytes], canary: Canary | None = None
    ) -> int:
        """Remember a version, and the one on trial."""
        self._answer()
        PolicyArtifact.from_files(files)
        self.published.append(version)
        self.canary = canary
        return len(self.published)

    def rollout(self, revision: int, timeout_s: float) -> Rollout:
        """Say that both replicas have it."""
        self._answer()
        return Rollout(
            revision=revision,
            version=self.published[-1],
            published_at=START_S,
            swapped={"a": 0.01, "b": 0.02},
            waiting=(),
        )

    def deciding(self) -> tuple[int | None, int | None]:
        """Return the version published last, and the one on trial."""
        self._answer()
        on_trial = None if self.canary is None else self.canary.version
        return self.published[-1] if self.published else None, on_trial

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("publisher is away")


def small_artifact(
    level: float,
    *,
    kind: str = "posterior",
    encoder_id: str = "test-encoder",
    **training: object,
) -> PolicyArtifact:
    """Make a policy artifact that differs from others by one number."""
    return PolicyArtifact(
        kind=kind,
        arms=("a", "b"),
        encoder_id=encoder_id,
        context_dim=4,
        cost_ceiling_usd=0.01,
        exploration_total=0.02,
        price_version=1,
        seed=0,
        weights={"level": np.full(3, level, dtype=np.float32)},
        training=training,
    )


def open_registry(folder: Path, clock: Clock) -> Registry:
    """Open a real MLflow registry on SQLite in a folder."""
    return Registry(f"sqlite:///{folder / 'mlflow.db'}", str(folder / "artifacts"), clock=clock)


def open_promotion(
    registry: Registry,
    publisher: FakePublisher,
    clock: Clock,
    events: EventList | None = None,
    encoder_id: str | None = None,
) -> Promotion:
    """Put promotion on a registry, as the actor does."""
    events = EventList() if events is None else events
    return Promotion(
        registry, publisher=publisher, clock=clock, events=events, encoder_id=encoder_id
    )


def damage(folder: Path, version: int) -> None:
    """Flip a byte in the weights of a version of the registry in a folder."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    where = MlflowClient(uri, uri).get_model_version_download_uri(MODEL_NAME, str(version))
    weights = Path(where.removeprefix("file://")) / "data" / "policy" / "policy.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


class RegistryAndPromotion:
    """What the registry actor offers, on a real registry and without the actor."""

    def __init__(self, registry: Registry, promotion: Promotion) -> None:
        self._registry, self._promotion = registry, promotion
        self.register, self.artifact = registry.register, registry.artifact
        self.promote, self.champion = promotion.promote, promotion.champion
        self.rollback = promotion.rollback

    def challenge(self, version: int) -> None:
        """Point the alias."""
        self._registry.point(CHALLENGER, version)

    def versions(self) -> list[VersionInfo]:
        """List all."""
        return self._registry.versions()

    def last_move(self) -> AliasMove | None:
        """Return the newest."""
        moves = self.history()
        return moves[0] if moves else None

    def history(self) -> list[AliasMove]:
        """List all moves."""
        return self._promotion.history(limit=100)


class RegistrySetup:
    """A registry with three versions, and promotion on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.publisher = folder, Clock(), FakePublisher()
        self.events = EventList()
        self.registry = open_registry(folder, self.clock)
        self.promotion = self.restarted()
        for level in (1.0, 2.0, 3.0):
            self.registry.register(small_artifact(level), {}, {})

    def restarted(self, *, encoder_id: str | None = None) -> Promotion:
        """Start promotion again, as a new process would."""
        return open_promotion(self.registry, self.publisher, self.clock, self.events, encoder_id)

    def foreign(self) -> MlflowClient:
        """Return MLflow's own client, as an operator has it."""
        uri = f"sqlite:///{self.folder / 'mlflow.db'}"
        return MlflowClient(uri, uri)

    def aliases(self) -> dict[str, int | None]:
        """Read the aliases back."""
        return {alias: self.registry.pointed_at(alias) for alias in (CHAMPION, PREVIOUS)}

    def damage(self, version: int) -> None:
        """Flip a byte in a version's weights."""
        damage(self.folder, version)
