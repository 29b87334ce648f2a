"""What operators watch, as a named actor: the sums of all metrics, and the list of all events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from pipelines.event_log import EventLog
from pipelines.metrics import MetricsHub, Sample
from pipelines.metrics_state import read_state, write_state
from pipelines.observation import Observer
from pipelines.remote import call
from pipelines.webhook import Webhook
from policies.errors import Unavailable
from policies.events import Event, EventKind

logger = logging.getLogger(__name__)

MAX_EVENTS_READ: Final = 1_000
# How often totals are written down, seconds.
KEEP_EVERY_S: Final = 2.0
# What a version may have done worse: each is shown from the start, so that a rise is seen.
BREACHES: Final = ("reward", "cost", "feedback")


class MetricsActor:
    """Keeps metrics and events; the only process that writes the event log.

    Events are on disk before they count, totals every KEEP_EVERY_S: a restart goes on with both.
    What a replica counted meanwhile is not lost, for it tells its own total.
    """

    def __init__(
        self,
        events_dir: str,
        *,
        webhook_url: SecretStr | None = None,
        webhook_secret: SecretStr | None = None,
        cost_ceiling_usd: float = 0.01,
        observe_every_s: float | None = None,
        aggregators: Sequence[str] = (),
    ) -> None:
        """Read back the events there are, and begin to send new ones to the webhook.

        Args:
            events_dir: Folder of the event log.
            webhook_url: Where events are sent, None for nowhere.
            webhook_secret: Signs them.
            cost_ceiling_usd: USD at and above which a call counts as fully expensive.
            observe_every_s: How often the other actors are asked what they know, seconds; None
                never does.
            aggregators: Names of the aggregators, for that.
        """
        self._hub = MetricsHub(clock=time.monotonic)
        self._folder = folder = Path(events_dir)
        self._log = EventLog(folder)
        self._taken = dict.fromkeys(EventKind, 0)
        self._verdicts = {True: 0, False: 0}
        self._breaches = dict.fromkeys(BREACHES, 0)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="event-log")
        self._webhook: Webhook | None = None
        if webhook_url is not None:
            secret = None if webhook_secret is None else webhook_secret.get_secret_value().encode()
            self._webhook = Webhook(
                webhook_url.get_secret_value(),
                secret=secret,
                log=self._log,
                folder=folder,
                clock=time.time,
            )
            # Kept: the loop itself holds tasks only weakly.
            self._sending = asyncio.get_running_loop().create_task(self._webhook.run())
        self._observer = Observer(
            call, clock=time.time, cost_ceiling_usd=cost_ceiling_usd, aggregators=aggregators
        )
        self._restore()
        self._keeping = asyncio.get_running_loop().create_task(self._keep())
        if observe_every_s is not None:
            self._observing = asyncio.get_running_loop().create_task(self._observe(observe_every_s))

    async def ready(self) -> None:
        """Return once this actor answers."""

    async def push(self, source: str, samples: Sequence[Sample]) -> int:
        """See `MetricsHub.push`."""
        return self._hub.push(source, samples)

    async def text(self) -> str:
        """See `MetricsHub.text`."""
        return self._hub.text([*self._own_samples(), *self._observer.samples])

    async def take_event(self, event: Event) -> None:
        """Write an event down, once; raises Unavailable where the disk refuses it."""
        loop = asyncio.get_running_loop()
        try:
            new = await loop.run_in_executor(self._thread, self._log.append, event)
        except OSError as error:
            raise Unavailable(
                f"the event log cannot be written: {error.strerror}", field="events"
            ) from error
        if new:
            self._taken[event.kind] += 1
            if event.kind is EventKind.VERDICT:
                self._verdicts[bool(event.details.get("promote"))] += 1
            if event.kind is EventKind.GUARDRAIL_BREACH:
                what = str(event.details.get("what", "reward"))
                self._breaches[what] = self._breaches.get(what, 0) + 1
        if self._webhook is not None:
            self._webhook.news()

    async def events(
        self, after_seq: int = 0, limit: int = MAX_EVENTS_READ, kinds: Sequence[EventKind] = ()
    ) -> dict[str, Any]:
        """List events as plain JSON values; see `EventLog.read`.

        Returns:
            `events`, in order, and `last_seq`, the number given last.
        """
        found = self._log.read(after_seq, limit=min(limit, MAX_EVENTS_READ), kinds=kinds)
        return {"events": found, "last_seq": self._log.last_seq}

    def _restore(self) -> None:
        """Go on from what the last process wrote down."""
        state = read_state(self._folder)
        if state is None:
            return
        try:
            self._hub.restore(state["hub"])
            self._observer.restore(state["observer"])
            own = state["own"]
            self._taken |= {EventKind(kind): int(number) for kind, number in own["events"].items()}
            self._verdicts = {True: int(own["promote"]), False: int(own["refuse"])}
            self._breaches |= {str(what): int(number) for what, number in own["breaches"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            logger.warning("counters begin anew, as far as they were not read: %r", error)

    def _state(self) -> dict[str, Any]:
        """Return all that is counted, as plain JSON values."""
        own = {
            "events": {kind.value: number for kind, number in self._taken.items()},
            "promote": self._verdicts[True],
            "refuse": self._verdicts[False],
            "breaches": self._breaches,
        }
        return {"hub": self._hub.state(), "observer": self._observer.state(), "own": own}

    async def _keep(self) -> None:
        """Write totals down for as long as this actor lives."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            try:
                await loop.run_in_executor(self._thread, write_state, self._folder, self._state())
            except OSError as error:
                logger.error("counters are not kept: %s", error)

    async def _observe(self, every_s: float) -> None:
        """Ask the other actors for as long as this one lives, in a thread: calls block."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="observer") as thread:
            while True:
                try:
                    await loop.run_in_executor(thread, self._observer.observe)
                except Exception:
                    logger.exception("observation")
                await asyncio.sleep(every_s)

    def _own_samples(self) -> list[Sample]:
        """Count events by kind, and what became of deliveries."""
        samples: list[Sample] = [
            ("barp_events_total", {"kind": kind.value}, float(count), "counter")
            for kind, count in self._taken.items()
        ]
        samples += [
            ("barp_verdicts_total", {"promote": str(promote).lower()}, float(count), "counter")
            for promote, count in self._verdicts.items()
        ]
        samples += [
            ("barp_guardrail_breaches_total", {"what": what}, float(count), "counter")
            for what, count in self._breaches.items()
        ]
        if self._webhook is not None:
            results = {
                "delivered": self._webhook.delivered,
                "failed_attempt": self._webhook.failed_attempts,
                "given_up": self._webhook.given_up,
            }
            samples += [
                ("barp_webhook_total", {"result": result}, float(count), "counter")
                for result, count in results.items()
            ]
        return samples
