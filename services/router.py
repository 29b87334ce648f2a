"""One decision: encode, ask for the pmf, draw, sign, record. Knows nothing of HTTP or Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from numpy.random import Generator

from policies.errors import InvalidPrompt, InvalidRequest, RouterError
from policies.interaction import Decision
from policies.preference import Preference
from services.champion import Champion
from services.decider import Decider, Offer, Routed, RouteRequest
from services.decision_ids import DecisionIds
from services.encoders import Encoder
from services.gathering import Gathering
from services.preview import PreviewOut, preview

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterArgs:
    """What a router replica is set to.

    Attributes:
        secret: Signs decision ids and salts prompt hashes; the same on every replica.
        retired_secrets: Signed them before; ids of theirs are still accepted.
        encoder_dir: Folder of the exported encoder, a path or an s3:// URL.
        publish_dir: Where the publisher leaves champion and pointer; likewise.
        default_preference: The trade-off of requests that name none.
        max_prompt_characters: Longest prompt accepted.
        max_in_flight: Most HTTP requests in hand at once; further ones are refused.
        max_batch: Most requests in one batch call.
        max_feedback: Most outcomes in one feedback call.
        max_body_bytes: Largest request body accepted.
        body_timeout_s: How long a body may take from its first part to its last, seconds.
        api_key_sha256: SHA-256 of a key that may do everything, hexadecimal; None for no such key.
        keys_file: Where keys with scopes are kept; None for none.
        record_buffer: Decisions held at most while the ledger is away.
        record_flush_ms: Longest a decision waits in the replica, milliseconds.
        record_when_full: With a full buffer, drop the record or make the request wait.
        spool_dir: Folder on the node's own disk that keeps decisions until they are recorded; None
            keeps them in memory alone.
        aggregator_shards: How many aggregators take decisions and outcomes.
        start_timeout_s: How long a new replica waits for its first champion, seconds.
    """

    secret: bytes = field(repr=False)
    retired_secrets: tuple[bytes, ...] = field(default=(), repr=False)
    encoder_dir: str | Path
    publish_dir: str | Path
    default_preference: Preference = field(
        default_factory=lambda: Preference(quality=0.7, cost=0.3)
    )
    max_prompt_characters: int = 200_000
    max_in_flight: int = 1024
    max_batch: int = 256
    max_feedback: int = 10_000
    max_body_bytes: int = 8 * 1024 * 1024
    body_timeout_s: float = 30.0
    api_key_sha256: str | None = None
    keys_file: Path | None = None
    record_buffer: int = 20_000
    record_flush_ms: float = 50.0
    record_when_full: Literal["drop", "wait"] = "wait"
    spool_dir: Path | None = None
    aggregator_shards: int = 1
    start_timeout_s: float = 60.0


class HoldsChampion(Protocol):
    """Where the router reads the champion; `services.champion.ChampionSource` is the real one."""

    @property
    def current(self) -> Champion:
        """What decides now; raises Unavailable where there is nothing yet."""


class TakesDecisions(Protocol):
    """Where decisions go; `services.recorder.Recorder` is the real one."""

    async def add(self, decisions: Sequence[Decision]) -> None:
        """Take decisions in, without waiting as long as there is room."""


class Router:
    """Decides: for a batch, or for one request together with others of the same moment."""

    def __init__(
        self,
        encoder: Encoder,
        champion: HoldsChampion,
        decision_ids: DecisionIds,
        recorder: TakesDecisions,
        args: RouterArgs,
        *,
        clock: Callable[[], float],
        rng: Generator,
    ) -> None:
        """Take its parts; `clock` gives seconds since the epoch, `rng` draws the models."""
        self._encoder, self._champion = encoder, champion
        self._recorder, self._args = recorder, args
        self._decider = Decider(
            decision_ids,
            encoder_id=encoder.encoder_id,
            default_preference=args.default_preference,
            clock=clock,
            rng=rng,
        )
        self._gathering = Gathering(self._route_gathered, max_size=encoder.gathered)

    async def route(self, request: RouteRequest) -> Routed:
        """Route one request, and hand the decision to the recorder.

        Encoded and decided in one go with whatever else has come in the same moment: ten requests
        at once cost little more than one.

        Raises:
            InvalidPrompt: The prompt is empty or too long.
            InvalidRequest: An unknown model is allowed.
            NoEligibleArm: Allow-list or cost limit leave nothing to choose from.
            Unavailable: There is no champion yet.
        """
        request = self._readable(request)
        if self._encoder.gathered > 1:
            return await self._gathering.add(request)
        [routed] = await self._decide([request])
        return routed

    async def decide(self, requests: Sequence[RouteRequest]) -> list[Routed]:
        """Route a batch, all or none of it, and hand the decisions to the recorder.

        Raises:
            InvalidPrompt: A prompt is empty or too long.
            InvalidRequest: More requests than a batch may have, or an unknown model allowed.
            NoEligibleArm: An allow-list or cost limit leaves nothing to choose from.
            Unavailable: There is no champion yet.
        """
        if len(requests) > self._args.max_batch:
            raise InvalidRequest(
                f"{len(requests)} requests in one batch",
                field="requests",
                value=len(requests),
                allowed=f"at most {self._args.max_batch}",
            )
        readable = for_each(requests, self._readable)
        return await self._decide(readable) if readable else []

    async def preview(self, request: RouteRequest) -> PreviewOut:
        """Say what would be decided; raises as `route` does."""
        request = self._readable(request)
        [context] = await self._encoder.encode([request.prompt])
        champion = self._champion.current
        return preview(
            champion,
            self._decider.offer(champion, request),
            request.preference or self._args.default_preference,
            context,
            prompt_characters=len(request.prompt),
        )

    async def _decide(self, requests: Sequence[RouteRequest]) -> list[Routed]:
        """Decide on a batch; raises what is wrong with its first bad request."""
        contexts = await self._encoder.encode([request.prompt for request in requests])
        # Read once, after the wait: no request is decided by a champion that has since gone.
        champion = self._champion.current
        offers = for_each(requests, partial(self._decider.offer, champion))
        routed = self._decider.decide(champion, requests, offers, contexts)
        await self._recorder.add([one.decision for one in routed])
        return routed

    async def _route_gathered(self, requests: Sequence[RouteRequest]) -> list[Routed | Exception]:
        """Decide on requests of different callers: each has its own answer, or its own error."""
        contexts = await self._encoder.encode([request.prompt for request in requests])
        champion = self._champion.current
        answers: dict[int, Routed | Exception] = {}
        offers: dict[int, Offer] = {}
        for index, request in enumerate(requests):
            try:
                offers[index] = self._decider.offer(champion, request)
            except RouterError as error:
                answers[index] = error
        if answers:
            contexts = contexts[list(offers)]
        good = [requests[index] for index in offers]
        routed = self._decider.decide(champion, good, list(offers.values()), contexts)
        await self._recorder.add([one.decision for one in routed])
        answers |= zip(offers, routed, strict=True)
        return [answers[index] for index in range(len(requests))]

    def _readable(self, request: RouteRequest) -> RouteRequest:
        """Return the request with a prompt that every encoder takes; raises InvalidPrompt."""
        prompt = request.prompt
        length = len(prompt)
        too_long = length > self._args.max_prompt_characters
        if too_long or not prompt or prompt.isspace():
            raise InvalidPrompt(
                f"the prompt has {length} characters" + ("" if too_long else ", all blank"),
                field="prompt",
                allowed=f"1 to {self._args.max_prompt_characters} characters, not all blank",
            )
        if prompt.isascii():
            return request
        # A lone surrogate is a legal str but has no UTF-8 form, which tokenizers need.
        return replace(request, prompt=prompt.encode("utf-8", "replace").decode("utf-8"))


def for_each(batch: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Do something for each request of a batch; an error says which one it is about."""
    done: list[Result] = []
    try:
        for one in batch:
            done.append(work(one))
    except RouterError as error:
        if len(batch) > 1:
            error.field = f"{len(done)}.{error.field}"
        raise
    return done
