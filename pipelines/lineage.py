"""What a version came from, written down so that it can be rebuilt."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from policies.interaction import canonical_rows

DISTRIBUTION: Final = "barp-router"
SHORT_SHA: Final = 12


def lineage(
    rows: pa.Table,
    *,
    parent_version: int,
    after_seq: int,
    last_seq: int,
    holdout_share: float,
    max_tenant_share: float,
    num_learners: int,
    seed: int,
    trained_at: float,
    duration_s: float,
    code_version: str,
) -> dict[str, Any]:
    """Write down one training as plain JSON values.

    Args:
        rows: Exactly the rows that were trained on, held-out ones already taken away.
        parent_version: The version that training went on from.
        after_seq: The parent's cut-off; the rows come from the sequence numbers after it.
        last_seq: The last sequence number read.
        holdout_share: Share of prompts that was held out.
        max_tenant_share: Share of the rows that one tenant could give.
        num_learners: Remote learners that shared the steps, 0 for none.
        seed: What the learner's draws came from.
        trained_at: When, seconds since the epoch, UTC.
        duration_s: How long the update took, seconds.
        code_version: As `code_version` says.
    """
    return {
        "parent_version": parent_version,
        "first_seq": after_seq + 1,
        "last_seq": last_seq,
        "rows": len(rows),
        "rows_sha256": hashlib.sha256(canonical_rows(rows)).hexdigest(),
        "holdout_share": holdout_share,
        "max_tenant_share": max_tenant_share,
        "num_learners": num_learners,
        "seed": seed,
        "trained_at": datetime.fromtimestamp(trained_at, tz=UTC).isoformat(timespec="milliseconds"),
        "duration_s": round(duration_s, 3),
        "code_version": code_version,
    }


def code_version(root: Path) -> str:
    """Name the code that runs: the distribution's version, and the commit of a git checkout.

    Args:
        root: Folder that holds the packages; a checkout has its `.git` there.
    """
    try:
        release = version(DISTRIBUTION)
    except PackageNotFoundError:
        release = "0+uninstalled"
    commit = _commit(root / ".git")
    return release if commit is None else f"{release} {commit[:SHORT_SHA]}"


def _commit(git: Path) -> str | None:
    """Read the commit that is checked out; None outside a checkout or where it is packed away."""
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        return (git / head.removeprefix("ref: ")).read_text().strip()
    except OSError:
        return None
