"""Pushes champion, canary and prices, as one set, to every replica that listens.

A replica holds one long-poll call; the same call acknowledges what it holds. What was announced
last is also a file beside the artifacts, so that nothing is lost with this process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import ray

from pipelines.remote import call
from pipelines.replicas import Replicas
from policies.arms import PriceTable
from policies.artifact import PolicyArtifact
from policies.errors import ArtifactError, Unavailable
from policies.publication import (
    Canary,
    Publication,
    forget_versions,
    read_pointer,
    write_pointer,
)
from policies.versions import Rollout

logger = logging.getLogger(__name__)

POLL_S: Final = 30.0
# A poll and some seconds: whoever has not called again by then is gone.
LIVE_S: Final = 35.0
KEEP_FOLDERS: Final = 20
PRICES_RETRY_S: Final = 1.0
NO_PRICES: Final = PriceTable(version=0, arms=())


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherStatus:
    """What the publisher holds.

    Attributes:
        revision: The publication announced last, 0 where there was none.
        version: The policy version in it.
        canary: The version on trial in it, None where there is none.
        canary_share: The share of requests it decides, 0 without one.
        price_version: The price table in it.
        published_at: When, seconds since the epoch, UTC.
        replicas: Revision held, by id of each live replica.
        swap_ms: The latest swaps to another version, each from publication to swap, ms.
        error: Why the pointer could not be restored, None where it was.
    """

    revision: int
    version: int | None
    canary: int | None
    canary_share: float
    price_version: int
    published_at: float | None
    replicas: Mapping[str, int]
    swap_ms: tuple[float, ...]
    error: str | None


class Publisher:
    """Holds one publication and hands it to whoever has an older one.

    Args:
        folder: Where artifact folders and pointer are left; a path or an s3:// URL.
        put: Makes the payload handed out, once a revision; an object reference under Ray.
        clock: Seconds since the epoch, UTC.
        poll_s: Longest that `next` waits, seconds.
        live_s: A replica that has not called for so long is not waited for, seconds.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        put: Callable[[Publication], Any],
        clock: Callable[[], float],
        poll_s: float = POLL_S,
        live_s: float = LIVE_S,
    ) -> None:
        self._folder, self._put, self._clock = folder, put, clock
        self._poll_s = poll_s
        self._current: Publication | None = None
        self._payload: Any = None
        self._prices = NO_PRICES
        self._last_revision = 0
        self._error: str | None = None
        self._replicas = Replicas(live_s=live_s, clock=clock)
        self._writing = asyncio.Lock()
        self._changed = asyncio.Condition()

    def restore(self) -> None:
        """Take up what the pointer file says; a damaged one is logged and awaits the registry."""
        try:
            publication = read_pointer(self._folder)
            if publication is not None:
                publication.artifact()
                if publication.canary is not None:
                    publication.canary.artifact()
        except ArtifactError as error:
            self._error = str(error)
            logger.error("pointer not restored, waiting for the registry: %s", error)
            return
        if publication is not None:
            self._prices = publication.prices
            self._hold(publication)

    async def publish(
        self, version: int, files: Mapping[str, bytes], canary: Canary | None = None
    ) -> int:
        """Announce a policy version with the prices of now.

        Args:
            version: The version's number.
            files: Its artifact's files by name.
            canary: The version on trial beside it; None ends a trial.

        Returns:
            The revision it is announced as; the present one where nothing changed.

        Raises:
            ArtifactError: The files are not a policy; nothing changed.
            Unavailable: The pointer cannot be written; nothing changed.
        """
        PolicyArtifact.from_files(files)
        if canary is not None:
            canary.artifact()
        async with self._writing:
            current = self._current
            if current is None or _deciding(current) != (version, files, canary):
                await self._announce(version, files, canary, self._prices)
            return self._last_revision

    async def publish_prices(self, prices: PriceTable) -> int:
        """Announce a price table with the champion of now; an older table changes nothing.

        Returns:
            The revision that holds these prices; kept for the first version where there is none.

        Raises:
            Unavailable: The pointer cannot be written; nothing changed.
        """
        async with self._writing:
            if prices.version > self._prices.version:
                if self._current is not None:
                    await self._announce(*_deciding(self._current), prices)
                self._prices = prices
            return self._last_revision

    async def next(self, replica_id: str, have: int, swapped_at: float | None) -> list[Any]:
        """Wait for a revision above the one the replica has.

        Args:
            replica_id: Who asks.
            have: The revision it decides by, 0 for none; acknowledges that revision.
            swapped_at: When it swapped to that, seconds since the epoch, UTC.

        Returns:
            The payload as the only element, or an empty list when the poll ends without news.
        """
        await self._acknowledge(replica_id, have, swapped_at)
        async with self._changed:
            try:
                async with asyncio.timeout(self._poll_s):
                    await self._changed.wait_for(lambda: self._is_newer_than(have))
            except TimeoutError:
                return []
            return [self._payload]

    async def rollout(self, revision: int, timeout_s: float) -> Rollout:
        """Wait until every live replica holds the revision or a later one.

        Args:
            revision: As `publish` returned it.
            timeout_s: Longest wait, seconds; then the stragglers are listed as waiting.
        """
        async with self._changed:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait_for(lambda: not self._replicas.waiting(revision))
            except TimeoutError:
                logger.warning("revision %d: still waiting for some replicas", revision)
        return self._replicas.rollout(revision)

    def status(self) -> PublisherStatus:
        """Say what is announced and who holds it."""
        current = self._current
        return PublisherStatus(
            revision=self._last_revision,
            version=None if current is None else current.version,
            canary=None if current is None or current.canary is None else current.canary.version,
            canary_share=0.0 if current is None or current.canary is None else current.canary.share,
            price_version=self._prices.version,
            published_at=None if current is None else current.published_at,
            replicas=self._replicas.holding(),
            swap_ms=self._replicas.swaps_ms(),
            error=self._error,
        )

    async def _announce(
        self,
        version: int,
        files: Mapping[str, bytes],
        canary: Canary | None,
        prices: PriceTable,
    ) -> None:
        """Write the pointer, then wake every poll; `_writing` is held."""
        publication = Publication(
            revision=self._last_revision + 1,
            version=version,
            files=dict(files),
            canary=canary,
            prices=prices,
            published_at=self._clock(),
        )
        try:
            await asyncio.to_thread(write_pointer, self._folder, publication)
        except OSError as error:
            raise Unavailable(f"the pointer cannot be written: {error}", field="pointer") from error
        self._hold(publication)
        self._error = None
        async with self._changed:
            self._changed.notify_all()
        logger.info("revision %d: version %d announced", publication.revision, version)
        # After the news: in an object store to list what is there takes longer than to write.
        try:
            await asyncio.to_thread(forget_versions, self._folder, keep=KEEP_FOLDERS)
        except OSError as error:
            logger.warning("old versions stay where they were published: %s", error)

    def _hold(self, publication: Publication) -> None:
        """Make it the one handed out."""
        self._payload = self._put(publication)
        self._current, self._last_revision = publication, publication.revision
        self._replicas.announced(publication)

    async def _acknowledge(self, replica_id: str, have: int, swapped_at: float | None) -> None:
        """Note what a replica holds; one ahead of us has seen what a lost pointer said."""
        self._replicas.acknowledge(replica_id, have, swapped_at)
        async with self._changed:
            self._changed.notify_all()
        async with self._writing:
            if have > self._last_revision:
                self._last_revision = have
                if self._current is not None:
                    await self._announce(*_deciding(self._current), self._prices)

    def _is_newer_than(self, have: int) -> bool:
        return self._payload is not None and self._last_revision > have


def _deciding(publication: Publication) -> tuple[int, Mapping[str, bytes], Canary | None]:
    """Return what decides in a publication: version, its files, and the version on trial."""
    return publication.version, publication.files, publication.canary


class PublisherActor:
    """The publisher as a named Ray actor; prices it missed are read back from the keeper."""

    def __init__(self, folder: str, *, keeper: str = "keeper") -> None:
        """Restore from the pointer, then catch up on prices in the background."""
        self._publisher = Publisher(folder, put=ray.put, clock=time.time)
        self._publisher.restore()
        self._keeper = keeper
        # Kept: the loop itself holds tasks only weakly.
        self._catching_up = asyncio.get_running_loop().create_task(self._catch_up_on_prices())

    async def ready(self) -> None:
        """Return once this actor answers."""

    async def publish(
        self, version: int, files: dict[str, bytes], canary: Canary | None = None
    ) -> int:
        """See `Publisher.publish`."""
        return await self._publisher.publish(version, files, canary)

    async def publish_prices(self, prices: PriceTable) -> int:
        """See `Publisher.publish_prices`."""
        return await self._publisher.publish_prices(prices)

    async def next(self, replica_id: str, have: int, swapped_at: float | None) -> list[Any]:
        """See `Publisher.next`; the element is an ObjectRef of a Publication."""
        return await self._publisher.next(replica_id, have, swapped_at)

    async def rollout(self, revision: int, timeout_s: float) -> Rollout:
        """See `Publisher.rollout`."""
        return await self._publisher.rollout(revision, timeout_s)

    async def status(self) -> dict[str, Any]:
        """See `PublisherStatus`, as plain JSON values."""
        return asdict(self._publisher.status())

    async def _catch_up_on_prices(self) -> None:
        """Ask the keeper until it answers once; later changes come from an aggregator."""
        while True:
            try:
                prices = await asyncio.to_thread(call, self._keeper, "prices")
                await self._publisher.publish_prices(prices)
            except Unavailable as error:
                logger.warning("prices not read back yet: %s", error)
                await asyncio.sleep(PRICES_RETRY_S)
            else:
                return
