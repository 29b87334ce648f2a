"""One decision: encode, ask for the pmf, draw, sign, record. Knows nothing of HTTP or Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from policies.arms import Arm
from policies.errors import (
    InvalidPrompt,
    InvalidRequest,
    NoEligibleArm,
    RouterError,
    UnknownArm,
)
from policies.interaction import Decision
from policies.policy import Assessment, mix_canary, sample
from policies.preference import Preference
from services.champion import Champion, LoadedCanary
from services.decision_ids import DecisionIds
from services.encoders import Encoder

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterArgs:
    """What a router replica is set to.

    Attributes:
        secret: Signs decision ids and salts prompt hashes; the same on every replica.
        encoder_dir: Folder of the exported encoder, a path or an s3:// URL.
        publish_dir: Where the publisher leaves champion and pointer; likewise.
        default_preference: The trade-off of requests that name none.
        max_prompt_characters: Longest prompt accepted.
        max_batch: Most requests in one batch call.
        max_feedback: Most outcomes in one feedback call.
        max_body_bytes: Largest request body accepted.
        api_key_sha256: SHA-256 of a key that may do everything, hexadecimal; None for no such key.
        keys_file: Where keys with scopes are kept; None for none.
        record_buffer: Decisions held at most while the ledger is away.
        record_flush_ms: Longest a decision waits in the replica, milliseconds.
        record_when_full: With a full buffer, drop the record or make the request wait.
        start_timeout_s: How long a new replica waits for its first champion, seconds.
    """

    secret: bytes = field(repr=False)
    encoder_dir: str | Path
    publish_dir: str | Path
    default_preference: Preference = field(
        default_factory=lambda: Preference(quality=0.7, cost=0.3)
    )
    max_prompt_characters: int = 200_000
    max_batch: int = 256
    max_feedback: int = 10_000
    max_body_bytes: int = 8 * 1024 * 1024
    api_key_sha256: str | None = None
    keys_file: Path | None = None
    record_buffer: int = 20_000
    record_flush_ms: float = 50.0
    record_when_full: Literal["drop", "wait"] = "wait"
    start_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """One prompt to be routed.

    Attributes:
        prompt: The text that decides.
        preference: The caller's trade-off; None takes the configured one.
        models: Names the caller permits; None permits all.
        max_cost_usd: Upper bound on a model's list cost for this prompt, USD.
        tenant: Whose request.
        session: Conversation it belongs to, None where it stands alone.
        deferred: Whether it is learned from only once feedback activates it.
    """

    prompt: str
    preference: Preference | None = None
    models: tuple[str, ...] | None = None
    max_cost_usd: float | None = None
    tenant: str = DEFAULT_TENANT
    session: str | None = None
    deferred: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the policy expects of the model it chose: quality in [0, 1], cost in USD."""

    quality: float
    cost_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """A decision as recorded, and what the policy expects of it, where it models outcomes."""

    decision: Decision
    expected: Expected | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Assessed:
    """What champion and canary make of the same requests; without a canary its part is None."""

    champion: Assessment
    canary: Assessment | None


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
    """Decides, for one request or a batch by the same path."""

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
        self._encoder, self._champion, self._ids = encoder, champion, decision_ids
        self._recorder, self._args = recorder, args
        self._clock, self._rng = clock, rng

    async def decide(self, requests: Sequence[RouteRequest]) -> list[Routed]:
        """Route requests, all or none of them, and hand the decisions to the recorder.

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
        prompts = []
        for index, request in enumerate(requests):
            with in_batch(index, size=len(requests)):
                prompts.append(self._prompt(request))
        if not prompts:
            return []
        contexts = await self._encoder.encode(prompts)
        # Read once, after the wait: no request is decided by a champion that has since gone.
        champion = self._champion.current
        groups: dict[tuple[Arm, ...], list[int]] = {}
        for index, request in enumerate(requests):
            with in_batch(index, size=len(requests)):
                offered = _offered(champion, request, len(prompts[index]))
            groups.setdefault(offered, []).append(index)
        # In the requests' order, not the groups': a batch draws as its requests would one by one.
        uniforms = self._rng.random(len(requests))
        routed: dict[int, Routed] = {}
        for offered, indices in groups.items():
            wanted = [requests[i].preference or self._args.default_preference for i in indices]
            assessed = _assess(champion, contexts[indices], wanted, offered)
            for row, index in enumerate(indices):
                request, prompt = requests[index], prompts[index]
                routed[index] = self._draw(
                    champion,
                    request,
                    prompt,
                    contexts[index],
                    wanted[row],
                    offered,
                    assessed,
                    row,
                    uniforms[index],
                )
        in_order = [routed[index] for index in range(len(requests))]
        await self._recorder.add([one.decision for one in in_order])
        return in_order

    def _prompt(self, request: RouteRequest) -> str:
        """Return the prompt in a form every encoder takes; raises InvalidPrompt."""
        length = len(request.prompt)
        too_long = length > self._args.max_prompt_characters
        if too_long or not request.prompt.strip():
            raise InvalidPrompt(
                f"the prompt has {length} characters" + ("" if too_long else ", all blank"),
                field="prompt",
                allowed=f"1 to {self._args.max_prompt_characters} characters, not all blank",
            )
        # A lone surrogate is a legal str but has no UTF-8 form, which tokenizers need.
        return request.prompt.encode("utf-8", "replace").decode("utf-8")

    def _draw(
        self,
        champion: Champion,
        request: RouteRequest,
        prompt: str,
        context: NDArray[np.float32],
        preference: Preference,
        offered: tuple[Arm, ...],
        assessed: _Assessed,
        row: int,
        uniform: float,
    ) -> Routed:
        """Let the version whose turn it is draw one model: row `row` of what was assessed.

        What is logged is the mixture of champion and canary: before the salted hash has spoken,
        that is the probability each model had.
        """
        decision_id, canary = self._ids.issue(request.tenant), champion.canary
        drawer, version, pmf = assessed.champion, champion.version, assessed.champion.pmf[row]
        if canary is not None and assessed.canary is not None:
            pmf = mix_canary(pmf, assessed.canary.pmf[row], share=canary.share)
            if self._on_canary(request, decision_id, canary):
                drawer, version = assessed.canary, canary.version
        chosen = sample(drawer.pmf[row], uniform=uniform)
        decision = Decision(
            decision_id=decision_id,
            decided_at=datetime.fromtimestamp(self._clock(), UTC),
            tenant=request.tenant,
            session=request.session or None,
            prompt_hash=self._ids.prompt_hash(prompt),
            prompt_characters=len(prompt),
            preference=preference,
            context=context,
            encoder_id=self._encoder.encoder_id,
            arms_offered=tuple(arm.name for arm in offered),
            pmf=pmf,
            arm=offered[chosen].name,
            propensity=float(pmf[chosen]),
            policy_version=version,
            price_version=champion.prices.version,
            champion_version=None if canary is None else champion.version,
            canary_version=None if canary is None else canary.version,
            canary_share=0.0 if canary is None else canary.share,
            deferred=request.deferred,
        )
        return Routed(decision=decision, expected=_expected(drawer, row, chosen))

    def _on_canary(self, request: RouteRequest, decision_id: str, canary: LoadedCanary) -> bool:
        """Say whether the canary decides; all requests of a session are decided by one version."""
        unit = request.session or decision_id
        drawn = self._ids.canary_draw(unit, tenant=request.tenant, canary_version=canary.version)
        return drawn < canary.share


def _assess(
    champion: Champion,
    contexts: NDArray[np.float32],
    preferences: Sequence[Preference],
    offered: tuple[Arm, ...],
) -> _Assessed:
    """Ask the champion, and the canary if there is one, about requests with the same arms."""
    canary = champion.canary
    return _Assessed(
        champion=champion.policy.assess(contexts, preferences, offered),
        canary=None if canary is None else canary.policy.assess(contexts, preferences, offered),
    )


def _offered(champion: Champion, request: RouteRequest, prompt_characters: int) -> tuple[Arm, ...]:
    """List the arms this request may go to; raises InvalidRequest or NoEligibleArm."""
    try:
        return champion.prices.offered(
            allow=request.models,
            max_cost_usd=request.max_cost_usd,
            prompt_characters=prompt_characters,
        )
    except UnknownArm as error:
        # What does not exist is an entry of the allow-list, not the thing asked for: no 404.
        raise InvalidRequest(
            str(error), field="models", value=error.value, allowed=error.allowed
        ) from error
    except NoEligibleArm as error:
        if not champion.prices.arms:
            error.allowed = "at least one model: add it with PUT /v1/models/{name}"
        raise


def _expected(assessed: Assessment, row: int, chosen: int) -> Expected | None:
    """Read off what the policy expects of the chosen arm; None where it models no outcome."""
    if assessed.quality is None or assessed.cost_usd is None:
        return None
    return Expected(
        quality=float(assessed.quality[row, chosen]),
        cost_usd=float(assessed.cost_usd[row, chosen]),
    )


@contextmanager
def in_batch(index: int, *, size: int) -> Iterator[None]:
    """Say which request of a batch an error is about."""
    try:
        yield
    except RouterError as error:
        if size > 1:
            error.field = f"{index}.{error.field}"
        raise
