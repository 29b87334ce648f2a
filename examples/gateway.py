"""A gateway in front of any OpenAI-compatible server: BaRP chooses the model, the server answers.

    export UPSTREAM_URL=http://localhost:4000 FALLBACK_MODEL=small
    uvicorn --factory examples.gateway:from_environment --port 8080

Callers keep their OpenAI client and ask for the model `auto`. The gateway reports what a call cost
and how long it took; how good it was only they know, and say to BaRP by `x-barp-decision-id`.
An example to start from: it listens on loopback and asks nobody who they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

logger = logging.getLogger(__name__)

ROUTED_MODEL: Final = "auto"
# What a caller may say to BaRP inside an OpenAI request (`extra_body` in OpenAI's client).
ROUTING_KEYS: Final = ("preference", "models", "max_cost_usd")
REPORT_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Choice:
    """Which model answers; without a decision where BaRP did not answer in time."""

    model: str
    decision_id: str | None = None

    def headers(self) -> dict[str, str]:
        """What the caller is told, so that it can report a quality."""
        if self.decision_id is None:
            return {"x-barp-model": self.model, "x-barp-degraded": "true"}
        return {"x-barp-model": self.model, "x-barp-decision-id": self.decision_id}


@dataclass
class Gateway:
    """Routes, forwards and reports.

    Args:
        barp: A client whose base URL is BaRP's, with its key.
        upstream: A client whose base URL is the OpenAI-compatible server's, with its key.
        fallback_model: Answers where BaRP does not do so in time.
        deadline_s: How long BaRP may take, seconds: a router must never be why a call fails.
        max_sessions: How many conversations are remembered.
    """

    barp: httpx.AsyncClient
    upstream: httpx.AsyncClient
    fallback_model: str
    deadline_s: float = 0.25
    max_sessions: int = 10_000
    _pinned: OrderedDict[str, str] = field(default_factory=OrderedDict)
    _reports: set[asyncio.Task[None]] = field(default_factory=set)

    async def complete(self, request: Request) -> Response:
        """Answer `POST /v1/chat/completions`."""
        body = await request.json()
        wishes = {key: body.pop(key) for key in ROUTING_KEYS if key in body}
        if body.get("model") != ROUTED_MODEL:
            return await self._forward(body, None)
        try:
            choice = await self._choose(body, wishes, _session(request))
        except httpx.HTTPStatusError as error:
            # The caller's mistake, in BaRP's words: they name the field and what is allowed.
            return Response(error.response.content, error.response.status_code)
        return await self._forward(body | {"model": choice.model}, choice)

    async def close(self) -> None:
        """Wait for reports under way, and close both clients."""
        await asyncio.gather(*self._reports)
        await self.barp.aclose()
        await self.upstream.aclose()

    async def _choose(
        self, body: dict[str, Any], wishes: dict[str, Any], session: str | None
    ) -> Choice:
        """Ask BaRP; raises HTTPStatusError where the request is at fault."""
        asked = wishes
        pinned = None if session is None else self._pinned.get(session)
        if pinned is not None:
            # A conversation stays with its model, whose prompt cache is warm. Offering this model
            # alone says so in the log: nobody later takes it for a choice among all.
            asked = wishes | {"models": [pinned]}
        question = {"messages": body["messages"], "session": session, "deferred": True} | asked
        try:
            answer = await self.barp.post("/v1/route", json=question, timeout=self.deadline_s)
            if answer.is_client_error and answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                if session is not None and session in self._pinned:
                    del self._pinned[session]
                    # Its model may have been taken away, or be too dear for this request.
                    return await self._choose(body, wishes, session)
                answer.raise_for_status()
            if not answer.is_success:
                raise httpx.TransportError(f"BaRP answered {answer.status_code}")
        except httpx.TransportError as error:
            logger.warning("%s answers instead: %s", self.fallback_model, type(error).__name__)
            return Choice(pinned or self.fallback_model)
        routed = answer.json()
        if session is not None:
            self._pin(session, routed["model"])
        return Choice(routed["model"], routed["decision_id"])

    def _pin(self, session: str, model: str) -> None:
        self._pinned[session] = model
        self._pinned.move_to_end(session)
        while len(self._pinned) > self.max_sessions:
            self._pinned.popitem(last=False)

    async def _forward(self, body: dict[str, Any], choice: Choice | None) -> Response:
        """Send the request on; report what came of it."""
        if body.get("stream"):
            # Without this a stream does not say how many tokens it was.
            body = body | {"stream_options": {"include_usage": True}}
        headers = {} if choice is None else choice.headers()
        begun = time.monotonic()
        try:
            answer = await self.upstream.send(
                self.upstream.build_request("POST", "/v1/chat/completions", json=body),
                stream=True,
            )
        except httpx.TransportError as error:
            self._report_failure(choice, begun)
            message = {"message": f"the model's server did not answer: {type(error).__name__}"}
            return JSONResponse({"error": message}, 502, headers)
        if body.get("stream") and answer.is_success:
            stream = self._streamed(answer, choice, begun)
            return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
        content = await answer.aread()
        if answer.is_success:
            self._report_success(choice, begun, json.loads(content).get("usage"))
        elif answer.is_server_error:
            self._report_failure(choice, begun)
        # A request that the server refuses says nothing about the model: its decision was deferred
        # and is never learned from.
        return Response(content, answer.status_code, headers, media_type="application/json")

    async def _streamed(
        self, answer: httpx.Response, choice: Choice | None, begun: float
    ) -> AsyncIterator[str]:
        """Pass events on as they come; the last one before the end carries the token counts."""
        usage = None
        try:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    usage = json.loads(line.removeprefix("data: ")).get("usage") or usage
                yield f"{line}\n"
        except httpx.TransportError:
            self._report_failure(choice, begun)
            raise
        finally:
            await answer.aclose()
        self._report_success(choice, begun, usage)

    def _report_success(
        self, choice: Choice | None, begun: float, usage: dict[str, int] | None
    ) -> None:
        tokens: dict[str, float] = {}
        if usage:
            tokens = {
                "tokens_in": usage["prompt_tokens"],
                "tokens_out": usage["completion_tokens"],
            }
        self._report(choice, begun, tokens)

    def _report_failure(self, choice: Choice | None, begun: float) -> None:
        """A model that did not answer was worth nothing to the caller, and cost nothing."""
        self._report(choice, begun, {"quality": 0.0, "cost_usd": 0.0})

    def _report(self, choice: Choice | None, begun: float, outcome: dict[str, float]) -> None:
        """Report beside the reply, not before it."""
        if choice is None or choice.decision_id is None:
            return
        report = outcome | {
            "decision_id": choice.decision_id,
            "latency_ms": (time.monotonic() - begun) * 1000,
            "activate": True,
        }
        task = asyncio.create_task(self._send(report))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _send(self, report: dict[str, Any]) -> None:
        """Send until it is acknowledged; the same values twice are one event to BaRP."""
        for attempt in range(REPORT_ATTEMPTS):
            try:
                answer = await self.barp.post("/v1/feedback", json=report)
                if not answer.is_server_error:
                    if answer.is_error:
                        logger.error("report refused, status %d", answer.status_code)
                    return
            except httpx.TransportError:
                logger.warning("BaRP is away, attempt %d", attempt + 1)
            await asyncio.sleep(2**attempt / 10)
        logger.error("report of decision %s lost", report["decision_id"])


def create_app(gateway: Gateway) -> FastAPI:
    """Make the application around a gateway."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await gateway.close()

    app = FastAPI(title="BaRP gateway", lifespan=lifespan)
    app.router.add_route("/v1/chat/completions", gateway.complete, methods=["POST"])
    return app


def from_environment() -> FastAPI:
    """Make the application of BARP_URL, UPSTREAM_URL, their ..._API_KEY, and FALLBACK_MODEL."""
    barp = _client(os.environ.get("BARP_URL", "http://127.0.0.1:8000"), "BARP_API_KEY")
    upstream = _client(os.environ["UPSTREAM_URL"], "UPSTREAM_API_KEY", timeout=600)
    return create_app(Gateway(barp, upstream, os.environ["FALLBACK_MODEL"]))


def _session(request: Request) -> str | None:
    """Name a conversation: two callers' sessions of one name are two, an empty one is none."""
    session = request.headers.get("x-session-id")
    if not session:
        return None
    caller = request.headers.get("authorization", "")
    return hashlib.sha256(f"{caller}\n{session}".encode()).hexdigest()


def _client(base_url: str, key_name: str, *, timeout: float = 5) -> httpx.AsyncClient:
    key = os.environ.get(key_name)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=base_url, headers=headers, timeout=timeout)
