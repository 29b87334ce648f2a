"""A replay's plan: which prompt comes when, at which preference, and what its outcome does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.replay_plan import plan_requests


@settings(max_examples=50, deadline=None)
@given(
    num_rows=st.integers(1, 30),
    num_requests=st.integers(1, 100),
    preferences=st.sampled_from(["uniform", "typical"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_plan_is_its_seed(num_rows: int, num_requests: int, preferences: Any, seed: int) -> None:
    """Same seed same plan; every row comes before any comes again."""
    options: dict[str, Any] = {
        "preferences": preferences,
        "delay_s": (0.5, 1.5),
        "missing_share": 0.1,
        "duplicate_share": 0.1,
        "seed": seed,
    }
    plan = plan_requests(num_rows, num_requests, **options)

    assert plan == plan_requests(num_rows, num_requests, **options)
    assert [request.number for request in plan] == list(range(num_requests))
    assert all(0.0 <= request.w_quality <= 1.0 for request in plan)
    assert all(0.5 <= request.delay_s <= 1.5 for request in plan)
    uses = Counter(request.row for request in plan)
    assert max(uses.values()) - min(uses[row] for row in range(num_rows)) <= 1


def test_most_callers_of_the_typical_stream_keep_the_default() -> None:
    """Seven in ten, the others anywhere."""
    plan = plan_requests(
        1000,
        1000,
        preferences="typical",
        delay_s=(0.0, 0.0),
        missing_share=0.0,
        duplicate_share=0.0,
        seed=1,
    )
    default = sum(request.w_quality == 0.7 for request in plan)
    # Four standard deviations of a binomial around 700.
    assert abs(default - 700) < 4 * np.sqrt(1000 * 0.7 * 0.3)
