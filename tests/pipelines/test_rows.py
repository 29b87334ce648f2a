"""What is trained on and what is held out, page by page."""

from __future__ import annotations

import pyarrow as pa
from interactions import Interactions

from pipelines.rows import HeldOut, read_rows, split_rows
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
