"""A trained policy as one folder: weights in safetensors, everything else in JSON, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from policies.errors import ArtifactError

SCHEMA_VERSION: Final = 1
WEIGHTS_FILE: Final = "policy.safetensors"
MANIFEST_FILE: Final = "policy.json"
TRAINING_FILE: Final = "training.json"
FILES: Final = (WEIGHTS_FILE, MANIFEST_FILE, TRAINING_FILE)

Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyArtifact:
    """Everything that is needed to decide, and to go on learning, from one version.

    Attributes:
        kind: Which learner made it; names the loader in `policies.learners`.
        arms: Names of the arms it has weights for, in weight order.
        encoder_id: Whose contexts it was trained on.
        context_dim: Length of a context.
        cost_ceiling_usd: The tau its costs were clipped and scaled with, USD.
        exploration_total: Probability it explores with, shared over the arms offered.
        price_version: The price table it was last trained with.
        seed: What its stored or initial draws came from.
        hyperparameters: Numbers and words the learner was set to.
        weights: Arrays by name, learner state included, so that training can go on from here.
        training: Lineage: parent version, rows, digests, code version.
    """

    kind: str
    arms: tuple[str, ...]
    encoder_id: str
    context_dim: int
    cost_ceiling_usd: float
    exploration_total: float
    price_version: int
    seed: int
    hyperparameters: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def to_files(self) -> dict[str, bytes]:
        """Return the folder's files by name; the same artifact always gives the same bytes."""
        weights = {name: np.ascontiguousarray(self.weights[name]) for name in sorted(self.weights)}
        packed = safetensors.numpy.save(weights)
        manifest = asdict(self) | {
            "schema_version": SCHEMA_VERSION,
            "weights_sha256": hashlib.sha256(packed).hexdigest(),
            "weights_shapes": {name: list(value.shape) for name, value in weights.items()},
        }
        del manifest["weights"], manifest["training"]
        return {
            WEIGHTS_FILE: packed,
            MANIFEST_FILE: _json(manifest),
            TRAINING_FILE: _json(self.training),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> PolicyArtifact:
        """Read what `to_files` wrote, digests and shapes checked.

        Raises:
            ArtifactError: A file is missing, damaged, of a newer schema, or not what it says.
        """
        for name in FILES:
            if name not in files:
                raise ArtifactError(f"{name} is missing", field=name, allowed=", ".join(FILES))
        manifest = _parsed(files[MANIFEST_FILE], name=MANIFEST_FILE)
        if manifest.pop("schema_version", None) != SCHEMA_VERSION:
            raise ArtifactError(
                f"{MANIFEST_FILE}: schema_version must be {SCHEMA_VERSION}",
                field="schema_version",
                allowed=str(SCHEMA_VERSION),
            )
        digest = hashlib.sha256(files[WEIGHTS_FILE]).hexdigest()
        if digest != manifest.pop("weights_sha256", None):
            raise ArtifactError(
                f"{WEIGHTS_FILE}: its SHA-256 {digest} is not the one in {MANIFEST_FILE}",
                field="weights_sha256",
                value=digest,
            )
        weights = safetensors.numpy.load(files[WEIGHTS_FILE])
        shapes = {name: list(value.shape) for name, value in weights.items()}
        if shapes != manifest.pop("weights_shapes", None):
            raise ArtifactError(f"{WEIGHTS_FILE}: other arrays than {MANIFEST_FILE} names")
        training = _parsed(files[TRAINING_FILE], name=TRAINING_FILE)
        try:
            return cls(
                **(manifest | {"arms": tuple(manifest["arms"])}),
                weights=weights,
                training=training,
            )
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{MANIFEST_FILE}: {error}", field=MANIFEST_FILE) from error

    def save(self, folder: Path) -> None:
        """Write the folder; each file appears whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.to_files().items():
            write_atomically(folder / name, content)

    @classmethod
    def load(cls, folder: Path) -> PolicyArtifact:
        """Read a folder that `save` wrote; raises ArtifactError."""
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        return cls.from_files(files)


def digest(artifact: PolicyArtifact) -> str:
    """Name the weights by content: the SHA-256 of their file, as hexadecimal."""
    return hashlib.sha256(artifact.to_files()[WEIGHTS_FILE]).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the file, flush to disk, rename: a reader never sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _json(value: Mapping[str, Any]) -> bytes:
    """Encode with sorted keys, so that equal values give equal bytes."""
    return json.dumps(dict(value), sort_keys=True, indent=1, allow_nan=False).encode()


def _parsed(content: bytes, *, name: str) -> dict[str, Any]:
    """Decode one JSON object; raises ArtifactError where it is none."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ArtifactError(f"{name} is not JSON: {error}", field=name) from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{name} must hold a JSON object", field=name)
    return value
