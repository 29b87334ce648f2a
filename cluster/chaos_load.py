"""Callers who do not give up easily: they route, report, and repeat themselves until told."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cluster.load import Connection, connect, http_request

ACCEPTED: Final = 202
OK: Final = 200
# How long one try may take, and how long a caller goes on trying, seconds.
TRY_TIMEOUT_S: Final = 10.0
PATIENCE_S: Final = 90.0
PAUSE_FIRST_S: Final = 0.1
PAUSE_MAX_S: Final = 2.0


@dataclass
class Told:
    """What the callers were told, for the auditor.

    Attributes:
        decided: Decision ids of every reply.
        acknowledged: The event id that was acknowledged, by decision id.
        requests: HTTP requests sent, repetitions included.
        repeated: How many of them were repetitions.
        failed: Calls given up after `PATIENCE_S`, or refused for good.
        refusals: Statuses that ended a call for good, and how often.
    """

    decided: list[str] = field(default_factory=list)
    acknowledged: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    repeated: int = 0
    failed: int = 0
    refusals: dict[str, int] = field(default_factory=dict)


async def call_until(
    url: str, *, rate_per_s: float, stop: asyncio.Event, told: Told, seed: int
) -> None:
    """Let callers route and report, each once a second, until `stop` is set.

    Args:
        url: Where the service is.
        rate_per_s: Requests a second while all is well; half of them reports.
        stop: Set when they shall finish what they are at.
        told: Filled with what they learn.
        seed: Of the outcomes that they make up.
    """
    callers = max(1, round(rate_per_s / 2))
    rngs = [random.Random(f"{seed}/{number}") for number in range(callers)]
    await asyncio.gather(
        *(_caller(url, rng, number / callers, stop, told) for number, rng in enumerate(rngs))
    )


async def _caller(
    url: str, rng: random.Random, first_at_s: float, stop: asyncio.Event, told: Told
) -> None:
    """Route a prompt and report on it, once a second."""
    line = _Line(url, told)
    due = time.monotonic() + first_at_s
    while not stop.is_set():
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        due = max(due + 1.0, time.monotonic())
        body = {"prompt": f"Question {rng.random()}: what is {rng.randrange(1000)} + 1?"}
        answer = await line.insist("/v1/route", body, wanted=OK)
        if answer is None:
            continue
        decision_id = str(answer["decision_id"])
        told.decided.append(decision_id)
        event_id = str(uuid.UUID(int=rng.getrandbits(128)))
        report = {
            "decision_id": decision_id,
            "event_id": event_id,
            "quality": round(rng.random(), 3),
            "cost_usd": 0.001,
            "final": True,
        }
        if await line.insist("/v1/feedback", report, wanted=ACCEPTED) is not None:
            told.acknowledged[decision_id] = event_id
    line.close()


class _Line:
    """One caller's connection, opened again whenever it breaks."""

    def __init__(self, url: str, told: Told) -> None:
        self._url, self._told = url, told
        self._connection: Connection | None = None

    async def insist(
        self, path: str, body: Mapping[str, object], *, wanted: int
    ) -> dict[str, object] | None:
        """Send the same words until they are answered as wanted; None when that was in vain."""
        request = http_request(self._url, path, json.dumps(body).encode())
        until, pause_s = time.monotonic() + PATIENCE_S, PAUSE_FIRST_S
        tries = 0
        while time.monotonic() < until:
            self._told.requests += 1
            self._told.repeated += tries > 0
            tries += 1
            status, answer = await self._try(request)
            if status == wanted:
                found: dict[str, object] = json.loads(answer)
                return found
            if 400 <= status < 500 and status not in (408, 429):
                key = f"{status} {path}"
                self._told.refusals[key] = self._told.refusals.get(key, 0) + 1
                break
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
        self._told.failed += 1
        return None

    async def _try(self, request: bytes) -> tuple[int, bytes]:
        """Ask once; status 0 where no answer came."""
        try:
            async with asyncio.timeout(TRY_TIMEOUT_S):
                if self._connection is None or self._connection.lost:
                    self._connection = await connect(self._url)
                return await self._connection.ask(request)
        except (OSError, TimeoutError, ValueError):
            # What comes later on this connection would be taken for the answer to another request.
            self.close()
            return 0, b""

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
