"""Arms and prices: what they cost, which are offered, and how a table changes."""

from __future__ import annotations

import math

import pytest

from policies.arms import Arm, PriceTable, patched
from policies.errors import InvalidArm, NoEligibleArm, UnknownArm

SMALL = Arm(name="small", input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)
LARGE = Arm(name="large", input_usd_per_mtok=10.0, output_usd_per_mtok=40.0)
TABLE = PriceTable(version=3, arms=(SMALL, LARGE))


def test_a_call_is_priced_by_its_tokens() -> None:
    assert SMALL.cost_usd(tokens_in=1e6, tokens_out=5e5) == pytest.approx(2.0)
    per_call = Arm(name="flat", usd_per_call=0.25)
    assert per_call.cost_usd(tokens_in=1e9, tokens_out=1e9) == 0.25


def test_the_list_cost_goes_by_the_prompts_length() -> None:
    expected = SMALL.cost_usd(tokens_in=1000, tokens_out=SMALL.typical_output_tokens)
    assert SMALL.list_cost_usd(4000) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "x" * 201),
        ("name", "a\nb"),
        ("input_usd_per_mtok", -1.0),
        ("output_usd_per_mtok", math.nan),
        ("usd_per_call", math.inf),
        ("typical_output_tokens", -1),
    ],
)
def test_an_arm_that_could_not_be_logged_or_priced_is_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidArm) as refused:
        patched(SMALL, {field: value})
    assert refused.value.field == field


def test_a_name_stands_once() -> None:
    with pytest.raises(InvalidArm, match="twice"):
        PriceTable(version=1, arms=(SMALL, SMALL))


def test_all_arms_are_offered_in_the_order_of_their_names() -> None:
    assert [arm.name for arm in TABLE.offered()] == ["large", "small"]


def test_an_allow_list_keeps_the_tables_order() -> None:
    assert TABLE.offered(allow=["small", "large", "small"]) == TABLE.arms
    assert TABLE.offered(allow=["small"]) == (SMALL,)


def test_a_cost_limit_goes_by_list_prices() -> None:
    limit = SMALL.list_cost_usd(100)
    assert TABLE.offered(max_cost_usd=limit, prompt_characters=100) == (SMALL,)


def test_what_leaves_nothing_names_the_limit() -> None:
    with pytest.raises(NoEligibleArm) as refused:
        TABLE.offered(max_cost_usd=0.0)
    assert refused.value.field == "max_cost_usd"
    with pytest.raises(UnknownArm, match="medium"):
        TABLE.offered(allow=["medium"])


def test_every_change_is_a_new_table() -> None:
    cheaper = TABLE.with_arm(patched(LARGE, {"usd_per_call": 0.1}), version=4)
    assert cheaper.arm("large").usd_per_call == 0.1
    assert TABLE.arm("large").usd_per_call == 0.0
    assert cheaper.without("large", version=5).names == ("small",)
    with pytest.raises(UnknownArm):
        TABLE.without("medium", version=4)


def test_a_table_survives_json() -> None:
    assert PriceTable.from_json(TABLE.to_json()) == TABLE
