"""What operators ask for: models, versions, decisions, health, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any, Final

from fastapi import Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from policies.artifact import PolicyArtifact
from policies.errors import Unavailable, UnknownDecision, UnknownVersion
from policies.events import EventKind
from policies.policy import Policy
from policies.versions import CHALLENGER, CHAMPION, PREVIOUS
from services.actors import Ports
from services.decision_ids import DecisionIds
from services.door import caller_of
from services.explain import Explainer
from services.router import HoldsChampion
from services.wire import ModelsOut, MoveIn, PricesIn, RollbackIn

# What happens to versions without the champion's alias moving, or makes it move.
BESIDE_MOVES: Final = (
    EventKind.GUARDRAIL_BREACH,
    EventKind.QUARANTINE,
    EventKind.EXPLORATION_COLLAPSE,
)
MAX_EVENTS: Final = 1_000

Number = Annotated[int, Path(ge=1, le=2**31 - 1, description="Version number.")]
Tenant = Annotated[str | None, Header(alias="x-barp-tenant", description="Whose decision it is.")]
After = Annotated[int, Query(ge=0, description="Only events with a higher number.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most events, the newest ones.")]
Kinds = Annotated[list[EventKind] | None, Query(description="Only events of these kinds.")]


class Operations:
    """The handlers behind the hot paths; each one asks an actor and shows what it says."""

    def __init__(
        self,
        ports: Ports,
        champion: HoldsChampion,
        decision_ids: DecisionIds,
        *,
        replica_id: str,
        encoder_id: str,
        load: Callable[[PolicyArtifact], Policy],
    ) -> None:
        self._explainer = Explainer(ports.aggregator, ports.registry, load=load)
        self._ports, self._champion, self._ids = ports, champion, decision_ids
        self._replica_id, self._encoder_id = replica_id, encoder_id

    async def models(self) -> ModelsOut:
        """List the models on offer and what they charge."""
        return ModelsOut.of(await self._ports.aggregator.prices())

    async def put_model(self, name: str, prices: PricesIn) -> ModelsOut:
        """Add a model, or replace what it charges; counts from the next request on."""
        return ModelsOut.of(await self._ports.aggregator.put_arm(prices.to_arm(name)))

    async def patch_model(self, name: str, prices: PricesIn) -> ModelsOut:
        """Change some of what a model charges."""
        return ModelsOut.of(await self._ports.aggregator.patch_arm(name, prices.changes()))

    async def delete_model(self, name: str) -> ModelsOut:
        """Take a model off the table; nothing more is routed to it."""
        return ModelsOut.of(await self._ports.aggregator.delete_arm(name))

    async def versions(self) -> dict[str, Any]:
        """List all policy versions, newest first, and which of them the aliases name."""
        versions = await self._ports.registry.versions()
        marks = {
            alias: next((v.version for v in versions if alias in v.aliases), None)
            for alias in (CHAMPION, CHALLENGER, PREVIOUS)
        }
        return {**marks, "versions": [plain(version) for version in versions]}

    async def version(self, number: Number) -> dict[str, Any]:
        """Show one policy version: metrics, lineage, aliases."""
        for version in await self._ports.registry.versions():
            if version.version == number:
                return asdict(version)
        raise UnknownVersion(f"version {number} is not registered", field="number", value=number)

    async def rebuild(self, number: Number) -> dict[str, Any]:
        """Make a version again from its parent and rows; say whether the weights are the same."""
        return await self._ports.trainer.rebuild(number)

    async def history(self) -> dict[str, Any]:
        """List every move of champion and canary, and what the guardrail did, newest first."""
        moves, trials, told = await asyncio.gather(
            self._ports.registry.history(),
            self._ports.registry.trials(),
            _part(self._ports.metrics.events(0, MAX_EVENTS, BESIDE_MOVES)),
        )
        events = told["events"][::-1] if "events" in told else told
        return {
            "history": [plain(move) for move in moves],
            "trials": [plain(move) for move in trials],
            "events": events,
        }

    async def promote(self, number: Number, body: MoveIn | None = None) -> dict[str, Any]:
        """Make a version the champion on every replica."""
        body = body or MoveIn()
        return asdict(await self._ports.registry.promote(number, who=body.who, why=body.why))

    async def rollback(self, body: RollbackIn | None = None) -> dict[str, Any]:
        """Go back to the previous champion, or to any version, on every replica."""
        body = body or RollbackIn()
        move = await self._ports.registry.rollback(to=body.to, who=body.who, why=body.why)
        return asdict(move)

    async def decision(
        self,
        request: Request,
        decision_id: str,
        header_tenant: Tenant = None,
        tenant: str | None = None,
    ) -> dict[str, Any]:
        """Show a decision as recorded, why it went so, and what came back for it."""
        tenant = caller_of(request.scope).acts_for(tenant or header_tenant)
        self._ids.verify(decision_id, tenant)
        record = await self._ports.aggregator.decision(decision_id)
        if record is None or record.get("tenant", tenant) != tenant:
            raise UnknownDecision(
                "this decision is not recorded, or not yet",
                field="decision_id",
                value=decision_id,
            )
        explanation = await self._explainer.explanation(decision_id, record)
        return {**record, "explanation": explanation}

    async def events(
        self, after: After = 0, limit: Limit = 100, kind: Kinds = None
    ) -> dict[str, Any]:
        """List what happened, oldest first: promotions, verdicts, breaches, prices."""
        return await self._ports.metrics.events(after, limit, kind or ())

    async def status(self) -> dict[str, Any]:
        """Show what the service holds; a part that is away says so instead of its values."""
        ledger, publisher, trainer = await asyncio.gather(
            _part(self._ports.aggregator.counts()),
            _part(self._ports.publisher.status()),
            _part(self._ports.trainer.status()),
        )
        return {
            "replica": self._self(),
            "ledger": ledger,
            "publisher": publisher,
            "trainer": trainer,
        }

    async def readyz(self) -> Response:
        """Say whether this replica can decide: 200 with what it holds, else 503."""
        holds = self._self()
        return JSONResponse(holds, status_code=200 if holds["ready"] else 503)

    async def metrics(self) -> Response:
        """Give the sums over all replicas in Prometheus' text format."""
        text = await self._ports.metrics.text()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    def _self(self) -> dict[str, Any]:
        """Say what this replica holds."""
        who = {"id": self._replica_id, "encoder_id": self._encoder_id}
        try:
            champion = self._champion.current
        except Unavailable as error:
            return {"ready": False, **who, "reason": str(error)}
        return {
            "ready": True,
            **who,
            "policy_version": champion.version,
            "learner": champion.policy.kind,
            "revision": champion.revision,
            "price_version": champion.prices.version,
            "models": len(champion.prices.arms),
        }


async def _part(asked: Awaitable[Any]) -> Any:
    """Return what a part says of itself, or that it is away."""
    try:
        return plain(await asked)
    except Unavailable as error:
        return {"away": str(error)}


def plain(value: Any) -> Any:
    """Turn a record into JSON values; what is plain already stays."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
