"""An event sink that only remembers."""

from __future__ import annotations

from clock import START_S

from policies.events import Event, EventKind, Scalar


class EventList(list[Event]):
    """What was emitted, in order."""

    def emit(
        self,
        kind: EventKind,
        *,
        who: str,
        why: str,
        version: int | None = None,
        **details: Scalar,
    ) -> None:
        """See `pipelines.events.EventSink`."""
        self.append(Event.now(kind, now=START_S, who=who, why=why, version=version, **details))

    def kinds(self) -> list[EventKind]:
        """Name what happened."""
        return [event.kind for event in self]
