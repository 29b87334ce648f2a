"""The draw: several pmfs at once give what each gives alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from policies.policy import sample, sample_rows


@given(
    weights=arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 6), st.integers(1, 12)),
        elements=st.floats(0.01, 1.0),
    ),
    uniform=st.floats(0.0, 1.0, exclude_max=True),
)
def test_rows_are_sampled_as_they_are_one_by_one(weights: np.ndarray, uniform: float) -> None:
    probs = weights / weights.sum(axis=1, keepdims=True)
    uniforms = (uniform + np.arange(len(probs)) / len(probs)) % 1.0
    alone = [sample(row, uniform=u) for row, u in zip(probs, uniforms, strict=True)]
    assert sample_rows(probs, uniforms=uniforms).tolist() == alone
