"""Recorded outcomes for tests: real ones of a package, with contexts that are cheap to make."""

from __future__ import annotations

import numpy as np

from pipelines.outcomes import OutcomeTable, load_outcomes
from pipelines.quality import EncodedOutcomes


def some_outcomes(num: int, *, seed: int = 0) -> EncodedOutcomes:
    """Take real prompts of three models; their contexts tell the task, with noise."""
    table = load_outcomes("paretobandit")
    rng = np.random.default_rng(seed)
    names = sorted(set(table.datasets))
    table = table.take(rng.permutation(len(table))[:num])
    shown = np.eye(len(names))[[names.index(name) for name in table.datasets]]
    contexts = shown + rng.normal(scale=0.3, size=shown.shape)
    return EncodedOutcomes(table=table, contexts=contexts.astype(np.float32), encoder_id="e")


def a_table(num: int = 6) -> OutcomeTable:
    """Make outcomes of two models on two tasks: the dear one is better on the second."""
    second = np.arange(num) % 2
    return OutcomeTable(
        sample_ids=tuple(f"s{i}" for i in range(num)),
        datasets=tuple(("one", "two")[i] for i in second),
        prompts=tuple(f"prompt {i}" for i in range(num)),
        arms=("cheap", "dear"),
        scores=np.stack([1.0 - second, second.astype(np.float64)], axis=1),
        costs=np.tile([0.001, 0.003], (num, 1)),
    )
