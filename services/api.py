"""HTTP in, HTTP out: who may come in, which handler answers, how errors look.

The hot paths are dispatched by a dict: a hop through FastAPI costs half the requests per second.
The same handlers are also in the application of `services.paths`, which answers everything else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message

from policies.errors import InvalidRequest, RouterError
from services.door import CALLER, Caller, Door, caller_of
from services.feedback import Feedback
from services.metrics import ReplicaMetrics
from services.operations import Operations
from services.paths import application
from services.refusals import BodyTooLarge, MalformedJson, invalid, refusal
from services.router import Routed, Router, RouterArgs, RouteRequest, in_batch
from services.wire import RouteBatchIn, RouteBatchOut, RouteIn, RouteOut

JSON: Final = "application/json"
CLIENT_GONE: Final = 499  # nobody reads it; the log's word for a caller who hung up
_ROUTE_LIST: Final = TypeAdapter(list[RouteIn])

Handler = Callable[[Request], Awaitable[Response]]
Model = TypeVar("Model", bound=BaseModel)


class Api:
    """Answers one HTTP request after the other; holds no state of its own."""

    def __init__(
        self,
        router: Router,
        feedback: Feedback,
        operations: Operations,
        args: RouterArgs,
        *,
        door: Door,
        metrics: ReplicaMetrics,
    ) -> None:
        self._door = door
        self._router, self._feedback = router, feedback
        self._args, self._metrics = args, metrics
        self._everything = application(operations, self)
        self._hot: dict[tuple[str, str], Handler] = {
            ("POST", "/v1/route"): self.route,
            ("POST", "/v1/route/batch"): self.route_batch,
            ("POST", "/v1/feedback"): self.feedback,
            ("GET", "/healthz"): self.healthz,
        }

    async def __call__(self, request: Request) -> Response:
        """Answer a request; every refusal has the one error body."""
        began = time.perf_counter()
        path = request.scope["path"]
        hot = self._hot.get((request.method, path))
        try:
            caller = self._door.admit(
                request.method, path, request.headers.get("authorization", "")
            )
            request.scope[CALLER] = caller
            response = await (hot or self._operate)(self._limited(request, caller))
        except RouterError as error:
            response = refusal(error)
        except ClientDisconnect:
            response = Response(status_code=CLIENT_GONE)
        spent_s = time.perf_counter() - began
        response.headers["x-barp-overhead-ms"] = f"{spent_s * 1000:.3f}"
        route = path if hot else "other"
        self._metrics.requests.labels(route, str(response.status_code)).inc()
        self._metrics.overhead.labels(route).observe(spent_s)
        return response

    async def route(self, request: Request) -> Response:
        """Choose a model for one prompt."""
        body = _validated(RouteIn, await request.body())
        tenant = caller_of(request.scope).acts_for(body.tenant)
        [routed] = await self._decide([body.to_request(tenant=tenant)])
        decision = routed.decision
        return Response(
            RouteOut.of(routed).model_dump_json(exclude_none=True),
            media_type=JSON,
            headers={
                "x-barp-decision-id": decision.decision_id,
                "x-barp-model": decision.arm.encode("ascii", "backslashreplace").decode(),
                "x-barp-policy-version": str(decision.policy_version),
            },
        )

    async def route_batch(self, request: Request) -> Response:
        """Choose a model for each of several prompts, encoded together; all or none."""
        bodies, requests = _batch(await request.body()), []
        caller = caller_of(request.scope)
        caller.spend(len(bodies) - 1)
        for index, body in enumerate(bodies):
            with in_batch(index, size=len(bodies)):
                requests.append(body.to_request(tenant=caller.acts_for(body.tenant)))
        routed = await self._decide(requests)
        reply = RouteBatchOut(results=[RouteOut.of(one) for one in routed])
        return Response(reply.model_dump_json(exclude_none=True), media_type=JSON)

    async def feedback(self, request: Request) -> Response:
        """Report what came back for one decision, or for each of a list."""
        try:
            body = from_json(await request.body())
        except ValueError as error:
            raise MalformedJson(
                f"the body is not JSON: {error}", field="body", allowed="JSON (RFC 8259), UTF-8"
            ) from error
        caller = caller_of(request.scope)
        if isinstance(body, list):
            caller.spend(len(body) - 1)
            results = await self._feedback.many(body, caller=caller)
            return Response(results.model_dump_json(exclude_none=True), media_type=JSON)
        if not isinstance(body, dict):
            raise InvalidRequest(
                "the body is neither an outcome nor a list of them",
                field="body",
                allowed="a JSON object, or a list of objects",
            )
        key = request.headers.get("idempotency-key")
        if key is not None and body.get("event_id") is None:
            body["event_id"] = key
        result = await self._feedback.one(body, caller=caller)
        return Response(result.model_dump_json(exclude_none=True), status_code=202, media_type=JSON)

    async def healthz(self, request: Request) -> Response:
        """Say that this process answers."""
        return Response("ok\n", media_type="text/plain")

    async def _decide(self, requests: list[RouteRequest]) -> list[Routed]:
        routed = await self._router.decide(requests)
        self._metrics.decided([one.decision for one in routed])
        return routed

    def _limited(self, request: Request, caller: Caller) -> Request:
        """Return the request with a body that raises BodyTooLarge beyond the limit."""
        limit, size = min(self._args.max_body_bytes, caller.max_body_bytes or sys.maxsize), 0

        async def receive() -> Message:
            nonlocal size
            message = await request.receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise BodyTooLarge(
                    f"the body has more than {limit} bytes",
                    field="body",
                    allowed=f"at most {limit} bytes",
                )
            return message

        return Request(request.scope, receive)

    async def _operate(self, request: Request) -> Response:
        """Let the FastAPI application answer, in this very call."""
        # Read here, where a body that is too large is refused as such.
        unread = [{"type": "http.request", "body": await request.body(), "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            return unread.pop() if unread else await request.receive()

        async def send(message: Message) -> None:
            sent.append(message)

        # Callers forget or mistake the type; what is not JSON is refused for not being JSON.
        headers = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
        scope = {**request.scope, "headers": [*headers, (b"content-type", JSON.encode())]}
        await self._everything(scope, receive, send)
        start = next(m for m in sent if m["type"] == "http.response.start")
        content = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
        response = Response(content, status_code=start["status"])
        response.raw_headers = list(start["headers"])
        return response


def _validated(model: type[Model], body: bytes) -> Model:
    """Parse and check a body in one pass; raises InvalidRequest."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error, model) from error


def _batch(body: bytes) -> list[RouteIn]:
    """Read a list of requests, bare or under the key `requests`; raises InvalidRequest."""
    if not body.lstrip().startswith(b"["):
        return _validated(RouteBatchIn, body).requests
    try:
        return _ROUTE_LIST.validate_json(body)
    except ValidationError as error:
        raise invalid(error, RouteIn) from error
