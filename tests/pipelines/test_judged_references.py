"""Simple rules beside a challenger: what they earn, and that they see no answer beforehand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from made_evidence import evidence

from pipelines.evidence import Evidence
from pipelines.judged_references import judged_references


def by_prompt(*, n: int = 4_000, seed: int = 0) -> Evidence:
    """A world in which the sign of the first feature says which of two models is right."""
    rng = np.random.default_rng(seed)
    found = evidence(gain=0.0, n=n, seed=seed)
    even = np.full((n, 2), 0.5)
    arm = rng.integers(0, 2, size=n)
    right = (found.log.contexts[:, 0] > 0.0).astype(np.int64) == arm
    quality = np.where(right, 0.9, 0.1) + rng.normal(scale=0.1, size=n)
    log = replace(
        found.log,
        arm=arm,
        propensity=np.full(n, 0.5),
        outcomes=np.stack([quality, np.full(n, -0.5)], axis=1),
    )
    return replace(found, log=log, champion=even, challenger=even)


def test_neighbours_find_what_depends_on_the_prompt_and_a_single_model_does_not() -> None:
    """Right always is worth 0.4 of quality more than right every other time."""
    found = by_prompt()
    worth = judged_references(found)
    truth = 0.4 * float(found.w_quality.mean())
    assert abs(worth["knn"].mean - truth) < 0.03
    assert worth["best_single"].lower < 0.0 < worth["best_single"].upper


def test_the_best_single_model_is_found_where_one_is_best() -> None:
    """The champion takes the worse model with 0.98; always the better one is worth 0.196 more."""
    worth = judged_references(evidence(gain=0.1, n=4_000, share=0.5))
    for name in ("best_single", "knn"):
        assert worth[name].lower < 0.196 < worth[name].upper
        assert worth[name].lower > 0.0


def test_outcomes_of_chance_are_not_taken_for_skill() -> None:
    """Where no model is better whatever the prompt, no rule earns anything."""
    worth = judged_references(evidence(gain=0.0, n=3_000, share=0.5, seed=3))
    for one in worth.values():
        assert one.lower < 0.0 < one.upper


def test_only_the_newest_decisions_are_looked_at() -> None:
    assert judged_references(by_prompt(n=6_000))["knn"].n == 5_000


def test_a_model_that_is_not_offered_is_not_taken() -> None:
    found = evidence(gain=0.1, n=1_000, share=0.5)
    alone = np.tile([1.0, 0.0], (1_000, 1))
    only = replace(
        found,
        log=replace(found.log, arm=np.zeros(1_000, dtype=np.int64), propensity=np.ones(1_000)),
        champion=alone,
        challenger=alone,
    )
    assert {one.mean for one in judged_references(only).values()} == {0.0}
