"""One decision, without HTTP: the logged pmf is the one sampled from."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import numpy as np
import pytest
from actor_fakes import NOW, PRICES
from hypothesis import given, settings
from hypothesis import strategies as st
from replica_fakes import HeldChampion, PricePolicy, Replica, a_champion, some_args

from policies.errors import InvalidPrompt, InvalidRequest, NoEligibleArm, Unavailable
from policies.interaction import decisions_to_batch
from policies.preference import Preference
from services.decider import Routed, RouteRequest
from services.encoders import ThreadedEncoder

requests_of_all_kinds = st.lists(
    st.builds(
        RouteRequest,
        prompt=st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip())),
        preference=st.none() | st.floats(0, 1).map(lambda w: Preference(quality=w, cost=1.0 - w)),
        models=st.none()
        | st.lists(st.sampled_from(PRICES.names), min_size=1, max_size=3).map(tuple),
        tenant=st.sampled_from(["default", "acme"]),
        session=st.none() | st.text(max_size=3),
    ),
    min_size=1,
    max_size=6,
)


def decide(replica: Replica, *requests: RouteRequest) -> list[Routed]:
    """Route requests as one batch."""
    return asyncio.run(replica.router.decide(requests))


@settings(max_examples=40, deadline=None)
@given(requests=requests_of_all_kinds)
def test_the_logged_pmf_is_the_policys_and_holds_the_choice(requests: list[RouteRequest]) -> None:
    replica = Replica()
    routed = decide(replica, *requests)
    assert [one.decision for one in routed] == replica.decisions
    for request, decision in zip(requests, replica.decisions, strict=True):
        offered = PRICES.offered(allow=request.models)
        preference = request.preference or replica.args.default_preference
        pmf = PricePolicy().pmf(decision.context, preference, offered)
        chosen = decision.arms_offered.index(decision.arm)
        np.testing.assert_array_equal(decision.pmf, pmf)
        assert decision.propensity == pmf[chosen] > 0
        assert decision.pmf.sum() == pytest.approx(1.0)
        assert decision.decided_at == datetime.fromtimestamp(NOW, UTC)
        replica.ids.verify(decision.decision_id, request.tenant)
    assert decisions_to_batch(replica.decisions).num_rows == len(requests)


@settings(max_examples=40, deadline=None)
@given(requests=requests_of_all_kinds)
def test_callers_of_the_same_moment_are_answered_as_one_by_one(
    requests: list[RouteRequest],
) -> None:
    together, alone = Replica(seed=7), Replica(seed=7)

    async def all_at_once() -> list[Routed]:
        return await asyncio.gather(*(together.router.route(one) for one in requests))

    routed = asyncio.run(all_at_once())
    groups = [len(requests)] if len(requests) <= 4 else [4, len(requests) - 4]
    assert together.encoder.calls == groups
    for request in requests:
        decide(alone, request)
    assert [one.decision for one in routed] == together.decisions
    for one, other in zip(together.decisions, alone.decisions, strict=True):
        assert (one.arm, one.prompt_hash, one.tenant) == (
            other.arm,
            other.prompt_hash,
            other.tenant,
        )
        np.testing.assert_array_equal(one.pmf, other.pmf)


def test_a_bad_request_spoils_none_that_came_with_it() -> None:
    replica = Replica()
    asked = [
        RouteRequest(prompt="fine"),
        RouteRequest(prompt="x", models=("nobody",)),
        RouteRequest(prompt=" "),
        RouteRequest(prompt="dear", models=("dear",)),
    ]

    async def all_at_once() -> list[Routed | BaseException]:
        return await asyncio.gather(
            *(replica.router.route(one) for one in asked), return_exceptions=True
        )

    answers = asyncio.run(all_at_once())
    assert [type(answer) for answer in answers] == [Routed, InvalidRequest, InvalidPrompt, Routed]
    assert [decision.prompt_characters for decision in replica.decisions] == [4, 4]
    assert replica.decisions[1].arm == "dear"
    assert isinstance(answers[3], Routed)
    assert answers[3].decision == replica.decisions[1]
    assert isinstance(answers[1], InvalidRequest)
    assert answers[1].field == "models"


@settings(max_examples=40, deadline=None)
@given(requests=requests_of_all_kinds)
def test_a_batch_decides_as_its_requests_one_by_one(requests: list[RouteRequest]) -> None:
    together, alone = Replica(seed=7), Replica(seed=7)
    decide(together, *requests)
    for request in requests:
        decide(alone, request)
    for one, other in zip(together.decisions, alone.decisions, strict=True):
        assert (one.arm, one.propensity, one.prompt_hash) == (
            other.arm,
            other.propensity,
            other.prompt_hash,
        )
        np.testing.assert_array_equal(one.pmf, other.pmf)


def test_arms_are_drawn_by_their_probability() -> None:
    replica = Replica(args=some_args(max_batch=1000))
    decide(replica, *[RouteRequest(prompt="same")] * 1000)
    pmf = replica.decisions[0].pmf
    arms = [decision.arm for decision in replica.decisions]
    shares = [arms.count(name) / len(arms) for name in PRICES.names]
    # Four standard errors of a share.
    np.testing.assert_allclose(shares, pmf, atol=4 * np.sqrt(0.25 / 1000))


def test_a_batch_is_decided_by_one_champion_even_when_it_changes_meanwhile() -> None:
    replica = Replica()

    async def swapped_while_encoding() -> list[Routed]:
        encode = replica.encoder.encode

        class Slow:
            encoder_id, dim = replica.encoder.encoder_id, replica.encoder.dim

            async def encode(self, texts: list[str]) -> np.ndarray:
                replica.champion.value = a_champion(version=9)
                return await encode(texts)

        replica.router._encoder = Slow()  # type: ignore[assignment]
        return await replica.router.decide([RouteRequest(prompt="x")] * 3)

    routed = asyncio.run(swapped_while_encoding())
    assert [one.decision.policy_version for one in routed] == [9, 9, 9]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (RouteRequest(prompt=""), InvalidPrompt),
        (RouteRequest(prompt=" \t\u2003"), InvalidPrompt),
        (RouteRequest(prompt="x" * 1001), InvalidPrompt),
        (RouteRequest(prompt="x", models=("nobody",)), InvalidRequest),
        (RouteRequest(prompt="x", models=()), NoEligibleArm),
        (RouteRequest(prompt="x", max_cost_usd=0.0), NoEligibleArm),
    ],
)
def test_bad_requests_are_refused_and_leave_no_record(
    request_: RouteRequest, error: type[Exception]
) -> None:
    replica = Replica()
    with pytest.raises(error):
        decide(replica, RouteRequest(prompt="fine"), request_)
    assert replica.decisions == []


def test_more_than_a_batch_may_have_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="17 requests"):
        decide(Replica(), *[RouteRequest(prompt="x")] * 17)


def test_an_empty_batch_is_answered_without_encoding() -> None:
    replica = Replica()
    assert decide(replica) == []
    assert replica.encoder.calls == []


def test_without_a_champion_routing_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        decide(Replica(champion=HeldChampion(None)), RouteRequest(prompt="x"))


def test_a_lone_surrogate_is_routed_as_a_question_mark() -> None:
    replica = Replica()
    decide(replica, RouteRequest(prompt="a\ud800"), RouteRequest(prompt="a?"))
    first, second = replica.decisions
    assert first.prompt_hash == second.prompt_hash


def test_the_event_loop_is_free_while_a_thread_encodes() -> None:
    import threading

    class Blocking:
        encoder_id, dim, light = "blocking", 2, False

        def __init__(self) -> None:
            self.may_end = threading.Event()

        def encode(self, texts: list[str]) -> np.ndarray:
            assert self.may_end.wait(timeout=30)
            return np.zeros((len(texts), 2), dtype=np.float32)

    async def run() -> tuple[int, ...]:
        encoder = Blocking()
        threaded = ThreadedEncoder(encoder)  # type: ignore[arg-type]
        encoding = asyncio.create_task(threaded.encode(["a", "b"]))
        await asyncio.sleep(0)
        encoder.may_end.set()
        contexts = await encoding
        threaded.close()
        return contexts.shape

    assert asyncio.run(run()) == (2, 2)
