"""The example gateway, between the real request path and a server of OpenAI's protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from replica_fakes import HeldChampion, Replica, a_champion

from examples.gateway import Gateway, create_app
from policies.interaction import Outcome

USAGE = {"prompt_tokens": 12, "completion_tokens": 80, "total_tokens": 92}
QUESTION = {"model": "auto", "messages": [{"role": "user", "content": "Name a prime."}]}


@dataclass
class Upstream:
    """Answers chats as OpenAI does, or with a status that a test has set."""

    status: int = 200
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def complete(self, request: Request) -> Response:
        """Answer one chat."""
        body = await request.json()
        self.asked.append(body)
        if self.status != 200:
            return JSONResponse({"error": {"message": "no"}}, self.status)
        if not body.get("stream"):
            choices = [{"message": {"role": "assistant", "content": "2"}}]
            return JSONResponse({"model": body["model"], "choices": choices, "usage": USAGE})
        return StreamingResponse(self.stream(body), media_type="text/event-stream")

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """Send the answer in two events, then the usage where it was asked for."""
        for word in ("2", "!"):
            yield f"data: {json.dumps({'choices': [{'delta': {'content': word}}]})}\n\n"
        if body.get("stream_options", {}).get("include_usage"):
            yield f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n"
        yield "data: [DONE]\n\n"


@dataclass
class Setting:
    """BaRP, a model server, and the gateway between them."""

    barp: Replica = field(default_factory=Replica)
    upstream: Upstream = field(default_factory=Upstream)
    transport: httpx.AsyncBaseTransport | None = None

    def ask(
        self,
        *bodies: dict[str, Any],
        headers: dict[str, str] | None = None,
        after_each: Callable[[httpx.Response], object] = lambda _: None,
    ) -> list[httpx.Response]:
        """Send chats one after another, and wait for what is reported of them."""

        async def send() -> list[httpx.Response]:
            models = FastAPI()
            models.router.add_route(
                "/v1/chat/completions", self.upstream.complete, methods=["POST"]
            )
            to_barp = self.transport or httpx.ASGITransport(self.barp.api)
            gateway = Gateway(
                httpx.AsyncClient(transport=to_barp, base_url="http://barp"),
                httpx.AsyncClient(transport=httpx.ASGITransport(models), base_url="http://models"),
                "the-fallback",
            )
            caller = httpx.ASGITransport(create_app(gateway))
            async with httpx.AsyncClient(transport=caller, base_url="http://gateway") as http:
                answers = []
                for body in bodies:
                    answer = await http.post("/v1/chat/completions", json=body, headers=headers)
                    after_each(answer)
                    answers.append(answer)
            await gateway.close()
            return answers

        return asyncio.run(send())

    def reported(self) -> list[Outcome]:
        """Return what BaRP was told."""
        return [outcome for _, outcome in self.barp.aggregator.submitted]


def test_the_model_that_was_routed_to_answers_and_its_call_is_reported() -> None:
    setting = Setting()
    [answer] = setting.ask(QUESTION | {"preference": {"quality": 1, "cost": 1}})
    [decision], [outcome] = setting.barp.decisions, setting.reported()
    assert answer.json()["model"] == decision.arm == answer.headers["x-barp-model"]
    assert answer.headers["x-barp-decision-id"] == decision.decision_id == outcome.decision_id
    assert decision.preference.quality == 0.5
    assert (outcome.tokens_in, outcome.tokens_out, outcome.activate) == (12, 80, True)
    assert outcome.quality is None
    assert "preference" not in setting.upstream.asked[0]


def test_a_stream_passes_and_its_tokens_are_reported() -> None:
    setting = Setting()
    [answer] = setting.ask(QUESTION | {"stream": True})
    [outcome] = setting.reported()
    events = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert [json.loads(event[6:])["choices"] for event in events[:2]] == [
        [{"delta": {"content": "2"}}],
        [{"delta": {"content": "!"}}],
    ]
    assert (outcome.tokens_in, outcome.tokens_out) == (12, 80)


def test_a_model_that_fails_was_worth_nothing() -> None:
    setting = Setting(upstream=Upstream(status=503))
    [answer] = setting.ask(QUESTION)
    [outcome] = setting.reported()
    assert answer.status_code == 503
    assert (outcome.quality, outcome.cost_usd, outcome.activate) == (0.0, 0.0, True)


def test_a_request_that_the_server_refuses_is_never_learned_from() -> None:
    setting = Setting(upstream=Upstream(status=400))
    [answer] = setting.ask(QUESTION)
    assert answer.status_code == 400
    assert [decision.deferred for decision in setting.barp.decisions] == [True]
    assert setting.reported() == []


def test_a_conversation_stays_with_its_model() -> None:
    setting = Setting()
    answers = setting.ask(*[QUESTION] * 20, headers={"x-session-id": "a chat"})
    assert len({answer.json()["model"] for answer in answers}) == 1
    first, *others = setting.barp.decisions
    assert len(first.arms_offered) == 3
    assert {decision.arms_offered for decision in others} == {(first.arm,)}
    assert {decision.propensity for decision in others} == {1.0}


def test_a_conversation_gets_another_model_where_its_own_is_taken_away() -> None:
    setting = Setting()

    def take_away(answer: httpx.Response) -> None:
        prices = setting.barp.champion.current.prices
        if len(prices.arms) == 3:
            left = prices.without(answer.headers["x-barp-model"], version=9)
            setting.barp.champion.value = a_champion(prices=left)

    chats = [QUESTION] * 2
    first, second = setting.ask(*chats, headers={"x-session-id": "a"}, after_each=take_away)
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.headers["x-barp-model"] != first.headers["x-barp-model"]


def test_two_callers_sessions_of_one_name_are_two() -> None:
    setting = Setting()
    for caller in ("one", "another"):
        setting.ask(QUESTION, headers={"x-session-id": "a chat", "authorization": caller})
    sessions = {decision.session for decision in setting.barp.decisions}
    assert len(sessions) == 2
    assert not any("a chat" in (session or "") for session in sessions)


def test_another_model_by_name_is_not_routed() -> None:
    setting = Setting()
    [answer] = setting.ask(QUESTION | {"model": "large"})
    assert answer.json()["model"] == "large"
    assert (setting.barp.decisions, setting.reported()) == ([], [])


def test_a_mistake_is_answered_in_barps_words() -> None:
    setting = Setting()
    [answer] = setting.ask(QUESTION | {"preference": {"speed": 1}})
    assert answer.status_code == 422
    assert "preference" in answer.json()["error"]["field"]
    assert setting.upstream.asked == []


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


def late(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("too late", request=request)


@pytest.mark.parametrize("trouble", [unreachable, late])
def test_the_fallback_answers_where_barp_does_not(
    trouble: Callable[[httpx.Request], httpx.Response],
) -> None:
    setting = Setting(transport=httpx.MockTransport(trouble))
    [answer] = setting.ask(QUESTION)
    assert answer.json()["model"] == "the-fallback"
    assert answer.headers["x-barp-degraded"] == "true"


def test_the_fallback_answers_before_there_is_a_champion() -> None:
    [answer] = Setting(barp=Replica(champion=HeldChampion(None))).ask(QUESTION)
    assert answer.json()["model"] == "the-fallback"
    [answer] = Setting(barp=Replica(champion=HeldChampion(a_champion()))).ask(QUESTION)
    assert "x-barp-degraded" not in answer.headers
