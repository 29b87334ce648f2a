"""The records that travel: a decision, what came back, and the two joined as Arrow rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from policies.errors import InvalidOutcome
from policies.preference import Preference

# No single call of a model costs, counts or lasts as much: a report beyond it is a slip, and one
# such would outweigh thousands of true ones in what is believed of a model.
MAX_COST_USD: Final = 10_000.0
MAX_TOKENS: Final = 1_000_000_000
MAX_LATENCY_MS: Final = 7 * 86_400_000.0  # a week
_MOST: Final = {
    "cost_usd": MAX_COST_USD,
    "tokens_in": MAX_TOKENS,
    "tokens_out": MAX_TOKENS,
    "latency_ms": MAX_LATENCY_MS,
}

_TIME: Final = pa.timestamp("us", tz="UTC")

# The one definition of a decision's columns; the interaction adds what came back.
DECISION_SCHEMA: Final = pa.schema(
    [
        pa.field("decision_id", pa.string(), nullable=False),
        pa.field("decided_at", _TIME, nullable=False),
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("session", pa.string()),
        pa.field("prompt_hash", pa.string(), nullable=False),
        pa.field("prompt_characters", pa.int32(), nullable=False),
        pa.field("w_quality", pa.float64(), nullable=False),
        pa.field("w_cost", pa.float64(), nullable=False),
        pa.field("context", pa.list_(pa.float32()), nullable=False),
        pa.field("encoder_id", pa.string(), nullable=False),
        pa.field("arms_offered", pa.list_(pa.string()), nullable=False),
        pa.field("pmf", pa.list_(pa.float64()), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("propensity", pa.float64(), nullable=False),
        pa.field("policy_version", pa.int32(), nullable=False),
        pa.field("champion_version", pa.int32()),
        pa.field("canary_version", pa.int32()),
        pa.field("canary_share", pa.float64(), nullable=False),
        pa.field("price_version", pa.int32(), nullable=False),
        pa.field("deferred", pa.bool_(), nullable=False),
    ]
)

# What an interaction does not repeat: one that exists was never deferred, or was activated.
_UNREPEATED: Final = frozenset({"deferred"})

INTERACTION_SCHEMA: Final = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("revision", pa.int32(), nullable=False),
        *(field for field in DECISION_SCHEMA if field.name not in _UNREPEATED),
        pa.field("quality", pa.float64()),
        pa.field("cost_usd", pa.float64()),
        pa.field("latency_ms", pa.float64()),
        pa.field("matured_at", _TIME, nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One routed request, as it is logged.

    Attributes:
        decision_id: Signed, opaque id.
        decided_at: When, UTC.
        tenant: Whose request.
        session: Conversation it belongs to, None where it stands alone.
        prompt_hash: Salted hash of the prompt; the prompt itself is not kept.
        prompt_characters: Length of the prompt.
        preference: The trade-off it was decided under.
        context: The encoded prompt as used, float32, shape (context_dim,).
        encoder_id: Which encoder made the context.
        arms_offered: Names of the arms it could have gone to, shape (num_offered,).
        pmf: Probability of each of them, float64, (num_offered,): while a canary runs, the mixture
            of both versions' by `canary_share`, since a salted hash picks who draws.
        arm: The one it went to.
        propensity: `pmf` at `arm`.
        policy_version: Which version drew.
        price_version: Which price table it was decided under.
        champion_version: The champion that a canary ran beside; None without one, where
            `policy_version` is the champion.
        canary_version: The canary that ran, whoever of the two drew; None without one.
        canary_share: Probability that the canary draws, 0 without one.
        deferred: Whether it is learned from only once a report activates it.
    """

    decision_id: str
    decided_at: datetime
    tenant: str
    session: str | None
    prompt_hash: str
    prompt_characters: int
    preference: Preference
    context: NDArray[np.float32]
    encoder_id: str
    arms_offered: tuple[str, ...]
    pmf: NDArray[np.float64]
    arm: str
    propensity: float
    policy_version: int
    price_version: int
    champion_version: int | None = None
    canary_version: int | None = None
    canary_share: float = 0.0
    deferred: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came back for one decision, whole or in part.

    Attributes:
        decision_id: The decision it answers.
        event_id: Names this report, so that a repeat is known as one; None derives it.
        quality: Judged quality in [0, 1], None where this report says nothing of it.
        cost_usd: What the call cost, USD.
        tokens_in: Prompt tokens, priced where no cost is given.
        tokens_out: Answer tokens, priced where no cost is given.
        latency_ms: How long the call took, milliseconds.
        final: Whether nothing more will come, so that the interaction may be learned from now.
        correction: Whether the components it names replace all earlier reports of them.
        activate: Whether the model was used after all, for a decision that was deferred.
    """

    decision_id: str
    event_id: str | None = None
    quality: float | None = None
    cost_usd: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    latency_ms: float | None = None
    final: bool = False
    correction: bool = False
    activate: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be true; raises InvalidOutcome."""
        if self.quality is not None and not 0.0 <= self.quality <= 1.0:
            raise InvalidOutcome(
                f"quality={self.quality} must be in [0, 1]",
                field="quality",
                value=self.quality,
                allowed="0 to 1",
            )
        for field, most in _MOST.items():
            value = getattr(self, field)
            if value is not None and not 0 <= value <= most:
                raise InvalidOutcome(
                    f"{field}={value} must be in [0, {most:g}]",
                    field=field,
                    value=value,
                    allowed=f"0 to {most:g}",
                )
        reported = (self.quality, self.cost_usd, self.tokens_in, self.tokens_out, self.latency_ms)
        if all(part is None for part in reported) and not (self.final or self.activate):
            raise InvalidOutcome(
                "an outcome must report something",
                field="quality",
                allowed="at least one of quality, cost_usd, tokens_in, tokens_out, latency_ms, "
                "final or activate",
            )


class JoinStatus(StrEnum):
    """What became of one reported outcome."""

    JOINED = "joined"  # stored, and its decision is recorded
    PENDING = "pending"  # stored, its decision has not been recorded yet
    DUPLICATE = "duplicate"  # the same event was stored before; nothing changed
    SUPERSEDED = "superseded"  # stored as a correction: it replaces values already learned from
    EXPIRED = "expired"  # the wait window of its decision had closed; not stored
    UNKNOWN = "unknown"  # the decision id is forged, foreign or was never issued
    INVALID = "invalid"  # it cannot be true, or contradicts an event of the same event_id


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerCounts:
    """How much the ledger has seen; outcomes = joined + pending + orphaned.

    Attributes:
        decisions: Decisions recorded.
        outcomes: Outcomes stored.
        joined: Outcomes whose decision is recorded.
        pending: Outcomes that still wait for their decision.
        orphaned: Outcomes that have waited longer than `orphan_after_s`; joined if it comes yet.
        duplicates: Repeats, not stored again.
        expired: Outcomes that came after their wait window, not stored.
        interactions: Interactions matured, corrections included.
        last_seq: Sequence number given last, 0 where there is none.
    """

    decisions: int
    outcomes: int
    joined: int
    pending: int
    orphaned: int
    duplicates: int
    expired: int
    interactions: int
    last_seq: int


def of_this_release(rows: pa.Table) -> pa.Table:
    """Give interactions that an older release wrote the columns they lack: no canary ran then.

    Raises:
        pa.ArrowInvalid: They are no interactions, even so.
    """
    for name in ("champion_version", "canary_version", "canary_share"):
        if name not in rows.column_names:
            field = INTERACTION_SCHEMA.field(name)
            value = None if field.nullable else 0.0
            rows = rows.append_column(field, pa.array([value] * len(rows), field.type))
    return rows.select(INTERACTION_SCHEMA.names).cast(INTERACTION_SCHEMA)


def decisions_to_batch(decisions: Sequence[Decision]) -> pa.RecordBatch:
    """Lay decisions out in columns, schema DECISION_SCHEMA; one row each, in order."""
    columns = {
        name: [getattr(decision, name) for decision in decisions]
        for name in DECISION_SCHEMA.names
        if name not in ("w_quality", "w_cost")
    }
    columns["w_quality"] = [decision.preference.quality for decision in decisions]
    columns["w_cost"] = [decision.preference.cost for decision in decisions]
    for name in ("context", "pmf"):
        columns[name] = _ragged(columns[name], DECISION_SCHEMA.field(name).type.value_type)
    columns["arms_offered"] = _name_lists(columns["arms_offered"])
    return pa.RecordBatch.from_pydict(columns, schema=DECISION_SCHEMA)


def _ragged(vectors: Sequence[NDArray[np.float64]], dtype: pa.DataType) -> pa.ListArray:
    """Join vectors into one Arrow list column; row by row through Python is 20 times slower."""
    offsets = np.zeros(len(vectors) + 1, dtype=np.int32)
    np.cumsum([len(vector) for vector in vectors], out=offsets[1:])
    values = np.concatenate(vectors) if vectors else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type=dtype))


def _name_lists(lists: Sequence[tuple[str, ...]]) -> pa.ListArray:
    """Join lists of names into one Arrow column; few lists are distinct, each is read once."""
    distinct = {names: number for number, names in enumerate(dict.fromkeys(lists))}
    starts = np.cumsum([0, *map(len, distinct)])
    names = pa.array([name for one in distinct for name in one], type=pa.string())
    parts = [np.arange(starts[k], starts[k + 1]) for k in range(len(distinct))]
    rows = [parts[distinct[one]] for one in lists]
    taken = names.take(pa.array(np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)))
    offsets = np.zeros(len(lists) + 1, dtype=np.int32)
    np.cumsum([len(one) for one in lists], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), taken)


def contexts(rows: pa.Table) -> NDArray[np.float32]:
    """Read the context column as one array, float32, shape (rows, context_dim).

    Raises:
        ValueError: The rows hold contexts of different lengths, as two encoders would make them.
    """
    column = rows.column("context").combine_chunks()
    values = np.asarray(column.flatten(), dtype=np.float32)
    if len(rows) == 0:
        return values.reshape(0, 0)
    lengths = set(np.diff(np.asarray(column.offsets)).tolist())
    if len(lengths) != 1:
        raise ValueError(f"contexts of several lengths in one batch: {sorted(lengths)}")
    return values.reshape(len(rows), -1)


def issued_at(decision_id: str) -> int | None:
    """Read from a decision id when it was issued, microseconds since the epoch.

    It begins with a UUIDv7 (RFC 9562), whose first 48 bits count milliseconds. None where it does
    not.

    >>> issued_at("01890d7d-2c96-774b-bcce-b302099a8057.tag")
    1688148454550000
    """
    if len(decision_id) < 36 or decision_id[14] != "7" or decision_id[8] != "-":
        return None
    try:
        return int(decision_id[:8] + decision_id[9:13], 16) * 1000
    except ValueError:
        return None


def first_id_at(at_ms: float) -> str:
    """Return what sorts before every decision id issued from a moment on.

    Args:
        at_ms: The moment, milliseconds since the epoch, UTC.

    >>> first_id_at(1688148454550) < "01890d7d-2c96-774b-bcce-b302099a8057.tag"
    True
    """
    digits = f"{int(at_ms):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def is_holdout(prompt_hash: str, share: float) -> bool:
    """Say whether a prompt is kept from training, so that policies can be judged on it.

    By prompt, not by decision: a prompt that comes again stays on its side for ever.

    Args:
        prompt_hash: The salted hash as logged.
        share: Share of prompts that is kept, in (0, 1).

    >>> sum(is_holdout(str(number), 0.1) for number in range(1000))
    106
    """
    first_bytes = hashlib.sha256(prompt_hash.encode()).digest()[:8]
    return int.from_bytes(first_bytes, "big") / 2**64 < share


def canonical_rows(rows: pa.Table) -> bytes:
    """Serialise interactions in sequence order, the same bytes however they were chunked.

    A version's lineage is the SHA-256 over these bytes, so compaction cannot break it.
    """
    ordered = rows.select(INTERACTION_SCHEMA.names).sort_by([("seq", "ascending")])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, INTERACTION_SCHEMA) as writer:
        # `take` rebuilds every buffer without slice offsets, which IPC would otherwise carry.
        compact = ordered.take(pa.array(np.arange(len(ordered)))).combine_chunks()
        writer.write_table(compact.cast(INTERACTION_SCHEMA))
    return bytes(sink.getvalue())
