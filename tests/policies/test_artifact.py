"""The artifact on disk: the same bytes for the same policy, and nothing damaged gets in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policies.artifact import (
    FILES,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    PolicyArtifact,
    digest,
    write_atomically,
)
from policies.errors import ArtifactError

ARTIFACT = PolicyArtifact(
    kind="barp",
    arms=("a", "b"),
    encoder_id="e",
    context_dim=2,
    cost_ceiling_usd=0.01,
    exploration_total=0.02,
    price_version=3,
    seed=7,
    hyperparameters={"rate": 0.1},
    weights={"w": np.arange(4.0).reshape(2, 2), "b": np.array([1], dtype=np.int64)},
    training={"parent_version": 1},
)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    ARTIFACT.save(tmp_path / "v1")
    loaded = PolicyArtifact.load(tmp_path / "v1")
    assert loaded.to_files() == ARTIFACT.to_files()
    assert replace(loaded, weights={}) == replace(ARTIFACT, weights={})
    assert sorted(file.name for file in (tmp_path / "v1").iterdir()) == sorted(FILES)


def test_the_digest_names_the_weights_alone() -> None:
    assert digest(replace(ARTIFACT, training={})) == digest(ARTIFACT)
    moved = replace(ARTIFACT, weights={**ARTIFACT.weights, "w": np.ones((2, 2))})
    assert digest(moved) != digest(ARTIFACT)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(name: str) -> None:
    files = ARTIFACT.to_files()
    del files[name]
    with pytest.raises(ArtifactError, match=name):
        PolicyArtifact.from_files(files)


def test_a_flipped_byte_in_the_weights_is_refused() -> None:
    files = ARTIFACT.to_files()
    content = bytearray(files[WEIGHTS_FILE])
    content[-1] ^= 1
    with pytest.raises(ArtifactError, match="SHA-256"):
        PolicyArtifact.from_files(files | {WEIGHTS_FILE: bytes(content)})


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2},
        {"weights_shapes": {"w": [4]}},
        {"unheard_of": 1},
        {"weights_sha256": "0" * 64},
    ],
)
def test_a_manifest_that_says_something_else_is_refused(changes: dict[str, object]) -> None:
    files = ARTIFACT.to_files()
    manifest = json.loads(files[MANIFEST_FILE]) | changes
    with pytest.raises(ArtifactError):
        PolicyArtifact.from_files(files | {MANIFEST_FILE: json.dumps(manifest).encode()})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_what_is_no_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=MANIFEST_FILE):
        PolicyArtifact.from_files(ARTIFACT.to_files() | {MANIFEST_FILE: content})


def test_writing_replaces_a_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"long content", b"short"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
