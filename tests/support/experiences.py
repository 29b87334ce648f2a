"""Interactions for tests: a logging policy routes known outcomes, one column of them comes back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from policies.arms import Arm, PriceTable
from policies.interaction import INTERACTION_SCHEMA, Decision, decisions_to_batch
from policies.learning import LearnerSpec
from policies.policy import Policy, sample
from policies.preference import Preference

ENCODER_ID = "encoder-of-the-test"
AT = datetime(2026, 11, 1, tzinfo=UTC)
TAU_USD = 0.01


def some_arms(*costs_usd: float) -> tuple[Arm, ...]:
    """Name arms a, b, c … with a price per call each."""
    return tuple(Arm(name=chr(97 + i), usd_per_call=cost) for i, cost in enumerate(costs_usd))


def a_spec(arms: tuple[Arm, ...], *, context_dim: int = 6, seed: int = 0) -> LearnerSpec:
    """Describe a first version for the tests' encoder."""
    return LearnerSpec(
        arms=arms,
        encoder_id=ENCODER_ID,
        context_dim=context_dim,
        cost_ceiling_usd=TAU_USD,
        price_version=1,
        seed=seed,
    )


def prices_of(arms: tuple[Arm, ...], *, version: int = 1) -> dict[int, PriceTable]:
    """Put arms into one price table, as learners are given them."""
    return {version: PriceTable(version=version, arms=arms)}


def routed(
    policy: Policy,
    contexts: NDArray[np.float32],
    arms: Sequence[Arm],
    scores: NDArray[np.float64],
    costs: NDArray[np.float64],
    *,
    rng: np.random.Generator,
    first_seq: int = 1,
    price_version: int = 1,
) -> pa.Table:
    """Route prompts at preferences drawn evenly; return the interactions, schema as logged.

    Args:
        policy: The logging policy.
        contexts: Encoded prompts, shape (n, context_dim).
        arms: The arms offered, K of them.
        scores: Quality of every arm, shape (n, K), NaN where it never comes.
        costs: Cost of every arm, USD, shape (n, K), NaN where it never comes.
        rng: Draws preferences and arms.
        first_seq: Sequence number of the first row.
        price_version: The price table they are decided under.
    """
    decisions, taken = [], []
    for row, context in enumerate(contexts):
        w_quality = float(rng.uniform())
        preference = Preference(quality=w_quality, cost=1.0 - w_quality)
        pmf = policy.pmf(context, preference, arms)
        taken.append(sample(pmf, uniform=float(rng.uniform())))
        decisions.append(
            Decision(
                decision_id=f"decision-{first_seq + row}",
                decided_at=AT,
                tenant="tenant",
                session=None,
                prompt_hash=f"hash-{first_seq + row}",
                prompt_characters=100,
                preference=preference,
                context=context,
                encoder_id=policy.encoder_id,
                arms_offered=tuple(arm.name for arm in arms),
                pmf=pmf,
                arm=arms[taken[-1]].name,
                propensity=float(pmf[taken[-1]]),
                policy_version=1,
                price_version=price_version,
            )
        )
    rows = np.arange(len(taken))
    return matured(decisions, scores[rows, taken], costs[rows, taken], first_seq=first_seq)


def matured(
    decisions: Sequence[Decision],
    quality: NDArray[np.float64],
    cost_usd: NDArray[np.float64],
    *,
    first_seq: int = 1,
) -> pa.Table:
    """Join decisions with what came back, NaN for what did not."""
    n = len(decisions)
    batch = decisions_to_batch(decisions)
    columns = dict(zip(batch.schema.names, batch.columns, strict=True)) | {
        "seq": pa.array(np.arange(first_seq, first_seq + n)),
        "revision": pa.array(np.zeros(n, dtype=np.int32)),
        "quality": pa.array(quality, from_pandas=True),
        "cost_usd": pa.array(cost_usd, from_pandas=True),
        "latency_ms": pa.nulls(n, pa.float64()),
        "matured_at": pa.array([AT] * n, pa.timestamp("us", tz="UTC")),
    }
    return pa.table({name: columns[name] for name in INTERACTION_SCHEMA.names}).cast(
        INTERACTION_SCHEMA
    )
