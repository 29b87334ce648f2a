"""What registry and publisher say about versions: records light enough for every process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous"
CANARY: Final = "canary"

# Tag of a version that may not serve, its value "true".
QUARANTINED: Final = "quarantined"

MoveKind = Literal["promotion", "rollback", "alias_followed", "canary_started", "canary_ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInfo:
    """One registered policy version.

    Attributes:
        version: Its number, which never moves.
        kind: Which learner made it.
        created_at: When it was registered, ISO 8601, UTC.
        aliases: The names that point at it now.
        metrics: Numbers by name, such as `uplift` and `rows`.
        tags: Lineage and verdict in words.
    """

    version: int
    kind: str
    created_at: str
    aliases: tuple[str, ...]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove:
    """One move of an alias, as the history keeps it.

    Attributes:
        alias: Which name moved.
        version: Where it points since; of `canary_ended`, where it pointed until then.
        previous: Where it pointed before, None where it was new.
        who: Who moved it; `mlflow` for a move made with MLflow's own client or page.
        why: Their reason.
        at: When, ISO 8601, UTC.
        kind: Of the champion a promotion, a rollback, or a move made with MLflow's own client that
            was followed; of the canary its beginning or its end.
        moved: False where it pointed there already and nothing was done.
        replicas_swapped: Replicas that held the version when the wait ended.
        replicas_waiting: Live replicas that did not yet; both are 0 while the publisher is away.
    """

    alias: str
    version: int
    previous: int | None
    who: str
    why: str
    at: str
    kind: MoveKind = "promotion"
    moved: bool = True
    replicas_swapped: int = 0
    replicas_waiting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How far a publication has come.

    Attributes:
        revision: Which publication.
        version: The policy version in it.
        published_at: When it was announced, seconds since the epoch, UTC.
        swapped: Seconds from there to the swap, by id of each live replica that has it.
        waiting: Ids of the live replicas that do not have it yet.
    """

    revision: int
    version: int
    published_at: float
    swapped: Mapping[str, float]
    waiting: tuple[str, ...]
