"""From contexts to decisions: what may be chosen, what the policies make of it, the draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from policies.arms import Arm, PriceTable
from policies.errors import InvalidRequest, NoEligibleArm, UnknownArm
from policies.interaction import Decision
from policies.policy import Assessment, mix_canary, sample_rows
from policies.preference import Preference
from services.champion import Champion, LoadedCanary
from services.decision_ids import DecisionIds

DEFAULT_TENANT: Final = "default"

Array = NDArray[np.float64]


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
class Offer:
    """The arms that a request may go to, in table order, and their names."""

    arms: tuple[Arm, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """What n requests with the same offer came to.

    Attributes:
        logged: The pmf of each, canary included, shape (n, m).
        chosen: Index of the arm each goes to, shape (n,).
        canary_drew: Whose draw it was, shape (n,).
        expected: What the version that drew expects of the arm; None where it models no outcome.
    """

    logged: Array
    chosen: NDArray[np.int64]
    canary_drew: NDArray[np.bool_]
    expected: list[Expected | None]


class Decider:
    """Draws models for requests that are encoded; several at once for little more than one.

    Args:
        decision_ids: Signs the decisions.
        encoder_id: Whose contexts come.
        default_preference: The trade-off of requests that name none.
        clock: Seconds since the epoch.
        rng: Draws the models.
    """

    def __init__(
        self,
        decision_ids: DecisionIds,
        *,
        encoder_id: str,
        default_preference: Preference,
        clock: Callable[[], float],
        rng: Generator,
    ) -> None:
        self._ids, self._encoder_id = decision_ids, encoder_id
        self._default_preference, self._clock, self._rng = default_preference, clock, rng
        self._all: tuple[PriceTable, Offer] | None = None

    def offer(self, champion: Champion, request: RouteRequest) -> Offer:
        """Find the arms that a request may go to; raises InvalidRequest or NoEligibleArm."""
        prices = champion.prices
        if request.models is None and request.max_cost_usd is None and prices.arms:
            if self._all is None or self._all[0] is not prices:
                self._all = prices, Offer(arms=prices.arms, names=prices.names)
            return self._all[1]
        arms = _offered(prices, request)
        return Offer(arms=arms, names=tuple(arm.name for arm in arms))

    def decide(
        self,
        champion: Champion,
        requests: Sequence[RouteRequest],
        offers: Sequence[Offer],
        contexts: NDArray[np.float32],
    ) -> list[Routed]:
        """Draw one model for each request.

        Args:
            champion: Who decides.
            requests: What came; the prompts in a form that has UTF-8.
            offers: What `offer` said of each.
            contexts: Their encoded prompts, float32, shape (n, context_dim).
        """
        # In the requests' order, not the groups': a batch draws as its requests would one by one.
        uniforms = self._rng.random(len(requests))
        groups: dict[tuple[str, ...], list[int]] = {}
        for index, offer in enumerate(offers):
            groups.setdefault(offer.names, []).append(index)
        if len(groups) == 1:
            return self._decide_group(champion, requests, offers[0], contexts, uniforms)
        routed: dict[int, Routed] = {}
        for rows in groups.values():
            chosen = [requests[row] for row in rows]
            group = self._decide_group(
                champion, chosen, offers[rows[0]], contexts[rows], uniforms[rows]
            )
            routed |= zip(rows, group, strict=True)
        return [routed[index] for index in range(len(requests))]

    def _decide_group(
        self,
        champion: Champion,
        requests: Sequence[RouteRequest],
        offer: Offer,
        contexts: NDArray[np.float32],
        uniforms: Array,
    ) -> list[Routed]:
        """Draw for requests that may go to the same arms."""
        ids = [self._ids.issue(request.tenant) for request in requests]
        preferences = [request.preference or self._default_preference for request in requests]
        drawn = self._draw(champion, requests, ids, preferences, offer, contexts, uniforms)
        propensities = drawn.logged[np.arange(len(requests)), drawn.chosen].tolist()
        canary, decided_at = champion.canary, datetime.fromtimestamp(self._clock(), UTC)
        versions = champion.version, champion.version if canary is None else canary.version
        return [
            Routed(
                decision=Decision(
                    decision_id=ids[row],
                    decided_at=decided_at,
                    tenant=request.tenant,
                    session=request.session or None,
                    prompt_hash=self._ids.prompt_hash(request.prompt),
                    prompt_characters=len(request.prompt),
                    preference=preferences[row],
                    context=contexts[row],
                    encoder_id=self._encoder_id,
                    arms_offered=offer.names,
                    pmf=drawn.logged[row],
                    arm=offer.names[chosen],
                    propensity=propensities[row],
                    policy_version=versions[by_canary],
                    price_version=champion.prices.version,
                    champion_version=None if canary is None else champion.version,
                    canary_version=None if canary is None else canary.version,
                    canary_share=0.0 if canary is None else canary.share,
                    deferred=request.deferred,
                ),
                expected=drawn.expected[row],
            )
            for row, (request, chosen, by_canary) in enumerate(
                zip(requests, drawn.chosen.tolist(), drawn.canary_drew.tolist(), strict=True)
            )
        ]

    def _draw(
        self,
        champion: Champion,
        requests: Sequence[RouteRequest],
        ids: Sequence[str],
        preferences: Sequence[Preference],
        offer: Offer,
        contexts: NDArray[np.float32],
        uniforms: Array,
    ) -> _Drawn:
        """Let the version whose turn it is draw for each request.

        What is logged is the mixture of champion and canary: before the salted hash has spoken,
        that is the probability each model had.
        """
        assessed = champion.policy.assess(contexts, preferences, offer.arms)
        canary = champion.canary
        if canary is None:
            chosen = sample_rows(assessed.pmf, uniforms=uniforms)
            return _Drawn(
                logged=assessed.pmf,
                chosen=chosen,
                canary_drew=np.zeros(len(ids), dtype=np.bool_),
                expected=_expected(assessed, chosen),
            )
        on_trial = canary.policy.assess(contexts, preferences, offer.arms)
        named = zip(requests, ids, strict=True)
        canary_drew = np.array([self._on_canary(request, i, canary) for request, i in named])
        drew = np.where(canary_drew[:, None], on_trial.pmf, assessed.pmf)
        chosen = sample_rows(drew, uniforms=uniforms)
        expected = zip(_expected(assessed, chosen), _expected(on_trial, chosen), strict=True)
        return _Drawn(
            logged=mix_canary(assessed.pmf, on_trial.pmf, share=canary.share),
            chosen=chosen,
            canary_drew=canary_drew,
            expected=[pair[by] for pair, by in zip(expected, canary_drew.tolist(), strict=True)],
        )

    def _on_canary(self, request: RouteRequest, decision_id: str, canary: LoadedCanary) -> bool:
        """Say whether the canary decides; all requests of a session are decided by one version."""
        unit = request.session or decision_id
        drawn = self._ids.canary_draw(unit, tenant=request.tenant, canary_version=canary.version)
        return drawn < canary.share


def _offered(prices: PriceTable, request: RouteRequest) -> tuple[Arm, ...]:
    """List the arms this request may go to; raises InvalidRequest or NoEligibleArm."""
    try:
        return prices.offered(
            allow=request.models,
            max_cost_usd=request.max_cost_usd,
            prompt_characters=len(request.prompt),
        )
    except UnknownArm as error:
        # What does not exist is an entry of the allow-list, not the thing asked for: no 404.
        raise InvalidRequest(
            str(error), field="models", value=error.value, allowed=error.allowed
        ) from error
    except NoEligibleArm as error:
        if not prices.arms:
            error.allowed = "at least one model: add it with PUT /v1/models/{name}"
        raise


def _expected(assessed: Assessment, chosen: NDArray[np.int64]) -> list[Expected | None]:
    """Read off what the policy expects of the chosen arms; None where it models no outcome."""
    if assessed.quality is None or assessed.cost_usd is None:
        return [None] * len(chosen)
    rows = np.arange(len(chosen))
    quality, cost = assessed.quality[rows, chosen], assessed.cost_usd[rows, chosen]
    pairs = zip(quality.tolist(), cost.tolist(), strict=True)
    return [Expected(quality=q, cost_usd=c) for q, c in pairs]
