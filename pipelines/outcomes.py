"""Recorded outcomes: what every model's answer to every prompt was worth, and what it cost.

Read from the package `paretobandit`, from a wide Parquet file or from RouterBench's own CSV. Knows
nothing of who uses them: replay plays them as live traffic, benchmarks score policies on them.
"""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from policies.arms import Arm
from policies.errors import RouterError

BUILT_IN: Final = "paretobandit"
SCORE_PREFIX: Final = "score:"
COST_PREFIX: Final = "cost:"
TOKENS_OUT_PREFIX: Final = "tokens_out:"
ROUTERBENCH_COST_SUFFIX: Final = "|total_cost"

# Columns by the name they have in their file, so that an error can say it.
Columns = Mapping[str, pa.ChunkedArray]

logger = logging.getLogger(__name__)


class BadOutcomeFile(RouterError, ValueError):
    """A file of outcomes that is missing, of another layout, or holds what cannot be true."""

    code = "bad_outcome_file"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeTable:
    """What each of K models scored and cost on each of n prompts; none is missing.

    Attributes:
        sample_ids: One id a prompt, shape (n,).
        datasets: The task each prompt belongs to, shape (n,).
        prompts: Texts to embed and route on, shape (n,).
        arms: Model names, shape (K,).
        scores: Quality in [0, 1], float64, shape (n, K).
        costs: What the call cost, USD, float64, shape (n, K).
        tokens_out: Answer tokens, float64, shape (n, K), NaN where unknown; None where the source
            says nothing of them.
    """

    sample_ids: tuple[str, ...]
    datasets: tuple[str, ...]
    prompts: tuple[str, ...]
    arms: tuple[str, ...]
    scores: NDArray[np.float64]
    costs: NDArray[np.float64]
    tokens_out: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Refuse columns that do not fit together; raises BadOutcomeFile."""
        shape = (len(self.prompts), len(self.arms))
        fits = len(self.sample_ids) == len(self.datasets) == len(self.prompts)
        if not (fits and self.scores.shape == self.costs.shape == shape):
            raise BadOutcomeFile(f"columns of several lengths; expected {shape} scores and costs")
        if 0 in shape or len(set(self.arms)) != len(self.arms):
            raise BadOutcomeFile("at least one prompt and one model are needed, each model once")

    def __len__(self) -> int:
        """Count the prompts."""
        return len(self.prompts)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> OutcomeTable:
        """Keep some rows, in the order given."""
        rows = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            sample_ids=tuple(self.sample_ids[row] for row in rows),
            datasets=tuple(self.datasets[row] for row in rows),
            prompts=tuple(self.prompts[row] for row in rows),
            scores=self.scores[rows],
            costs=self.costs[rows],
            tokens_out=None if self.tokens_out is None else self.tokens_out[rows],
        )


def arms_with_prices(table: OutcomeTable) -> tuple[Arm, ...]:
    """List the table's models as arms; each one's mean recorded cost serves as its list price."""
    means = table.costs.mean(axis=0)
    return tuple(
        Arm(name=name, usd_per_call=float(mean))
        for name, mean in zip(table.arms, means, strict=True)
    )


def load_outcomes(source: str) -> OutcomeTable:
    """Read outcomes from wherever `source` names.

    Args:
        source: `paretobandit` (its validation part), a wide `.parquet` file, or a `.csv` file in
            RouterBench's layout.

    Raises:
        BadOutcomeFile: No such source, or not of its layout; names file and column.
    """
    if source == BUILT_IN:
        return load_paretobandit()
    path = Path(source)
    if path.suffix.lower() == ".parquet":
        return load_wide_parquet(path)
    if path.suffix.lower() == ".csv":
        return load_routerbench_csv(path)
    allowed = f"{BUILT_IN}, *.parquet, *.csv"
    raise BadOutcomeFile(f"{source}: must be {allowed}", value=source, allowed=allowed)


def load_paretobandit(part: Literal["val", "test_holdout"] = "val") -> OutcomeTable:
    """Read the outcomes of three models that the package `paretobandit` ships.

    Args:
        part: `val` for demo, tests and tuning; `test_holdout` only to report on.

    Raises:
        BadOutcomeFile: The package is not installed.
    """
    # Found, not imported: the package brings scikit-learn along, four seconds of it.
    package = find_spec("pareto_bandit")
    if package is None or package.origin is None:
        raise BadOutcomeFile(f"{BUILT_IN} is not installed", value=BUILT_IN)
    path = Path(package.origin).parent / "data" / "examples" / f"{part}.jsonl"
    # By the line feed alone: prompts hold other characters that count as line ends in Python.
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    arms = tuple(rows[0]["arms"])

    def recorded(key: str) -> Columns:
        return {
            arm: pa.chunked_array([[row["arms"][arm][key] for row in rows]], pa.float64())
            for arm in arms
        }

    return _table(
        str(path),
        sample_ids=[f"{part}-{number}" for number in range(len(rows))],
        datasets=[row["source"] for row in rows],
        prompts=[row["prompt"] for row in rows],
        arms=arms,
        scores=recorded("reward"),
        costs=recorded("cost"),
    )


def load_wide_parquet(path: Path) -> OutcomeTable:
    """Read a Parquet file with one row a prompt and `score:<model>`, `cost:<model>` columns.

    The text is `question` where there is such a column, else `prompt`: a question without the
    few-shot examples that stand in front of all of them is what tells prompts apart.

    Raises:
        BadOutcomeFile: The file is missing or no Parquet, a column is missing or out of range.
    """
    try:
        rows = pyarrow.parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise BadOutcomeFile(f"{path}: cannot be read as Parquet: {error}", value=path) from error
    names = rows.column_names
    scores = [name for name in names if name.startswith(SCORE_PREFIX)]
    arms = tuple(name.removeprefix(SCORE_PREFIX) for name in scores)
    costs = [COST_PREFIX + arm for arm in arms]
    tokens_out = [TOKENS_OUT_PREFIX + arm for arm in arms]
    text = "question" if "question" in names else "prompt"
    return _table(
        str(path),
        sample_ids=_texts(path, rows, "sample_id"),
        datasets=_texts(path, rows, "dataset"),
        prompts=_texts(path, rows, text),
        arms=arms,
        scores=_columns(path, rows, scores),
        costs=_columns(path, rows, costs),
        tokens_out=_columns(path, rows, tokens_out) if set(tokens_out) <= set(names) else None,
    )


def load_routerbench_csv(path: Path) -> OutcomeTable:
    """Read RouterBench's own layout (arXiv 2403.12031): a score column named as its model.

    Its columns are `sample_id`, `prompt`, `eval_name`, `<model>`, `<model>|model_response`,
    `<model>|total_cost`, `oracle_model_to_route_to`; a prompt is the text of a Python list.

    Raises:
        BadOutcomeFile: The file is missing or no CSV, a column is missing or out of range.
    """
    texts = {name: pa.string() for name in ("sample_id", "prompt", "eval_name")}
    try:
        rows = pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=texts),
        )
    except (OSError, pa.ArrowInvalid) as error:
        raise BadOutcomeFile(f"{path}: cannot be read as CSV: {error}", value=path) from error
    costs = [name for name in rows.column_names if name.endswith(ROUTERBENCH_COST_SUFFIX)]
    arms = tuple(name.removesuffix(ROUTERBENCH_COST_SUFFIX) for name in costs)
    return _table(
        str(path),
        sample_ids=_texts(path, rows, "sample_id"),
        datasets=_texts(path, rows, "eval_name"),
        prompts=[_listed_text(text) for text in _texts(path, rows, "prompt")],
        arms=arms,
        scores=_columns(path, rows, arms),
        costs=_columns(path, rows, costs),
    )


def _table(
    source: str,
    *,
    sample_ids: Sequence[str],
    datasets: Sequence[str],
    prompts: Sequence[str],
    arms: tuple[str, ...],
    scores: Columns,
    costs: Columns,
    tokens_out: Columns | None = None,
) -> OutcomeTable:
    """Check the columns and lay them out; rows that lack a score or a cost are left out."""
    if not (arms and prompts):
        raise BadOutcomeFile(f"{source}: no row, or no column with a model's score", value=source)
    table = OutcomeTable(
        sample_ids=tuple(sample_ids),
        datasets=tuple(datasets),
        prompts=tuple(prompts),
        arms=arms,
        scores=_matrix(source, scores, highest=1.0),
        costs=_matrix(source, costs, highest=np.inf),
        tokens_out=None if tokens_out is None else _matrix(source, tokens_out, highest=np.inf),
    )
    complete = np.flatnonzero(~np.isnan(table.scores + table.costs).any(axis=1))
    if len(complete) == len(table):
        return table
    logger.warning("%s: %d rows lack a score or a cost", source, len(table) - len(complete))
    if len(complete) == 0:
        raise BadOutcomeFile(f"{source}: no row has every score and cost", value=source)
    return table.take(complete)


def _matrix(source: str, columns: Columns, *, highest: float) -> NDArray[np.float64]:
    """Lay columns side by side, values in [0, highest] or missing (NaN), shape (n, K)."""
    read = []
    for name, column in columns.items():
        try:
            values = column.cast(pa.float64()).to_numpy()
        except pa.ArrowException as error:
            raise _bad_column(source, name, f"holds no numbers: {error}") from error
        wrong = values[(values < 0) | (values > highest) | np.isinf(values)]
        if len(wrong):
            raise _bad_column(source, name, f"holds {wrong[0]}, must be in [0, {highest}]")
        read.append(values)
    return np.stack(read, axis=1)


def _columns(path: Path, rows: pa.Table, names: Sequence[str]) -> Columns:
    """Pick columns by name, in that order; raises BadOutcomeFile where one is missing."""
    for name in [name for name in names if name not in rows.column_names]:
        raise _bad_column(str(path), name, "is missing")
    return {name: rows[name] for name in names}


def _bad_column(source: str, column: str, what: str) -> BadOutcomeFile:
    """Name file and column."""
    return BadOutcomeFile(f"{source}: column {column!r} {what}", field=column, value=source)


def _texts(path: Path, rows: pa.Table, name: str) -> list[str]:
    """Read a column as text; ids may be numbers."""
    values = _columns(path, rows, [name])[name].to_pylist()
    return ["" if value is None else str(value) for value in values]


def _listed_text(text: str) -> str:
    """Join the strings of a list that was written as Python text; other text stays as it is.

    >>> _listed_text("['What is 2 + 2?']"), _listed_text("What is 3 + 3?")
    ('What is 2 + 2?', 'What is 3 + 3?')
    """
    try:
        parts = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if isinstance(parts, list) and all(isinstance(part, str) for part in parts):
        return "\n".join(parts)
    return text
