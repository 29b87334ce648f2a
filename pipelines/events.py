"""How a part of the service says what happened: never waiting, never failing for it.

    events.emit(EventKind.PROMOTION, who="ann", why="better", version=7)

`emit` puts the event in an outbox; a thread of its own brings it to the actor that keeps the log,
again and again while that one is away. An event sent twice is stored once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from pipelines.remote import call
from policies.errors import Unavailable
from policies.events import Event, EventKind, Scalar

logger = logging.getLogger(__name__)

# The actor that keeps metrics keeps the events, too: one process for what operators watch.
EVENTS_ACTOR: Final = "metrics"
MAX_WAITING: Final = 1_000
RETRY_FIRST_S: Final = 0.2
RETRY_MAX_S: Final = 5.0


class EventSink(Protocol):
    """Where events go."""

    def emit(
        self,
        kind: EventKind,
        *,
        who: str,
        why: str,
        version: int | None = None,
        **details: Scalar,
    ) -> None:
        """Say that something happened now; returns at once, and raises only for a bad event."""


def to_actor(event: Event, actor: str = EVENTS_ACTOR) -> None:
    """Hand an event to the actor that keeps them; blocks, raises Unavailable."""
    call(actor, "take_event", event)


class EventOutbox:
    """Events on their way, in order; the oldest is dropped where too many wait.

    Args:
        deliver: Brings one event to the log; may block. Unavailable is tried again, whatever else
            it raises drops the event.
        clock: Seconds since the epoch, UTC.
        max_waiting: Most events that wait.
        retry_first_s: First pause while the log is away, seconds; doubles.
    """

    def __init__(
        self,
        deliver: Callable[[Event], None] = to_actor,
        *,
        clock: Callable[[], float] = time.time,
        max_waiting: int = MAX_WAITING,
        retry_first_s: float = RETRY_FIRST_S,
    ) -> None:
        self._deliver, self._clock = deliver, clock
        self._max_waiting, self._retry_first_s = max_waiting, retry_first_s
        self._waiting: deque[Event] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def emit(
        self,
        kind: EventKind,
        *,
        who: str,
        why: str,
        version: int | None = None,
        **details: Scalar,
    ) -> None:
        """See `EventSink.emit`."""
        event = Event.now(kind, now=self._clock(), who=who, why=why, version=version, **details)
        with self._changed:
            if len(self._waiting) >= self._max_waiting:
                self._waiting.popleft()
                self._drop("too many events wait")
            self._waiting.append(event)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing waits any more; False where it took longer than `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def _run(self) -> None:
        """Deliver one event after the other, for as long as the process lives."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                event = self._waiting[0]
            self._bring(event)
            with self._changed:
                # It may have been dropped for room while it was on its way.
                if self._waiting and self._waiting[0] is event:
                    self._waiting.popleft()
                self._changed.notify_all()

    def _bring(self, event: Event) -> None:
        """Deliver one event, however long the log is away."""
        pause_s = self._retry_first_s
        while True:
            try:
                self._deliver(event)
            except Unavailable as error:
                logger.info("event %s waits: %s", event.kind, error)
            except Exception:
                # This thread must outlive whatever is wrong with one event.
                logger.exception("event %s", event.kind)
                self._drop("it was refused")
                return
            else:
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)
            with self._changed:
                if not self._waiting or self._waiting[0] is not event:
                    return

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        logger.error("an event is lost, %d so far: %s", self.dropped, reason)
