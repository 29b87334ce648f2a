"""HTTP in, HTTP out: who may come in, which handler answers, how errors look.

The hot paths are dispatched by a dict: a hop through FastAPI costs half the requests per second.
The same handlers are also in the application of `services.paths`, which answers everything else.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from policies.errors import InvalidRequest, RouterError
from services.bulk import ARROW_STREAM
from services.door import CALLER, OPEN_PATHS, Caller, Door, caller_of
from services.feedback import Feedback
from services.metrics import ReplicaMetrics
from services.operations import Operations
from services.paths import application
from services.refusals import (
    BodyTooLarge,
    BodyTooSlow,
    InternalError,
    MalformedJson,
    Overloaded,
    invalid,
    refusal,
)
from services.replies import JSON, TEXT, Reply, header
from services.router import Router, RouterArgs, for_each
from services.tracing import RequestTracing
from services.wire import RouteBatchIn, RouteIn, route_out

NDJSON: Final = "application/x-ndjson"
CLIENT_GONE: Final = 499  # nobody reads it; the log's word for a caller who hung up
_ROUTE_LIST: Final = TypeAdapter(list[RouteIn])

# Takes the body and the request's scope.
Handler = Callable[[bytes, Scope], Awaitable[Reply]]
Model = TypeVar("Model", bound=BaseModel)

logger = logging.getLogger(__name__)


class Api:
    """The ASGI application: answers HTTP requests, and counts those it has in hand."""

    def __init__(
        self,
        router: Router,
        feedback: Feedback,
        operations: Operations,
        args: RouterArgs,
        *,
        door: Door,
        metrics: ReplicaMetrics,
        tracing: RequestTracing | None = None,
    ) -> None:
        self._door, self._tracing = door, tracing
        self._router, self._feedback = router, feedback
        self._args, self._metrics = args, metrics
        self._in_flight = 0
        self._everything = application(operations, self)
        self._hot: dict[tuple[str, str], Handler] = {
            ("POST", "/v1/route"): self.route,
            ("POST", "/v1/route/batch"): self.route_batch,
            ("POST", "/v1/route/preview"): self.preview,
            ("POST", "/v1/feedback"): self.feedback,
            ("GET", "/healthz"): self.healthz,
        }
        self.hot_paths: Final = frozenset(path for _, path in self._hot)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; every refusal has the one error body."""
        if scope["type"] != "http":
            await _no_http(scope, receive, send)
            return
        began = time.perf_counter()
        path: str = scope["path"]
        head = scope["method"] == "HEAD"
        if head:
            # Answered like GET; the server must still see HEAD, so it keeps its own scope.
            scope = {**scope, "method": "GET"}
        hot = self._hot.get((scope["method"], path))
        self._in_flight += 1
        try:
            reply = await self._answer(hot or self._operate, scope, receive)
        finally:
            self._in_flight -= 1
        spent_s = time.perf_counter() - began
        self._metrics.answered(path if hot else "other", reply.status, spent_s=spent_s)
        extra = [(b"x-barp-overhead-ms", b"%.3f" % (spent_s * 1000))]
        await reply.send(send, extra=extra, head=head)
        if self._tracing is not None and hot is not None:
            now_ns = time.time_ns()
            began_ns = now_ns - int((time.perf_counter() - began) * 1e9)
            self._tracing.answered(path, scope, reply, began_ns=began_ns, now_ns=now_ns)

    async def route(self, body: bytes, scope: Scope) -> Reply:
        """Choose a model for one prompt."""
        asked = _validated(RouteIn, body)
        tenant = caller_of(scope).acts_for(asked.tenant)
        routed = await self._router.route(asked.to_request(tenant=tenant))
        decision = routed.decision
        self._metrics.decided([decision])
        return Reply(
            to_json(route_out(routed)),
            headers=[
                (b"x-barp-decision-id", decision.decision_id.encode()),
                (b"x-barp-model", decision.arm.encode("ascii", "backslashreplace")),
                (b"x-barp-policy-version", b"%d" % decision.policy_version),
            ],
        )

    async def route_batch(self, body: bytes, scope: Scope) -> Reply:
        """Choose a model for each of several prompts, encoded together; all or none."""
        asked, caller = _batch(body), caller_of(scope)
        caller.spend(len(asked) - 1)
        requests = for_each(asked, lambda one: one.to_request(tenant=caller.acts_for(one.tenant)))
        routed = await self._router.decide(requests)
        self._metrics.decided([one.decision for one in routed])
        return Reply(to_json({"results": [route_out(one) for one in routed]}))

    async def preview(self, body: bytes, scope: Scope) -> Reply:
        """Say how likely each model would be, and what is expected of it; nothing is decided."""
        asked = _validated(RouteIn, body)
        tenant = caller_of(scope).acts_for(asked.tenant)
        return Reply(to_json(await self._router.preview(asked.to_request(tenant=tenant))))

    async def feedback(self, body: bytes, scope: Scope) -> Reply:
        """Report what came back for one decision, or for each of a list, a text or a stream."""
        caller = caller_of(scope)
        kind = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
        if kind == ARROW_STREAM:
            as_arrow = ARROW_STREAM in (header(scope, b"accept") or "")
            answer = await self._feedback.arrow(body, caller=caller, as_arrow=as_arrow)
            return Reply(answer, content_type=ARROW_STREAM.encode() if as_arrow else JSON)
        reported = _lines(body) if kind == NDJSON else _parsed(body)
        if isinstance(reported, list):
            caller.spend(len(reported) - 1)
            results = await self._feedback.many(reported, caller=caller)
            return Reply(results.model_dump_json(exclude_none=True).encode())
        if not isinstance(reported, dict):
            raise InvalidRequest(
                "the body is neither an outcome nor a list of them",
                field="body",
                allowed="a JSON object, or a list of objects",
            )
        key = header(scope, b"idempotency-key")
        if key is not None and reported.get("event_id") is None:
            reported["event_id"] = key
        result = await self._feedback.one(reported, caller=caller)
        return Reply(result.model_dump_json(exclude_none=True).encode(), status=202)

    async def healthz(self, body: bytes, scope: Scope) -> Reply:
        """Say that this process answers."""
        return Reply(b"ok\n", content_type=TEXT)

    async def _answer(self, handler: Handler, scope: Scope, receive: Receive) -> Reply:
        """Let a caller in, read what it sends, and let a handler answer."""
        try:
            authorization = header(scope, b"authorization") or ""
            caller = self._door.admit(scope["method"], scope["path"], authorization)
            scope[CALLER] = caller
            if self._in_flight > self._args.max_in_flight and scope["path"] not in OPEN_PATHS:
                raise self._overloaded()
            return await handler(await self._body(receive, caller), scope)
        except RouterError as error:
            return refusal(error)
        except ClientDisconnect:
            return Reply(b"", status=CLIENT_GONE)
        except Exception as error:
            # Where it happened, and not its words: those may be a caller's.
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.exception("%s\n%s", type(error).__name__, where, exc_info=False)
            return refusal(InternalError("an error of ours; it is in the log"))

    def _overloaded(self) -> Overloaded:
        most = self._args.max_in_flight
        return Overloaded(
            f"this replica has {most} requests in hand",
            field="max_in_flight",
            value=most,
            allowed="to try again in a moment",
        )

    async def _body(self, receive: Receive, caller: Caller) -> bytes:
        """Read a body, as large as the caller's may be."""
        limit = min(self._args.max_body_bytes, caller.max_body_bytes or sys.maxsize)
        return await _read(receive, limit=limit, timeout_s=self._args.body_timeout_s)

    async def _operate(self, body: bytes, scope: Scope) -> Reply:
        """Let the FastAPI application answer, in this very call."""
        unread = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            return unread.pop() if unread else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        # Callers forget or mistake the type; what is not JSON is refused for not being JSON.
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
        inner = {**scope, "headers": [*headers, (b"content-type", JSON)]}
        await self._everything(inner, receive, send)
        start = next(m for m in sent if m["type"] == "http.response.start")
        content = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
        kind = dict(start["headers"]).get(b"content-type", TEXT)
        ours = (b"content-type", b"content-length")
        others = [pair for pair in start["headers"] if pair[0] not in ours]
        return Reply(content, start["status"], kind, others)


async def _read(receive: Receive, *, limit: int, timeout_s: float) -> bytes:
    """Read a request's body.

    Args:
        receive: Where it comes from.
        limit: Most bytes.
        timeout_s: From the first part to the last, seconds.

    Raises:
        BodyTooLarge: It has more.
        BodyTooSlow: It did not arrive within `timeout_s` of its beginning.
        ClientDisconnect: The caller hung up first.
    """
    parts, size, more, until = list[bytes](), 0, True, 0.0
    while more:
        # A body that fits the proxy's buffer comes whole: the clock is for those that do not.
        message = await (_in_time(receive, until, timeout_s) if parts else receive())
        until = until or time.monotonic() + timeout_s
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise BodyTooLarge(
                f"the body has more than {limit} bytes",
                field="body",
                allowed=f"at most {limit} bytes",
            )
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _in_time(receive: Receive, until: float, timeout_s: float) -> Message:
    """Wait for the next part of a body; raises BodyTooSlow."""
    try:
        async with asyncio.timeout(until - time.monotonic()):
            return await receive()
    except TimeoutError as error:
        raise BodyTooSlow(
            "the body did not arrive in time",
            field="body",
            allowed=f"a body sent within {timeout_s:g} s",
        ) from error


async def _no_http(scope: Scope, receive: Receive, send: Send) -> None:
    """Begin and end with the server, which waits for a word; there is nothing else but HTTP."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close"})
        return
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def _validated(model: type[Model], body: bytes) -> Model:
    """Parse and check a body in one pass; raises InvalidRequest."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error, model) from error


def _parsed(body: bytes) -> Any:
    """Parse JSON; raises MalformedJson."""
    try:
        return from_json(body)
    except ValueError as error:
        raise MalformedJson(
            f"the body is not JSON: {error}", field="body", allowed="JSON (RFC 8259), UTF-8"
        ) from error


def _lines(body: bytes) -> list[Any]:
    """Parse one JSON value a line; a line that is none gives the error that says so."""
    values: list[Any] = []
    for line in body.splitlines():
        if line.strip():
            try:
                values.append(_parsed(line))
            except MalformedJson as error:
                values.append(error)
    return values


def _batch(body: bytes) -> list[RouteIn]:
    """Read a list of requests, bare or under the key `requests`; raises InvalidRequest."""
    if not body.lstrip().startswith(b"["):
        return _validated(RouteBatchIn, body).requests
    try:
        return _ROUTE_LIST.validate_json(body)
    except ValidationError as error:
        raise invalid(error, RouteIn) from error
