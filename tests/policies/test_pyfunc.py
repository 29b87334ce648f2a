"""The version in MLflow's format: a table of requests in, a table of probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from encoders import small_static_encoder
from experiences import a_spec, some_arms

from policies.arms import PriceTable
from policies.artifact import PolicyArtifact
from policies.encoder import load_encoder
from policies.errors import EncoderMismatch, InvalidPreference, InvalidRequest
from policies.learners import load_policy
from policies.posterior_learner import PosteriorLearner
from policies.preference import Preference
from policies.pyfunc import _load_pyfunc, arms_of

ARMS = some_arms(0.001, 0.009)
ARTIFACT = PosteriorLearner().initial(a_spec(ARMS))


def _requests(**columns: Sequence[object]) -> pd.DataFrame:
    """Make two requests, the second all quality."""
    return pd.DataFrame({"quality": [1.0, 1.0], "cost": [1.0, 0.0], **columns}, index=[7, 9])


def test_it_answers_with_the_policys_pmf(tmp_path: Path) -> None:
    ARTIFACT.save(tmp_path)
    context = [0.1] * 6
    answer = _load_pyfunc(str(tmp_path)).predict(_requests(context=[context, context]))
    expected = [
        load_policy(ARTIFACT).pmf(np.array(context, dtype=np.float32), preference, ARMS)
        for preference in (Preference(quality=0.5, cost=0.5), Preference(quality=1.0, cost=0.0))
    ]
    assert list(answer.columns) == ["a", "b"]
    assert list(answer.index) == [7, 9]
    np.testing.assert_array_equal(answer.to_numpy(), expected)


def test_prompts_are_encoded_by_the_encoder_named(tmp_path: Path, encoder_dir: Path) -> None:
    encoder = load_encoder(encoder_dir)
    spec = replace(a_spec(ARMS, context_dim=encoder.dim), encoder_id=encoder.encoder_id)
    PosteriorLearner().initial(spec).save(tmp_path)
    prompts = ["What is rain?", "Prove it."]
    answer = _load_pyfunc(str(tmp_path)).predict(
        _requests(prompt=prompts), {"encoder_dir": str(encoder_dir)}
    )
    np.testing.assert_allclose(answer.sum(axis=1), 1.0)


def test_another_encoder_is_refused(tmp_path: Path, encoder_dir: Path) -> None:
    ARTIFACT.save(tmp_path)
    with pytest.raises(EncoderMismatch):
        _load_pyfunc(str(tmp_path)).predict(
            _requests(prompt=["x", "y"]), {"encoder_dir": str(encoder_dir)}
        )


def test_another_static_encoder_is_refused(tmp_path: Path) -> None:
    """Same tokenizer, same length of context, other vectors."""
    mine, other = (small_static_encoder(tmp_path / f"e{seed}", seed=seed) for seed in (0, 1))
    encoder = load_encoder(mine)
    spec = replace(a_spec(ARMS, context_dim=encoder.dim), encoder_id=encoder.encoder_id)
    PosteriorLearner().initial(spec).save(tmp_path / "policy")
    policy, asked = _load_pyfunc(str(tmp_path / "policy")), _requests(prompt=["x", "y"])
    np.testing.assert_allclose(policy.predict(asked, {"encoder_dir": str(mine)}).sum(axis=1), 1.0)
    with pytest.raises(EncoderMismatch, match="is not the one trained on"):
        policy.predict(asked, {"encoder_dir": str(other)})


def test_prompts_without_an_encoder_are_refused(tmp_path: Path) -> None:
    ARTIFACT.save(tmp_path)
    with pytest.raises(InvalidRequest, match="BARP_ENCODER_DIR"):
        _load_pyfunc(str(tmp_path)).predict(_requests(prompt=["x", "y"]))


def test_a_table_without_prompts_or_weights_is_refused(tmp_path: Path) -> None:
    ARTIFACT.save(tmp_path)
    loaded = _load_pyfunc(str(tmp_path))
    with pytest.raises(InvalidRequest, match="prompt"):
        loaded.predict(_requests())
    with pytest.raises(InvalidPreference):
        loaded.predict(pd.DataFrame({"context": [[0.0] * 6]}))


def test_prices_come_from_the_lineage_else_from_the_weights() -> None:
    table = PriceTable(version=4, arms=some_arms(0.5))
    priced: PolicyArtifact = replace(ARTIFACT, training={"prices": table.to_json()})
    assert [arm.usd_per_call for arm in arms_of(priced)] == [0.5, 0.0]
    assert [arm.usd_per_call for arm in arms_of(ARTIFACT)] == [0.001, 0.009]
