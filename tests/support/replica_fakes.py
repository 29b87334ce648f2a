"""A router replica without Ray: the real request path over plain in-process parts."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from actor_fakes import (
    DIM,
    ENCODER_ID,
    NOW,
    PRICES,
    FakeAggregator,
    FakeMetrics,
    FakePublisher,
    FakeRegistry,
    FakeTrainer,
    an_artifact,
)
from numpy.typing import NDArray

from policies.arms import Arm, PriceTable
from policies.artifact import PolicyArtifact
from policies.errors import Unavailable
from policies.interaction import Decision
from policies.policy import Assessment, assess_one_by_one, mix_exploration
from policies.preference import Preference
from policies.publication import Canary, Publication
from services.actors import Ports
from services.api import Api
from services.champion import Champion, LoadedCanary
from services.decision_ids import DecisionIds
from services.door import Door
from services.feedback import Feedback
from services.metrics import ReplicaMetrics
from services.operations import Operations
from services.router import Router, RouterArgs
from services.tracing import RequestTracing

SECRET: Final = b"0123456789abcdef0123456789abcdef"


class HashEncoder:
    """Equal prompts get equal contexts; knows nothing of meaning."""

    encoder_id = ENCODER_ID
    dim = DIM
    light = False
    gathered = 4

    def __init__(self) -> None:
        self.calls: list[int] = []

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode prompts, shape (len(texts), DIM)."""
        self.calls.append(len(texts))
        digests = [hashlib.sha256(text.encode()).digest()[:DIM] for text in texts]
        return np.array([list(digest) for digest in digests], dtype=np.float32) / np.float32(255)


class PricePolicy:
    """Weighs an arm's list price against the first entry of the context; 5 % exploration."""

    kind = "price"

    def __init__(self, *, encoder_id: str = ENCODER_ID, context_dim: int = DIM) -> None:
        self.encoder_id, self.context_dim = encoder_id, context_dim

    def pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Softmax over price, upward with the weight on quality."""
        prices = np.array([arm.input_usd_per_mtok for arm in offered])
        score = (preference.quality - preference.cost + context[0]) * prices
        weights = np.exp(score - score.max())
        return mix_exploration(weights / weights.sum(), exploration_total=0.05)

    def assess(
        self,
        contexts: NDArray[np.float32],
        preferences: Sequence[Preference],
        offered: Sequence[Arm],
    ) -> Assessment:
        """Ask `pmf` for each request; expect half quality of each arm, at list price."""
        assessed = assess_one_by_one(self.pmf, contexts, preferences, offered)
        costs = np.array([arm.list_cost_usd(100) for arm in offered])
        return replace(
            assessed,
            quality=np.full((len(contexts), len(offered)), 0.5),
            cost_usd=np.tile(costs, (len(contexts), 1)),
        )

    def greedy_pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> NDArray[np.float64]:
        """Return the same; no test asks for less."""
        return self.pmf(context, preference, offered)


class DecisionList(list[Decision]):
    """A recorder that only remembers."""

    async def add(self, decisions: Sequence[Decision]) -> None:
        """Take decisions in."""
        self.extend(decisions)


@dataclass
class HeldChampion:
    """A champion that a test swaps by hand; None is none yet."""

    value: Champion | None

    @property
    def current(self) -> Champion:
        """What decides now."""
        if self.value is None:
            raise Unavailable("no policy has been published yet", field="champion")
        return self.value


def price_policy(artifact: PolicyArtifact) -> PricePolicy:
    """Make a policy as `policies.learners.load_policy` does."""
    return PricePolicy(encoder_id=artifact.encoder_id, context_dim=artifact.context_dim)


def a_champion(
    *, version: int = 2, prices: PriceTable = PRICES, canary: LoadedCanary | None = None
) -> Champion:
    """Return a champion that decides by price."""
    return Champion(
        revision=version,
        version=version,
        policy=PricePolicy(),
        prices=prices,
        swapped_at=NOW,
        canary=canary,
    )


def a_publication(
    *,
    revision: int,
    version: int,
    encoder_id: str = ENCODER_ID,
    canary: int | None = None,
    canary_encoder_id: str = ENCODER_ID,
) -> Publication:
    """Return a publication of the smallest artifact, on request with a canary at one half."""
    on_trial = an_artifact(encoder_id=canary_encoder_id).to_files()
    return Publication(
        revision=revision,
        version=version,
        files=an_artifact(encoder_id=encoder_id).to_files(),
        prices=PRICES,
        published_at=NOW,
        canary=None if canary is None else Canary(version=canary, files=on_trial, share=0.5),
    )


def some_args(**changes: Any) -> RouterArgs:
    """Return arguments with small limits."""
    args = RouterArgs(
        secret=SECRET,
        encoder_dir=Path("encoder"),
        publish_dir=Path("published"),
        max_prompt_characters=1000,
        max_batch=16,
        max_feedback=50,
        max_body_bytes=1_000_000,
    )
    return replace(args, **changes)


@dataclass
class Replica:
    """The request path and the parts that a test looks at."""

    args: RouterArgs = field(default_factory=some_args)
    champion: HeldChampion = field(default_factory=lambda: HeldChampion(a_champion()))
    seed: int = 0
    clock: Callable[[], float] = time.monotonic
    tracing: RequestTracing | None = None

    def __post_init__(self) -> None:
        """Put the parts together as `services.deployments` does."""
        self.encoder, self.decisions = HashEncoder(), DecisionList()
        self.aggregator, self.registry = FakeAggregator(), FakeRegistry()
        self.publisher, self.metrics_actor = FakePublisher(), FakeMetrics()
        self.metrics, self.ids = ReplicaMetrics(), DecisionIds(self.args.secret)
        self.door = Door(
            secret=self.args.secret,
            api_key_sha256=self.args.api_key_sha256,
            keys_file=self.args.keys_file,
            clock=self.clock,
        )
        self.router = Router(
            self.encoder,
            self.champion,
            self.ids,
            self.decisions,
            self.args,
            clock=lambda: NOW,
            rng=np.random.default_rng(self.seed),
        )

    @cached_property
    def api(self) -> Api:
        """The HTTP side, over the same parts."""
        feedback = Feedback(
            self.aggregator, self.ids, max_items=self.args.max_feedback, metrics=self.metrics
        )
        ports = Ports(
            aggregator=self.aggregator,
            registry=self.registry,
            publisher=self.publisher,
            trainer=FakeTrainer(),
            metrics=self.metrics_actor,
        )
        operations = Operations(
            ports,
            self.champion,
            self.ids,
            replica_id="replica-1",
            encoder_id=ENCODER_ID,
            load=price_policy,
        )
        return Api(
            self.router,
            feedback,
            operations,
            self.args,
            door=self.door,
            metrics=self.metrics,
            tracing=self.tracing,
        )

    def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send one HTTP request through the ASGI interface, as Serve does."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.api)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.request(method, path, **request)

        return asyncio.run(send())

    def route(self, **body: Any) -> dict[str, Any]:
        """Route one prompt; fails on any refusal."""
        answer = self.call("POST", "/v1/route", json={"prompt": "Name a prime."} | body)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result
