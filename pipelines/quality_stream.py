"""One stream of requests: a contender decides, feedback comes late, regret is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.contenders import PRICE_VERSION, Contender
from pipelines.outcomes import OutcomeTable
from pipelines.quality_plan import UPDATE_EVERY, StreamDraws
from policies.arms import Arm
from policies.interaction import INTERACTION_SCHEMA, Decision, decisions_to_batch
from policies.policy import sample
from policies.preference import Preference
from policies.reward import scalar_reward

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# Recorded outcomes have no time of their own; learners look at the order alone.
STREAM_TIME: Final = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPart:
    """What a stream is made of.

    Attributes:
        table: Recorded outcomes of the training prompts, n of them.
        contexts: The encoded prompts, float32, shape (n, context_dim).
        encoder_id: Which encoder made them.
        arms: The arms with their prices, in the table's order.
        cost_ceiling_usd: USD at and above which a call counts as fully expensive.
        delays: Prompts between decision and feedback, shape (n, K).
    """

    table: OutcomeTable
    contexts: NDArray[np.float32]
    encoder_id: str
    arms: tuple[Arm, ...]
    cost_ceiling_usd: float
    delays: Array


def play(contender: Contender, part: TrainingPart, draws: StreamDraws) -> Array:
    """Let a contender decide every request and learn from what it chose.

    It learns every UPDATE_EVERY prompts from the feedback that is in by then, and at the end from
    all that was still under way.

    Returns:
        Regret of each request: the best arm's reward minus the expected one under the pmf, at the
        request's own preference, shape (T,).
    """
    regret = np.empty(len(draws.rows))
    waiting: list[_Request] = []
    next_seq = 1
    for start in range(0, len(regret), UPDATE_EVERY):
        arrived = [request for request in waiting if request.known_at < start]
        waiting = [request for request in waiting if request.known_at >= start]
        next_seq = _teach(contender, arrived, next_seq)
        for number in range(start, min(start + UPDATE_EVERY, len(regret))):
            request, regret[number] = _decide(contender, part, draws, number)
            waiting.append(request)
    _teach(contender, waiting, next_seq)
    return regret


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """A decided request that waits for its feedback.

    Attributes:
        decision: As it is logged.
        quality: What will come back, NaN where nothing will.
        cost_usd: Likewise, USD.
        known_at: Number of the request after which the feedback is in.
    """

    decision: Decision
    quality: float
    cost_usd: float
    known_at: float


def _decide(
    contender: Contender, part: TrainingPart, draws: StreamDraws, number: int
) -> tuple[_Request, float]:
    """Decide one request; return it with its regret."""
    row, w_quality = int(draws.rows[number]), float(draws.w_quality[number])
    preference = Preference(quality=w_quality, cost=1.0 - w_quality)
    pmf = contender.pmf(part.contexts[row], preference)
    taken = sample(pmf, uniform=float(draws.uniforms[number]))
    scores, costs = part.table.scores[row], part.table.costs[row]
    rewards = scalar_reward(
        scores, costs, np.array(w_quality), cost_ceiling_usd=part.cost_ceiling_usd
    )
    lost = bool(draws.is_missing[number])
    # A lost outcome is given up on when the last one of its time would have come.
    delay = part.delays.max() if lost else part.delays[row, taken]
    request = _Request(
        decision=_logged(part, row, number, preference, pmf, taken),
        quality=np.nan if lost else float(scores[taken]),
        cost_usd=np.nan if lost else float(costs[taken]),
        known_at=number + float(delay),
    )
    return request, float(rewards.max() - pmf @ rewards)


def _logged(
    part: TrainingPart, row: int, number: int, preference: Preference, pmf: Array, taken: int
) -> Decision:
    """Write a decision down as the service would."""
    return Decision(
        decision_id=f"{number}",
        decided_at=STREAM_TIME,
        tenant="bench",
        session=None,
        prompt_hash=part.table.sample_ids[row],
        prompt_characters=len(part.table.prompts[row]),
        preference=preference,
        context=part.contexts[row],
        encoder_id=part.encoder_id,
        arms_offered=part.table.arms,
        pmf=pmf,
        arm=part.table.arms[taken],
        propensity=float(pmf[taken]),
        policy_version=0,
        price_version=PRICE_VERSION,
    )


def _teach(contender: Contender, arrived: Sequence[_Request], next_seq: int) -> int:
    """Hand over what has arrived, in the order of arrival; return the next sequence number."""
    if arrived:
        ordered = sorted(arrived, key=lambda request: request.known_at)
        contender.learn(_joined(ordered, first_seq=next_seq))
    return next_seq + len(arrived)


def _joined(requests: Sequence[_Request], *, first_seq: int) -> pa.Table:
    """Join decisions with what came back, schema INTERACTION_SCHEMA."""
    num = len(requests)
    batch = decisions_to_batch([request.decision for request in requests])
    quality = np.array([request.quality for request in requests])
    cost_usd = np.array([request.cost_usd for request in requests])
    columns = dict(zip(batch.schema.names, batch.columns, strict=True)) | {
        "seq": pa.array(np.arange(first_seq, first_seq + num)),
        "revision": pa.array(np.zeros(num, dtype=np.int32)),
        "quality": pa.array(quality, from_pandas=True),
        "cost_usd": pa.array(cost_usd, from_pandas=True),
        "latency_ms": pa.nulls(num, pa.float64()),
        "matured_at": pa.array([STREAM_TIME] * num, pa.timestamp("us", tz="UTC")),
    }
    return pa.table([columns[name] for name in INTERACTION_SCHEMA.names], INTERACTION_SCHEMA)
