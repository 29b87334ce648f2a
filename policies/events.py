"""What happened to the service, as records that operators and their tools can act on."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from policies.errors import InvalidRequest

Scalar = str | int | float | bool | None

MAX_WORDS: Final = 500
MAX_DETAILS: Final = 32
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
# Whatever an event says is written to disk and sent to strangers' servers.
PRIVATE: Final = frozenset(
    {"prompt", "messages", "context", "embedding", "key", "api_key", "secret", "authorization"}
)


class EventKind(StrEnum):
    """Everything that can happen; tools match on these words, so none ever changes its meaning."""

    PROMOTION = "promotion"  # the champion moved to a version that had not served before
    ROLLBACK = "rollback"  # the champion moved back to an older version
    ALIAS_FOLLOWED = "alias_followed"  # the alias was moved with MLflow's own client, and obeyed
    ALIAS_REFUSED = "alias_refused"  # the alias points at what cannot serve; the champion stays
    ARTIFACT_REFUSED = "artifact_refused"  # a replica was sent a policy that does not fit it
    TRAINING = "training"  # a version was made
    TRAINING_FAILED = "training_failed"  # a learner failed
    VERDICT = "verdict"  # the gate judged a version
    CANARY = "canary"  # a challenger got a share of the traffic, more of it, or none any more
    GUARDRAIL_BREACH = "guardrail_breach"  # the serving version did worse than its predecessor
    EXPLORATION_COLLAPSE = "exploration_collapse"  # the serving version hardly explores any more
    QUARANTINE = "quarantine"  # a version may not serve any more, or may again
    PRICE_CHANGE = "price_change"  # the price table changed
    KEY_CHANGE = "key_change"  # an API key was made, changed or revoked; never which
    RECOVERY = "recovery"  # a part of the service was away and is back


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: What.
        who: Who caused it: a person's name, or the part of the service that decided.
        why: Their reason, in words; cut to 500 characters.
        at: When, ISO 8601, UTC.
        version: The policy version it is about, None where it is about none.
        details: Numbers and words by name, at most 32; never a prompt, a key or an embedding.
        event_id: Names this event, so that one sent twice is known as one.
    """

    kind: EventKind
    who: str
    why: str
    at: str
    version: int | None = None
    details: Mapping[str, Scalar] = field(default_factory=dict)
    event_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        """Bound what it says; raises InvalidRequest for details that may not leave the service."""
        object.__setattr__(self, "kind", EventKind(self.kind))
        object.__setattr__(self, "who", self.who[:MAX_WORDS])
        object.__setattr__(self, "why", self.why[:MAX_WORDS])
        if len(self.details) > MAX_DETAILS:
            raise InvalidRequest(
                f"an event with {len(self.details)} details",
                field="details",
                value=len(self.details),
                allowed=f"at most {MAX_DETAILS}",
            )
        object.__setattr__(self, "details", {k: _checked(k, v) for k, v in self.details.items()})

    @classmethod
    def now(
        cls,
        kind: EventKind,
        *,
        now: float,
        who: str,
        why: str,
        version: int | None = None,
        **details: Scalar,
    ) -> Event:
        """Make the event of something that happened at `now`, seconds since the epoch, UTC.

        >>> Event.now(EventKind.TRAINING, now=0.0, who="trainer", why="", version=2, rows=500).at
        '1970-01-01T00:00:00.000+00:00'
        """
        at = datetime.fromtimestamp(now, tz=UTC).isoformat(timespec="milliseconds")
        return cls(kind=kind, who=who, why=why, at=at, version=version, details=details)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "event_id": self.event_id,
            "at": self.at,
            "kind": self.kind.value,
            "who": self.who,
            "why": self.why,
            "version": self.version,
            "details": dict(self.details),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Event:
        """Read what `to_json` wrote; keys that a newer release added are passed over."""
        names = ("event_id", "at", "kind", "who", "why", "version", "details")
        return cls(**{name: value[name] for name in names})


def _checked(name: str, value: Scalar) -> Scalar:
    """Return a detail that may leave the service; raises InvalidRequest for any other."""
    if not _NAME.fullmatch(name) or name in PRIVATE:
        raise InvalidRequest(
            f"an event may not have the detail {name[:100]!r}",
            field="details",
            value=name[:100],
            allowed=f"names in lower case, none of {', '.join(sorted(PRIVATE))}",
        )
    if isinstance(value, str):
        return value[:MAX_WORDS]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        # JSON has no NaN; a number that is not one says nothing.
        return value if math.isfinite(value) else None
    raise InvalidRequest(
        f"the detail {name} is a {type(value).__name__}",
        field=f"details.{name}",
        value=type(value).__name__,
        allowed="text, number, true, false or null",
    )
