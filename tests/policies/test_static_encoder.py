"""The static encoder: equal to sentence-transformers' own, without it on the serving path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from encoders import SMALL_DIM, minilm_tokenizer, small_static_encoder, token_vectors

from policies.encoder import Encoder, build_encoder, describe_encoder, load_encoder
from policies.encoder_files import ENCODER_FILE
from policies.errors import ArtifactError
from policies.prompt_form import FORM_DIM, FORM_WEIGHT, prompt_forms
from policies.static_encoder import (
    FIRST_WORD,
    VECTORS_FILE,
    principal_components,
    sif_weights,
)

TEXTS = (
    "Write a haiku about rain.",
    "def add(a, b):\n    return a + b  # what does this do?",
    "¿Cuál es la capital de Perú? 東京は日本の首都です。",
    "word " * 600,
    "x",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_static_encoder(tmp_path_factory.mktemp("static"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load_encoder(folder)


def test_equals_sentence_transformers(encoder: Encoder) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    module = StaticEmbedding(minilm_tokenizer(), embedding_weights=token_vectors())
    reference = SentenceTransformer(modules=[module], device="cpu").encode(
        list(TEXTS), normalize_embeddings=True
    )
    np.testing.assert_allclose(encoder.encode(TEXTS)[:, :SMALL_DIM], reference, atol=1e-6)


def test_a_context_does_not_depend_on_its_batch(encoder: Encoder) -> None:
    together = encoder.encode(TEXTS * 4)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_array_equal(together, np.tile(alone, (4, 1)))


def test_contexts_are_float32_rows_of_length_one_and_the_form(encoder: Encoder) -> None:
    contexts = encoder.encode(TEXTS)
    assert contexts.dtype == np.float32
    assert contexts.shape == (len(TEXTS), encoder.dim) == (len(TEXTS), SMALL_DIM + FORM_DIM)
    lengths = np.linalg.norm(contexts[:, :SMALL_DIM], axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-6)
    np.testing.assert_allclose(contexts[:, SMALL_DIM:], FORM_WEIGHT * prompt_forms(TEXTS))


def test_a_text_without_a_token_has_a_form_alone(encoder: Encoder) -> None:
    np.testing.assert_array_equal(encoder.encode(["", " \n"])[:, :SMALL_DIM], 0.0)
    assert encoder.encode([]).shape == (0, SMALL_DIM + FORM_DIM)


def test_an_encoder_from_before_the_form_gives_the_contexts_it_gave(
    encoder: Encoder, tmp_path: Path
) -> None:
    """Its policies go on with it; it has another id than one that adds the form."""
    folder = small_static_encoder(tmp_path / "older", form=0)
    manifest = json.loads((folder / ENCODER_FILE).read_bytes())
    del manifest["form"]
    (folder / ENCODER_FILE).write_text(json.dumps(manifest))
    older = load_encoder(folder)
    assert older.dim == SMALL_DIM
    assert older.encoder_id != encoder.encoder_id
    np.testing.assert_array_equal(older.encode(TEXTS), encoder.encode(TEXTS)[:, :SMALL_DIM])


def test_a_form_that_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = small_static_encoder(tmp_path / "newer", form=99)
    with pytest.raises(ArtifactError):
        load_encoder(folder)


def test_serving_imports_neither_torch_nor_sentence_transformers(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from policies.encoder import load_encoder; "
        "load_encoder(Path(sys.argv[1])).encode(['a prompt']); "
        "sys.exit(int(bool({'torch', 'sentence_transformers'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert done.returncode == 0


def test_the_id_names_the_bytes(folder: Path, tmp_path: Path) -> None:
    encoder_id, dim = describe_encoder(folder)
    assert encoder_id.startswith("minilm-l6-v2-static-")
    assert dim == SMALL_DIM + FORM_DIM
    other = small_static_encoder(tmp_path / "other", seed=1)
    assert describe_encoder(other)[0] != encoder_id


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    damaged = small_static_encoder(tmp_path / "damaged")
    content = bytearray((damaged / VECTORS_FILE).read_bytes())
    content[-1] ^= 1
    (damaged / VECTORS_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match="do not match"):
        load_encoder(damaged)


@pytest.mark.parametrize("stated", [b"[]", b"{}", b'{"schema_version": 1, "kind": "other"}'])
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, stated: bytes) -> None:
    folder = small_static_encoder(tmp_path / "odd")
    (folder / ENCODER_FILE).write_bytes(stated)
    with pytest.raises(ArtifactError):
        load_encoder(folder)


def test_the_rarer_a_word_the_more_it_weighs() -> None:
    weights = sif_weights(["[PAD]"] * FIRST_WORD + [f"word{i}" for i in range(20_000)])
    assert weights[0] == 0.0
    assert (np.diff(weights[FIRST_WORD:]) > 0).all()
    assert weights[FIRST_WORD] < 0.1
    assert weights[-1] > 0.9


def test_punctuation_weighs_less_than_a_rare_character() -> None:
    tokens = ["[unused]"] * 999 + [","] + ["東"] * (FIRST_WORD - 1_000) + ["the"] * 9
    weights = sif_weights(tokens)
    assert 0 < weights[999] < weights[1_000]


def test_principal_components_keep_distances_when_nothing_is_cut() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 4))
    kept = principal_components(rows, 4)
    before = np.linalg.norm(rows[:, None] - rows, axis=2)
    np.testing.assert_allclose(np.linalg.norm(kept[:, None] - kept, axis=2), before)
    variances = kept.var(axis=0)
    assert (np.diff(variances) <= 1e-12).all()


@pytest.mark.slow
def test_distilled_contexts_resemble_those_of_minilm(tmp_path: Path, encoder_dir: Path) -> None:
    """Of two paraphrases and a stranger, the paraphrase is nearer, as with MiniLM."""
    build_encoder("static", tmp_path)
    texts = ["How do I sort a list in Python?", "Sorting a Python list", "Who painted the ceiling?"]
    for folder in (tmp_path, encoder_dir):
        contexts = load_encoder(folder).encode(texts)
        assert contexts[0] @ contexts[1] > contexts[0] @ contexts[2] + 0.2
