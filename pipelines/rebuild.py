"""Makes a version again from its lineage, and says whether the weights are the same, bit for bit.

An update is pure: parent, rows in sequence order and price tables are all that goes in. What could
still differ is the order in which floating-point sums are taken, so it is one thread here, and no
remote learners.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import pyarrow as pa

from pipelines.rows import InteractionSource, bounded_by_tenant, read_rows, split_rows
from policies.arms import PriceTable
from policies.artifact import PolicyArtifact, digest
from policies.interaction import canonical_rows
from policies.learning import Learner, LearnerSpec

NOT_KEPT: Final = "rows are past retention"


class ArtifactStore(Protocol):
    """Where versions are kept."""

    def artifact(self, version: int) -> PolicyArtifact:
        """Read a version's policy; raises UnknownVersion or ArtifactError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What came of making a version again.

    Attributes:
        version: Which one.
        kind: Its learner.
        parent_version: What it went on from, None for a learner's first version.
        identical: Whether the weights have the same digest.
        reason: The result in words; says what is missing where it could not be made again.
        rows: Interactions that its lineage names.
        rows_found: Those that are still there.
        rows_match: Whether they are the very same ones, by SHA-256; None without rows.
        weights_sha256: Digest of the stored weights.
        rebuilt_sha256: Digest of the weights made now, None where they could not be made.
        code_version: The code that made it; another one may learn otherwise.
    """

    version: int
    kind: str
    parent_version: int | None
    identical: bool
    reason: str
    rows: int
    rows_found: int
    rows_match: bool | None
    weights_sha256: str
    rebuilt_sha256: str | None
    code_version: str | None


def rebuild(
    version: int,
    *,
    store: ArtifactStore,
    source: InteractionSource,
    learners: Sequence[Learner],
) -> Rebuilt:
    """Make a version again and compare.

    Args:
        version: Its number.
        store: Where it and its parent are kept.
        source: Where its rows are read.
        learners: Who learns, each in this process.

    Raises:
        UnknownVersion: There is no such version.
        ArtifactError: Its files or its parent's are gone or damaged.
        Unavailable: Registry or keeper is away.
    """
    stored = store.artifact(version)
    training = stored.training
    learner = next((one for one in learners if one.kind == stored.kind), None)
    if learner is None:
        return _report(version, stored, None, reason=f"no learner {stored.kind!r} runs here")
    if "parent_version" not in training:
        return _compared(version, stored, learner.initial(_spec(stored)))
    rows = lineage_rows(source, training)
    found = hashlib.sha256(canonical_rows(rows)).hexdigest()
    if found != training["rows_sha256"]:
        missing = len(rows) < training["rows"]
        reason = NOT_KEPT if missing else "its rows are not the ones it was trained on"
        return _report(version, stored, rows, reason=reason)
    parent = store.artifact(int(training["parent_version"]))
    named = rows.column("price_version").unique().to_pylist()
    made = learner.update(parent, rows, source.price_history(named))
    return _compared(version, stored, made, rows)


def lineage_rows(source: InteractionSource, training: Mapping[str, Any]) -> pa.Table:
    """Read the rows that a lineage names, as far as they are still there."""
    first, last = int(training["first_seq"]), int(training["last_seq"])
    read = read_rows(source, after_seq=first - 1, up_to_seq=last, max_rows=last - first + 1)
    rows, _ = split_rows(read, share=training["holdout_share"])
    return bounded_by_tenant(rows, max_share=training.get("max_tenant_share", 1.0))


def _spec(stored: PolicyArtifact) -> LearnerSpec:
    """Say what a first version was made from."""
    prices = PriceTable.from_json(stored.training["prices"])
    return LearnerSpec(
        arms=prices.arms,
        encoder_id=stored.encoder_id,
        context_dim=stored.context_dim,
        cost_ceiling_usd=stored.cost_ceiling_usd,
        exploration_total=stored.exploration_total,
        price_version=stored.price_version,
        seed=stored.seed,
    )


def _compared(
    version: int, stored: PolicyArtifact, made: PolicyArtifact, rows: pa.Table | None = None
) -> Rebuilt:
    """Compare weights."""
    same = digest(made) == digest(stored)
    reason = "weights are identical" if same else f"weights differ: {_differing(stored, made)}"
    if not same and stored.training.get("num_learners"):
        reason += "; it was made by remote learners, whose sums are taken in another order"
    return _report(version, stored, rows, reason=reason, rebuilt=digest(made))


def _differing(stored: PolicyArtifact, made: PolicyArtifact) -> str:
    """Name the arrays that are not the same."""
    names = sorted(stored.weights.keys() | made.weights.keys())
    both = [name for name in names if name in stored.weights and name in made.weights]
    odd = [name for name in names if name not in both]
    odd += [n for n in both if stored.weights[n].tobytes() != made.weights[n].tobytes()]
    return ", ".join(odd[:8])


def _report(
    version: int,
    stored: PolicyArtifact,
    rows: pa.Table | None,
    *,
    reason: str,
    rebuilt: str | None = None,
) -> Rebuilt:
    """Put the result together."""
    training, expected = stored.training, digest(stored)
    match = None
    if rows is not None:
        match = hashlib.sha256(canonical_rows(rows)).hexdigest() == training["rows_sha256"]
    return Rebuilt(
        version=version,
        kind=stored.kind,
        parent_version=training.get("parent_version"),
        identical=rebuilt == expected,
        reason=reason,
        rows=int(training.get("rows", 0)),
        rows_found=0 if rows is None else len(rows),
        rows_match=match,
        weights_sha256=expected,
        rebuilt_sha256=rebuilt,
        code_version=training.get("code_version"),
    )
