"""Recorded outcomes are read from three layouts, and refused by file and column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from pipelines.outcomes import (
    BadOutcomeFile,
    OutcomeTable,
    arms_with_prices,
    load_outcomes,
    load_paretobandit,
)

WIDE = {
    "sample_id": ["a", "b"],
    "dataset": ["sums", "words"],
    "prompt": ["2 + 2?", "Plural of ox?"],
    "score:meta/small-1.0": [1.0, 0.0],
    "cost:meta/small-1.0": [0.001, 0.003],
    "score:big": [1.0, 0.5],
    "cost:big": [0.02, 0.04],
}

ROUTERBENCH = {
    "sample_id": ["sums.test.1", "words.test.2"],
    "prompt": ["['2 + 2?', 'Answer:']", "Plural of ox?\nAnswer:"],
    "eval_name": ["sums", "words"],
    "meta/small-1.0": [1.0, 0.0],
    "big": [1.0, 0.5],
    "big|model_response": ["['4']", "['oxen']"],
    "meta/small-1.0|model_response": ["['4']", "['oxes']"],
    "big|total_cost": [0.02, 0.04],
    "meta/small-1.0|total_cost": [0.001, 0.003],
    "oracle_model_to_route_to": ["meta/small-1.0", "big"],
}


def wide_file(folder: Path, **changes: object) -> str:
    """Write a wide Parquet file; a column changed to None is left out."""
    columns = {name: values for name, values in (WIDE | changes).items() if values is not None}
    path = folder / "outcomes.parquet"
    pyarrow.parquet.write_table(pa.table(columns), path)
    return str(path)


def routerbench_file(folder: Path, **changes: object) -> str:
    """Write a CSV file as RouterBench does; a column changed to None is left out."""
    columns = {n: values for n, values in (ROUTERBENCH | changes).items() if values is not None}
    path = folder / "outcomes.csv"
    pyarrow.csv.write_csv(pa.table(columns), path)
    return str(path)


def test_wide_parquet_is_read(tmp_path: Path) -> None:
    """Model names keep everything after the first colon."""
    table = load_outcomes(wide_file(tmp_path))

    assert table.arms == ("meta/small-1.0", "big")
    assert table.prompts == ("2 + 2?", "Plural of ox?")
    assert table.datasets == ("sums", "words")
    assert table.sample_ids == ("a", "b")
    np.testing.assert_array_equal(table.scores, [[1.0, 1.0], [0.0, 0.5]])
    np.testing.assert_array_equal(table.costs, [[0.001, 0.02], [0.003, 0.04]])
    assert table.tokens_out is None


def test_question_stands_in_for_the_prompt(tmp_path: Path) -> None:
    """Few-shot examples in front of every prompt would make all of them look alike."""
    table = load_outcomes(wide_file(tmp_path, question=["2 + 2", "ox"]))
    assert table.prompts == ("2 + 2", "ox")


def test_answer_tokens_are_read_where_every_model_has_them(tmp_path: Path) -> None:
    """A token count may be missing: it is NaN then, and the row stays."""
    tokens = {"tokens_out:meta/small-1.0": [5, None], "tokens_out:big": [7, 9]}
    table = load_outcomes(wide_file(tmp_path, **tokens))

    assert table.tokens_out is not None
    np.testing.assert_array_equal(table.tokens_out, [[5.0, 7.0], [np.nan, 9.0]])


def test_routerbench_csv_is_read(tmp_path: Path) -> None:
    """A prompt that is a list of texts is joined; one that holds line ends stays one row."""
    table = load_outcomes(routerbench_file(tmp_path))

    assert sorted(table.arms) == ["big", "meta/small-1.0"]
    assert table.prompts == ("2 + 2?\nAnswer:", "Plural of ox?\nAnswer:")
    big = table.arms.index("big")
    np.testing.assert_array_equal(table.scores[:, big], [1.0, 0.5])
    np.testing.assert_array_equal(table.costs[:, big], [0.02, 0.04])


def test_both_layouts_hold_the_same_outcomes(tmp_path: Path) -> None:
    """What a model scored and cost does not depend on how it was written down."""
    wide = load_outcomes(wide_file(tmp_path))
    routerbench = load_outcomes(routerbench_file(tmp_path))

    order = [routerbench.arms.index(arm) for arm in wide.arms]
    np.testing.assert_array_equal(routerbench.scores[:, order], wide.scores)
    np.testing.assert_array_equal(routerbench.costs[:, order], wide.costs)


def test_rows_without_every_outcome_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said how many, since a replay of them could not answer."""
    table = load_outcomes(wide_file(tmp_path, **{"score:big": [None, 0.5]}))

    assert table.sample_ids == ("b",)
    assert "1 rows lack a score or a cost" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost:big": None}, "column 'cost:big' is missing"),
        ({"prompt": None}, "column 'prompt' is missing"),
        ({"dataset": None}, "column 'dataset' is missing"),
        ({"score:big": [1.0, 1.7]}, "column 'score:big' holds 1.7"),
        ({"cost:big": [-0.1, 0.0]}, "column 'cost:big' holds -0.1"),
        ({"cost:big": [float("inf"), 0.0]}, "column 'cost:big' holds inf"),
        ({"score:big": ["good", "bad"]}, "column 'score:big' holds no numbers"),
        ({"score:big": [None, 0.5], "cost:big": [0.1, None]}, "no row has every score"),
        ({"score:big": None, "score:meta/small-1.0": None}, "no column with a model's score"),
    ],
)
def test_a_bad_parquet_is_refused_by_file_and_column(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """The message alone is enough to mend the file."""
    with pytest.raises(BadOutcomeFile, match=message) as caught:
        load_outcomes(wide_file(tmp_path, **changes))
    assert "outcomes.parquet" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"big": None}, "column 'big' is missing"),
        ({"eval_name": None}, "column 'eval_name' is missing"),
        ({"big": ["yes", "no"]}, "column 'big' holds no numbers"),
        ({"big|total_cost": [-1.0, 0.0]}, r"column 'big\|total_cost' holds -1.0"),
    ],
)
def test_a_bad_csv_is_refused_by_file_and_column(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """As for Parquet."""
    with pytest.raises(BadOutcomeFile, match=message) as caught:
        load_outcomes(routerbench_file(tmp_path, **changes))
    assert "outcomes.csv" in str(caught.value)


@pytest.mark.parametrize("name", ["missing.parquet", "missing.csv", "outcomes.jsonl", "routerbank"])
def test_an_unknown_source_is_refused(tmp_path: Path, name: str) -> None:
    """No such file, or no layout we know."""
    with pytest.raises(BadOutcomeFile, match=name):
        load_outcomes(str(tmp_path / name))


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    """Whatever the suffix says."""
    path = tmp_path / "outcomes.parquet"
    path.write_text("not a table")
    with pytest.raises(BadOutcomeFile, match="cannot be read as Parquet"):
        load_outcomes(str(path))


def test_the_built_in_outcomes_are_complete() -> None:
    """Three models on every prompt, with nothing to download; the two parts share no prompt."""
    validation, holdout = load_outcomes("paretobandit"), load_paretobandit("test_holdout")

    assert len(validation.arms) == 3
    assert validation.scores.shape == validation.costs.shape == (len(validation), 3)
    assert not np.isnan(validation.scores).any()
    assert not set(validation.prompts) & set(holdout.prompts)


def test_a_models_list_price_is_its_mean_cost(tmp_path: Path) -> None:
    """So the mask of a request with a cost limit is what it would be in production."""
    arms = arms_with_prices(load_outcomes(wide_file(tmp_path)))
    assert [arm.name for arm in arms] == ["meta/small-1.0", "big"]
    assert [arm.usd_per_call for arm in arms] == pytest.approx([0.002, 0.03])


def test_taking_rows_keeps_columns_together(tmp_path: Path) -> None:
    """In the order asked for, repeats allowed."""
    table = load_outcomes(wide_file(tmp_path))
    taken = table.take([1, 0, 1])

    assert taken.sample_ids == ("b", "a", "b")
    np.testing.assert_array_equal(taken.scores, table.scores[[1, 0, 1]])
    assert len(taken) == 3


def test_columns_that_do_not_fit_are_refused() -> None:
    """A table built by hand is checked as well."""
    with pytest.raises(BadOutcomeFile, match="several lengths"):
        OutcomeTable(
            sample_ids=("a",),
            datasets=("sums",),
            prompts=("2 + 2?",),
            arms=("big",),
            scores=np.zeros((2, 1)),
            costs=np.zeros((1, 1)),
        )
