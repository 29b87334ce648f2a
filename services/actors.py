"""The named actors a replica talks to: what they offer, and how they are found again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayError, RayTaskError

from policies.arms import Arm, PriceTable
from policies.artifact import PolicyArtifact
from policies.errors import RouterError, Unavailable
from policies.events import Event, EventKind
from policies.interaction import JoinStatus, LedgerCounts, Outcome
from policies.publication import Publication
from policies.versions import AliasMove, VersionInfo

NAMESPACE: Final = "barp"
CALL_TIMEOUT_S: Final = 30.0
# A long poll may last 30 s by itself.
POLL_TIMEOUT_S: Final = 45.0
# A rebuild is a training, and may wait for one.
TRAINING_TIMEOUT_S: Final = 600.0

Sample = tuple[str, dict[str, str], float, str]

logger = logging.getLogger(__name__)


class ShardPort(Protocol):
    """One aggregator: takes decisions and outcomes in, and changes prices."""

    async def ready(self) -> None:
        """Return when its ledger is there; raises Unavailable."""

    async def record(self, batch: pa.RecordBatch) -> int:
        """Store decisions, schema DECISION_SCHEMA; return how many were new."""

    async def submit(self, tenant: str, outcomes: Sequence[Outcome]) -> list[JoinStatus]:
        """Store outcomes durably; one status each, in order."""

    async def submit_batch(self, reports: pa.RecordBatch) -> bytes:
        """Store outcomes, schema REPORT_SCHEMA, durably; one byte each, `unpack_statuses`."""

    async def put_arm(self, arm: Arm) -> PriceTable:
        """Add or replace an arm; return the new table."""

    async def patch_arm(self, name: str, changes: dict[str, float | int]) -> PriceTable:
        """Change some prices of an arm; return the new table."""

    async def delete_arm(self, name: str) -> PriceTable:
        """Take an arm out; return the new table."""


class KeeperPort(Protocol):
    """The ledger's reader."""

    async def decision(self, decision_id: str) -> dict[str, Any] | None:
        """Return a decision's columns and what came back; None where it is not recorded."""

    async def context(self, decision_id: str) -> NDArray[np.float32] | None:
        """Return a decision's context, shape (context_dim,); None where it is not kept."""

    async def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """Return price tables by version; one that never was is left out."""

    async def counts(self) -> LedgerCounts:
        """Return the ledger's counts."""

    async def prices(self) -> PriceTable:
        """Return the price table of now."""


class AggregatorPort(ShardPort, KeeperPort, Protocol):
    """All aggregators and the keeper as one: decisions, outcomes, price table."""


class RegistryPort(Protocol):
    """The registry's actor: versions and the aliases that name them."""

    async def versions(self) -> list[VersionInfo]:
        """List all versions, newest first."""

    async def artifact(self, version: int) -> PolicyArtifact:
        """Read a version's policy; raises UnknownVersion or ArtifactError."""

    async def history(self) -> list[AliasMove]:
        """List all alias moves."""

    async def trials(self) -> list[AliasMove]:
        """List beginnings and ends of canaries."""

    async def promote(self, version: int, *, who: str, why: str) -> AliasMove:
        """Make a version champion; return the move."""

    async def rollback(self, *, to: int | None, who: str, why: str) -> AliasMove:
        """Go back to `to`, or to the previous champion; return the move."""


class PublisherPort(Protocol):
    """The publisher's actor: pushes champion and prices."""

    async def next(
        self, replica_id: str, have: int, swapped_at: float | None
    ) -> list[Awaitable[Publication]]:
        """Wait for a revision above `have`; one reference to it, or none at its time-out."""

    async def status(self) -> Any:
        """Return what is published and who holds it."""


class TrainerPort(Protocol):
    """The trainer's actor."""

    async def status(self) -> Any:
        """Return what it trained last and what it waits for."""

    async def rebuild(self, version: int) -> dict[str, Any]:
        """Make a version again from its lineage; say whether the weights are the same."""


class MetricsPort(Protocol):
    """The actor that sums the metrics of all replicas."""

    async def push(self, source: str, samples: list[Sample]) -> int:
        """Replace what is known of `source` by these; return how many sources there are now."""

    async def take_event(self, event: Event) -> None:
        """Write an event down; one that is there already changes nothing."""

    async def events(
        self, after_seq: int = 0, limit: int = 100, kinds: Sequence[EventKind] = ()
    ) -> dict[str, Any]:
        """List events in order, and the number given last."""

    async def text(self) -> str:
        """Return the sums in Prometheus' text format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Every actor a replica talks to."""

    aggregator: AggregatorPort
    registry: RegistryPort
    publisher: PublisherPort
    trainer: TrainerPort
    metrics: MetricsPort


class Gone(Unavailable):
    """There is no actor of that name, or it is dead or restarting; it did not fail by itself."""


def _find(name: str) -> Any:
    """Look an actor up; raises ValueError where there is none of that name."""
    return ray.get_actor(name, namespace=NAMESPACE)


class NamedActor:
    """A Ray actor by name, with its methods as plain coroutine functions.

    Found when first called, and once more when a call says that it died. Errors of our own tree
    arrive as themselves; everything else that goes wrong on the way is Unavailable, or Gone.
    """

    def __init__(
        self,
        name: str,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        find: Callable[[str], Any] = _find,
    ) -> None:
        self._name, self._timeout_s, self._find = name, timeout_s, find
        self._handle: Any = None

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        """Give any public name as a remote method."""
        if method.startswith("_"):
            raise AttributeError(method)
        return partial(self._call, method)

    async def _call(self, method: str, *args: object, **kwargs: object) -> Any:
        """Call once, and again when the actor proves dead; raises Unavailable, or Gone."""
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await self._call_once(method, *args, **kwargs)
                except RayActorError:
                    self._handle = None
                    return await self._call_once(method, *args, **kwargs)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, RouterError):
                raise cause from None
            logger.exception("%s.%s failed", self._name, method)
            what = f"{self._name} failed with {type(cause).__name__}; try again"
            raise Unavailable(what, field=self._name) from error
        except (RayActorError, ValueError) as error:
            # ValueError: ray.get_actor knows no actor of that name.
            self._handle = None
            raise Gone(self._says(error), field=self._name) from error
        except (RayError, TimeoutError) as error:
            self._handle = None
            raise Unavailable(self._says(error), field=self._name) from error

    async def _call_once(self, method: str, *args: object, **kwargs: object) -> Any:
        if self._handle is None:
            # A blocking call to Ray's control service, which may be slow when it restarts.
            self._handle = await asyncio.to_thread(self._find, self._name)
        return await getattr(self._handle, method).remote(*args, **kwargs)

    def _says(self, error: Exception) -> str:
        return f"{self._name} does not answer ({type(error).__name__}); try again"
