"""A router replica without Ray: the real request path over plain in-process parts."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from policies.arms import Arm, PriceTable, patched
from policies.artifact import PolicyArtifact
from policies.errors import InvalidRequest, Unavailable, UnknownVersion
from policies.events import Event, EventKind
from policies.interaction import Decision, JoinStatus, LedgerCounts, Outcome
from policies.policy import Assessment, assess_one_by_one, mix_exploration
from policies.preference import Preference
from policies.publication import Canary, Publication
from policies.reports import pack_statuses
from policies.versions import AliasMove, VersionInfo
from services.actors import Ports, Sample
from services.api import Api
from services.champion import Champion, LoadedCanary
from services.decision_ids import DecisionIds
from services.door import Door
from services.feedback import Feedback
from services.metrics import ReplicaMetrics
from services.operations import Operations
from services.router import Router, RouterArgs

DIM: Final = 8
SECRET: Final = b"0123456789abcdef0123456789abcdef"
ENCODER_ID: Final = "hash-encoder"
NOW: Final = 1_800_000_000.0
ARMS: Final = (
    Arm(name="cheap", input_usd_per_mtok=0.1, output_usd_per_mtok=0.4),
    Arm(name="dear", input_usd_per_mtok=5.0, output_usd_per_mtok=25.0),
    Arm(name="meta/middle", input_usd_per_mtok=1.0, output_usd_per_mtok=4.0),
)
PRICES: Final = PriceTable(version=3, arms=ARMS)


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


class FakeAggregator:
    """Keeps what it is given; `away` makes it fail as a dead actor does."""

    def __init__(self) -> None:
        self.away = False
        self.refused: set[str] = set()
        self.batches: list[pa.RecordBatch] = []
        self.submitted: list[tuple[str, Outcome]] = []
        self.answers: dict[str, JoinStatus] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self.contexts: dict[str, NDArray[np.float32]] = {}
        self.table = PRICES
        self.tables = {PRICES.version: PRICES}

    def _here(self) -> None:
        if self.away:
            raise Unavailable("aggregator does not answer; try again", field="aggregator")

    async def record(self, batch: pa.RecordBatch) -> int:
        """Store decisions."""
        self._here()
        if self.refused & set(batch["decision_id"].to_pylist()):
            raise InvalidRequest("the ledger cannot hold it", field="decision_id")
        self.batches.append(batch)
        return len(batch)

    async def submit(self, tenant: str, outcomes: Sequence[Outcome]) -> list[JoinStatus]:
        """Store outcomes; answer as told by `answers`, else joined."""
        self._here()
        self.submitted += [(tenant, outcome) for outcome in outcomes]
        return [self.answers.get(o.decision_id, JoinStatus.JOINED) for o in outcomes]

    async def submit_batch(self, reports: pa.RecordBatch) -> bytes:
        """Store outcomes that come in columns, likewise."""
        self._here()
        rows = reports.to_pylist()
        self.submitted += [(row.pop("tenant"), Outcome(**row)) for row in rows]
        return pack_statuses(
            [self.answers.get(row["decision_id"], JoinStatus.JOINED) for row in rows]
        )

    async def decision(self, decision_id: str) -> dict[str, Any] | None:
        """Return what `records` holds."""
        self._here()
        return self.records.get(decision_id)

    async def context(self, decision_id: str) -> NDArray[np.float32] | None:
        """Return what `contexts` holds."""
        self._here()
        return self.contexts.get(decision_id)

    async def price_history(self, versions: Sequence[int]) -> dict[int, PriceTable]:
        """Return what there has been."""
        self._here()
        return {version: self.tables[version] for version in versions if version in self.tables}

    async def counts(self) -> LedgerCounts:
        """Count what came."""
        self._here()
        return LedgerCounts(
            decisions=sum(map(len, self.batches)),
            outcomes=len(self.submitted),
            joined=len(self.submitted),
            pending=0,
            orphaned=0,
            duplicates=0,
            expired=0,
            interactions=0,
            last_seq=0,
        )

    async def prices(self) -> PriceTable:
        """Return the table of now."""
        self._here()
        return self.table

    async def put_arm(self, arm: Arm) -> PriceTable:
        """Add or replace an arm."""
        self.table = self.table.with_arm(arm, version=self.table.version + 1)
        return self.table

    async def patch_arm(self, name: str, changes: dict[str, float | int]) -> PriceTable:
        """Change some prices."""
        return await self.put_arm(patched(self.table.arm(name), changes))

    async def delete_arm(self, name: str) -> PriceTable:
        """Take an arm out."""
        self.table = self.table.without(name, version=self.table.version + 1)
        return self.table


class FakeRegistry:
    """Three versions; remembers its moves."""

    def __init__(self) -> None:
        self.champion, self.previous = 2, 1
        self.moves: list[AliasMove] = []

    async def versions(self) -> list[VersionInfo]:
        """List them, newest first."""
        aliases = {self.champion: ("champion",), self.previous: ("previous",)}
        return [
            VersionInfo(
                version=number,
                kind="posterior",
                created_at="2026-11-01T00:00:00+00:00",
                aliases=aliases.get(number, ()),
                metrics={"uplift": 0.01 * number},
                tags={},
            )
            for number in (3, 2, 1)
        ]

    async def artifact(self, version: int) -> PolicyArtifact:
        """Return the smallest artifact there is."""
        if version not in (1, 2, 3):
            raise UnknownVersion(f"version {version} is not registered", field="version")
        return an_artifact()

    async def history(self) -> list[AliasMove]:
        """List the moves, newest first."""
        return self.moves[::-1]

    async def promote(self, version: int, *, who: str, why: str) -> AliasMove:
        """Move `champion`; raises UnknownVersion."""
        if version not in (1, 2, 3):
            raise UnknownVersion(f"version {version} is not registered", field="version")
        self.previous, self.champion = self.champion, version
        at = datetime.fromtimestamp(NOW, UTC).isoformat()
        move = AliasMove(
            alias="champion", version=version, previous=self.previous, who=who, why=why, at=at
        )
        self.moves.append(move)
        return move

    async def rollback(self, *, to: int | None, who: str, why: str) -> AliasMove:
        """Move `champion` back."""
        return await self.promote(to if to is not None else self.previous, who=who, why=why)


class FakePublisher:
    """Hands out what is put into its queue; `away` makes it fail as a dead actor does."""

    def __init__(self) -> None:
        self.away = False
        self.queue: asyncio.Queue[Publication] = asyncio.Queue()
        self.acknowledged: list[int] = []

    async def next(
        self, replica_id: str, have: int, swapped_at: float | None
    ) -> list[Awaitable[Publication]]:
        """Wait for a publication."""
        self.acknowledged.append(have)
        if self.away:
            raise Unavailable("publisher does not answer; try again", field="publisher")
        reference: asyncio.Future[Publication] = asyncio.get_running_loop().create_future()
        reference.set_result(await self.queue.get())
        return [reference]

    async def status(self) -> dict[str, Any]:
        """Say little."""
        return {"replicas": {}}


class FakeTrainer:
    """Idle."""

    async def status(self) -> dict[str, Any]:
        """Say so."""
        return {"trainings": 0}

    async def rebuild(self, version: int) -> dict[str, Any]:
        """Say that it is the same."""
        return {"version": version, "identical": True}


class FakeMetrics:
    """Keeps the last samples of each source."""

    def __init__(self) -> None:
        self.samples: dict[str, list[Sample]] = {}
        self.taken: list[Event] = []

    async def push(self, source: str, samples: list[Sample]) -> int:
        """Replace what is known of a source."""
        self.samples[source] = samples
        return len(self.samples)

    async def take_event(self, event: Event) -> None:
        """Keep it."""
        self.taken.append(event)

    async def events(
        self, after_seq: int = 0, limit: int = 100, kinds: Sequence[EventKind] = ()
    ) -> dict[str, Any]:
        """List those kept."""
        numbered = enumerate(self.taken, start=1)
        found = [
            {"seq": seq, **event.to_json()}
            for seq, event in numbered
            if seq > after_seq and (not kinds or event.kind in kinds)
        ]
        return {"events": found[-limit:], "last_seq": len(self.taken)}

    async def text(self) -> str:
        """Print the samples' names."""
        return "".join(
            f"{name} {value}\n" for s in self.samples.values() for name, _, value, _ in s
        )


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


def an_artifact(*, encoder_id: str = ENCODER_ID) -> PolicyArtifact:
    """Return the smallest artifact there is."""
    return PolicyArtifact(
        kind="price",
        arms=PRICES.names,
        encoder_id=encoder_id,
        context_dim=DIM,
        cost_ceiling_usd=0.01,
        exploration_total=0.05,
        price_version=PRICES.version,
        seed=0,
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
            self.router, feedback, operations, self.args, door=self.door, metrics=self.metrics
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
