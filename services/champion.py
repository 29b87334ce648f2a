"""The policies and prices a replica decides with: pushed to it, swapped by one assignment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ray.exceptions import RayError

from policies.arms import PriceTable
from policies.artifact import PolicyArtifact
from policies.errors import ArtifactError, EncoderMismatch, RouterError, Unavailable
from policies.events import Event, EventKind
from policies.policy import Policy
from policies.publication import Publication, read_pointer
from services.actors import PublisherPort
from services.metrics import ReplicaMetrics

BACKOFF_FIRST_S: Final = 0.2
BACKOFF_MAX_S: Final = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCanary:
    """A version on trial, ready to decide for its share of the requests.

    Attributes:
        version: Its number.
        policy: The loaded policy.
        share: Probability that it decides for a unit.
    """

    version: int
    policy: Policy
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """What decides now, as one value: policies and prices never come from two publications.

    Attributes:
        revision: The publication it came from.
        version: The policy's version.
        policy: The loaded policy.
        prices: The arms and what they charge.
        swapped_at: When this replica took it over, seconds since the epoch.
        canary: The version on trial beside it, None where there is none.
    """

    revision: int
    version: int
    policy: Policy
    prices: PriceTable
    swapped_at: float
    canary: LoadedCanary | None = None


class ChampionSource:
    """Follows the publisher; while that is away, the pointer file it left on disk."""

    def __init__(
        self,
        publisher: PublisherPort,
        *,
        folder: str | Path,
        encoder_id: str,
        context_dim: int,
        replica_id: str,
        load: Callable[[PolicyArtifact], Policy],
        clock: Callable[[], float],
        metrics: ReplicaMetrics,
        tell: Callable[[Event], Awaitable[None]],
    ) -> None:
        """Set it up; nothing runs before `start`.

        Args:
            publisher: Who pushes.
            folder: Where the publisher leaves its pointer file; a path or an s3:// URL.
            encoder_id: The encoder of this replica; a policy of another one is refused.
            context_dim: Length of this replica's contexts.
            replica_id: Who takes over, for the publisher's list of who holds what.
            load: Makes a policy of an artifact.
            clock: Seconds since the epoch.
            metrics: Where swaps, refusals and failures are counted.
            tell: Takes the event of a refusal; may raise Unavailable.
        """
        self._tell = tell
        self._publisher, self._folder, self._replica_id = publisher, folder, replica_id
        self._encoder_id, self._context_dim = encoder_id, context_dim
        self._load, self._clock, self._metrics = load, clock, metrics
        self._champion: Champion | None = None
        self._refused = 0
        self._first = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def current(self) -> Champion:
        """What decides now; raises Unavailable before the first publication."""
        if self._champion is None:
            raise Unavailable("no policy has been published yet", field="champion")
        return self._champion

    @property
    def alive(self) -> bool:
        """Whether publications are being followed."""
        return self._task is not None and not self._task.done()

    async def start(self, *, timeout_s: float) -> None:
        """Follow from now on; return when there is a champion.

        Raises:
            Unavailable: None came within `timeout_s` seconds.
        """
        await self._take_pointer()
        self._task = asyncio.create_task(self._follow(), name="follow-champion")
        try:
            await asyncio.wait_for(self._first.wait(), timeout_s)
        except TimeoutError as error:
            await self.stop()
            raise Unavailable(
                f"no policy that fits encoder {self._encoder_id} was published within "
                f"{timeout_s:.0f} s, neither by the publisher nor in {self._folder}",
                field="champion",
            ) from error

    async def stop(self) -> None:
        """Stop following; what decides now stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _follow(self) -> None:
        """Take over one publication after the other, for ever."""
        backoff_s = BACKOFF_FIRST_S
        while True:
            try:
                await self._take_next()
                backoff_s = BACKOFF_FIRST_S
            except (RouterError, RayError) as error:
                self._metrics.publisher_failures.inc()
                logger.warning("publisher: %s", error)
                await self._take_pointer()
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _take_next(self) -> None:
        """Hold one long poll; telling what we have is also our acknowledgement of it."""
        now = self._champion
        have, swapped_at = (now.revision, now.swapped_at) if now is not None else (0, None)
        for reference in await self._publisher.next(self._replica_id, have, swapped_at):
            await self._take(await reference)

    async def _take_pointer(self) -> None:
        """Take what the publisher left on disk, if that is newer."""
        try:
            publication = await asyncio.to_thread(read_pointer, self._folder)
            if publication is not None:
                await self._take(publication)
        except ArtifactError as error:
            logger.warning("pointer file: %s", error)

    async def _take(self, publication: Publication) -> None:
        """Load and swap, unless it is not newer; raises ArtifactError for what does not fit."""
        if self._champion is not None and publication.revision <= self._champion.revision:
            return
        try:
            champion = await asyncio.to_thread(self._loaded, publication)
        except ArtifactError as error:
            if publication.revision > self._refused:
                self._refused = publication.revision
                self._metrics.refused_publications.inc()
                await self._tell_refusal(publication, error)
            raise
        self._champion = champion
        self._first.set()
        self._metrics.swaps.inc()
        self._metrics.policy_version.labels(self._replica_id).set(publication.version)
        logger.info("version %d decides, revision %d", publication.version, publication.revision)

    async def _tell_refusal(self, publication: Publication, error: ArtifactError) -> None:
        """Make an event of a publication that does not fit; it is counted in any case."""
        event = Event.now(
            EventKind.ARTIFACT_REFUSED,
            now=self._clock(),
            who=f"replica {self._replica_id}",
            why=str(error),
            version=publication.version,
            revision=publication.revision,
        )
        try:
            await self._tell(event)
        except Unavailable as away:
            logger.warning("the refusal is no event: %s", away)

    def _loaded(self, publication: Publication) -> Champion:
        """Make the policies ready; raises ArtifactError where one is damaged or does not fit."""
        canary, loaded = publication.canary, None
        if canary is not None:
            on_trial = self._policy(canary.version, canary.artifact())
            loaded = LoadedCanary(version=canary.version, policy=on_trial, share=canary.share)
        return Champion(
            revision=publication.revision,
            version=publication.version,
            policy=self._policy(publication.version, publication.artifact()),
            prices=publication.prices,
            swapped_at=self._clock(),
            canary=loaded,
        )

    def _policy(self, version: int, artifact: PolicyArtifact) -> Policy:
        """Load one policy; raises ArtifactError where it is damaged or another encoder's."""
        policy = self._load(artifact)
        if (policy.encoder_id, policy.context_dim) != (self._encoder_id, self._context_dim):
            raise EncoderMismatch(
                f"version {version} was trained on encoder {policy.encoder_id}, "
                f"{policy.context_dim} dimensions; this replica has {self._encoder_id}, "
                f"{self._context_dim}",
                field="encoder_id",
                value=policy.encoder_id,
                allowed=self._encoder_id,
            )
        return policy
