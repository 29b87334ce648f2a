"""What the named actors know, as samples for Prometheus: asked now and then, never in the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any

from pipelines.earnings import Earned
from pipelines.metrics import Sample
from policies.errors import RouterError, Unavailable

logger = logging.getLogger(__name__)

Call = Callable[..., Any]
Gauge = tuple[str, float, Mapping[str, str]]


class Observer:
    """Asks the actors, and keeps what came of each version since it began.

    Args:
        call: Calls a method of a named actor: `call(actor, method, *args)`; may block.
        clock: Seconds since the epoch, UTC.
        cost_ceiling_usd: USD at and above which a call counts as fully expensive.
        aggregators: Names of the aggregators.
    """

    def __init__(
        self,
        call: Call,
        *,
        clock: Callable[[], float],
        cost_ceiling_usd: float,
        aggregators: Sequence[str],
    ) -> None:
        self._call, self._clock, self._ceiling = call, clock, cost_ceiling_usd
        self._parts: dict[str, Callable[[], Iterable[Gauge]]] = {
            "keeper": self._keeper,
            **{name: partial(self._aggregator, name) for name in aggregators},
            "publisher": self._publisher,
            "registry": self._registry,
            "trainer": self._trainer,
        }
        self._earned: dict[int, Earned] = {}
        self._earned_to: int | None = None
        self._trained: tuple[int, float | None] | None = None
        self.samples: list[Sample] = []

    def observe(self) -> None:
        """Ask every actor once; one that is away is shown to be, and its numbers are left out."""
        samples: list[Sample] = []
        for part, asked in self._parts.items():
            try:
                gauges = list(asked())
            except Unavailable as error:
                logger.info("not observed: %s", error)
                gauges = [("barp_part_up", 0.0, {"part": part})]
            except RouterError as error:
                logger.warning("not observed: %s", error)
                gauges = [("barp_part_up", 0.0, {"part": part})]
            else:
                gauges.append(("barp_part_up", 1.0, {"part": part}))
            samples += [_sample(*gauge) for gauge in gauges]
        self.samples = samples

    def state(self) -> dict[str, Any]:
        """Return what versions have earned, and up to which interaction, as plain JSON values."""
        earned = [asdict(one) for one in self._earned.values()]
        return {"earned": earned, "earned_to": self._earned_to}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned; raises KeyError, TypeError for what is none."""
        earned = [Earned(**one) for one in state["earned"]]
        self._earned = {one.policy_version: one for one in earned}
        self._earned_to = state["earned_to"]

    def _keeper(self) -> Iterator[Gauge]:
        """Say what the ledger holds, and what each version has earned."""
        counts = self._call("keeper", "counts")
        for name in ("decisions", "outcomes", "joined", "duplicates", "expired", "interactions"):
            yield f"barp_ledger_{name}_total", getattr(counts, name), {}
        yield "barp_rewards_pending", counts.pending, {}
        yield "barp_rewards_orphaned", counts.orphaned, {}
        if self._earned_to is None or self._earned_to > counts.last_seq:
            # The first time; or the ledger is another one, whose numbers begin anew.
            self._earned_to = counts.last_seq
        new = self._call("keeper", "earned", self._earned_to, counts.last_seq, self._ceiling)
        self._earned_to = counts.last_seq
        for one in new:
            self._earned[one.policy_version] = _plus(self._earned.get(one.policy_version), one)
        for version, earned in self._earned.items():
            label = {"policy_version": str(version)}
            yield "barp_rewarded_interactions_total", earned.interactions, label
            yield "barp_quality_total", earned.quality, label
            yield "barp_cost_usd_total", earned.cost_usd, label
            yield "barp_reward_gain_total", earned.gain, label
            yield "barp_reward_loss_total", earned.loss, label

    def _aggregator(self, name: str) -> Iterable[Gauge]:
        """See whether one takes decisions and outcomes."""
        self._call(name, "ready")
        return ()

    def _publisher(self) -> Iterator[Gauge]:
        """Say what is published, and how far behind each replica is."""
        status = self._call("publisher", "status")
        yield "barp_champion_version", status["version"] or 0, {}
        yield "barp_price_version", status["price_version"], {}
        yield "barp_canary_share", status.get("canary_share", 0.0), {}
        published_at = status["published_at"]
        if published_at is not None:
            yield "barp_champion_published_timestamp_seconds", published_at, {}
        for replica, held in status["replicas"].items():
            behind = status["revision"] - held
            stale_s = self._clock() - published_at if behind > 0 and published_at else 0.0
            yield "barp_replica_revisions_behind", behind, {"replica": replica}
            yield "barp_replica_stale_seconds", max(0.0, stale_s), {"replica": replica}

    def _registry(self) -> Iterator[Gauge]:
        """Say which version is champion, and since when it has learned nothing."""
        status = self._call("registry", "status")
        yield "barp_alias_refused", float(status["refused"] is not None), {}
        yield "barp_registry_watch_failures_total", status["watch_failures"], {}
        champion = status["champion"]
        if champion is None:
            return
        if self._trained is None or self._trained[0] != champion:
            training = self._call("registry", "artifact", champion).training
            at = training.get("trained_at")
            self._trained = champion, None if at is None else datetime.fromisoformat(at).timestamp()
        if self._trained[1] is not None:
            yield "barp_champion_trained_timestamp_seconds", self._trained[1], {}

    def _trainer(self) -> Iterator[Gauge]:
        """Say what waits to be learned from, and what failed."""
        status = self._call("trainer", "status")
        yield "barp_trainer_new_interactions", status["new_interactions"], {}
        yield "barp_trainer_heldout_rows", status["heldout_rows"], {}
        yield "barp_trainer_held", float(status["held"] is not None), {}
        yield "barp_trainings_total", status["trainings"], {}
        yield "barp_training_failures_total", sum(status["failures"].values()), {}


def _plus(before: Earned | None, new: Earned) -> Earned:
    """Add what came since."""
    if before is None:
        return new
    return Earned(
        policy_version=new.policy_version,
        interactions=before.interactions + new.interactions,
        quality=before.quality + new.quality,
        cost_usd=before.cost_usd + new.cost_usd,
        gain=before.gain + new.gain,
        loss=before.loss + new.loss,
    )


def _sample(name: str, value: float, labels: Mapping[str, str]) -> Sample:
    """Make a sample; the name says whether it only grows."""
    kind = "counter" if name.endswith("_total") else "gauge"
    return name, dict(labels), float(value), kind
