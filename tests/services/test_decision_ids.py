"""Decision ids: only what was issued, to whom it was issued."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import UnknownDecision
from services.decision_ids import DecisionIds

IDS = DecisionIds(b"s" * 32)


@given(tenant=st.text())
def test_what_was_issued_is_accepted_for_its_tenant(tenant: str) -> None:
    decision_id = IDS.issue(tenant)
    IDS.verify(decision_id, tenant)
    with pytest.raises(UnknownDecision):
        IDS.verify(decision_id, tenant + "x")
    with pytest.raises(UnknownDecision):
        DecisionIds(b"t" * 32).verify(decision_id, tenant)


@given(
    position=st.integers(min_value=0, max_value=52),
    character=st.characters(),
)
def test_an_id_changed_anywhere_is_unknown(position: int, character: str) -> None:
    decision_id = IDS.issue("default")
    forged = decision_id[:position] + character + decision_id[position + 1 :]
    if forged != decision_id:
        with pytest.raises(UnknownDecision):
            IDS.verify(forged, "default")


@given(forged=st.text())
def test_any_other_text_is_unknown(forged: str) -> None:
    with pytest.raises(UnknownDecision):
        IDS.verify(forged, "default")


def test_name_and_tenant_do_not_run_into_each_other() -> None:
    name, _, tag = IDS.issue("tenant").partition(".")
    with pytest.raises(UnknownDecision):
        IDS.verify(f"{name[:-1]}.{tag}", name[-1] + "tenant")


def test_ids_are_uuid7_and_sort_by_time() -> None:
    ids = [IDS.issue("default") for _ in range(100)]
    assert sorted(ids) == ids
    assert {uuid.UUID(one.partition(".")[0]).version for one in ids} == {7}


def test_prompt_hash_is_salted_and_repeatable() -> None:
    prompt = "what is 2 + 2? \ud800"
    assert IDS.prompt_hash(prompt) == IDS.prompt_hash(prompt)
    assert IDS.prompt_hash(prompt) != DecisionIds(b"t" * 32).prompt_hash(prompt)
    assert IDS.prompt_hash(prompt) != IDS.prompt_hash(prompt + " ")


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        DecisionIds(b"short")


def test_a_retired_secret_verifies_and_no_longer_signs() -> None:
    old, new = DecisionIds(b"s" * 32), DecisionIds(b"t" * 32, retired=[b"s" * 32])
    new.verify(old.issue("acme"), "acme")
    new.verify(new.issue("acme"), "acme")
    with pytest.raises(UnknownDecision):
        new.verify(old.issue("acme"), "other")
    with pytest.raises(UnknownDecision):
        old.verify(new.issue("acme"), "acme")
