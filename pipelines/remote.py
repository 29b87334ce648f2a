"""Calls of named actors from a thread that may block, with our own errors for their absence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from pipelines.answers import Answer
from policies.arms import PriceTable
from policies.artifact import PolicyArtifact
from policies.errors import RouterError, Unavailable
from policies.publication import Canary
from policies.versions import AliasMove, Rollout, VersionInfo

NAMESPACE: Final = "barp"
CALL_TIMEOUT_S: Final = 60.0


def call(
    actor: str, method: str, *args: Any, timeout_s: float = CALL_TIMEOUT_S, **named: Any
) -> Any:
    """Call a method of a named actor and wait for what it returns.

    Never from an event loop: it blocks.

    Raises:
        Unavailable: The actor does not exist, is restarting, or did not answer in time.
        RouterError: Whatever the method raised of our own.
    """
    try:
        handle = ray.get_actor(actor, namespace=NAMESPACE)
    except ValueError as error:
        raise Unavailable(f"{actor} is not running", field=actor) from error
    try:
        return ray.get(getattr(handle, method).remote(*args, **named), timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, RouterError):
            raise error.cause from error
        raise
    except (RayActorError, GetTimeoutError) as error:
        raise Unavailable(
            f"{actor} does not answer: {type(error).__name__}", field=actor
        ) from error


class RemotePublisher:
    """The publisher actor, as the registry calls it."""

    def __init__(self, actor: str) -> None:
        self._actor = actor

    def publish(
        self, version: int, files: Mapping[str, bytes], canary: Canary | None = None
    ) -> int:
        """Announce a version, and one on trial beside it; return the revision."""
        return cast(int, call(self._actor, "publish", version, dict(files), canary))

    def rollout(self, revision: int, timeout_s: float) -> Rollout:
        """Wait up to `timeout_s` seconds for the replicas to hold a revision."""
        return cast(Rollout, call(self._actor, "rollout", revision, timeout_s))

    def deciding(self) -> tuple[int | None, int | None]:
        """Return the version announced last, and the one on trial beside it; None for none."""
        status = call(self._actor, "status")
        return status["version"], status["canary"]


class RemoteRegistry:
    """The registry actor, as the trainer calls it."""

    def __init__(self, actor: str) -> None:
        self._actor = actor

    def register(
        self, artifact: PolicyArtifact, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> int:
        """Store a version; return its number."""
        return cast(int, call(self._actor, "register", artifact, dict(metrics), dict(tags)))

    def challenge(self, version: int) -> None:
        """Point the alias `challenger` at a version."""
        call(self._actor, "challenge", version)

    def deciding(self) -> tuple[int | None, int | None]:
        """Return the champion and the version beside it."""
        status = call(self._actor, "status")
        return status["champion"], status["canary"]

    def rollback(self, *, to: int | None, who: str, why: str) -> AliasMove:
        """Make an older version the champion again."""
        return cast(AliasMove, call(self._actor, "rollback", to=to, who=who, why=why))

    def start_canary(self, version: int, *, instead_of: int, who: str, why: str) -> None:
        """Let a version decide for its share of the requests."""
        call(self._actor, "start_canary", version, instead_of=instead_of, who=who, why=why)

    def stop_canary(self, *, who: str, why: str) -> None:
        """Let the champion decide alone again."""
        call(self._actor, "stop_canary", who=who, why=why)

    def tag(self, version: int, words: Mapping[str, str]) -> None:
        """Set words on a version by name."""
        call(self._actor, "tag", version, dict(words))

    def promote(self, version: int, *, who: str, why: str, instead_of: int | None) -> AliasMove:
        """Make a version the champion, if the one it was judged against still is."""
        move = call(self._actor, "promote", version, who=who, why=why, instead_of=instead_of)
        return cast(AliasMove, move)

    def last_move(self) -> AliasMove | None:
        """Return the newest move of the champion."""
        moves = cast("list[AliasMove]", call(self._actor, "history", 1))
        return moves[0] if moves else None

    def versions(self) -> list[VersionInfo]:
        """List all versions, newest first."""
        return cast("list[VersionInfo]", call(self._actor, "versions"))

    def artifact(self, version: int) -> PolicyArtifact:
        """Read a version's policy."""
        return cast(PolicyArtifact, call(self._actor, "artifact", version))

    def champion(self) -> int | None:
        """Return the version that serves."""
        return cast("int | None", call(self._actor, "champion"))


class RemoteInteractions:
    """The keeper actor, as the trainer reads it."""

    def __init__(self, actor: str) -> None:
        self._actor = actor

    def interactions(self, after_seq: int, limit: int) -> pa.Table:
        """Read matured interactions in sequence order, schema INTERACTION_SCHEMA."""
        return call(self._actor, "interactions", after_seq, limit)

    def last_seq(self) -> int:
        """Return the sequence number given last, 0 where there is none."""
        return int(call(self._actor, "counts").last_seq)

    def answers(
        self, champion: int, canary: int, *, after_id: str, within_s: float, limit: int
    ) -> list[Answer]:
        """Read which decisions of two versions got feedback in time."""
        found = call(self._actor, "answers", champion, canary, after_id, within_s, limit)
        return cast("list[Answer]", found)

    def prices(self) -> PriceTable:
        """Return the price table of now."""
        return cast(PriceTable, call(self._actor, "prices"))

    def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """Return price tables by version."""
        tables = call(self._actor, "price_history", list(versions))
        return cast("dict[int, PriceTable]", tables)
