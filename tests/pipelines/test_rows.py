"""What is trained on and what is held out, page by page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from interactions import Interactions

from pipelines.rows import HeldOut, bounded_by_tenant, read_rows, split_rows
from policies.interaction import INTERACTION_SCHEMA, is_holdout


def test_held_out_prompts_are_never_trained_on() -> None:
    source = Interactions()
    source.happen(200)

    trained, heldout = split_rows(source.rows, share=0.3)

    assert len(trained) + len(heldout) == 200
    assert 30 < len(heldout) < 90
    for name in trained.column("prompt_hash").to_pylist():
        assert not is_holdout(name, 0.3)


def test_the_held_out_window_is_bounded_and_keeps_the_newest() -> None:
    source = Interactions()
    window = HeldOut(share=0.3, max_rows=20)
    for _ in range(3):
        source.happen(100)
        window.refresh(source)

    _, heldout = split_rows(source.rows, share=0.3)

    assert window.rows.column("seq").to_pylist() == heldout.column("seq").to_pylist()[-20:]


def test_a_corrected_outcome_replaces_the_one_held_out_before() -> None:
    source, window = Interactions(), HeldOut(share=0.999)
    source.happen(1)
    window.refresh(source)
    (first,) = source.rows.to_pylist()
    corrected = pa.Table.from_pylist(
        [first | {"seq": 2, "revision": 1, "quality": 0.25}], schema=INTERACTION_SCHEMA
    )
    source.rows = pa.concat_tables([source.rows, corrected])

    window.refresh(source)

    assert window.rows.column("quality").to_pylist() == [0.25]


def test_rows_are_read_in_pages_up_to_a_bound() -> None:
    source = Interactions()
    source.happen(30)

    assert read_rows(source, after_seq=10, up_to_seq=30).column("seq").to_pylist() == list(
        range(11, 31)
    )
    assert read_rows(source, after_seq=0, up_to_seq=30, max_rows=7).column(
        "seq"
    ).to_pylist() == list(range(1, 8))


def of_tenants(counts: Mapping[str, int]) -> pa.Table:
    """Rows of several tenants, in turn as they come."""
    source = Interactions()
    source.happen(sum(counts.values()))
    names = [name for name, count in counts.items() for _ in range(count)]
    column = pa.array(names, type=INTERACTION_SCHEMA.field("tenant").type)
    return source.rows.set_column(
        INTERACTION_SCHEMA.get_field_index("tenant"), INTERACTION_SCHEMA.field("tenant"), column
    )


def test_one_tenant_alone_is_not_bounded_and_a_share_of_one_bounds_nobody() -> None:
    alone, two = of_tenants({"a": 20}), of_tenants({"a": 19, "b": 1})
    assert bounded_by_tenant(alone, max_share=0.1).equals(alone)
    assert bounded_by_tenant(two, max_share=1.0).equals(two)


@given(
    counts=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 30), min_size=2),
    share=st.floats(0.05, 0.95),
)
def test_no_tenant_gives_more_than_its_share(counts: dict[str, int], share: float) -> None:
    rows = of_tenants(counts)
    bounded = bounded_by_tenant(rows, max_share=share)

    kept = Counter(bounded.column("tenant").to_pylist())
    assert set(kept) == set(counts)
    assert max(kept.values()) <= max(share, 1 / len(counts)) * len(bounded) + 1e-6
    seqs = bounded.column("seq").to_pylist()
    assert seqs == sorted(seqs)
    # Only who is at the cap has lost anything, and a cap of one more would break the bound.
    most = max(kept.values())
    assert all(kept[name] == min(count, most) for name, count in counts.items())
    if most < max(counts.values()):
        more = [min(count, most + 1) for count in counts.values()]
        assert most + 1 > max(share, 1 / len(counts)) * sum(more) - 1e-6
    assert bounded_by_tenant(rows, max_share=share).equals(bounded)


def test_of_a_corrected_decision_only_the_latest_revision_is_trained_on() -> None:
    source = Interactions()
    source.happen(3)
    first, *others = source.rows.to_pylist()
    corrected = first | {"seq": 4, "revision": 1, "quality": 0.25}
    rows = pa.Table.from_pylist([first, *others, corrected], schema=INTERACTION_SCHEMA)

    trained, _ = split_rows(rows, share=1e-9)

    assert trained.column("seq").to_pylist() == [2, 3, 4]
