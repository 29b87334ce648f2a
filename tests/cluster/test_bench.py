"""`barp bench` and `barp encoder`: one JSON object, one line for a refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from encoders import small_static_encoder
from outcome_tables import some_outcomes
from typer.testing import CliRunner

from cluster import cli
from cluster.cli import app


@pytest.fixture
def outcomes_file(tmp_path: Path) -> Path:
    """Eighty real prompts as a wide Parquet file."""
    table = some_outcomes(80).table
    columns = {
        "sample_id": list(table.sample_ids),
        "dataset": list(table.datasets),
        "prompt": list(table.prompts),
    }
    for number, arm in enumerate(table.arms):
        columns[f"score:{arm}"] = table.scores[:, number].tolist()
        columns[f"cost:{arm}"] = table.costs[:, number].tolist()
    path = tmp_path / "outcomes.parquet"
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def test_bench_quality_prints_one_object_and_draws(outcomes_file: Path, tmp_path: Path) -> None:
    encoder = small_static_encoder(tmp_path / "encoder")
    arguments = ["bench", "quality", "--train", str(outcomes_file), "--encoder", str(encoder)]
    arguments += ["--seeds", "1", "--learners", "posterior", "--references", "simple", "--json"]
    arguments += ["--perturb", "typos,reworded", "--set", "posterior.components=4"]
    arguments += ["--plots", str(tmp_path / "plots"), "--cache-dir", str(tmp_path / "cache")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["data"], found["n_train"], found["n_test"]) == (str(outcomes_file), 64, 16)
    assert set(found["learners"]["posterior"]["perturbed"]) == {"typos", "reworded"}
    assert found["settings"] == ["posterior.components=4"]
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "frontier.png",
        "arm-share-posterior.png",
        "regret.png",
    }


def test_bench_coverage_prints_one_object(outcomes_file: Path, tmp_path: Path) -> None:
    encoder = small_static_encoder(tmp_path / "encoder")
    arguments = ["bench", "coverage", "--train", str(outcomes_file), "--encoder", str(encoder)]
    arguments += ["--repetitions", "2", "--rows", "50", "--cache-dir", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["repetitions"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quality", "--seeds", "0"], "seeds=0 must be"),
        (["quality", "--learners", "magic", "--train", "FILE"], "learners=magic"),
        (["quality", "--train", "nowhere.parquet"], "nowhere.parquet"),
        (["quality", "--train", "FILE", "--perturb", "shouting"], "perturb=shouting"),
        (["quality", "--train", "FILE", "--set", "posterior.magic=1"], "set=posterior.magic"),
        (["quality", "--train", "FILE", "--encoder", "nothing"], "encoder=nothing"),
        (["coverage", "--explorations", "0.2,none"], "explorations=none"),
    ],
)
def test_a_refusal_is_one_line_and_exit_status_2(
    arguments: list[str],
    words: str,
    outcomes_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = str(small_static_encoder(tmp_path / "encoder"))
    given = [str(outcomes_file) if one == "FILE" else one for one in arguments]
    given += [] if "--encoder" in given else ["--encoder", encoder]
    with pytest.raises(SystemExit) as stopped:
        cli.run(["bench", *given, "--cache-dir", str(tmp_path / "cache")])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error ")
    assert words in lines[-1]


@pytest.mark.slow
def test_encoder_build_builds_and_registers(tmp_path: Path) -> None:
    arguments = ["encoder", "build", "--kind", "static", "--out", str(tmp_path / "encoder")]
    arguments += ["--register", "--state-dir", str(tmp_path / "state"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["kind"], found["context_dim"], found["version"]) == ("static", 256, 1)
