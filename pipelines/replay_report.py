"""What a replay saw: how many requests, how fast, which versions answered and what they earned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayProgress:
    """How far a replay is.

    Attributes:
        done: Requests answered or failed.
        total: Requests there will be.
        failed: Requests failed.
        policy_version: Which version decided last; None before the first decision.
    """

    done: int
    total: int
    failed: int
    policy_version: int | None


Progress = Callable[[ReplayProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRequest:
    """One prompt that was routed.

    Attributes:
        row: Which row of the outcome table it was.
        arm: The model chosen.
        policy_version: Which version chose.
        w_quality: The caller's weight on quality, in [0, 1].
        reward: What the recorded outcome of that model is worth under the preference.
        latency_ms: From sending the request to the whole reply, milliseconds.
        at_s: When the reply came, seconds after the start of the replay.
    """

    row: int
    arm: str
    policy_version: int
    w_quality: float
    reward: float
    latency_ms: float
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionTraffic:
    """What one policy version did during a replay.

    Attributes:
        version: Its number.
        requests: How many requests it decided.
        mean_reward: Mean reward over them, under the preferences asked for.
        arm_counts: How often it chose each model.
        first_seen_s: Its first reply, seconds after the start of the replay.
        last_seen_s: Its last reply, seconds after the start of the replay.
    """

    version: int
    requests: int
    mean_reward: float
    arm_counts: Mapping[str, int]
    first_seen_s: float
    last_seen_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What came of a replay.

    Attributes:
        requests: Prompts sent.
        failed: Prompts that got no decision.
        errors: Why requests or outcomes failed, and how often.
        feedback_sent: Outcomes sent, each counted once however often it was tried.
        feedback_joined: Of these, the ones the ledger has joined with their decision.
        feedback_failed: Of these, the ones that were refused or never acknowledged.
        feedback_missing: Outcomes kept back on purpose.
        feedback_repeated: Outcomes sent a second time on purpose.
        feedback_by_status: First answers to the outcomes by join status.
        seconds: How long it took, all outcomes included.
        p50_ms: Median latency of a decision, milliseconds; None without any.
        p99_ms: 99th percentile of it, milliseconds; None without any.
        versions: What each policy version did, in the order they appeared.
    """

    requests: int
    failed: int
    errors: Mapping[str, int]
    feedback_sent: int
    feedback_joined: int
    feedback_failed: int
    feedback_missing: int
    feedback_repeated: int
    feedback_by_status: Mapping[str, int]
    seconds: float
    p50_ms: float | None
    p99_ms: float | None
    versions: tuple[VersionTraffic, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def by_version(served: Sequence[ServedRequest]) -> tuple[VersionTraffic, ...]:
    """Group requests by the version that decided them, in the order the versions appeared."""
    groups: dict[int, list[ServedRequest]] = {}
    for request in sorted(served, key=lambda request: request.at_s):
        groups.setdefault(request.policy_version, []).append(request)
    return tuple(
        VersionTraffic(
            version=version,
            requests=len(requests),
            mean_reward=float(np.mean([request.reward for request in requests])),
            arm_counts=dict(Counter(request.arm for request in requests)),
            first_seen_s=requests[0].at_s,
            last_seen_s=requests[-1].at_s,
        )
        for version, requests in groups.items()
    )


def latency_percentile(served: Sequence[ServedRequest], percent: float) -> float | None:
    """Return a percentile of the latencies, milliseconds; None without any."""
    if not served:
        return None
    return float(np.percentile([request.latency_ms for request in served], percent))
