"""The registry as a named actor: versions and promotion behind one queue of calls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar

from pipelines.events import EventOutbox
from pipelines.promotion import Promotion
from pipelines.registry import MAX_LISTED, Registry
from pipelines.remote import RemotePublisher
from pipelines.servable import DEFAULT_CANARY_SHARE
from policies.artifact import PolicyArtifact
from policies.versions import CHALLENGER, AliasMove, VersionInfo

logger = logging.getLogger(__name__)

T = TypeVar("T")


class RegistryActor:
    """The registry as a named Ray actor: MLflow blocks, so it has one thread of its own."""

    def __init__(
        self,
        uri: str,
        artifact_dir: str,
        *,
        publisher: str = "publisher",
        alias_watch_s: float = 1.0,
        canary_share: float = DEFAULT_CANARY_SHARE,
        encoder_id: str | None = None,
    ) -> None:
        """Start to watch the alias; the store is opened by the first call that finds it."""
        self._uri, self._artifact_dir, self._publisher = uri, artifact_dir, publisher
        self._canary_share, self._encoder_id = canary_share, encoder_id
        self._opened: tuple[Registry, Promotion] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        self._failures, self._last_failure = 0, ""
        self._events = EventOutbox()
        self._watching = asyncio.get_running_loop().create_task(self._watch(alias_watch_s))

    async def ready(self) -> None:
        """Return once the store is open; raises Unavailable."""
        await self._promotion(Promotion.champion)

    async def register(
        self, artifact: PolicyArtifact, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> int:
        """See `Registry.register`."""
        return await self._registry(lambda registry: registry.register(artifact, metrics, tags))

    async def challenge(self, version: int) -> None:
        """Point the alias `challenger` at a version; raises UnknownVersion."""
        await self._registry(lambda registry: registry.point(CHALLENGER, version))

    async def tag(self, version: int, words: Mapping[str, str]) -> None:
        """See `Registry.tag`."""
        await self._registry(lambda registry: registry.tag(version, words))

    async def start_canary(self, version: int, *, instead_of: int, who: str, why: str) -> None:
        """See `Promotion.start_canary`."""
        await self._promotion(
            lambda p: p.start_canary(version, instead_of=instead_of, who=who, why=why)
        )

    async def stop_canary(self, *, who: str, why: str) -> None:
        """See `Promotion.stop_canary`."""
        await self._promotion(lambda p: p.stop_canary(who=who, why=why))

    async def promote(
        self, version: int, *, who: str, why: str, instead_of: int | None = None
    ) -> AliasMove:
        """See `Promotion.promote`."""
        return await self._promotion(
            lambda p: p.promote(version, who=who, why=why, instead_of=instead_of)
        )

    async def rollback(self, *, to: int | None, who: str, why: str) -> AliasMove:
        """See `Promotion.rollback`."""
        return await self._promotion(lambda p: p.rollback(to=to, who=who, why=why))

    async def versions(self, limit: int = MAX_LISTED) -> list[VersionInfo]:
        """See `Registry.versions`."""
        return await self._registry(lambda registry: registry.versions(limit))

    async def history(self, limit: int = MAX_LISTED) -> list[AliasMove]:
        """See `Promotion.history`."""
        return await self._promotion(lambda promotion: promotion.history(limit))

    async def trials(self, limit: int = MAX_LISTED) -> list[AliasMove]:
        """See `Promotion.trials`."""
        return await self._promotion(lambda promotion: promotion.trials(limit))

    async def artifact(self, version: int) -> PolicyArtifact:
        """See `Registry.artifact`."""
        return await self._registry(lambda registry: registry.artifact(version))

    async def champion(self) -> int | None:
        """See `Promotion.champion`."""
        return await self._promotion(Promotion.champion)

    async def status(self) -> dict[str, Any]:
        """See `PromotionStatus`, as plain JSON values, with the failures of the watch."""
        status = await self._promotion(Promotion.status)
        watch = {"watch_failures": self._failures, "last_failure": self._last_failure or None}
        return asdict(status) | watch

    async def _watch(self, every_s: float) -> None:
        """Look at the alias for as long as this actor lives; a failure is counted, not fatal."""
        while True:
            try:
                await self._promotion(Promotion.watch)
                self._last_failure = ""
            except Exception as error:
                self._failures += 1
                if str(error) != self._last_failure:
                    logger.exception("alias watch")
                self._last_failure = str(error)
            await asyncio.sleep(every_s)

    async def _registry(self, step: Callable[[Registry], T]) -> T:
        """Run a step on the registry in its thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: step(self._open()[0])
        )

    async def _promotion(self, step: Callable[[Promotion], T]) -> T:
        """Run a step on the promotion in the registry's thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: step(self._open()[1])
        )

    def _open(self) -> tuple[Registry, Promotion]:
        """Open the store once it answers; raises Unavailable until then."""
        if self._opened is None:
            registry = Registry(self._uri, self._artifact_dir, clock=time.time)
            publisher = RemotePublisher(self._publisher)
            promotion = Promotion(
                registry,
                publisher=publisher,
                clock=time.time,
                events=self._events,
                encoder_id=self._encoder_id,
                canary_share=self._canary_share,
            )
            self._opened = registry, promotion
        return self._opened
