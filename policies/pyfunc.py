"""A version in MLflow's own format: `mlflow.pyfunc.load_model("models:/barp@champion")`.

MLflow finds `_load_pyfunc` by the module's name in the MLmodel file; nothing is unpickled, and
this module needs no MLflow.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from policies.arms import Arm, PriceTable
from policies.artifact import PolicyArtifact
from policies.encoder import Encoder, load_encoder
from policies.errors import EncoderMismatch, InvalidRequest
from policies.learners import load_policy
from policies.preference import Preference

ENCODER_VARIABLE: Final = "BARP_ENCODER_DIR"
ENCODER_KEY: Final = "encoder_dir"
PRICES_KEY: Final = "prices"


class PyfuncPolicy:
    """A policy that answers a table of requests with a table of probabilities."""

    def __init__(self, artifact: PolicyArtifact) -> None:
        self._artifact = artifact
        self._policy = load_policy(artifact)
        self._arms = arms_of(artifact)

    def predict(
        self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return the pmf of each row over all arms of the version.

        Args:
            model_input: Columns `quality` and `cost`, weights >= 0 that are scaled to sum to one
                (a missing one is 0), and either `context`, encoded prompts, or `prompt`, texts.
            params: `encoder_dir`, the folder of the encoder that texts need. Else it is taken
                from the environment, BARP_ENCODER_DIR, or from the artifact's training.json.

        Returns:
            One row a request, same index, one column an arm.

        Raises:
            InvalidRequest: A column is missing, weights are not allowed, or no model was offered
                when the version was registered.
            EncoderMismatch: The encoder is not the one the version was trained on.
        """
        if not self._arms:
            raise InvalidRequest(
                "this version was registered before any model was offered: it has no pmf",
                field="version",
                allowed="a version with at least one model",
            )
        contexts = self._contexts(model_input, params or {})
        weights = [
            Preference.normalised(
                quality=float(row.get("quality", 0)), cost=float(row.get("cost", 0))
            )
            for row in model_input.to_dict("records")
        ]
        pmfs = [
            self._policy.pmf(context, preference, self._arms)
            for context, preference in zip(contexts, weights, strict=True)
        ]
        names = [arm.name for arm in self._arms]
        table = np.reshape(pmfs, (len(pmfs), len(names)))
        return pd.DataFrame(table, columns=names, index=model_input.index)

    def _contexts(
        self, model_input: pd.DataFrame, params: Mapping[str, Any]
    ) -> NDArray[np.float32]:
        """Read contexts, or encode the prompts."""
        if "context" in model_input:
            contexts = [np.asarray(row, dtype=np.float32) for row in model_input["context"]]
            return np.reshape(contexts, (len(contexts), self._artifact.context_dim))
        if "prompt" not in model_input:
            raise InvalidRequest(
                "a column `prompt` or `context` is needed", field="prompt", allowed="text"
            )
        return self._encoder(params).encode([str(text) for text in model_input["prompt"]])

    def _encoder(self, params: Mapping[str, Any]) -> Encoder:
        """Load the encoder the version was trained on."""
        folder = (
            params.get(ENCODER_KEY)
            or os.environ.get(ENCODER_VARIABLE)
            or self._artifact.training.get(ENCODER_KEY)
        )
        if folder is None:
            raise InvalidRequest(
                f"prompts need an encoder: set {ENCODER_VARIABLE} or the parameter {ENCODER_KEY}",
                field=ENCODER_KEY,
                allowed="the folder of an exported encoder",
            )
        encoder = load_encoder(str(folder))
        if encoder.encoder_id != self._artifact.encoder_id:
            raise EncoderMismatch(
                f"encoder {encoder.encoder_id} is not the one trained on",
                field=ENCODER_KEY,
                value=encoder.encoder_id,
                allowed=self._artifact.encoder_id,
            )
        return encoder


def arms_of(artifact: PolicyArtifact) -> tuple[Arm, ...]:
    """List a version's arms with the prices it knows: its price table, else those it learned at."""
    if PRICES_KEY in artifact.training:
        table = PriceTable.from_json(artifact.training[PRICES_KEY])
        known = {arm.name: arm for arm in table.arms}
    else:
        listed = artifact.weights.get("list_cost_usd", np.zeros(len(artifact.arms)))
        known = {
            name: Arm(name=name, usd_per_call=float(cost))
            for name, cost in zip(artifact.arms, listed, strict=True)
        }
    return tuple(known.get(name, Arm(name=name)) for name in artifact.arms)


def _load_pyfunc(path: str) -> PyfuncPolicy:
    """Load an artifact folder, as MLflow asks for it; raises ArtifactError."""
    return PyfuncPolicy(PolicyArtifact.load(Path(path)))
