"""Real prompts with real outcomes, encoded once a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.outcomes import BUILT_IN, arms_with_prices, load_outcomes
from policies.encoder import load_encoder
from policies.references import HeldOut

NUM_PROMPTS = 800


@pytest.fixture(scope="session")
def real_outcomes(encoder_dir: Path) -> HeldOut:
    """What three models scored and cost on some hundred prompts, the validation part only."""
    table = load_outcomes(BUILT_IN)
    table = table.take(np.random.default_rng(0).permutation(len(table))[:NUM_PROMPTS])
    return HeldOut(
        contexts=load_encoder(encoder_dir).encode(table.prompts),
        scores=table.scores,
        costs=table.costs,
        arms=arms_with_prices(table),
        cost_ceiling_usd=float(table.costs.mean(axis=0).max()),
    )
