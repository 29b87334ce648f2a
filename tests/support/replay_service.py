"""What a replay talks to: the service's contract in memory, and a way there that loses replies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


class FakeService:
    """The service's contract in memory: routes at random, joins by decision and event id."""

    def __init__(self, *, models: dict[str, float] | None = None) -> None:
        self.models = dict(models or {})
        self.price_version = 1
        self.version = 1
        self.decisions: dict[str, dict[str, Any]] = {}
        self.outcomes: dict[tuple[str, str], dict[str, Any]] = {}
        self.pending = 0
        self.status_of_first_report = "joined"
        self.refuse_route: Callable[[dict[str, Any]], bool] = lambda body: False
        self.app = Starlette(
            routes=[
                Route("/v1/models", self.list_models),
                Route("/v1/models/{name:path}", self.put_model, methods=["PUT"]),
                Route("/v1/route", self.route, methods=["POST"]),
                Route("/v1/feedback", self.feedback, methods=["POST"]),
                Route("/v1/status", self.status),
                Route("/readyz", self.readyz),
            ]
        )

    async def list_models(self, request: Request) -> Response:
        """List what is on offer."""
        models = [{"name": name, "usd_per_call": usd} for name, usd in self.models.items()]
        return JSONResponse({"price_version": self.price_version, "models": models})

    async def put_model(self, request: Request) -> Response:
        """Set a price, as a new version."""
        prices = await request.json()
        self.models[request.path_params["name"]] = prices["usd_per_call"]
        self.price_version += 1
        return JSONResponse({"price_version": self.price_version, "models": []})

    async def readyz(self, request: Request) -> Response:
        """Say which prices are held."""
        return JSONResponse({"ready": True, "price_version": self.price_version})

    async def status(self, request: Request) -> Response:
        """Say how many outcomes wait; by the next time they are joined."""
        ledger, self.pending = {"pending": self.pending}, 0
        return JSONResponse({"ledger": ledger})

    async def route(self, request: Request) -> Response:
        """Choose the models in turn."""
        body = await request.json()
        if self.refuse_route(body):
            return JSONResponse({"error": {"code": "no_eligible_arm"}}, status_code=422)
        offered = [name for name in self.models if name in body.get("models", self.models)]
        decision_id = f"decision-{len(self.decisions)}"
        self.decisions[decision_id] = body
        model = offered[len(self.decisions) % len(offered)]
        return JSONResponse(
            {"decision_id": decision_id, "model": model, "policy_version": self.version}
        )

    async def feedback(self, request: Request) -> Response:
        """Take one outcome or a list."""
        body = await request.json()
        if isinstance(body, list):
            return JSONResponse({"results": [self.join(one) for one in body]})
        return JSONResponse(self.join(body), status_code=202)

    def join(self, outcome: dict[str, Any]) -> dict[str, str]:
        """Store an outcome once per decision and event."""
        key = (outcome["decision_id"], outcome["event_id"])
        status = "duplicate" if key in self.outcomes else self.status_of_first_report
        self.pending += status == "pending"
        self.outcomes[key] = outcome
        return {"decision_id": outcome["decision_id"], "status": status}


class LossyTransport(httpx.ASGITransport):
    """Delivers everything, but loses the first reply to each feedback body."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(app)
        self.lost: set[bytes] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Deliver it; raise where the reply is to be lost."""
        answer = await super().handle_async_request(request)
        if request.url.path == "/v1/feedback" and request.content not in self.lost:
            self.lost.add(request.content)
            raise httpx.ReadError("the connection broke")
        return answer
