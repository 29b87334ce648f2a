"""Which aggregator a decision goes to: always the same one, and no one more than its share."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.sharding import MAX_SHARDS, SLOTS, shard_of, slot_of
from services.decision_ids import DecisionIds


@given(st.text(), st.integers(1, MAX_SHARDS))
def test_any_id_has_a_slot_and_a_shard(decision_id: str, shards: int) -> None:
    assert 0 <= slot_of(decision_id) < SLOTS
    assert 0 <= shard_of(decision_id, shards) < shards


@pytest.mark.parametrize("shards", [2, 3, 16])
def test_real_ids_spread_evenly(shards: int) -> None:
    """Five standard deviations of a fair draw, and the slots that do not divide evenly."""
    issuer, number = DecisionIds(bytes(32)), 20_000
    counts = Counter(shard_of(issuer.issue("t"), shards) for _ in range(number))
    assert len(counts) == shards
    most = -(-SLOTS // shards) / SLOTS
    assert max(counts.values()) < number * most + 5 * (number * most) ** 0.5
